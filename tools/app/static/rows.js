// A row of pictures: what it is about, and figures with captions.
"use strict";

function cell(caption, board) {
  const image = h("img", { alt: "", hidden: true, draggable: false });
  const empty = h("span", { className: "missing" }, "–");
  const box = board || h("div", { className: "picture" }, image, empty);
  fit(image, box);
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

// Boxes have the proportions of their pictures.
function fit(image, box) {
  image.addEventListener("load", () => (box.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`));
}

// Draw the visible patches over the prediction, or remove them.
async function paste(part, painter, wanted) {
  part.canvas ||= part.box.appendChild(h("canvas", { className: part.image.className }));
  part.canvas.hidden = !wanted || part.image.hidden;
  if (part.canvas.hidden) return;
  const { image, visible, input } = painter;
  await image.decode().catch(() => null);
  const width = (part.canvas.width = image.naturalWidth) / input.columns;
  const height = (part.canvas.height = image.naturalHeight) / input.rows;
  const context = part.canvas.getContext("2d");
  visible.forEach((seen, i) => {
    const box = [(i % input.columns) * width, Math.floor(i / input.columns) * height, width, height];
    if (seen) context.drawImage(image, ...box, ...box);
  });
}

function row(id, name, notes, parts) {
  const score = h("p", { className: "score" });
  const legend = h("div", { className: "legend" });
  const about = h("div", { className: "about" }, h("h2", {}, name), ...notes, score, legend);
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
