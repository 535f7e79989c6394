// What the reader does. A subject is an axis, a dimension that is in none, or a reason; it is shown while it is
// pointed at or has the focus, and kept by a click.

let shown = null;
let kept = false;
let fading = 0;

const placesOf = (subject) => {
  if (!subject) return [];
  if (subject.axis) return subject.axis.all;
  return subject.places ?? [{ cell: subject.thing, role: "still" }];
};

function show(subject) {
  clearTimeout(fading);
  if (same(subject, shown)) return;
  shown = subject;
  light(placesOf(subject), subject?.unit);
  mark();
  inspect(subject, kept);
  one("#said").textContent = subject?.axis ? `${subject.axis.name}: ${plural(subject.axis.all.length, "place")}` : "";
}

const same = (a, b) =>
  a === b || Boolean(a && b && a.axis === b.axis && a.thing === b.thing && a.reason === b.reason && a.unit === b.unit);

/** What is pointed at beats nothing but what is kept. */
const preview = (subject) => kept || show(subject);
const fade = () => {
  clearTimeout(fading);
  if (!kept) fading = setTimeout(() => show(null), 150);
};

function keep(subject) {
  kept = true;
  shown = null;
  show(subject);
  document.body.classList.add("kept");
  const name = subject.axis?.name;
  history.replaceState(null, "", name ? `#axis=${encodeURIComponent(name)}` : "#");
}

function release() {
  kept = false;
  document.body.classList.remove("kept");
  history.replaceState(null, "", "#");
  show(null);
}

/** In the list, the axis or the reason that is shown; in the network, the dimension that led to it. */
function mark() {
  for (const button of all('#index [aria-pressed="true"].axis, #index [aria-pressed="true"].reason'))
    button.removeAttribute("aria-pressed");
  const listed = shown?.axis
    ? axisButtons[shown.axis.index]
    : all(".reason").find(({ subject }) => subject.reason === shown?.reason);
  listed?.setAttribute("aria-pressed", "true");
  const { thing } = shown ?? {};
  if (thing)
    for (const button of buttonsOf(thing.tensor ? { cell: thing } : { integer: thing })) button.classList.add("here");
}

/** Show one unit; it stays when the pointer goes on only if it was asked for by the slider or a click. */
function chooseUnit(unit, stays = true) {
  if (!shown?.axis) return;
  if (stays) shown = { ...shown, unit };
  drawUnit(shown.axis.all, unit);
  for (const row of all(".place", inspector)) drawPlace(row, unit);
  const slider = one("#unit");
  if (!slider) return;
  slider.value = String(unit ?? -1);
  one(".unit output").textContent = unit == null ? "all" : `unit ${unit}`;
}

/** Walk along an axis, from place to place. */
function step(by) {
  const places = placesOf(shown);
  if (!places.length) return;
  const at = places.findIndex((place) => (place.cell ?? place.integer) === shown.thing);
  goTo(places[at < 0 ? (by > 0 ? 0 : places.length - 1) : (at + by + places.length) % places.length]);
}

function goTo(place) {
  const { unit } = shown;
  const thing = place.cell ?? place.integer;
  const scrolled = inspector.scrollTop;
  keep({ ...shown, thing, unit });
  inspector.scrollTop = scrolled;
  const [button] = buttonsOf(place);
  if (button) reveal(button);
  one('.place[aria-current="true"]')?.scrollIntoView({ block: "nearest" });
}

/** Which index of a dimension the pointer is at, along the element that shows it. */
function indexUnder(event, node, size) {
  const box = node.getBoundingClientRect();
  return Math.min(size - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * size)));
}

/** What a dimension is about: the axis under the pointer, or with a key the first one. */
function subjectsOf(button, event) {
  const thing = thingOf(button);
  let here = thing.lies;
  if (thing.tensor && event?.clientX && here.length > 1) {
    const index = indexUnder(event, button, thing.size);
    const under = here.filter(({ pattern }) => unitAt(pattern, index) >= 0);
    here = under.length ? under : here;
  }
  return here.length ? here.map(({ axis }) => ({ axis, thing })) : [{ thing }];
}

/** A click keeps; another one goes on to the next axis along the dimension, and in the end releases. */
function press(button, event) {
  const subjects = subjectsOf(button, event.detail ? event : null);
  const at = kept ? subjects.findIndex((subject) => subject.axis === shown.axis && subject.thing === shown.thing) : -1;
  if (at === subjects.length - 1 && at >= 0) release();
  else keep(subjects[at + 1]);
}

const tip = one("#tip");

function showTip(button) {
  const thing = thingOf(button);
  const lines = thing.lies
    .slice(0, 6)
    .map(({ axis, role }) =>
      element("div", {}, element("b", {}, axis.name), element("small", {}, SENTENCES[role] ?? "")),
    );
  if (thing.lies.length > 6) lines.push(element("small", {}, `and ${thing.lies.length - 6} more axes`));
  if (thing.tensor)
    lines.push(
      ...reasonsOf(thing).map(({ text, size }) => element("div", {}, text, size ? element("small", {}, size) : null)),
    );
  tip.replaceChildren(...lines);
  tip.hidden = false;
  const box = button.getBoundingClientRect();
  const below = box.bottom + tip.offsetHeight + 12 < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${below ? box.bottom + 6 : box.top - tip.offsetHeight - 6}px`;
}

const hideTip = () => (tip.hidden = true);

function followNetwork() {
  const under = (event) => event.target.closest?.(".dim");
  network.addEventListener("pointermove", (event) => {
    const button = under(event);
    if (!button || event.pointerType === "touch") return;
    preview(subjectsOf(button, event)[0]);
    if (tip.hidden || tip.button !== button) showTip(button);
    tip.button = button;
  });
  network.addEventListener("pointerout", (event) => {
    if (!under(event)) return;
    hideTip();
    fade();
  });
  network.addEventListener("focusin", (event) => {
    const button = under(event);
    if (!button) return;
    rove(button);
    if (!button.matches(":focus-visible")) return;
    preview(subjectsOf(button)[0]);
    showTip(button);
  });
  network.addEventListener("focusout", () => (hideTip(), fade()));
  network.addEventListener("click", (event) => {
    const button = under(event);
    if (!button) return;
    event.preventDefault(); // or a summary would fold
    press(button, event);
  });
  network.addEventListener("keydown", moveFocus);
  network.addEventListener("scroll", () => (hideTip(), placeRuler()), { passive: true });
  rows.addEventListener("toggle", drawRuler, true);
  new ResizeObserver(drawRuler).observe(network);
}

const placeRuler = () => (ruler.style.transform = `translateY(${network.scrollTop}px)`);

function followIndex() {
  const subjectOf = (event) => {
    const button = event.target.closest?.(".axis, .reason");
    return button && (button.subject ?? { axis: axes[Number(button.dataset.axis)] });
  };
  const index = one("#index");
  index.addEventListener(
    "pointerover",
    (event) => event.pointerType !== "touch" && subjectOf(event) && preview(subjectOf(event)),
  );
  index.addEventListener("pointerout", fade);
  index.addEventListener(
    "focusin",
    (event) => event.target.matches(":focus-visible") && subjectOf(event) && preview(subjectOf(event)),
  );
  index.addEventListener("focusout", fade);
  index.addEventListener("keydown", moveInList);
  index.addEventListener("click", (event) => {
    const subject = subjectOf(event);
    if (!subject) return;
    if (kept && shown.axis === subject.axis && shown.reason === subject.reason) return release();
    keep(subject);
    step(1);
  });
  one("#filter").addEventListener("input", drawList);
  one("#sort").addEventListener("change", drawList);
}

function followInspector() {
  const unitUnder = (event) => {
    const strip = event.target.closest(".strip");
    const place = strip?.closest(".place").place;
    if (place?.pattern == null) return null;
    const unit = unitAt(place.pattern, indexUnder(event, strip, sizeOf(place)));
    return unit < 0 ? null : unit;
  };
  inspector.addEventListener("click", (event) => {
    const unit = unitUnder(event);
    const row = event.target.closest(".place");
    if (unit != null) chooseUnit(unit);
    else if (row) goTo(row.place);
  });
  inspector.addEventListener("pointermove", (event) => {
    const unit = unitUnder(event);
    if (unit != null) chooseUnit(unit, false);
  });
  inspector.addEventListener("pointerout", (event) => {
    if (event.target.matches(".strip")) chooseUnit(shown?.unit ?? null);
  });
}

function followKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") release();
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "n") step(1);
    if (event.key === "p") step(-1);
    if (event.key === "/") {
      event.preventDefault();
      one("#filter").focus();
    }
  });
  one("#fold").addEventListener("click", () => {
    const folds = all("details", rows);
    const open = !folds.some((fold) => fold.open);
    for (const fold of folds) fold.open = open;
    one("#fold").textContent = open ? "Fold" : "Unfold";
  });
  one("#idle")?.addEventListener("change", (event) => {
    rows.classList.toggle("all", event.target.checked);
    drawRuler();
  });
}

document.body.append(element("p", { id: "said", class: "unseen", "aria-live": "polite" }));
drawKinds();
drawList();
drawReasons();
drawAtRest();
followNetwork();
followIndex();
followInspector();
followKeys();
inspect(null, false);
const first = one(".dim", network);
if (first) rove(first);
const linked = axes.find(({ name }) => location.hash === `#axis=${encodeURIComponent(name)}`);
if (linked) {
  keep({ axis: linked });
  step(1);
}
document.documentElement.dataset.ready = "true";
