// The page: its state is in the URL; every change asks the server for what the tab shows.
"use strict";

const find = (id) => document.getElementById(id);
const config = JSON.parse(find("config").textContent);
const TABS = ["fill", "predict", "features"];
const EMPTY = { fill: config.inputs.length, predict: config.heads.length, features: 1 };
const ADVICE = {
  fill: "These weights have no decoders: start the page with --weights and a pre-trained model, too.",
  predict: "These weights have no head: start the page with --weights and a fine-tuned model, too.",
};
const POINTS = 64; // steps of a point in a picture

let state = initial();
let running = false;
let waiting = false;

// --- state and URL

function initial() {
  return {
    tab: TABS.find((tab) => EMPTY[tab]),
    scene: config.examples[0].id,
    seed: 0,
    tokens: config.tokens,
    concentration: 1,
    shares: {},
    visible: null, // null: drawn by the four settings above
    edits: {},
    block: config.blocks,
    query: null,
    point: [POINTS / 2, POINTS / 2],
  };
}

function toHex(bits) {
  return bits.match(/.{1,4}/g).map((four) => parseInt(four.padEnd(4, "0"), 2).toString(16)).join("");
}

function fromHex(hex, count) {
  if (!/^[0-9a-f]+$/.test(hex) || hex.length !== Math.ceil(count / 4)) return null;
  return [...hex].map((digit) => parseInt(digit, 16).toString(2).padStart(4, "0")).join("").slice(0, count);
}

function toUrl() {
  const first = initial();
  const query = new URLSearchParams({ scene: state.scene });
  const put = (name, value) => query.set(name, value);
  for (const name of ["tab", "seed", "tokens", "concentration", "block"]) {
    if (state[name] !== first[name]) put(name, state[name]);
  }
  for (const [name, share] of Object.entries(state.shares)) if (share !== 1) put(`share.${name}`, share);
  for (const [name, bits] of Object.entries(state.visible || {})) put(`visible.${name}`, toHex(bits));
  for (const [name, edits] of Object.entries(state.edits)) {
    const listed = Object.entries(edits).map(([i, value]) => `${i}_${String(value).replace("#", "")}`);
    if (listed.length) put(`edits.${name}`, listed.join("~"));
  }
  if (state.tab === "features" && state.query) put("patch", state.query.join("."));
  if (state.tab === "predict" && String(state.point) !== String(first.point)) put("point", state.point.join("."));
  return `?${query}`;
}

// State of the URL; what does not fit this model keeps its default.
function fromUrl() {
  const query = new URLSearchParams(location.search);
  const read = initial();
  const number = (name, low, high) => {
    const value = Number(query.get(name));
    if (query.has(name) && value >= low && value <= high) read[name] = value;
  };
  if (TABS.includes(query.get("tab"))) read.tab = query.get("tab");
  if (query.has("scene")) read.scene = query.get("scene");
  number("seed", 0, config.maxSeed);
  number("tokens", 1, Infinity);
  number("concentration", 0.1, 10);
  number("block", 1, config.blocks);
  for (const input of config.inputs) {
    const share = Number(query.get(`share.${input.name}`) ?? 1);
    if (share >= 0 && share <= 1) read.shares[input.name] = share;
    const bits = fromHex(query.get(`visible.${input.name}`) || "", input.rows * input.columns);
    if (bits) read.visible = { ...read.visible, [input.name]: bits };
    for (const part of (query.get(`edits.${input.name}`) || "").split("~")) {
      const [i, value] = part.split("_");
      if (value === undefined) continue;
      read.edits[input.name] ||= {};
      read.edits[input.name][i] = input.edit === "colour" ? `#${value}` : Number(value);
    }
  }
  const patch = (query.get("patch") || "").split(".");
  if (patch.length === 3) read.query = [patch[0], Number(patch[1]), Number(patch[2])];
  const point = (query.get("point") || "").split(".").map(Number);
  if (point.length === 2 && point.every((x) => x >= 0 && x < POINTS)) read.point = point;
  return read;
}

// Change the state, put it into the history, and show it.
function go(changes) {
  Object.assign(state, changes);
  const url = toUrl();
  if (url !== location.search) history.pushState(null, "", url);
  refresh();
}

// --- server

const pictures = new Map(); // data by name of a picture
const MAX_PICTURES = 300;

function source(reference) {
  if (reference.data) {
    if (pictures.size > MAX_PICTURES) pictures.delete(pictures.keys().next().value);
    pictures.set(reference.id, reference.data);
  }
  return pictures.get(reference.id) || "";
}

async function post(path, body, type) {
  let response;
  try {
    response = await fetch(`/api/${path}`, { method: "POST", body, headers: { "Content-Type": type } });
  } catch {
    throw new Error("The server does not answer: is it still running?");
  }
  if (!response.ok) throw new Error((await response.json()).error);
  return response;
}

async function ask(action, body) {
  const request = { ...body, have: [...pictures.keys()] };
  return (await post(action, JSON.stringify(request), "application/json")).json();
}

function show(text, isError = false) {
  const message = find("message");
  message.textContent = text;
  message.classList.toggle("error", isError);
}

async function busy(act) {
  document.body.classList.add("busy");
  find("stage").setAttribute("aria-busy", "true");
  try {
    return await act();
  } catch (error) {
    show(error.message, true);
    return null;
  } finally {
    document.body.classList.remove("busy");
    find("stage").removeAttribute("aria-busy");
  }
}

let note = ""; // said once, before the next message

// Ask for what the tab shows; the last of several wishes counts.
async function refresh() {
  waiting = true;
  if (running) return;
  running = true;
  await busy(async () => {
    while (waiting) {
      waiting = false;
      showSettings();
      try {
        const answer = await SHOW[state.tab]();
        if (answer) show([note, answer.error || answer.message].filter(Boolean).join(" "), Boolean(answer.error || note));
        note = "";
      } catch (error) {
        if (!waiting) await recover(error);
      }
    }
  });
  running = false;
}

// Nothing may be left of another state; an image that is not there becomes the first example.
async function recover(error) {
  clearRows();
  const start = initial().scene;
  if (!started && state.scene !== start) {
    note = `${error.message} Here is an example instead.`;
    Object.assign(state, { scene: start, visible: null, edits: {} });
    history.replaceState(null, "", toUrl());
    waiting = true;
    return;
  }
  show(error.message, true);
}

let started = false;

// --- rows of pictures

function cell(caption, board) {
  const image = h("img", { alt: "", hidden: true, draggable: false });
  const empty = h("span", { className: "missing" }, "–");
  const box = board || h("div", { className: "picture" }, image, empty);
  const text = h("figcaption", {}, caption);
  return { figure: h("figure", {}, box, text), image, empty, text, box };
}

function setCell(part, reference, caption, alt, exact, missing = "not available") {
  part.text.textContent = caption;
  part.image.hidden = !reference;
  part.empty.hidden = Boolean(reference);
  part.empty.textContent = missing;
  part.image.className = exact ? "exact" : "";
  part.image.alt = reference ? alt : "";
  if (reference) part.image.src = source(reference);
}

function row(id, name, notes, parts) {
  const score = h("p", { className: "score" });
  const legend = h("div", { className: "legend" });
  const about = h("div", { className: "about" }, h("h3", {}, name), ...notes, score, legend);
  const element = h("article", { className: "row", id }, about, ...parts.map((part) => part.figure));
  return { element, score, legend };
}

function fillLegend(box, data) {
  box.replaceChildren();
  for (const chip of data.legend || []) {
    const swatch = h("i");
    swatch.style.background = chip.colour || "transparent";
    box.append(h("span", { className: "chip" }, swatch, chip.name));
  }
  for (const bar of data.scales || []) {
    const ramp = h("i");
    ramp.style.background = `linear-gradient(90deg, ${config.ramp.join(", ")})`;
    box.append(h("span", { className: "scale" }, h("b", {}, bar.title), h("span", {}, bar.low), ramp, h("span", {}, bar.high)));
  }
  for (const bar of data.bars || []) {
    const fill = h("i");
    fill.style.width = `${Math.max(1, 100 * bar.share)}%`;
    if (bar.colour) fill.style.background = bar.colour;
    box.append(h("span", { className: "share" }, h("span", {}, bar.name), h("b", {}, fill), h("span", {}, bar.text)));
  }
  for (const entry of data.numbers || []) box.append(h("span", { className: "chip" }, `${entry.name}: ${entry.value}`));
}

const painters = new Map();
const outputs = new Map(); // parts of the rows of the decoders

function buildFill() {
  const targets = new Set(config.outputs.map((output) => output.name));
  for (const input of config.inputs) {
    const painter = new Painter(input, (done) => painted(done));
    painters.set(input.name, painter);
    const board = cell("visible patches", painter.board);
    addRow(find("rows"), input, [painter.total, painter.tools, painter.palette], targets.has(input.name), [board]);
  }
  const further = config.outputs.filter((output) => !painters.has(output.name));
  find("further").querySelector("summary").textContent = `Further targets: ${further.map((o) => o.name).join(", ")}`;
  for (const output of further) {
    addRow(find("further-rows"), output, [h("span", { className: "count" }, output.note)], true, []);
  }
  find("further").hidden = !further.length;
}

function addRow(box, modality, notes, predicted, before) {
  const parts = predicted ? ["prediction", "truth", "error"].map((caption) => cell(caption)) : [];
  const built = row(`row-${modality.name}`, modality.name, notes, [...before, ...parts]);
  outputs.set(modality.name, { ...built, parts, exact: modality.exact });
  box.append(built.element);
}

function clearRows() {
  for (const [name, output] of outputs) setOutput(name, output, { pictures: {}, score: "" });
  for (const id of ["predict-rows", "features-rows"]) find(id)?.replaceChildren();
}

function setOutput(name, output, data) {
  const shown = data.pictures;
  const edited = "reaction" in shown;
  const captions = edited ? ["prediction", "before the edit", "reaction"] : ["prediction", "truth", "error"];
  const keys = edited ? ["prediction", "before", "reaction"] : captions;
  output.parts.forEach((part, i) => {
    const missing = keys[i] === "truth" || data.given ? "not available" : "–";
    setCell(part, shown[keys[i]], captions[i], `${name}: ${captions[i]}`, output.exact, missing);
  });
  output.score.textContent = data.score || "";
  fillLegend(output.legend, data);
}

async function showFill() {
  if (!config.inputs.length) throw new Error(ADVICE.fill);
  const asked = state.scene;
  const { scene, visible, edits, seed, tokens, concentration, shares } = state;
  const further = find("further").open;
  const total = config.inputs.reduce((sum, input) => sum + input.rows * input.columns, 0);
  const answer = await ask("fill", {
    scene, visible, edits, seed, concentration, shares, further, tokens: Math.min(tokens, total),
  });
  if (waiting && asked !== state.scene) return null;
  showScene(answer);
  for (const [name, painter] of painters) {
    const given = answer.has.includes(name);
    if (given) painter.image.src = source(answer.inputs[name]);
    // Strokes painted in the meantime stay.
    if (!waiting) painter.set(answer.visible[name] || "", answer.edits[name] || {}, given);
  }
  for (const [name, output] of outputs) {
    const data = answer.rows[name];
    if (data) setOutput(name, output, { ...data, given: Boolean(answer.count) });
  }
  if (!waiting) {
    find("tokens").max = answer.total;
    find("tokens").value = answer.count;
    find("tokens-value").textContent = `${answer.count} of ${answer.total}`;
  }
  return answer;
}

function painted(done) {
  const visible = {};
  const edits = {};
  for (const [name, painter] of painters) {
    if (painter.given) visible[name] = painter.bits;
    if (Object.keys(painter.edits).length) edits[name] = { ...painter.edits };
  }
  if (done) go({ visible, edits });
  else {
    Object.assign(state, { visible, edits });
    refresh();
  }
}

async function showPredict() {
  if (!config.heads.length) throw new Error(ADVICE.predict);
  const answer = await ask("predict", { scene: state.scene, point: state.point.map((x) => (x + 0.5) / POINTS) });
  showScene(answer);
  const focused = document.activeElement?.id;
  const rows = answer.rows.map((data) => {
    const parts = Object.entries(data.pictures).map(([name, reference]) => {
      const part = cell(name);
      setCell(part, reference, name, `${data.name}: ${name}`, false);
      if (data.point) {
        const at = [state.point[1], state.point[0]];
        pickable(part.box, POINTS, POINTS, at, ([y, x]) => go({ point: [x, y] }));
        part.box.id = `${data.name}-${name}`;
        part.box.classList.add("point");
        part.box.setAttribute("aria-label", `${data.name}, ${name}: arrow keys move the mark`);
      }
      return part;
    });
    const built = row(`head-${data.name}`, data.name, [], parts);
    built.score.textContent = data.bars.length && data.point ? "Probabilities at the mark:" : "";
    fillLegend(built.legend, { bars: data.bars, numbers: data.numbers });
    const key = h("div", { className: "legend key" });
    fillLegend(key, { legend: data.legend, scales: data.scales });
    built.element.append(key);
    return built.element;
  });
  find("predict-rows").replaceChildren(...rows);
  if (focused) find(focused)?.focus();
  return answer;
}

async function showFeatures() {
  const answer = await ask("features", { scene: state.scene, block: state.block, query: state.query });
  showScene(answer);
  state.query = answer.query;
  const focused = document.activeElement?.id;
  const rows = Object.entries(answer.rows).map(([name, data]) => {
    const captions = { image: "image", attention: "attention", components: "components" };
    const parts = Object.entries(data.pictures).map(([key, reference]) => {
      const part = cell(captions[key]);
      setCell(part, reference, captions[key], `${name}: ${captions[key]}`, key === "components");
      const at = name === answer.query[0] ? answer.query.slice(1) : null;
      pickable(part.box, ...data.grid, at, ([y, x]) => go({ query: [name, y, x] }));
      part.box.id = `feature-${name}-${key}`;
      part.box.setAttribute("aria-label", `${name}, ${captions[key]}: arrow keys choose a patch`);
      return part;
    });
    const built = row(`features-${name}`, name, [], parts);
    built.score.textContent = data.score;
    return built.element;
  });
  find("features-rows").replaceChildren(...rows);
  if (focused) find(focused)?.focus();
  return answer;
}

const SHOW = { fill: showFill, predict: showPredict, features: showFeatures };

// --- settings, examples, uploads

function showScene(answer) {
  started = true;
  for (const button of find("examples").children) button.setAttribute("aria-pressed", button.dataset.id === answer.scene);
  for (const input of config.uploads) {
    const name = answer.files[input];
    find(`file-${input}`).textContent = name ? `${input}: ${name}` : answer.scene.startsWith("upload:") ? `${input}: none` : input;
  }
  const crops = answer.crops.map((crop) => {
    const [width, height] = crop.size;
    const frame = h("i");
    const [left, top, w, hgt] = crop.box;
    Object.assign(frame.style, {
      left: `${(100 * left) / width}%`, top: `${(100 * top) / height}%`,
      width: `${(100 * w) / width}%`, height: `${(100 * hgt) / height}%`,
    });
    const picture = h("span", { className: "crop" }, h("img", { src: source(crop.picture), alt: `${crop.name}, uncropped` }), frame);
    const text = `${crop.file}, ${width} × ${height}: the middle ${w} × ${hgt} is used`;
    return h("figure", {}, picture, h("figcaption", {}, text));
  });
  find("crops").replaceChildren(...crops);
}

function showSettings() {
  for (const tab of TABS) {
    const button = find(`tab-${tab}`);
    button.setAttribute("aria-selected", tab === state.tab);
    button.tabIndex = tab === state.tab ? 0 : -1;
  }
  find("stage").setAttribute("aria-labelledby", `tab-${state.tab}`);
  document.body.dataset.tab = state.tab;
  for (const element of document.querySelectorAll("main [data-tab]")) element.hidden = element.dataset.tab !== state.tab;
  find("further").hidden = state.tab !== "fill" || !find("further-rows").children.length;
  find("seed").value = state.seed;
  find("seed").removeAttribute("aria-invalid");
  find("block").value = state.block;
  find("block-value").textContent = `${state.block} of ${config.blocks}`;
  find("concentration").value = state.concentration;
  find("concentration-value").textContent = state.concentration;
  for (const input of config.inputs) {
    const share = state.shares[input.name] ?? 1;
    find(`share-${input.name}`).value = share;
    find(`share-${input.name}-value`).textContent = share;
  }
}

const drawn = (changes) => go({ ...changes, visible: null, edits: {} });
const enter = (scene) => drawn({ scene, point: initial().point });

function buildSettings() {
  for (const [i, example] of config.examples.entries()) {
    const image = h("img", { alt: example.title, src: `/example/${i}`, loading: "lazy", width: 64, height: 64 });
    const button = h("button", { type: "button", title: example.title, onclick: () => enter(example.id) }, image);
    button.dataset.id = example.id;
    button.setAttribute("aria-pressed", "false");
    find("examples").append(button);
  }
  const preset = (id, text, act) => find("presets").append(h("button", { type: "button", id, onclick: act }, text));
  preset("preset-sixth", "1/6 of all", () => drawn({ tokens: config.tokens, concentration: 1, shares: {} }));
  for (const input of config.inputs) preset(`preset-${input.name}`, `only ${input.name}`, () => showOnly(input.name));
  for (const input of config.inputs) {
    const id = `share-${input.name}`;
    const slider = h("input", { type: "range", id, min: 0, max: 1, step: 0.05 });
    slider.addEventListener("change", () => drawn({ shares: { ...state.shares, [input.name]: Number(slider.value) } }));
    find("shares").append(h("label", { htmlFor: id }, `${input.name} `, h("output", { id: `${id}-value` })), slider);
  }
  for (const name of config.uploads) {
    const file = h("input", { type: "file", id: `upload-${name}`, accept: config.accept, className: "unseen" });
    file.addEventListener("change", () => upload(name, file));
    find("uploads").append(h("label", { className: "button" }, file, h("span", { id: `file-${name}` }, name)));
  }
  find("tokens").max = config.inputs.reduce((sum, input) => sum + input.rows * input.columns, 0);
  find("block").max = config.blocks;
  find("new-room").hidden = !config.maxRoom;
  for (const tab of ["predict", "features"]) {
    find("rows").after(h("div", { id: `${tab}-rows` }));
    find(`${tab}-rows`).dataset.tab = tab;
  }
  find("rows").dataset.tab = "fill";
}

function showOnly(name) {
  const painter = painters.get(name);
  if (!painter.given) {
    show(`This image has no ${name}: add a file under “Your own images”.`, true);
    return;
  }
  const visible = {};
  for (const [other, p] of painters) if (p.given) visible[other] = (other === name ? "1" : "0").repeat(p.count);
  go({ visible, edits: {} });
}

async function upload(name, input) {
  const file = input.files[0];
  input.value = ""; // what counts is what the server has taken
  if (!file) return;
  if (file.size > config.maxBytes) {
    const limit = config.maxBytes / 1e6;
    show(`${file.name} has ${(file.size / 1e6).toFixed(1)} MB, the limit is ${limit} MB. Compress or downscale it.`, true);
    return;
  }
  show(`Reading ${file.name} …`);
  const query = new URLSearchParams({ modality: name, name: file.name, onto: state.scene });
  const answer = await busy(async () => (await post(`upload?${query}`, file, "application/octet-stream")).json());
  if (answer) enter(answer.scene);
}

async function label() {
  show("Predicting depth and labels: the first time loads the models …");
  const answer = await busy(() => ask("label", { scene: state.scene }));
  if (!answer) return;
  note = answer.problems.join(" ");
  enter(answer.scene);
}

async function download() {
  const { scene, visible, edits, seed, tokens, concentration, shares } = state;
  const body = JSON.stringify({ scene, visible, edits, seed, tokens, concentration, shares });
  const blob = await busy(async () => (await post("png", body, "application/json")).blob());
  if (!blob) return;
  const link = h("a", { href: URL.createObjectURL(blob), download: "multimae.png" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function readSeed() {
  const seed = Number(find("seed").value);
  if (find("seed").value !== "" && Number.isInteger(seed) && seed >= 0 && seed <= config.maxSeed) return drawn({ seed });
  find("seed").setAttribute("aria-invalid", "true");
  show(`The seed must be an integer from 0 to ${config.maxSeed}.`, true);
}

function onTabKey(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const tab = TABS[(TABS.indexOf(state.tab) + step + TABS.length) % TABS.length];
  find(`tab-${tab}`).focus();
  go({ tab });
}

function listen() {
  for (const tab of TABS) {
    find(`tab-${tab}`).addEventListener("click", () => go({ tab }));
    find(`tab-${tab}`).addEventListener("keydown", onTabKey);
  }
  const slider = (id, text, changed) => {
    find(id).addEventListener("input", () => (find(`${id}-value`).textContent = text(find(id))));
    find(id).addEventListener("change", () => changed(Number(find(id).value)));
  };
  slider("tokens", (s) => `${s.value} of ${s.max}`, (tokens) => drawn({ tokens }));
  slider("concentration", (s) => s.value, (concentration) => drawn({ concentration }));
  slider("block", (s) => `${s.value} of ${s.max}`, (block) => go({ block }));
  find("seed").addEventListener("change", readSeed);
  find("resample").addEventListener("click", () => drawn({ seed: Math.floor(Math.random() * 10000) }));
  find("new-room").addEventListener("click", () => enter(`room:${Math.floor(Math.random() * config.maxRoom)}`));
  find("download").addEventListener("click", download);
  find("label").addEventListener("click", label);
  find("further").addEventListener("toggle", () => find("further").open && refresh());
  addEventListener("popstate", () => {
    state = fromUrl();
    refresh();
  });
}

buildSettings();
buildFill();
listen();
state = fromUrl();
refresh();
