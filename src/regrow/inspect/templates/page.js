// The page: its data, its elements and its numbers.

const data = JSON.parse(document.getElementById("data").textContent);
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

/** A new element; attributes that are undefined are left out, texts are never read as HTML. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const whole = (value) => value.toLocaleString("en");
const plural = (value, noun) => `${whole(value)} ${noun}${value === 1 ? "" : "s"}`;
const percent = (value) => `${(100 * value).toFixed(value < 0.0995 ? 2 : 1)} %`;

/** Four significant digits with an SI prefix. */
function count(value) {
  let rounded = Number(value.toPrecision(4));
  const prefixes = ["", "k", "M", "G", "T", "P"];
  while (Math.abs(rounded) >= 1000 && prefixes.length > 1) {
    rounded /= 1000;
    prefixes.shift();
  }
  return Number(rounded.toPrecision(4)) + prefixes[0];
}

const ROLES = {
  out: "produces",
  in: "consumes",
  tied: "both",
  scale: "scale",
  shift: "shift",
  mean: "mean",
  var: "variance",
  free: "follows",
};
const SENTENCES = {
  out: "produces the units",
  in: "consumes the units",
  tied: "produces and consumes the units",
  scale: "scales the units",
  shift: "shifts the units",
  mean: "holds the units’ mean",
  var: "holds the units’ variance",
  free: "follows the units",
  integer: "a Python integer that counts the units",
};

// Names: cells are tensor dimensions, integers are Python's.
const cells = data.cells.map(([tensor, dim, size], index) => ({ index, tensor, dim, size, frozen: [], lies: [] }));
const integers = data.integers.map(([name, value], index) => ({ index, name, value, lies: [] }));
for (const [index, reasons] of data.frozen) {
  cells[index].frozen = reasons.map(([size, reason]) => ({ size, reason: data.reasons[reason] }));
}
const axes = data.axes.map((axis, index) => ({ ...axis, index }));
for (const axis of axes) {
  axis.all = [
    ...axis.places.map(([cell, role, pattern]) => ({ axis, cell: cells[cell], role, pattern })),
    ...axis.counts.map(([integer, pattern]) => ({ axis, integer: integers[integer], role: "integer", pattern })),
  ];
  for (const place of axis.all) (place.cell ?? place.integer).lies.push(place);
}
const labelOf = (place) => (place.cell ? `${place.cell.tensor}[${place.cell.dim}]` : place.integer.name);
const sizeOf = (place) => (place.cell ? place.cell.size : place.integer.value);
