// What the page shows, and its URL.
"use strict";

const find = (id) => document.getElementById(id);
const config = JSON.parse(find("config").textContent);
const TABS = ["fill", "predict", "features"];
const EMPTY = { fill: config.inputs.length, predict: config.heads.length, features: 1 };
const POINTS = 64; // steps of a point in a picture

let state = initial();

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
    paste: true, // visible patches over the prediction
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
  if (!state.paste) put("paste", "no");
  if (state.tab === "features" && state.query) put("patch", state.query.join("."));
  if (state.tab === "predict" && String(state.point) !== String(first.point)) put("point", state.point.join("."));
  return `?${query}`;
}

// State of the URL; what does not fit this model keeps its default.
function fromUrl() {
  const query = new URLSearchParams(location.search);
  const read = initial();
  const number = (name, low, high, whole = true) => {
    const value = Number(query.get(name));
    if (query.has(name) && value >= low && value <= high && (!whole || Number.isInteger(value))) read[name] = value;
  };
  if (TABS.includes(query.get("tab"))) read.tab = query.get("tab");
  if (query.has("scene")) read.scene = query.get("scene");
  read.paste = query.get("paste") !== "no";
  number("seed", 0, config.maxSeed);
  number("tokens", 1, 1e9);
  number("concentration", 0.1, 10, false);
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
