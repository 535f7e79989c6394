// Inflate Plotly, draw everything, and follow what the reader does.

/** Plotly travels as base64 of gzip, a third of its size. */
async function loadPlotly() {
  const bytes = Uint8Array.from(atob(one("#plotly").textContent), (character) => character.charCodeAt(0));
  const script = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(element("script", {}, await new Response(script).text()));
}

function drawCharts() {
  drawCurves();
  drawJumps();
}

const onChange = (name, react) =>
  all(`input[name="${name}"]`).forEach((input) => input.addEventListener("change", react));

function followCharts() {
  for (const name of ["abscissa", "line", "run-shown"]) onChange(name, drawCurves);
  onChange("scale", drawCharts);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
}

function followNetwork() {
  onChange("run", (event) => showNetwork(data.runs[event.target.value]));
  one("#slider").addEventListener("input", (event) => {
    pause();
    const { value, max, step } = event.target; // the slider's last stop may be just before the end
    moveTo(Number(value) + Number(step) > Number(max) ? Number(max) : Number(value));
  });
  one("#previous").addEventListener("click", () => toEdit(-1));
  one("#next").addEventListener("click", () => toEdit(1));
  one("#play").addEventListener("click", () => (shown.timer ? pause() : play()));
}

/** The run whose network changed most is the one to look at first. */
function showFirst() {
  const changes = data.runs.map(({ shapes }) => Math.max(1, ...shapes.parameters) / Math.min(...shapes.parameters));
  const index = changes.indexOf(Math.max(...changes));
  one(`input[name="run"][value="${index}"]`).checked = true;
  showNetwork(data.runs[index]);
}

sortable(one("table.results"));
makeGallery();
makeJumpCards();
showFirst();
followNetwork();
await loadPlotly();
followCharts();
drawCharts();
document.documentElement.dataset.ready = "true";
