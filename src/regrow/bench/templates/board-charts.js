// The charts of each leaderboard, drawn when they come into view.

const DASHES = ["solid", "dash", "dot"];
const SYMBOLS = ["circle", "diamond", "square"];
const FAINT = 0.12; // opacity of arms that are not the one pointed at
const BAND = 0.14; // opacity from the lowest to the highest seed
const LINEAR_JUMP = 0.001; // up to it the axis of jumps is linear, beyond it logarithmic
const JUMP_TICKS = [0, 0.1, 10, 1000, -0.1, 1, 0.01, 100, -0.01, -0.9]; // the most telling first
const NEARLY_ZERO = 1e-6; // what is below it is no jump
const FEW_DECADES = 3; // of losses, up to which there are labels between them
const MOST_LABELS = 7;
const MOST_ZEROS = 5;
const ROW_HEIGHT = 24; // of an arm in the chart of jumps
const TICK_WIDTH = 64; // pixels
const JUMP_TICK_WIDTH = 33;
const NARROW = 480;
const SCREEN = { height: 340, autosize: true };
const PAPER = { height: 250, width: 510 };
const NAME_CHARACTERS = 24;
const FULL = [0, 1];
const BESIDE = { x: [[0, 0.48], [0.52, 1]], y: [FULL, FULL] };
const BELOW = { x: [FULL, FULL], y: [[0.56, 1], [0, 0.44]] };

// Of many numbers, for a call with all of them would be too long.
const least = (a, b) => Math.min(a, b);
const most = (a, b) => Math.max(a, b);

const CHARTS = "[data-chart], [data-run-chart]";
const PAINTERS = { score: paintCurves, loss: paintCurves, jumps: paintJumps, sizes: paintSizes };
const stale = new Set();
const inView = new Set();
const pointed = { arm: null };

function watchCharts() {
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) inView[isIntersecting ? "add" : "delete"](target);
      paintStale();
    },
    { rootMargin: "200px" },
  );
  all(CHARTS).forEach((chart) => observer.observe(chart));
}

/** What the charts in some part of the page show is no longer right; those out of view wait until they are seen. */
function redraw(root = document) {
  all(CHARTS, root).forEach((chart) => stale.add(chart));
  paintStale();
}

function paintStale() {
  if (!window.Plotly) return;
  for (const chart of stale) {
    if (!chart.offsetParent || !(printing() || inView.has(chart))) continue;
    stale.delete(chart);
    if (chart.dataset.chart) paintBoard(chart);
    else paintRun(chart);
  }
}

/** On paper charts are of one size, in light colours, and all of them are there. */
const printing = () => "printing" in document.documentElement.dataset;
const sized = () => (printing() ? PAPER : SCREEN);
const widthOf = (chart) => sized().width ?? chart.clientWidth;

function paintBoard(chart) {
  const board = data.boards[chart.closest("[data-board]").dataset.board];
  const arms = board.arms.filter(isShown).map((index) => data.arms[index]);
  const rivals = board.rivals.filter(isTicked).map((index, place) => ({
    ...data.arms[index],
    rival: true,
    index,
    colour: 0,
    style: place,
  }));
  PAINTERS[chart.dataset.chart](chart, arms, rivals);
}

/** The runs of an arm that the filter of seeds leaves. */
const runsOf = (arm) =>
  arm.runs.map((index) => data.runs[index]).filter((run) => !filters.seed || String(run.seed) === filters.seed);

const strength = (arm) => (pointed.arm === null || arm.rival || data.arms[pointed.arm] === arm ? 1 : FAINT);

const workAxis = () =>
  axis({ title: { text: "Training FLOPs" }, tickformat: "~s", showgrid: false, rangemode: "tozero", ticks: "outside" });

/** A loss that ran away has many decades: then only every so many have a label. */
function lossAxis(traces) {
  const logs = traces
    .flatMap((trace) => trace.y)
    .filter((value) => value > 0)
    .map(Math.log10);
  const [low, high] = [logs.reduce(least, 0), logs.reduce(most, 0)];
  const few = filters.scale !== "log" || high - low <= FEW_DECADES;
  if (few) return axis({ type: filters.scale, ...decades(filters.scale) });
  const plainly = low > -MOST_ZEROS && high < MOST_ZEROS;
  return axis({
    type: "log",
    dtick: Math.ceil((high - low) / MOST_LABELS),
    ...(plainly ? { tickformat: "~r" } : { exponentformat: "power" }),
  });
}

function drawCurvesOf(chart, traces, metric) {
  draw(chart, traces, {
    ...sized(),
    margin: { l: 44, r: 8, t: 8, b: 44 },
    xaxis: workAxis(),
    yaxis: metric === "loss" ? lossAxis(traces) : axis({ tickformat: ".0%" }),
  });
}

// Score and loss -----------------------------------------------------------------------------------------------

function paintCurves(chart, arms, rivals) {
  const metric = chart.dataset.chart === "loss" ? "loss" : "accuracy";
  const key = `${filters.examples}_${metric}`;
  const drawn = [...rivals, ...arms];
  const bands = filters.seed ? [] : arms.filter((arm) => arm.curves[key] && arm.runs.length > 1);
  const single = filters.single && !filters.seed ? drawn : [];
  const means = drawn.flatMap((arm) =>
    filters.seed ? runsOf(arm).map((run) => runLine(arm, run, key, 2)) : meanLine(arm, key),
  );
  const traces = [
    ...bands.map((arm) => bandOf(arm, key)),
    ...single.flatMap((arm) => runsOf(arm).map((run) => runLine(arm, run, key, 1))),
    ...means,
  ];
  drawCurvesOf(chart, traces, metric);
}

function bandOf(arm, key) {
  const { work } = arm.curves;
  const { low, high } = arm.curves[key];
  return {
    type: "scatter",
    mode: "lines",
    x: [...work, ...work.toReversed()],
    y: [...high, ...low.toReversed()],
    fill: "toself",
    fillcolor: faded(colour(arm), BAND * strength(arm)),
    line: { width: 0 },
    hoverinfo: "skip",
  };
}

const formatOf = (key) => (key.endsWith("loss") ? loss : percent);

function meanLine(arm, key) {
  const curve = arm.curves[key];
  if (!curve) return [];
  const format = formatOf(key);
  const seeds = arm.runs.length > 1 ? (i) => `, ${format(curve.low[i])} to ${format(curve.high[i])}` : () => "";
  return [lineOf(arm, arm.curves.work, curve.mean, 2, (i) => `${arm.name}<br>${format(curve.mean[i])}${seeds(i)}`)];
}

const runLine = (arm, run, key, width) =>
  lineOf(
    arm,
    run.metrics.work,
    run.metrics[key],
    width,
    (i) => `${run.label}<br>${formatOf(key)(run.metrics[key][i])}`,
  );

function lineOf(arm, x, y, width, said) {
  return {
    type: "scatter",
    mode: x.length > 1 ? "lines" : "markers",
    x,
    y,
    line: { color: colour(arm), width, dash: DASHES[arm.style % DASHES.length] },
    marker: { color: colour(arm), size: 7 },
    opacity: strength(arm) * (width > 1 ? 1 : 0.5),
    hoverinfo: "text",
    text: x.map((work, i) => `${lines(said(i))}<br>${count(work)} training FLOPs`),
  };
}

/** Text in which only line breaks mean something. */
const lines = (text) => text.split("<br>").map(plain).join("<br>");

/** A colour `#rrggbb` with an opacity. */
const faded = (hex, opacity) =>
  `rgba(${[1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)).join(",")},${opacity.toFixed(3)})`;

// Jumps --------------------------------------------------------------------------------------------------------

const place = (jump) => Math.sign(jump) * Math.log10(1 + Math.abs(jump) / LINEAR_JUMP);
const jumpOf = ([before, after]) => (before && after != null ? after / before - 1 : null);

function relative(jump) {
  if (jump == null) return "–";
  if (Math.abs(jump) < NEARLY_ZERO) return jump ? "≈ 0" : "0";
  return `${signed(100 * jump)} %`;
}

/** One row an arm, one dot an edit; train and eval mode beside each other, or above each other where it's narrow. */
function paintJumps(chart, arms) {
  const edited = arms.filter((arm) => runsOf(arm).some((run) => run.edits.step.length));
  const narrow = widthOf(chart) < NARROW;
  const names = edited.map((arm) =>
    arm.short.length > NAME_CHARACTERS ? `${arm.short.slice(0, NAME_CHARACTERS - 1)}…` : arm.short,
  );
  const vertical = axis({
    tickvals: names.map((_, row) => row),
    ticktext: names.map(plain),
    range: [Math.max(1, names.length) - 0.4, -0.6],
    ticks: "",
  });
  const range = jumpRange(edited);
  const ticks = jumpTicks(range, widthOf(chart) * (narrow ? 0.6 : 0.35));
  const horizontal = axis({
    tickvals: ticks.map(place),
    ticktext: ticks.map((tick) => `${tick < 0 ? "−" : ""}${whole(Math.abs(100 * tick))}%`),
    range,
    tickangle: 0,
    tickfont: { size: 11 },
  });
  const panels = narrow ? BELOW : BESIDE;
  const heading = (text, panel) => ({
    text,
    x: panels.x[panel][0],
    y: panels.y[panel][1],
    xref: "paper",
    yref: "paper",
    xanchor: "left",
    yanchor: "bottom",
    showarrow: false,
  });
  draw(chart, [...jumpDots(edited, "train", "x", "y"), ...jumpDots(edited, "eval", "x2", "y2")], {
    ...sized(),
    height: Math.max(220, 84 + ROW_HEIGHT * names.length) * (narrow ? 1.7 : 1),
    margin: { l: 8, r: 8, t: 26, b: 32 },
    xaxis: { ...horizontal, domain: panels.x[0] },
    xaxis2: { ...horizontal, domain: panels.x[1], anchor: "y2" },
    yaxis: { ...vertical, domain: panels.y[0] },
    yaxis2: { ...vertical, domain: panels.y[1], anchor: "x2", showticklabels: narrow },
    annotations: [heading("Train mode", 0), heading("Eval mode", 1)],
  });
}

/** From the smallest to the largest jump, and around zero. */
function jumpRange(arms) {
  const jumps = arms.flatMap(runsOf).flatMap(({ edits }) => [...edits.train, ...edits.eval].map(jumpOf));
  const places = jumps.filter((jump) => jump != null).map(place);
  return [places.reduce(least, -1.2) - 0.2, places.reduce(most, 1.2) + 0.3];
}

/** Those for which there is room. */
function jumpTicks([low, high], width) {
  const apart = (JUMP_TICK_WIDTH / width) * (high - low);
  const kept = [];
  for (const tick of JUMP_TICKS.filter((tick) => place(tick) > low && place(tick) < high)) {
    if (kept.every((other) => Math.abs(place(other) - place(tick)) >= apart)) kept.push(tick);
  }
  return kept;
}

function jumpDots(arms, mode, xaxis, yaxis) {
  return arms.map((arm, row) => {
    const runs = runsOf(arm);
    const dots = runs
      .flatMap((run, number) =>
        run.edits[mode].map((losses, i) => ({
          run,
          i,
          losses,
          jump: jumpOf(losses),
          y: row + 0.5 * ((number + 0.5) / runs.length - 0.5),
        })),
      )
      .filter((dot) => dot.jump !== null);
    return {
      type: "scatter",
      mode: "markers",
      xaxis,
      yaxis,
      x: dots.map((dot) => place(dot.jump)),
      y: dots.map((dot) => dot.y),
      marker: { color: colour(arm), symbol: SYMBOLS[arm.style], size: 7, opacity: 0.55 },
      opacity: strength(arm),
      hoverinfo: "text",
      text: dots.map(({ run, i, losses, jump }) =>
        [
          run.label,
          `step ${whole(run.edits.step[i])}, ${run.edits.kind[i]}`,
          `${losses.map(loss).join(" → ")} (${relative(jump)})`,
        ]
          .map(plain)
          .join("<br>"),
      ),
    };
  });
}

// Score and size -----------------------------------------------------------------------------------------------

function paintSizes(chart, arms, rivals) {
  const points = [...rivals, ...arms].map(sizePoint).filter((point) => point.flops > 0 && point.score[0] !== null);
  if (!points.length) return draw(chart, [], sized());
  const logs = points.map((point) => Math.log10(point.flops));
  const [low, high] = [Math.min(...logs), Math.max(...logs)];
  const breadth = Math.max(high - low, 0.3);
  asideOf(points, breadth).forEach((aside, i) => {
    points[i].x = 10 ** (logs[i] + aside);
  });
  return draw(chart, points.map(sizeTrace), {
    ...sized(),
    margin: { l: 44, r: 8, t: 8, b: 44 },
    xaxis: axis({
      type: "log",
      title: { text: "FLOPs of the network at the end" },
      showgrid: false,
      ticks: "outside",
      range: [low - 0.25 * breadth, high + 0.25 * breadth],
      tickangle: 0,
      ...sizeTicks(
        points.map((point) => point.flops),
        (TICK_WIDTH / widthOf(chart)) * 1.5 * breadth,
      ),
    }),
    yaxis: axis({ tickformat: ".3~p", range: scoreRange(points) }),
  });
}

/** All means, and as much of the intervals as leaves the means apart. */
function scoreRange(points) {
  const means = points.map(({ score: [mean] }) => mean);
  const halves = points.map(({ score: [mean, , high] }) => (high === null ? 0 : high - mean));
  const [low, high, half] = [Math.min(...means), Math.max(...means), Math.max(...halves)];
  const margin = high > low ? Math.max(0.15 * (high - low), Math.min(1.1 * half, 0.7 * (high - low))) : half || 0.01;
  return [low - margin, high + margin];
}

function sizePoint(arm) {
  const [run] = filters.seed ? runsOf(arm) : [];
  return run
    ? { arm, flops: run.end.flops, score: [run.end.test_accuracy, null, null] }
    : { arm, flops: arm.flops, score: arm.score };
}

/** How far points of nearly one size are moved, so that none covers another. */
function asideOf(points, breadth) {
  const groups = points.map((point) =>
    points.flatMap((other, i) => (Math.abs(Math.log10(other.flops / point.flops)) < 0.03 * breadth ? [i] : [])),
  );
  return groups.map((group, i) => 0.028 * breadth * (group.indexOf(i) - (group.length - 1) / 2));
}

/** A tick at each size, but for those that are too near another. */
function sizeTicks(sizes, apart) {
  const kept = [];
  for (const size of [...sizes].sort((a, b) => a - b)) {
    if (!kept.length || Math.log10(size / kept.at(-1)) > apart) kept.push(size);
  }
  return { tickvals: kept, ticktext: kept.map(count) };
}

function sizeTrace({ arm, x, flops, score: [mean, low, high] }) {
  const half = high === null ? null : high - mean;
  const ends = half === null ? "" : `, ${percent(low)} to ${percent(high)}`;
  return {
    type: "scatter",
    mode: "markers",
    x: [x],
    y: [mean],
    error_y: { array: [half ?? 0], visible: half !== null, color: colour(arm), thickness: 1.5, width: 0 },
    marker: { color: colour(arm), symbol: SYMBOLS[arm.style % SYMBOLS.length], size: 9 },
    opacity: strength(arm),
    hoverinfo: "text",
    text: [`${plain(arm.name)}<br>${percent(mean)}${ends}<br>${count(flops)} FLOPs`],
  };
}
