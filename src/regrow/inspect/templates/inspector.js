// What is known of the axis, or of the dimension, that is pointed at.

const inspector = one("#inspector");

function inspect(subject, kept) {
  inspector.classList.toggle("rest", !subject);
  inspector.replaceChildren(...(subject ? about(subject, kept) : guide()));
}

function about(subject, kept) {
  if (subject.axis) return aboutAxis(subject, kept);
  if (subject.reason) return aboutReason(subject, kept);
  return aboutStill(subject, kept);
}

function heading(name, lead, kept) {
  const close = element(
    "button",
    { type: "button", class: "plain", id: "release", onclick: () => release() },
    "Release",
  );
  return [
    element("div", { class: "subject" }, element("h2", {}, name), kept ? close : null),
    element("p", { class: "lead" }, lead),
  ];
}

function aboutAxis({ axis, thing, unit }, kept) {
  const tags = axis.tags.length ? `, ${axis.tags.join(", ")}` : "";
  return [
    ...heading(axis.name, `${plural(axis.size, axis.kind)}${tags}`, kept),
    ...otherAxes(axis, thing),
    element(
      "dl",
      { class: "numbers" },
      number("Parameters a unit", count(axis.params)),
      number(`FLOPs a unit`, count(axis.flops)),
      number("Of all parameters", percent(share(axis))),
    ),
    element("ul", { class: "verdicts" }, ...Object.entries(axis.verdicts).map(verdict)),
    call(axis),
    ...unitChooser(axis, unit),
    element(
      "div",
      { class: "steps" },
      element(
        "h3",
        {},
        plural(axis.places.length, "tensor dimension") +
          (axis.counts.length ? `, ${plural(axis.counts.length, "integer")}` : ""),
      ),
      element(
        "button",
        { type: "button", title: "Previous place (p)", "aria-label": "Previous place", onclick: () => step(-1) },
        "↑",
      ),
      element(
        "button",
        { type: "button", title: "Next place (n)", "aria-label": "Next place", onclick: () => step(1) },
        "↓",
      ),
    ),
    ...axis.all.map((place) => placeRow(place, thing, unit)),
  ];
}

const number = (name, value) => element("div", {}, element("dt", {}, name), element("dd", {}, value));

function verdict([name, reason]) {
  if (reason == null) return element("li", {}, name);
  return element("li", { class: "no" }, element("span", {}, `${FLAWS[name]}${reason ? `: ${reason}` : ""}`));
}

/** Several axes may lie along one dimension: heads and their features, or the parts of a concatenation. */
function otherAxes(axis, thing) {
  const here = thing?.lies ?? [];
  if (here.length < 2) return [];
  return [
    element(
      "p",
      { class: "lead" },
      `One of ${here.length} axes along ${thing.tensor ? `${thing.tensor}[${thing.dim}]` : thing.name}:`,
    ),
    element(
      "div",
      { class: "others" },
      ...here.map((place) =>
        element(
          "button",
          {
            type: "button",
            "aria-pressed": String(place.axis === axis),
            onclick: () => keep({ axis: place.axis, thing }),
          },
          place.axis.name,
        ),
      ),
    ),
  ];
}

function call(axis) {
  const text = `structure[${JSON.stringify(axis.name)}]`;
  const copy = element("button", { type: "button" }, "Copy");
  const code = element("code", {}, text);
  copy.addEventListener("click", () => {
    getSelection().selectAllChildren(code); // where there is no clipboard, Ctrl-C is left to do
    navigator.clipboard?.writeText(text).then(
      () => (copy.textContent = "Copied"),
      () => {},
    );
  });
  return element("div", { class: "call" }, code, copy);
}

function unitChooser(axis, unit) {
  if (axis.size < 2) return [];
  const slider = element("input", {
    type: "range",
    id: "unit",
    min: "-1",
    max: String(axis.size - 1),
    value: String(unit ?? -1),
  });
  slider.addEventListener("input", () => chooseUnit(slider.value === "-1" ? null : Number(slider.value)));
  return [
    element(
      "div",
      { class: "unit" },
      element("label", { for: "unit" }, "Where one unit lies: drag, or point along a picture below"),
      slider,
      element("output", { for: "unit" }, unit == null ? "all" : `unit ${unit}`),
    ),
  ];
}

function placeRow(place, thing, unit) {
  const name = labelOf(place);
  const row = element(
    "button",
    {
      type: "button",
      class: "place",
      "data-role": place.role,
      title: `${name}: ${SENTENCES[place.role] ?? place.role}`,
    },
    element("span", { class: "role" }, ROLES[place.role] ?? place.role),
    element(
      "span",
      { class: "name" },
      element("bdi", {}, place.integer ? `${name} = ${whole(place.integer.value)}` : name),
    ),
    element("span", { class: "strip" }),
    element("span", { class: "indices" }),
  );
  row.place = place;
  if (thing && (place.cell ?? place.integer) === thing) row.setAttribute("aria-current", "true");
  drawPlace(row, unit);
  return row;
}

/** The picture of a place, and the indices of the chosen unit. */
function drawPlace(row, unit) {
  const { place } = row;
  one(".strip", row).style.setProperty("--picture", pictureOf(place, sizeOf(place), unit));
  const ranges = unit == null ? [] : rangesOf(place.pattern, unit);
  const indices = one(".indices", row);
  indices.textContent = unit == null ? "" : writtenRanges(ranges, 1);
  indices.title = unit == null ? "" : writtenRanges(ranges);
}

function aboutReason({ reason, places }, kept) {
  return [
    ...heading("Frozen", reason, kept),
    element("div", { class: "steps" }, element("h3", {}, plural(places.length, "tensor dimension"))),
    ...places.map((place) => {
      const row = element(
        "button",
        { type: "button", class: "place", "data-role": "still" },
        element("span", { class: "role" }, whole(place.cell.size)),
        element("span", { class: "name" }, element("bdi", {}, labelOf(place))),
      );
      row.place = place;
      return row;
    }),
  ];
}

function aboutStill({ thing }, kept) {
  return [
    ...heading(`${thing.tensor}[${thing.dim}]`, `dimension ${thing.dim}, size ${whole(thing.size)}`, kept),
    ...whyFrozen(thing),
  ];
}

function whyFrozen(cell) {
  return [
    element(
      "ul",
      { class: "why" },
      ...reasonsOf(cell).map(({ text, size }) => element("li", {}, text, size ? element("small", {}, size) : null)),
    ),
  ];
}

/** Why a dimension, or a part of it, can't change. */
function reasonsOf(cell) {
  const found = cell.frozen.map(({ size, reason }) => ({
    text: `Frozen: ${reason}.`,
    size: size < cell.size ? `${whole(size)} of ${whole(cell.size)} indices` : "",
  }));
  if (found.length || cell.lies.length) return found;
  return [{ text: cell.size === 1 ? "A single index: there is nothing to choose from." : "In no axis.", size: "" }];
}

function guide() {
  const roles = ["out", "in", "tied", "scale"];
  const sample = (role) =>
    element("span", { class: "dim on", "data-role": role, style: "--picture:linear-gradient(var(--role) 0 0)" }, "64");
  const texts = { scale: "follows the units: scale, shift, statistics, integers" };
  return [
    element("div", { class: "subject" }, element("h2", { style: "font-family:var(--font)" }, "Follow an axis")),
    element(
      "p",
      { class: "lead" },
      "Point at a size in the network, or at an axis in the list: all that moves with it lights up. Click to hold it.",
    ),
    element(
      "ul",
      { class: "legend" },
      ...roles.map((role) => element("li", {}, sample(role), texts[role] ?? SENTENCES[role])),
      element("li", {}, element("span", { class: "dim moves" }, "64"), "moves with some axis"),
      element(
        "li",
        {},
        element(
          "span",
          { class: "dim partly", style: "--picture:linear-gradient(to right, var(--mark) 60%, transparent 0)" },
          "64",
        ),
        "a part of it does",
      ),
      element("li", {}, element("span", { class: "dim still" }, "64"), "frozen; point at it to see why"),
    ),
    element(
      "p",
      { class: "lead", style: "padding-top:14px" },
      key("/"),
      " filter, ",
      key("n"),
      " ",
      key("p"),
      " next and previous place, ",
      key("Esc"),
      " release, arrows move between sizes.",
    ),
  ];
}

const key = (name) => element("kbd", {}, name);
