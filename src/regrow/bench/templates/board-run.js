// One run: its network at any moment, its curves, its edits and its configuration.

const RUN_LINES = { train: { width: 1.5, dash: "dot" }, test: { width: 2, dash: "solid" } };
const EDIT_MS = 900; // between two edits, where motion is reduced

const looked = { run: null, step: 0, from: null };
const reduced = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const unitsOf = (changes, side) => changes.reduce((sum, change) => sum + change[side], 0);

function prepareRuns() {
  for (const run of data.runs) {
    run.edits.text = run.edits.changes.map((changes, i) => {
      const units = changes.length ? `: ${whole(unitsOf(changes, 1))} → ${whole(unitsOf(changes, 2))} units` : "";
      return `${run.edits.kind[i]} (${run.edits.method[i]})${units}`;
    });
  }
  fillChoice();
  one("#run-choice").addEventListener("change", (event) => {
    showRun(Number(event.target.value));
    writeFragment();
  });
  one("#back").addEventListener("click", () => {
    looked.from.scrollIntoView({ block: "center" });
    looked.from.focus({ preventScroll: true });
  });
  one("#slider").addEventListener("input", (event) => {
    pause();
    // The slider's last stop may be just before the end.
    const [value, end] = [Number(event.target.value), looked.run.steps];
    showMoment(value + Number(event.target.step) > end ? end : value);
  });
  one("#previous").addEventListener("click", () => showEdit(-1));
  one("#next").addEventListener("click", () => showEdit(1));
  one("#play").addEventListener("click", () => (shown.timer ? pause() : playRun()));
}

function fillChoice() {
  const groups = new Map();
  data.runs.forEach((run, index) => {
    const name = run.arm === null ? "Not in the tables" : `${run.task} · ${run.setting}`;
    if (!groups.has(name)) groups.set(name, element("optgroup", { label: name }));
    groups.get(name).append(element("option", { value: index }, run.label));
  });
  one("#run-choice").append(...groups.values());
}

/** Where a reader asked for a run: show it, and go there. */
function openRun(index, from) {
  showRun(index);
  looked.from = from;
  one("#back").hidden = !from;
  one("#run").scrollIntoView();
  one("#run-heading").focus({ preventScroll: true });
}

function showRun(index) {
  const run = data.runs[index];
  looked.run = run;
  one("#run-choice").value = index;
  one("#run-where").textContent = `One run · ${run.task} · ${run.setting} · ${run.split}`;
  one("#run-heading").replaceChildren(swatch(run), run.label);
  one("#facts").replaceChildren(...facts(run));
  // The picture says nothing of scores; this page knows on which examples they were measured.
  showNetwork({ ...run, metrics: { step: [] } });
  showMoment(run.steps);
  all(".run-lines").forEach((text) => {
    text.textContent = `solid on ${run.split}, dotted on training examples`;
  });
  fillEdits(run);
  fillOptions(run);
  redraw(one("#run"));
}

/** The run whose network changed most is the one to look at first. */
function mostChanged() {
  const changes = data.runs.map(({ shapes }) => {
    const known = shapes.parameters.filter((parameters) => parameters > 0);
    return known.length ? Math.max(...known) / Math.min(...known) : 0;
  });
  return changes.indexOf(Math.max(...changes));
}

function facts(run) {
  const { end, shapes } = run;
  const change = (values, last) => [...new Set([values.at(0), last].map(count))].join(" → ");
  const share =
    end.edit_flops && end.training_flops
      ? [element("span", { class: "note" }, `${((100 * end.edit_flops) / end.training_flops).toFixed(1)} % in edits`)]
      : [];
  const told = {
    Score: percent(end.test_accuracy),
    Loss: loss(end.test_loss),
    "Train loss": loss(end.train_loss),
    Parameters: change(shapes.parameters, end.parameters),
    FLOPs: change(shapes.flops, end.flops),
    "Training FLOPs": [count(end.training_flops), ...share],
    Edits: whole(run.num_edits),
    Seconds: end.seconds == null ? "–" : whole(Math.round(end.seconds)),
  };
  return Object.entries(told).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, ...[value].flat())),
  );
}

// The network at a moment --------------------------------------------------------------------------------------

function showMoment(step) {
  looked.step = step;
  moveTo(step);
  const { metrics } = looked.run;
  const measured = metrics.step.findLastIndex((other, i) => other <= step && metrics.test_accuracy[i] !== null);
  one("#score-then").textContent = measured < 0 ? "" : `· score ${percent(metrics.test_accuracy[measured])}`;
}

/** The nearest step with an edit before (-1) or after (+1) the moment; the start or the end if there is none. */
function nearestEdit(direction) {
  const { edits, steps } = looked.run;
  const stops = [...new Set([0, ...edits.step, steps])];
  return direction > 0 ? stops.find((step) => step > looked.step) : stops.findLast((step) => step < looked.step);
}

function showEdit(direction) {
  pause();
  showMoment(nearestEdit(direction) ?? looked.step);
}

/** From the start, or on from where it was stopped: smoothly, or from edit to edit for whoever wants little motion. */
function playRun() {
  const { steps } = looked.run;
  const leap = reduced();
  if (looked.step >= steps) showMoment(0);
  one("#play").textContent = "Pause";
  shown.timer = setInterval(
    () => {
      const next = leap ? (nearestEdit(1) ?? steps) : looked.step + Math.max(1, Math.round(steps / FRAMES));
      showMoment(Math.min(steps, next));
      if (looked.step >= steps) pause();
    },
    leap ? EDIT_MS : FRAME_MS,
  );
}

// Curves, edits and configuration ------------------------------------------------------------------------------

function paintRun(chart) {
  const run = looked.run;
  const metric = chart.dataset.runChart;
  const traces = Object.entries(RUN_LINES).map(([kind, { width, dash }]) => {
    const key = `${kind}_${metric}`;
    const on = kind === "train" ? "training examples" : run.split;
    const line = lineOf(
      run,
      run.metrics.work,
      run.metrics[key],
      width,
      (i) => `${formatOf(key)(run.metrics[key][i])} on ${on}`,
    );
    return { ...line, opacity: 1, line: { ...line.line, dash } };
  });
  drawCurvesOf(chart, [...traces, marks(run, `test_${metric}`, "work")], metric);
}

function fillEdits(run) {
  const { edits } = run;
  const few =
    edits.step.length < run.num_edits ? ` Of these ${edits.step.length} are shown, the worst among them.` : "";
  one("#edits-note").textContent = run.num_edits
    ? `${whole(run.num_edits)} edit${run.num_edits > 1 ? "s" : ""}.${few}`
    : "The network was not edited.";
  one("#edits").parentElement.hidden = !run.num_edits;
  one("#edits tbody").replaceChildren(
    ...edits.step.map((step, i) =>
      element(
        "tr",
        {},
        element("th", { scope: "row", class: "number" }, whole(step)),
        element("td", {}, edits.kind[i]),
        element("td", {}, edits.method[i]),
        element("td", {}, units(run, edits.changes[i])),
        ...["train", "eval"].flatMap((mode) => lossCells(edits[mode][i])),
      ),
    ),
  );
}

function units(run, changes) {
  if (!changes.length) return "–";
  const moved = changes.filter(([, before, after]) => before !== after);
  const sum = `${whole(unitsOf(changes, 1))} → ${whole(unitsOf(changes, 2))}`;
  const items = changes.map(([layer, before, after]) =>
    element("li", {}, `${run.layers[layer]}: ${whole(before)} → ${whole(after)}`),
  );
  const few = ` in ${moved.length} layer${moved.length === 1 ? "" : "s"}`;
  return element(
    "details",
    { class: "units" },
    element("summary", {}, sum, element("span", { class: "beside" }, few)),
    element("ul", {}, ...items),
  );
}

function lossCells(losses) {
  const jump = jumpOf(losses);
  return [loss(losses[0]), loss(losses[1]), relative(jump)].map((text, i) =>
    element("td", { class: i ? "number" : "number first" }, text),
  );
}

function fillOptions(run) {
  const told = {
    key: run.key,
    ...data.configs[run.config],
    seed: run.seed,
    ...data.environments[run.environment],
    ...(run.load == null ? {} : { load: run.load }),
  };
  one("#options").replaceChildren(
    ...Object.entries(told).map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, String(value))),
    ),
  );
}
