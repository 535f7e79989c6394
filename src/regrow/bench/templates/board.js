// Filters, which act on tables and charts at once and are kept in the address; and what opens a run.

const form = one("#filters");
const rows = all("tr[data-arm]");
const FACETS = ["split", "task", "setting"];
const POINTING_MS = 120; // on a row, before its lines are brought out

/** What the form says now. */
const filters = {
  seed: "",
  scale: "log",
  examples: "test",
  single: false,
  find: "",
  split: null,
  task: null,
  setting: null,
  arm: null,
};

function readFilters() {
  if (!form) return;
  const [seed = "", [scale], [examples]] = [chosen("seed")[0], chosen("scale"), chosen("examples")];
  Object.assign(filters, {
    seed,
    scale,
    examples,
    single: chosen("single").length > 0,
    find: form.elements.find.value.trim().toLowerCase(),
  });
  for (const name of [...FACETS, "arm"]) {
    filters[name] = all(`input[name="${name}"]`, form).length ? new Set(chosen(name)) : null;
  }
}

const passes = (name, value) => filters[name] === null || filters[name].has(value);
const isTicked = (index) =>
  passes("arm", data.arms[index].name) && (!filters.seed || runsOf(data.arms[index]).length > 0);

function isShown(index) {
  const arm = data.arms[index];
  return (
    isTicked(index) &&
    FACETS.every((name) => passes(name, arm[name])) &&
    filters.find.split(/\s+/).every((word) => arm.find.includes(word))
  );
}

function applyFilters() {
  readFilters();
  const shownArms = new Set(data.arms.flatMap((_, index) => (isShown(index) ? [index] : [])));
  for (const row of rows) row.hidden = row.dataset.seed !== filters.seed || !shownArms.has(Number(row.dataset.arm));
  for (const section of all(".leaderboard")) {
    const board = data.boards[section.dataset.board];
    section.hidden = !board.arms.some((index) => shownArms.has(index));
    one(".rivals", section).replaceChildren(...rivalsInWords(board));
  }
  const names = new Set([...shownArms].map((index) => data.arms[index].name));
  all("tr[data-name]").forEach((row) => {
    row.hidden = !names.has(row.dataset.name);
  });
  all(".over-seeds").forEach((text) => {
    text.hidden = filters.seed !== "";
  });
  one("#nothing").hidden = shownArms.size > 0;
  const runs = [...shownArms].reduce((sum, index) => sum + runsOf(data.arms[index]).length, 0);
  one("#found").textContent = `${shownArms.size} of ${data.arms.length} arms, ${whole(runs)} runs`;
  redraw();
}

function rivalsInWords(board) {
  const rivals = board.rivals.filter(isTicked);
  if (!rivals.length) return [];
  const keys = rivals.map((index, place) =>
    element("span", {}, element("i", { class: "key", "data-colour": 0, "data-style": place }), data.arms[index].name),
  );
  return ["For comparison: ", ...keys];
}

// The address --------------------------------------------------------------------------------------------------

const CONTROLS = "input[type=checkbox], input[type=radio]";

/** What differs from the defaults; a checkbox that was unticked has a minus before its name. */
function writeFragment() {
  const told = new URLSearchParams();
  for (const input of form ? all(CONTROLS, form) : []) {
    if (input.checked === input.defaultChecked) continue;
    if (input.checked) told.append(input.name, input.value);
    else if (input.type === "checkbox") told.append(`-${input.name}`, input.value);
  }
  if (form?.elements.find.value) told.set("find", form.elements.find.value);
  if (looked.run && looked.run !== data.runs[looked.first]) told.set("run", looked.run.key);
  history.replaceState(null, "", `#${told}`);
}

function readFragment() {
  const told = new URLSearchParams(location.hash.slice(1));
  for (const input of form ? all(CONTROLS, form) : []) {
    input.checked = input.defaultChecked;
    if (told.getAll(input.name).includes(input.value)) input.checked = true;
    if (told.getAll(`-${input.name}`).includes(input.value)) input.checked = false;
  }
  if (form) form.elements.find.value = told.get("find") ?? "";
  return data.runs.findIndex((run) => run.key === told.get("run"));
}

// What the reader does -----------------------------------------------------------------------------------------

function followForm() {
  if (!form) return;
  const changed = () => {
    applyFilters();
    writeFragment();
  };
  form.addEventListener("input", changed);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(changed)); // the form is reset after the event
  all("[data-check]", form).forEach((button) =>
    button.addEventListener("click", () => {
      all("input", button.closest("fieldset")).forEach((input) => {
        input.checked = Boolean(button.dataset.check);
      });
      changed();
    }),
  );
  all(".menu", form).forEach((menu) => {
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      menu.open = false;
      one("summary", menu).focus();
    });
    document.addEventListener("click", (event) => {
      if (!menu.contains(event.target)) menu.open = false;
    });
  });
}

/** Sections that are gone to stop below the bar, which may have several lines. */
function followBar() {
  if (!form) return;
  new ResizeObserver(() => document.documentElement.style.setProperty("--bar", `${form.offsetHeight}px`)).observe(form);
}

/** A click on a row, or on a seed in it, opens a run; pointing at a row brings its lines out. */
function followRows() {
  for (const row of rows) {
    row.addEventListener("click", (event) => {
      const clicked = event.target.closest("button");
      if (!clicked && String(getSelection())) return; // it was selecting text
      const button = clicked ?? one("button", row);
      openRun(Number(button.dataset.run), button);
      writeFragment();
    });
    for (const [event, arm] of [
      ["pointerenter", row.dataset.arm],
      ["pointerleave", null],
      ["focusin", row.dataset.arm],
      ["focusout", null],
    ]) {
      row.addEventListener(event, () => pointAt(arm === null ? null : Number(arm), row.closest("section")));
    }
  }
}

function pointAt(arm, section) {
  clearTimeout(pointed.timer);
  pointed.timer = setTimeout(() => {
    if (pointed.arm === arm) return;
    const sections = new Set([section, pointed.section ?? section]);
    Object.assign(pointed, { arm, section });
    sections.forEach((each) => redraw(each));
  }, POINTING_MS);
}

/** The address is for what is shown; links within the page only scroll. */
function followLinks() {
  all('a[href^="#"]').forEach((link) =>
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const target = one(link.getAttribute("href"));
      target.tabIndex = -1;
      target.focus();
    }),
  );
  addEventListener("hashchange", showFromAddress);
}

function followMedia() {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
  addEventListener("beforeprint", () => {
    document.documentElement.dataset.printing = "";
    redraw();
  });
  addEventListener("afterprint", () => {
    delete document.documentElement.dataset.printing;
    redraw();
  });
}

function showFromAddress() {
  const run = readFragment();
  if (form) applyFilters();
  if (run >= 0) openRun(run, null);
  else if (data.runs.length) showRun(looked.first);
}

/** Plotly travels as base64 of gzip, a third of its size. */
async function loadPlotly() {
  const bytes = Uint8Array.from(atob(one("#plotly").textContent), (character) => character.charCodeAt(0));
  const script = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(element("script", {}, await new Response(script).text()));
}

all("table.results").forEach(sortable);
if (data.runs.length) {
  looked.first = mostChanged();
  prepareRuns();
}
followForm();
followBar();
followRows();
followLinks();
showFromAddress();
watchCharts();
await loadPlotly();
followMedia();
redraw();
document.documentElement.dataset.ready = "true";
