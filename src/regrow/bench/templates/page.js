// The page: its data, its elements, its numbers and its colours.

const data = JSON.parse(document.getElementById("data").textContent);
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const chosen = (name) => all(`input[name="${name}"]:checked`).map((input) => input.value);

/** A new element; attributes that are undefined are left out, texts are never read as HTML. */
function element(tag, attributes = {}, ...children) {
  const isSvg = ["svg", "path"].includes(tag);
  const node = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Text for Plotly, which reads some HTML in labels. */
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const whole = (value) => value.toLocaleString("en");
const percent = (value) => (value == null ? "–" : `${(100 * value).toFixed(2)} %`);
const loss = (value) => (value == null ? "–" : String(Number(value.toPrecision(4))));
const signed = (value) => `${value < 0 ? "−" : "+"}${Number(Math.abs(value).toPrecision(3))}`;

/** Four significant digits with an SI prefix, as in the table. */
function count(value) {
  if (value == null) return "–";
  let rounded = Number(value.toPrecision(4));
  const prefixes = ["", "k", "M", "G", "T", "P"];
  while (Math.abs(rounded) >= 1000 && prefixes.length > 1) {
    rounded /= 1000;
    prefixes.shift();
  }
  return Number(rounded.toPrecision(4)) + prefixes[0];
}

const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (run) => token(`--run-${run.colour}`);
const swatch = (run) => element("i", { class: "swatch", "data-colour": run.colour });

/** Plotly's settings for every chart: the page's type and colours, no toolbar, no dragging under a finger. */
function chartLayout(extra) {
  const finger = matchMedia("(pointer: coarse)").matches;
  return {
    font: { family: token("--font"), size: 12, color: token("--soft") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: {
      align: "left",
      bgcolor: token("--raised"),
      bordercolor: token("--line"),
      font: { family: token("--font"), color: token("--ink") },
    },
    hovermode: "closest",
    dragmode: finger ? false : "zoom",
    showlegend: false,
    ...extra,
  };
}

const axis = (extra) => ({
  gridcolor: token("--line"),
  linecolor: token("--line"),
  zeroline: false,
  automargin: true,
  nticks: 6,
  ...extra,
});

const draw = (target, traces, layout) =>
  Plotly.react(target, traces, chartLayout(layout), { displayModeBar: false, responsive: true });
