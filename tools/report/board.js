// Curves, filter and sorting of the run board. The page is complete without it but for the curves.
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const DASHES = ["", "6 3", "2 3", "9 3 2 3"];
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT] = [460, 250, 56, 26, 8, 12];
const format = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const shown = new Set(DATA.runs.map((_, i) => i));

function element(name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + 1e-9 * step; t += step) found.push(t);
  return found;
}

function range(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  if (low === high) { const pad = Math.abs(low) * 0.1 || 1; low -= pad; high += pad; }
  return [low, high];
}

function style(panel, curve) {
  const names = [...new Set(panel.curves.map((c) => c.name))];
  const index = names.indexOf(curve.name);
  // A single run has a colour per curve, several a colour per run.
  const single = DATA.runs.length === 1;
  const colour = single ? DATA.colours[index % DATA.colours.length] : DATA.runs[curve.run].colour;
  return { colour, dash: single ? "" : DASHES[index % DASHES.length] };
}

function draw(panel, figure) {
  const curves = panel.curves.filter((c) => shown.has(c.run));
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": panel.title });
  figure.hidden = curves.length === 0;
  figure.replaceChild(svg, figure.querySelector("svg"));
  if (!curves.length) return;
  const xs = [0, Math.max(1, range(curves.flatMap((c) => c.x))[1])];
  const extra = panel.reference === null ? [] : [0, panel.reference];
  const ys = range(curves.flatMap((c) => c.y).concat(extra));
  const px = (x) => LEFT + (x - xs[0]) / (xs[1] - xs[0]) * (WIDTH - LEFT - RIGHT);
  const py = (y) => HEIGHT - BOTTOM - (y - ys[0]) / (ys[1] - ys[0]) * (HEIGHT - BOTTOM - TOP);
  for (const t of ticks(...ys, 5)) {
    svg.append(element("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: py(t), y2: py(t) }));
    svg.append(element("text", { x: LEFT - 6, y: py(t) + 4, "text-anchor": "end" }, format.format(t)));
  }
  for (const t of ticks(...xs, 6)) {
    svg.append(element("text", { x: px(t), y: HEIGHT - 8, "text-anchor": "middle" }, format.format(t)));
  }
  if (panel.reference !== null) {
    const y = py(panel.reference);
    svg.append(element("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y, class: "reference" }));
  }
  for (const curve of curves) {
    const { colour, dash } = style(panel, curve);
    const group = element("g", { "data-run": curve.run });
    const points = curve.x.map((x, i) => `${px(x).toFixed(1)},${py(curve.y[i]).toFixed(1)}`);
    group.append(element("polyline", { points: points.join(" "), stroke: colour, "stroke-dasharray": dash }));
    if (points.length < 30) {
      curve.x.forEach((x, i) => group.append(element("circle", { cx: px(x), cy: py(curve.y[i]), r: 2.5, fill: colour })));
    }
    svg.append(group);
  }
  svg.onmousemove = (event) => tell(event, svg, figure, curves, px, py);
  svg.onmouseleave = () => { figure.querySelector("output").textContent = ""; };
}

// The values of the point nearest to the pointer.
function tell(event, svg, figure, curves, px, py) {
  const box = svg.getBoundingClientRect();
  const scale = WIDTH / box.width;
  const [mx, my] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  let best = null;
  for (const curve of curves) {
    curve.x.forEach((x, i) => {
      const distance = Math.hypot(px(x) - mx, py(curve.y[i]) - my);
      if (best === null || distance < best.distance) best = { distance, curve, i };
    });
  }
  const { curve, i } = best;
  const name = [DATA.runs[curve.run].name, curve.name].filter(Boolean).join(", ");
  figure.querySelector("output").textContent =
    `${name}: ${format.format(curve.y[i])} at step ${curve.x[i].toLocaleString("en")}`;
}

function redraw() {
  document.querySelectorAll("figure[data-panel]").forEach((figure) => draw(DATA.panels[figure.dataset.panel], figure));
}

function highlight(run) {
  document.querySelectorAll("g[data-run]").forEach((group) => {
    group.classList.toggle("faint", run !== null && group.dataset.run !== run);
  });
}

// A run is drawn if its box is checked and every word of the filter occurs in its name or options.
function update() {
  const words = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  DATA.runs.forEach((run, i) => {
    const matches = words.every((word) => run.text.includes(word));
    document.querySelectorAll(`[data-of="${i}"]`).forEach((node) => { node.hidden = !matches; });
    const box = document.querySelector(`input[data-run="${i}"]`);
    if (matches && box.checked) shown.add(i); else shown.delete(i);
  });
  document.querySelectorAll("section").forEach((section) => {
    const runs = [...section.querySelectorAll("[data-of]")];
    section.hidden = runs.length > 0 && runs.every((node) => node.hidden);
  });
  redraw();
}

function sortBy(button) {
  const cell = button.closest("th");
  const body = cell.closest("table").tBodies[0];
  const down = cell.getAttribute("aria-sort") !== "descending";
  cell.parentNode.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
  cell.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.cells[cell.cellIndex].dataset.value ?? "";
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return down ? -order : order;
  });
  body.append(...rows);
}

document.getElementById("filter").oninput = update;
document.querySelectorAll("input[data-run]").forEach((box) => { box.onchange = update; });
document.querySelectorAll("th button").forEach((button) => { button.onclick = () => sortBy(button); });
document.querySelectorAll("tr[data-of]").forEach((row) => {
  row.onmouseenter = () => highlight(row.dataset.of);
  row.onmouseleave = () => highlight(null);
});
redraw();
