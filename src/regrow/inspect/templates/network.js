// The network: which dimensions light up, where they are, and how a keyboard moves between them.

const rows = one("#rows");
const network = one("#network");
const ruler = one("#ruler");
const buttons = { cell: new Map(), integer: new Map() };

for (const button of all(".dim", network)) {
  const [kind, index] = button.dataset.cell
    ? ["cell", Number(button.dataset.cell)]
    : ["integer", Number(button.dataset.integer)];
  buttons[kind].set(index, [...(buttons[kind].get(index) ?? []), button]);
}

const thingOf = (button) =>
  button.dataset.cell ? cells[Number(button.dataset.cell)] : integers[Number(button.dataset.integer)];
const buttonsOf = (place) =>
  (place.cell ? buttons.cell.get(place.cell.index) : buttons.integer.get(place.integer.index)) ?? [];

/** At rest a dimension shows which part of it moves with any axis; and it says what it is. */
function drawAtRest() {
  for (const cell of cells) {
    for (const button of buttons.cell.get(cell.index) ?? []) {
      const moves = cell.lies.length ? `moves with ${cell.lies.map(({ axis }) => axis.name).join(", ")}` : "";
      const still = cell.frozen.map(({ reason }) => `frozen: ${reason}`).join("; ");
      button.setAttribute(
        "aria-label",
        `${cell.tensor}, dimension ${cell.dim}, size ${cell.size}; ${moves || still || "still"}`,
      );
      rest(button, cell);
    }
  }
}

function rest(button, thing) {
  const shared = thing.lies.length > 1 || button.classList.contains("partly");
  if (shared && thing.tensor) button.style.setProperty("--picture", pictureOfAll(thing));
  else button.style.removeProperty("--picture");
}

let lit = [];

/** Light up places, and nothing else. */
function light(places, unit) {
  for (const button of lit) {
    button.classList.remove("on", "here");
    button.removeAttribute("data-role");
    rest(button, thingOf(button));
  }
  for (const around of all(".lit", rows)) around.classList.remove("lit");
  lit = [];
  for (const place of places) {
    for (const button of buttonsOf(place)) {
      button.classList.add("on");
      button.dataset.role = place.role;
      lit.push(button);
      for (
        let around = button.closest(".row");
        around && !around.matches(".lit");
        around = around.parentElement.closest("details")
      ) {
        around.classList.add("lit");
      }
    }
  }
  drawUnit(places, unit);
  drawRuler();
}

function drawUnit(places, unit) {
  document.body.classList.toggle("of-unit", unit != null);
  for (const place of places) {
    if (place.pattern == null) continue;
    const drawing = pictureOf(place, sizeOf(place), unit);
    for (const button of buttonsOf(place)) button.style.setProperty("--picture", drawing);
  }
}

/** Marks beside the scroll bar: where in the network the lit dimensions are. */
function drawRuler() {
  const height = network.clientHeight - 36;
  const top = network.getBoundingClientRect().top - network.scrollTop;
  const scale = height / Math.max(network.scrollHeight, 1);
  const marks = new Map();
  for (const button of lit) {
    const row = button.closest("details:not([open])")?.firstElementChild ?? button;
    const at = Math.round((row.getBoundingClientRect().top - top) * scale);
    if (!marks.has(at)) marks.set(at, button);
  }
  ruler.replaceChildren(
    ...[...marks].map(([at, button]) =>
      element("button", {
        type: "button",
        tabindex: "-1",
        style: `top:${at}px`,
        "data-role": button.dataset.role,
        onclick: () => reveal(button),
      }),
    ),
  );
}

/** Scroll to a dimension, opening what it is folded into. */
function reveal(button) {
  for (let around = button.closest("details"); around; around = around.parentElement.closest("details"))
    around.open = true;
  button.scrollIntoView({
    block: "center",
    behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth",
  });
}

/** One dimension at a time can be reached with Tab; arrows lead to the others. */
function rove(button) {
  one('.dim[tabindex="0"]', network)?.setAttribute("tabindex", "-1");
  button.setAttribute("tabindex", "0");
}

function moveFocus(event) {
  const from = event.target.closest(".dim");
  const to = from && neighbour(from, event.key);
  if (!to) return;
  event.preventDefault();
  to.focus();
}

function neighbour(from, key) {
  const seen = all(".dim", network).filter((button) => button.offsetParent);
  const at = seen.indexOf(from);
  if (key === "ArrowRight") return seen[at + 1];
  if (key === "ArrowLeft") return seen[at - 1];
  if (key === "Home") return seen[0];
  if (key === "End") return seen.at(-1);
  if (key !== "ArrowDown" && key !== "ArrowUp") return undefined;
  const rowOf = (button) => button.closest(".row, .bar");
  const beyond = key === "ArrowDown" ? seen.slice(at) : seen.slice(0, at + 1).reverse();
  const next = beyond.find((button) => rowOf(button) !== rowOf(from));
  if (!next) return undefined;
  const peers = (row) => all(".dim", row);
  const column = peers(rowOf(from)).indexOf(from);
  return peers(rowOf(next))[Math.min(column, peers(rowOf(next)).length - 1)];
}
