// The widths of the layers over time: a gallery to choose a run from, and the chosen one at any moment.

const LAYER_HEIGHT = 100; // of a band's own coordinates; stretched to its place

const shown = { run: null, timer: null };

/** The index of the shape that a run has at a step. */
const shapeAt = (run, step) => run.shapes.step.findLastIndex((from) => from <= step);

/** The widest that each layer is in any run of the same task. */
function widest(run) {
  const peers = data.runs.filter((other) => other.task === run.task);
  return run.layers.map((layer) => Math.max(...peers.map((peer) => widestIn(peer, layer))));
}

function widestIn(run, layer) {
  const index = run.layers.indexOf(layer);
  return index < 0 ? 0 : Math.max(...run.shapes.widths.map((widths) => widths[index]));
}

/** A layer as a band over time: symmetric, stepping at the edits. */
function band(run, layer, most) {
  const { step, widths } = run.shapes;
  const upper = step.flatMap((from, i) => {
    const y = (LAYER_HEIGHT / 2) * (1 - widths[i][layer] / most);
    return [[from, y], [step[i + 1] ?? run.steps, y]];
  });
  const lower = upper.map(([x, y]) => [x, LAYER_HEIGHT - y]).reverse();
  const path = element("path", { d: `M${[...upper, ...lower].map((point) => point.join(" ")).join("L")}Z` });
  const viewBox = `0 0 ${Math.max(run.steps, 1)} ${LAYER_HEIGHT}`;
  return element("svg", { class: "band", viewBox, preserveAspectRatio: "none", "aria-hidden": "true" }, path);
}

function makeGallery() {
  data.runs.forEach((run, index) => {
    const most = widest(run);
    const bands = element("span", { class: "bands", "data-colour": run.colour });
    bands.append(...run.layers.map((_, layer) => band(run, layer, most[layer])));
    const ends = [...new Set([run.shapes.parameters.at(0), run.shapes.parameters.at(-1)].map(count))];
    const change = run.layers.length ? `${ends.join(" → ")} parameters` : "no shape recorded";
    const input = element("input", { type: "radio", name: "run", value: index });
    const text = element("span", { class: "name" }, run.label);
    const card = element("span", { class: "card" }, text, bands, element("span", { class: "note" }, change));
    one("#gallery").append(element("label", {}, input, card));
  });
}

/** Show another run, at its end. */
function showNetwork(run) {
  pause();
  shown.run = run;
  shown.most = widest(run);
  const slider = one("#slider");
  slider.max = run.steps;
  slider.step = Math.max(1, Math.round(run.steps / 200));
  slider.disabled = one("#play").disabled = !run.layers.length;
  const most = Math.max(...shown.most);
  const rows = run.layers.map((layer, i) => {
    const outline = element("span", { class: "outline", style: `width: ${(100 * shown.most[i]) / most}%` });
    const bar = element("span", { class: "bar" });
    const number = element("span", { class: "width" });
    const place = element("span", { class: "place" }, outline, bar);
    return element("div", { class: "layer" }, element("span", { class: "name", title: layer }, layer),
      element("span", { class: "track", "data-colour": run.colour }, band(run, i, shown.most[i])),
      element("span", { class: "now", "data-colour": run.colour }, place, number));
  });
  const flags = element("span", { class: "track flags" }, ...editFlags(run));
  const head = element("div", { class: "layer head" }, element("span", { class: "name" }, "Layer"), flags,
    element("span", { class: "now" }, "Width now"));
  one("#layers").replaceChildren(head, ...rows, element("div", { class: "cursor", "aria-hidden": "true" }));
  moveTo(run.steps);
}

function editFlags(run) {
  return [...new Set(run.edits.step)].map((step) => {
    const kinds = run.edits.kind.filter((_, i) => run.edits.step[i] === step);
    const sign = { diamond: "◆", "triangle-up": "▲", "triangle-down": "▼" }[symbol(kinds)];
    return element("span", { style: `left: ${(100 * step) / run.steps}%`, title: `step ${whole(step)}` }, sign);
  });
}

/** Draw the network as it was at a step. */
function moveTo(step) {
  const { run, most } = shown;
  const index = shapeAt(run, step);
  const slider = one("#slider");
  shown.step = step; // the slider's value is snapped to its stops
  slider.value = step;
  one("#network").style.setProperty("--moment", run.steps ? step / run.steps : 0);
  const text = index < 0 ? "No shape was recorded." : momentInWords(run, step, index);
  one("#moment").textContent = text;
  slider.setAttribute("aria-valuetext", text);
  if (index < 0) return;
  all(".layer:not(.head)", one("#layers")).forEach((row, layer) => {
    const width = run.shapes.widths[index][layer];
    one(".bar", row).style.width = `${(100 * width) / Math.max(...most)}%`;
    one(".width", row).textContent = whole(width);
  });
}

function momentInWords(run, step, index) {
  const { parameters, flops } = run.shapes;
  const measured = run.metrics.step.findLastIndex((other) => other <= step);
  const accuracy = measured < 0 ? "" : ` · ${percent(run.metrics.test_accuracy[measured])} test accuracy`;
  return `Step ${whole(step)} · ${count(parameters[index])} parameters · ${count(flops[index])} FLOPs${accuracy}`;
}

/** Go to the nearest edit before (-1) or after (+1) the moment; to the start or the end if there is none. */
function toEdit(direction) {
  pause();
  const { run } = shown;
  const stops = [...new Set([0, ...run.edits.step, run.steps])];
  const now = shown.step;
  const next = direction > 0 ? stops.find((step) => step > now) : stops.findLast((step) => step < now);
  moveTo(next ?? now);
}

const FRAMES = 150;
const FRAME_MS = 40;

function play() {
  const { run } = shown;
  let frame = 0;
  one("#play").textContent = "Pause";
  shown.timer = setInterval(() => {
    moveTo(Math.round((run.steps * frame) / FRAMES));
    frame += 1;
    if (frame > FRAMES) pause();
  }, FRAME_MS);
}

function pause() {
  clearInterval(shown.timer);
  shown.timer = null;
  one("#play").textContent = "Play";
}
