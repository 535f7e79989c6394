// Which indices along a dimension belong to which unit, and small pictures of that.
// A pattern is stretches of four numbers: start, length, first unit, indices a unit.

const patterns = data.patterns.map((numbers) =>
  Array.from({ length: numbers.length / 4 }, (_, i) => numbers.slice(4 * i, 4 * i + 4)),
);

/** The unit at an index, or -1. */
function unitAt(pattern, index) {
  for (const [start, length, first, run] of patterns[pattern]) {
    if (start <= index && index < start + length) return first + Math.floor((index - start) / run);
  }
  return -1;
}

/** The indices of a unit as [first, last] pairs; neighbours are joined. */
function rangesOf(pattern, unit) {
  const ranges = [];
  for (const [start, length, first, run] of patterns[pattern]) {
    const offset = (unit - first) * run;
    if (offset < 0 || offset >= length) continue;
    const range = [start + offset, start + Math.min(length, offset + run) - 1];
    const last = ranges.at(-1);
    if (last && last[1] + 1 === range[0]) last[1] = range[1];
    else ranges.push(range);
  }
  return ranges;
}

function writtenRanges(ranges, shown = 100) {
  const texts = ranges.slice(0, shown).map(([first, last]) => (first === last ? `${first}` : `${first}–${last}`));
  return (texts.join(", ") || "none") + (ranges.length > shown ? ` +${ranges.length - shown}` : "");
}

const pictures = new Map();
const RESOLUTION = 192;
const FILLS = ["transparent", "var(--fill)", "var(--fill-2)"];

function drawnOnce(key, draw) {
  if (!pictures.has(key)) pictures.set(key, draw());
  return pictures.get(key);
}

/** A dimension as a CSS background: filled where units lie, neighbours in two shades where there is room. */
const picture = (pattern, size) =>
  drawnOnce(`${pattern}|${size}`, () => {
    const shades = new Uint8Array(Math.min(size, RESOLUTION));
    for (const [start, length, first, run] of patterns[pattern]) {
      const roomy = run * shades.length >= 4 * size || size <= 24;
      paint(shades, size, start, length, (index) => (roomy && (first + Math.floor(index / run)) % 2 ? 2 : 1));
    }
    return gradient(shades);
  });

/** All axes along a dimension; those that share it out among them in two shades. */
const pictureOfAll = (cell) =>
  drawnOnce(`${cell.lies.map(({ pattern }) => pattern)}|${cell.size}|all`, () => {
    const shades = new Uint8Array(Math.min(cell.size, RESOLUTION));
    cell.lies.forEach(({ pattern }, number) => {
      for (const [start, length] of patterns[pattern]) paint(shades, cell.size, start, length, () => 1 + (number % 2));
    });
    return gradient(shades);
  });

/** Give the bins of a stretch their shade, told from the index within the stretch. */
function paint(shades, size, start, length, shade) {
  const bins = shades.length;
  for (let bin = Math.floor((start * bins) / size); bin < ((start + length) * bins) / size; bin++) {
    shades[bin] = shade(Math.max(0, Math.floor(((bin + 0.5) * size) / bins) - start));
  }
}

/** Equal neighbours become one band. */
function gradient(shades) {
  const stops = [];
  let from = 0;
  for (let to = 1; to <= shades.length; to++) {
    if (to < shades.length && shades[to] === shades[from]) continue;
    const at = (bin) => `${Number(((100 * bin) / shades.length).toFixed(2))}%`;
    stops.push(`${FILLS[shades[from]]} ${at(from)} ${at(to)}`);
    from = to;
  }
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

/** The same with one unit marked on top, each of its runs wide enough to be seen. */
function pictureOf({ pattern }, size, unit) {
  if (unit == null) return picture(pattern, size);
  const marks = rangesOf(pattern, unit).slice(0, RESOLUTION);
  const layers = marks.map(([first, last]) => {
    const length = last - first + 1;
    // A background's position in percent counts the room that its own size leaves.
    const left = length < size ? ((100 * first) / (size - length)).toFixed(3) : 0;
    const width = `max(2px, ${((100 * length) / size).toFixed(3)}%)`;
    return `linear-gradient(var(--unit) 0 0) ${left}% 0 / ${width} 100% no-repeat`;
  });
  return [...layers, picture(pattern, size)].join(", ");
}
