// The loss before and after each edit: one card a run, one panel a mode.

const SLOT = 0.28; // half the breadth of an edit's stroke; edits are 1 apart
const MANY_EDITS = 12;
const PIXELS_A_TICK = 120; // of both panels together
const MARGIN = 0.08; // of the range of losses, above and below
const VISIBLE_RISE = 0.01; // of the loss before
const MODES = { train: "Train mode", eval: "Eval mode" };

/** Cards are made once; drawing again only changes what is in them. */
function makeJumpCards() {
  const edited = data.runs.filter((run) => run.edits.step.length);
  for (const run of edited) {
    run.jumpChart = element("div", { class: "chart", role: "img", "aria-label": jumpsInWords(run) });
    const title = element("h3", {}, swatch(run), run.label);
    one("#jumps").append(element("article", { class: "card" }, title, run.jumpChart));
  }
  if (!edited.length) one("#jumps").append(element("p", {}, "No run edited its network."));
}

function drawJumps() {
  const [scale] = chosen("scale");
  const edited = data.runs.filter((run) => run.jumpChart);
  const range = commonRange(edited, scale);
  for (const run of edited) drawJumpCard(run, scale, range);
}

/** All cards share one loss axis, so that jumps compare; undefined leaves it to Plotly. */
function commonRange(runs, scale) {
  const place = scale === "log" ? Math.log10 : (value) => value;
  const places = runs.flatMap((run) => [run.edits.train, run.edits.eval].flat(2)).filter(Number.isFinite).map(place);
  const [low, high] = [Math.min(...places), Math.max(...places)];
  const margin = MARGIN * (high - low);
  return Number.isFinite(margin) && margin > 0 ? [low - margin, high + margin] : undefined;
}

function drawJumpCard(run, scale, range) {
  const { step } = run.edits;
  const every = Math.ceil(step.length / (run.jumpChart.clientWidth / PIXELS_A_TICK));
  const ticks = step.map((_, i) => i).filter((i) => i % every === 0);
  const xaxis = axis({
    tickvals: ticks,
    ticktext: ticks.map((i) => whole(step[i])),
    range: [-0.6, step.length - 0.4],
    showgrid: false,
    title: { text: "Step of the edit" },
  });
  const heading = (text, x) => ({
    text, x, y: 1, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false,
  });
  draw(run.jumpChart, [...strokes(run, "train", "x"), ...strokes(run, "eval", "x2")], {
    height: 250,
    margin: { l: 44, r: 8, t: 24, b: 44 },
    xaxis: { ...xaxis, domain: [0, 0.46] },
    xaxis2: { ...xaxis, domain: [0.54, 1], anchor: "y" },
    yaxis: axis({ type: scale, ...decades(scale), range }),
    annotations: [
      heading(MODES.train, 0), ...worst(run, "train", "x"),
      heading(MODES.eval, 0.54), ...worst(run, "eval", "x2"),
    ],
  });
}

/** The strokes of the edits, the dotted training between them, and the points before and after. */
function strokes(run, mode, xaxis) {
  const pairs = run.edits[mode];
  const ends = pairs.flatMap((_, i) => [i - SLOT, i + SLOT]);
  const losses = pairs.flat();
  const shared = { type: "scatter", xaxis, yaxis: "y", line: { color: colour(run) } };
  const jumps = {
    ...shared,
    mode: "lines",
    x: pairs.flatMap((_, i) => [i - SLOT, i + SLOT, null]),
    y: pairs.flatMap(([before, after]) => [before, after, null]),
    line: { color: colour(run), width: 3 },
    hoverinfo: "skip",
  };
  const between = {
    ...shared, mode: "lines", x: ends, y: losses, line: { color: colour(run), width: 1, dash: "dot" }, opacity: 0.6,
    hoverinfo: "skip",
  };
  const points = {
    ...shared,
    mode: "markers",
    x: ends,
    y: losses,
    cliponaxis: false,
    marker: {
      size: pairs.length > MANY_EDITS ? 4 : 7,
      color: losses.map((_, i) => (i % 2 ? colour(run) : token("--paper"))),
      line: { color: colour(run), width: 1.5 },
    },
    hoverinfo: "text",
    text: losses.map((_, i) => describe(run, Math.floor(i / 2))),
  };
  return [between, jumps, points];
}

/** The index of the edit after which the loss rose most, in a mode; -1 where nothing was measured. */
function worstEdit(run, mode) {
  const rises = run.edits[mode].map(([before, after]) => (before == null || after == null ? -Infinity : after - before));
  const most = Math.max(...rises);
  return most === -Infinity ? -1 : rises.indexOf(most);
}

/** A label at the edit after which the loss rose most, if it rose as far as one can read. */
function worst(run, mode, xref) {
  const index = worstEdit(run, mode);
  const [before, after] = run.edits[mode][index] ?? [0, 0];
  if (after - before <= VISIBLE_RISE * before) return [];
  const y = one('input[name="scale"]:checked').value === "log" ? Math.log10(after) : after;
  // In the right half there may be no room to the right of the point.
  const left = index < run.edits[mode].length / 2;
  return [{
    text: signed(after - before), x: index + (left ? SLOT : -SLOT), y, xref, yref: "y", showarrow: false,
    xanchor: left ? "left" : "right", xshift: left ? 6 : -6, font: { color: token("--ink") },
  }];
}

function jumpsInWords(run) {
  const words = Object.keys(MODES).map((mode) => {
    const index = worstEdit(run, mode);
    if (index < 0) return `${mode} mode not measured`;
    const [before, after] = run.edits[mode][index];
    return `at worst ${signed(after - before)} in ${mode} mode at step ${whole(run.edits.step[index])}`;
  });
  return `${run.label}, loss before and after ${run.edits.step.length} edits: ${words.join(", ")}`;
}
