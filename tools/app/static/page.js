// The page: its state is in the URL; every change asks the server for what the tab shows.
"use strict";

let running = false;
let waiting = false;

// Change the state, put it into the history, and show it.
function go(changes) {
  Object.assign(state, changes);
  const url = toUrl();
  if (url !== location.search) history.pushState(null, "", url);
  refresh();
}

// --- server

const pictures = new Map(); // data by name of a picture
const MAX_PICTURES = 120;

function source({ id, data = pictures.get(id) }) {
  pictures.delete(id); // the last used are the last to go
  pictures.set(id, data);
  if (pictures.size > MAX_PICTURES) pictures.delete(pictures.keys().next().value);
  return data;
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

let calls = 0; // that the visitor waits for

async function busy(act) {
  calls++;
  document.body.classList.add("busy");
  find("stage").setAttribute("aria-busy", "true");
  try {
    return await act();
  } catch (error) {
    show(error.message, true);
    return null;
  } finally {
    if (!--calls) {
      document.body.classList.remove("busy");
      find("stage").removeAttribute("aria-busy");
    }
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
  if (!shownScene && state.scene !== start) {
    note = `${error.message} Here is an example instead.`;
    Object.assign(state, { scene: start, visible: null, edits: {} });
    history.replaceState(null, "", toUrl());
    waiting = true;
    return;
  }
  show(error.message, true);
}

let shownScene = null;

// --- rows of pictures

const painters = new Map();
const outputs = new Map(); // parts of the rows of the decoders

function buildFill() {
  const targets = new Set(config.outputs.map((output) => output.name));
  for (const input of config.inputs) {
    const painter = new Painter(input, (done) => painted(done));
    painters.set(input.name, painter);
    fit(painter.image, painter.board);
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
  if (state.scene !== shownScene) for (const painter of painters.values()) painter.set("", {}, false);
  for (const [name, output] of outputs) setOutput(name, output, { pictures: {}, score: "" });
  for (const id of ["predict-rows", "features-rows"]) find(id)?.replaceChildren();
}

function setOutput(name, output, data) {
  const shown = data.pictures;
  const edited = "reaction" in shown;
  const filled = state.paste && painters.get(name)?.given;
  const captions = [filled ? "filled in" : "prediction", ...(edited ? ["before the edit", "reaction"] : ["truth", "error"])];
  const keys = ["prediction", ...(edited ? ["before", "reaction"] : ["truth", "error"])];
  output.parts.forEach((part, i) => {
    const missing = keys[i] === "truth" || data.given ? "not available" : "–";
    setCell(part, shown[keys[i]], captions[i], `${name}: ${captions[i]}`, output.exact, missing);
  });
  if (painters.has(name) && output.parts.length) paste(output.parts[0], painters.get(name), filled);
  output.score.textContent = data.score || "";
  fillLegend(output.legend, data);
}

async function showFill() {
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
  if (!waiting) state.query = answer.query;
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
  shownScene = answer.scene;
  find("forget").hidden = !answer.scene.startsWith("upload:");
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
  find("paste").checked = state.paste;
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
  document.body.style.setProperty("--rows", Math.min(4, Math.max(2, config.inputs.length || config.features.length)));
}

// All patches of one modality, or none at all.
function showOnly(name) {
  if (name && !painters.get(name).given) {
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
  slider("tokens", (s) => `${s.value} of ${s.max}`, (tokens) => (tokens ? drawn({ tokens }) : showOnly(null)));
  slider("concentration", (s) => s.value, (concentration) => drawn({ concentration }));
  find("paste").addEventListener("change", () => go({ paste: find("paste").checked }));
  slider("block", (s) => `${s.value} of ${s.max}`, (block) => go({ block }));
  find("seed").addEventListener("change", readSeed);
  find("resample").addEventListener("click", () => drawn({ seed: Math.floor(Math.random() * 10000) }));
  find("new-room").addEventListener("click", () => enter(`room:${Math.floor(Math.random() * config.maxRoom)}`));
  find("download").addEventListener("click", download);
  find("label").addEventListener("click", label);
  find("forget").addEventListener("click", () => enter(initial().scene));
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
