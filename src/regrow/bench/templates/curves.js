// Loss and accuracy of all runs over time, with every edit marked on its curve.

const CURVES = {
  test: { width: 2, dash: "solid", opacity: 1 },
  train: { width: 1.5, dash: "dot", opacity: 1 },
  batch: { width: 1, dash: "solid", opacity: 0.22 },
};
const ABSCISSAE = {
  step: { title: { text: "Steps" }, tickformat: ",d" },
  work: { title: { text: "Training FLOPs" }, tickformat: "~s" },
};

function drawCurves() {
  const [abscissa] = chosen("abscissa");
  const [scale] = chosen("scale");
  const lines = chosen("line");
  const runs = chosen("run-shown").map((index) => data.runs[index]);
  const layout = (yaxis) => ({
    height: 380,
    margin: { l: 48, r: 12, t: 8, b: 44 },
    xaxis: axis({ ...ABSCISSAE[abscissa], showgrid: false, rangemode: "tozero", ticks: "outside" }),
    yaxis: axis(yaxis),
  });
  draw("loss", curves(runs, "loss", lines, abscissa), layout({ type: scale, ...decades(scale) }));
  draw("accuracy", curves(runs, "accuracy", lines, abscissa), layout({ tickformat: ".0%" }));
}

/** On a logarithmic axis one label a decade and two between, written as people write them. */
const decades = (scale) => (scale === "log" ? { dtick: "D2", tickformat: "~r" } : {});

/** The traces of one chart: minibatches below, then train and test, then the marks on top. */
function curves(runs, metric, lines, abscissa) {
  const noisy = metric === "loss" && lines.includes("batch");
  const kinds = ["train", "test"].filter((kind) => lines.includes(kind));
  const marked = kinds.at(-1);
  return [
    ...(noisy ? runs.map((run) => curve(run, run.batches, "loss", "batch", abscissa)) : []),
    ...kinds.flatMap((kind) => runs.map((run) => curve(run, run.metrics, `${kind}_${metric}`, kind, abscissa))),
    ...(marked ? runs.map((run) => marks(run, `${marked}_${metric}`, abscissa)) : []),
  ];
}

function curve(run, points, key, kind, abscissa) {
  const { width, dash, opacity } = CURVES[kind];
  const format = key.endsWith("accuracy") ? percent : loss;
  return {
    type: "scatter",
    mode: points.step.length > 1 ? "lines" : "markers",
    x: points[abscissa],
    y: points[key],
    line: { color: colour(run), width, dash },
    opacity,
    hoverinfo: kind === "batch" ? "skip" : "text",
    text: points.step.map((step, i) => `${plain(run.label)}<br>step ${whole(step)}: ${kind} ${format(points[key][i])}`),
  };
}

/** One mark for each step with edits, at the height that the curve has there. */
function marks(run, key, abscissa) {
  const steps = [...new Set(run.edits.step)];
  const groups = steps.map((step) => run.edits.step.flatMap((other, i) => (other === step ? [i] : [])));
  const heights = steps.map((step) => interpolate(step, run.metrics.step, run.metrics[key]));
  return {
    type: "scatter",
    mode: "markers",
    x: groups.map(([first]) => run.edits[abscissa][first]),
    y: heights,
    marker: {
      symbol: groups.map((group) => symbol(group.map((i) => run.edits.kind[i]))),
      size: 9,
      color: colour(run),
      line: { color: token("--paper"), width: 1 },
    },
    hoverinfo: "text",
    text: groups.map((group) => group.map((i) => describe(run, i)).join("<br>")),
  };
}

function symbol(kinds) {
  if (new Set(kinds).size > 1) return "diamond";
  return kinds[0] === "grow" ? "triangle-up" : "triangle-down";
}

const HOVER_CHARACTERS = 72;
const shortened = (line) =>
  line.length > HOVER_CHARACTERS ? `${line.slice(0, HOVER_CHARACTERS)}…` : line;

/** An edit in a few lines; its whole text is in the list of edits. */
function describe(run, index) {
  const { step, text, train, eval: evaluated } = run.edits;
  const jump = (mode, [before, after]) => `loss in ${mode} mode: ${loss(before)} → ${loss(after)}`;
  return [
    `${run.label}, step ${whole(step[index])}`,
    ...text[index].split("\n").map(shortened),
    jump("train", train[index]),
    jump("eval", evaluated[index]),
  ].map(plain).join("<br>");
}

/** The value at `x` of the line through points with increasing `xs`; the nearest end outside of them. */
function interpolate(x, xs, ys) {
  const right = xs.findIndex((other) => other >= x);
  if (right <= 0) return ys.at(right);
  const [x0, x1, y0, y1] = [xs[right - 1], xs[right], ys[right - 1], ys[right]];
  return y0 == null || y1 == null ? null : y0 + ((x - x0) / (x1 - x0)) * (y1 - y0);
}
