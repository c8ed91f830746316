// Elements, and the boards on which a visitor paints or picks patches.
"use strict";

function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "role") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

// Row and column under a pointer.
function cellAt(board, event, rows, columns) {
  const box = board.getBoundingClientRect();
  const inside = (x, n) => Math.min(n - 1, Math.max(0, Math.floor(x * n)));
  return [
    inside((event.clientY - box.top) / box.height, rows),
    inside((event.clientX - box.left) / box.width, columns),
  ];
}

// A picture in which a click or the arrow keys pick a cell.
function pickable(board, rows, columns, cell, picked) {
  board.tabIndex = 0;
  board.setAttribute("role", "application");
  const mark = board.appendChild(h("i", { className: "mark" }));
  const move = ([row, column]) => {
    mark.style.top = `${(100 * row) / rows}%`;
    mark.style.left = `${(100 * column) / columns}%`;
    mark.style.height = `${100 / rows}%`;
    mark.style.width = `${100 / columns}%`;
  };
  mark.hidden = !cell;
  if (cell) move(cell);
  board.addEventListener("click", (event) => picked(cellAt(board, event, rows, columns)));
  board.addEventListener("keydown", (event) => {
    const step = MOVES[event.key];
    if (!step) return;
    event.preventDefault();
    const [row, column] = cell || [0, 0];
    const clamp = (x, n) => Math.min(n - 1, Math.max(0, x));
    picked([clamp(row + step[0], rows), clamp(column + step[1], columns)]);
  });
}

// One modality's patches: drag over hidden ones to reveal them, over visible ones to hide them.
// In edit mode dragging changes patches: paints a class or a colour, or shifts values.
class Painter {
  // changed(done) follows every change; done: the stroke has ended.
  constructor(input, changed) {
    Object.assign(this, { input, changed, editing: false, stroke: null, cursor: 0 });
    this.count = input.rows * input.columns;
    this.visible = new Array(this.count).fill(false);
    this.edits = {};
    this.given = false;
    this.build();
  }

  build() {
    const { name, rows, columns, edit } = this.input;
    const button = (text, label, act) => h("button", { type: "button", ariaLabel: label, onclick: act }, text);
    this.all = button("all", `${name}: show all patches`, () => this.setAll(true));
    this.none = button("none", `${name}: hide all patches`, () => this.setAll(false));
    this.toggle = button("edit", `${name}: edit patches`, () => this.setEditing(!this.editing));
    this.undo = button("undo", `${name}: undo all edits`, () => this.setEdits({}));
    this.total = h("span", { className: "count" });
    this.tools = h("span", { className: "group" }, this.all, this.none, this.toggle);
    this.palette = h("div", { className: "palette", hidden: true }, ...this.buildTool(), this.undo);
    this.image = h("img", { alt: `${name}: the image`, draggable: false, className: this.input.exact ? "exact" : "" });
    this.cells = h("div", { className: "cells" });
    this.cells.style.gridTemplate = `repeat(${rows}, 1fr) / repeat(${columns}, 1fr)`;
    for (let i = 0; i < this.count; i++) this.cells.append(h("i"));
    this.board = h(
      "div",
      { className: "board", tabIndex: 0, role: "application", id: `board-${name}` },
      this.image,
      this.cells,
      h("span", { className: "missing" }, `no ${name}`),
    );
    this.board.setAttribute(
      "aria-label",
      `${name}: ${rows} by ${columns} patches. Arrow keys move, space reveals or hides a patch.`,
    );
    this.board.addEventListener("pointerdown", (event) => this.start(event));
    this.board.addEventListener("pointermove", (event) => {
      if (this.stroke) this.drawLine(cellAt(this.board, event, rows, columns));
    });
    for (const end of ["pointerup", "pointercancel"]) this.board.addEventListener(end, () => this.finish());
    this.board.addEventListener("keydown", (event) => this.onKey(event));
    this.setEditing(false);
  }

  buildTool() {
    const { name, edit, classes } = this.input;
    const label = `${name}: ${{ class: "class to paint", colour: "colour to paint", shift: "shift of the values" }[edit]}`;
    if (edit === "class") {
      const options = classes.map((entry, i) => new Option(entry.name, i));
      this.tool = h("select", { ariaLabel: label }, ...options);
      this.tool.value = Math.min(1, classes.length - 1);
      this.swatch = h("i", { className: "swatch" });
    } else if (edit === "colour") {
      this.tool = h("input", { type: "color", value: "#c0392b", ariaLabel: label });
    } else {
      this.tool = h("input", { type: "range", min: -1, max: 1, step: 0.05, ariaLabel: label });
      this.tool.value = -0.4;
      this.swatch = h("output");
    }
    this.tool.addEventListener("input", () => this.showTool());
    return this.swatch ? [this.swatch, this.tool] : [this.tool];
  }

  get value() {
    const raw = this.tool.value;
    return this.input.edit === "colour" ? raw : Number(raw);
  }

  get bits() {
    return this.visible.map((seen) => (seen ? "1" : "0")).join("");
  }

  set(bits, edits, given) {
    this.given = given;
    this.visible = Array.from({ length: this.count }, (_, i) => bits[i] === "1");
    this.edits = { ...edits };
    this.draw();
  }

  colourOf(edit) {
    if (this.input.edit === "class") return (this.input.classes[edit] || {}).colour || "";
    return this.input.edit === "colour" ? edit : "";
  }

  draw() {
    this.board.classList.toggle("absent", !this.given);
    for (let i = 0; i < this.count; i++) {
      const cell = this.cells.children[i];
      const edit = this.edits[i];
      const edited = edit !== undefined;
      cell.className = `${this.visible[i] ? "seen" : "hidden"}${edited ? " edited" : ""}${i === this.cursor ? " cursor" : ""}`;
      cell.style.background = edited ? this.colourOf(edit) : "";
      cell.textContent = edited && this.input.edit === "shift" ? (edit < 0 ? "−" : "+") : "";
    }
    const seen = this.visible.filter(Boolean).length;
    this.total.textContent = this.given ? `${seen} of ${this.count} visible` : "not in this image";
    this.undo.disabled = Object.keys(this.edits).length === 0;
    for (const button of [this.all, this.none, this.toggle]) button.disabled = !this.given;
  }

  showTool() {
    if (this.input.edit === "class") this.swatch.style.background = this.colourOf(this.value);
    if (this.input.edit === "shift") this.swatch.textContent = `${this.value > 0 ? "+" : ""}${Math.round(100 * this.value)} %`;
  }

  setEditing(editing) {
    this.editing = editing;
    this.palette.hidden = !editing;
    this.board.classList.toggle("editing", editing);
    this.toggle.setAttribute("aria-pressed", editing);
    this.showTool();
  }

  setAll(value) {
    this.visible.fill(value);
    if (!value) this.edits = {};
    this.draw();
    this.changed(true);
  }

  setEdits(edits) {
    this.edits = edits;
    this.draw();
    this.changed(true);
  }

  touch(i) {
    if (this.editing) {
      if (this.edits[i] === this.value && this.visible[i]) return false;
      this.edits[i] = this.value;
      this.visible[i] = true;
      return true;
    }
    if (this.visible[i] === this.stroke.reveal) return false;
    this.visible[i] = this.stroke.reveal;
    if (!this.stroke.reveal) delete this.edits[i]; // an edit nobody sees would change nothing
    return true;
  }

  // A fast pointer skips patches: touch all on the line from the last one.
  drawLine(to) {
    const from = this.stroke.last || to;
    const steps = Math.max(1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
    let changed = false;
    for (let s = 0; s <= steps; s++) {
      const row = Math.round(from[0] + ((to[0] - from[0]) * s) / steps);
      const column = Math.round(from[1] + ((to[1] - from[1]) * s) / steps);
      changed = this.touch(row * this.input.columns + column) || changed;
    }
    this.stroke.last = to;
    if (!changed) return;
    this.stroke.changed = true;
    this.draw();
    this.changed(false);
  }

  start(event) {
    if (!this.given || event.button !== 0) return;
    event.preventDefault();
    this.board.focus({ preventScroll: true });
    this.board.setPointerCapture(event.pointerId);
    const { rows, columns } = this.input;
    const cell = cellAt(this.board, event, rows, columns);
    this.cursor = cell[0] * columns + cell[1];
    this.stroke = { reveal: !this.visible[this.cursor], last: null };
    this.drawLine(cell);
  }

  finish() {
    const changed = this.stroke && this.stroke.changed;
    this.stroke = null;
    if (changed) this.changed(true);
  }

  onKey(event) {
    if (!this.given) return;
    const { rows, columns } = this.input;
    const step = MOVES[event.key];
    let row = Math.floor(this.cursor / columns);
    let column = this.cursor % columns;
    if (step) {
      row = Math.min(rows - 1, Math.max(0, row + step[0]));
      column = Math.min(columns - 1, Math.max(0, column + step[1]));
      this.cursor = row * columns + column;
      this.draw();
    } else if (event.key === " " || event.key === "Enter") {
      this.stroke = { reveal: !this.visible[this.cursor], last: null };
      this.drawLine([row, column]);
      this.finish();
    } else return;
    event.preventDefault();
  }
}
