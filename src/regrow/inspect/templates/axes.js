// The list of axes, with a filter, and what is frozen, by reason.

const list = one("#axes");
const share = (axis) => (axis.params * axis.size) / Math.max(1, data.parameters);
const kindsOf = (axis) => [axis.kind, ...axis.tags];
const flaws = (axis) => Object.entries(axis.verdicts).filter(([, reason]) => reason != null);
const FLAWS = { prunable: "not prunable", growable: "not growable", exact: "inexact" };

function axisButton(axis) {
  const marks = [...(axis.kind === "neuron" ? [] : [axis.kind]), ...axis.tags].join(" ");
  return element(
    "button",
    {
      type: "button",
      class: "axis",
      "data-axis": axis.index,
      tabindex: "-1",
      title: `${axis.name}: ${plural(axis.size, axis.kind)}, ${percent(share(axis))} of the parameters`,
    },
    element("span", { class: "name" }, element("bdi", {}, axis.name)),
    element("span", { class: "tag" }, marks),
    element("span", { class: "size" }),
  );
}

/** What the list can be sorted by, and how it is written. */
const MEASURES = {
  order: [null, (axis) => whole(axis.size)],
  size: [(axis) => axis.size, (axis) => whole(axis.size)],
  params: [share, (axis) => percent(share(axis))],
  flops: [(axis) => axis.flops * axis.size, (axis) => count(axis.flops * axis.size)],
};

const axisButtons = axes.map(axisButton);
const wanted = new Set();

function drawList() {
  const terms = one("#filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [measure, written] = MEASURES[one("#sort").value];
  const matches = axes.filter((axis) => {
    const text = [axis.name, ...kindsOf(axis), ...flaws(axis).map(([name]) => FLAWS[name])].join(" ").toLowerCase();
    return terms.every((term) => text.includes(term)) && [...wanted].every((kind) => kindsOf(axis).includes(kind));
  });
  if (measure) matches.sort((a, b) => measure(b) - measure(a));
  for (const axis of matches) one(".size", axisButtons[axis.index]).textContent = written(axis);
  list.replaceChildren(...matches.map((axis) => axisButtons[axis.index]));
  list.firstElementChild?.setAttribute("tabindex", "0");
  one("#none").hidden = matches.length > 0 || axes.length === 0;
}

function drawKinds() {
  const numbers = new Map();
  for (const axis of axes) for (const kind of kindsOf(axis)) numbers.set(kind, (numbers.get(kind) ?? 0) + 1);
  if (numbers.size < 2) return;
  for (const [kind, number] of numbers) {
    const button = element("button", { type: "button", "aria-pressed": "false" }, `${kind} ${whole(number)}`);
    button.addEventListener("click", () => {
      const on = !wanted.delete(kind) && Boolean(wanted.add(kind));
      button.setAttribute("aria-pressed", String(on));
      drawList();
    });
    one("#kinds").append(button);
  }
}

function drawReasons() {
  const byReason = new Map();
  for (const cell of cells) {
    for (const { reason } of cell.frozen) {
      byReason.set(reason, [...(byReason.get(reason) ?? []), { cell, role: "still" }]);
    }
  }
  if (!byReason.size) return;
  const found = [...byReason].sort((a, b) => b[1].length - a[1].length);
  one("#reasons").append(
    element("h2", {}, "Frozen dimensions"),
    ...found.map(([reason, places]) => {
      const button = element(
        "button",
        { type: "button", class: "reason" },
        element("span", { class: "name" }, reason),
        element("span", { class: "tag" }, whole(places.length)),
      );
      button.subject = { reason, places };
      return button;
    }),
  );
}

function moveInList(event) {
  const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const to = step && event.target.closest(".axis, .reason")?.[step];
  if (!to) return;
  event.preventDefault();
  to.focus();
}
