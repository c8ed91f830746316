// One modality's patches: drag over hidden ones to reveal them, over visible ones to hide them.
// In edit mode dragging changes patches: paints a class or a colour, or shifts values.
// Given by the page: element, trigger, props, watch. props.value is {visible: "0110…", edits: {patch: value}}.
const find = (name) => element.querySelector(".mm-" + name);
const board = find("board"), cells = find("cells"), image = find("image"), palette = find("palette");
const rows = props.rows, columns = props.columns, count = rows * columns;
const classes = props.classes || [];

let visible = new Array(count).fill(false);
let edits = {};
let stroke = null; // {reveal: bool, last: cell} while a pointer is down
let cursor = 0; // the patch that the keyboard is at
let editing = false;

function build() {
  find("name").textContent = props.name;
  board.setAttribute(
    "aria-label",
    `${props.name}: ${rows} by ${columns} patches. Arrow keys move, space reveals or hides a patch.`
  );
  cells.style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
  cells.style.gridTemplateRows = `repeat(${rows}, 1fr)`;
  for (let i = 0; i < count; i++) cells.appendChild(document.createElement("i"));
  image.classList.toggle("mm-sharp", props.edit === "class");
  for (const name of ["class", "shift", "colour"]) find(name).hidden = name !== props.edit;
  find("amount").hidden = props.edit !== "shift";
  find("swatch").hidden = props.edit !== "class";
  for (const [id, entry] of classes.entries()) find("class").add(new Option(entry.name, id));
  if (classes.length) find("class").value = Math.min(1, classes.length - 1);
  showTool();
}

function read() {
  const value = props.value || {};
  const bits = value.visible || "";
  visible = Array.from({ length: count }, (_, i) => bits[i] === "1");
  edits = { ...(value.edits || {}) };
}

function draw() {
  const given = Boolean(props.picture);
  element.classList.toggle("mm-missing", !given);
  if (given && image.getAttribute("src") !== props.picture) image.src = props.picture;
  for (let i = 0; i < count; i++) {
    const cell = cells.children[i];
    const edit = edits[i];
    cell.className = visible[i] ? "seen" : "hidden";
    if (edit !== undefined) cell.classList.add("edited");
    if (i === cursor) cell.classList.add("cursor");
    cell.style.background = edit === undefined ? "" : colourOf(edit);
    cell.textContent = edit !== undefined && props.edit === "shift" ? (edit < 0 ? "−" : "+") : "";
  }
  find("count").textContent = given ? `${visible.filter(Boolean).length} of ${count} visible` : "";
  find("undo").disabled = Object.keys(edits).length === 0;
}

function colourOf(edit) {
  if (props.edit === "class") return classes[edit] ? classes[edit].colour : "";
  return props.edit === "colour" ? edit : "";
}

function tool() {
  if (props.edit === "class") return Number(find("class").value);
  return props.edit === "colour" ? find("colour").value : Number(find("shift").value);
}

function showTool() {
  const amount = Number(find("shift").value);
  find("amount").textContent = `${amount > 0 ? "+" : ""}${Math.round(100 * amount)} %`;
  find("swatch").style.background = props.edit === "class" ? colourOf(tool()) : "";
  palette.hidden = !editing;
  board.classList.toggle("mm-editing", editing);
  find("edit").setAttribute("aria-pressed", editing);
}

function send() {
  props.value = {
    visible: visible.map((seen) => (seen ? "1" : "0")).join(""),
    edits: { ...edits },
  };
  draw();
  trigger("input");
}

function touch(i) {
  if (editing) {
    const value = tool();
    if (edits[i] === value && visible[i]) return false;
    edits[i] = value;
    visible[i] = true;
    return true;
  }
  if (visible[i] === stroke.reveal) return false;
  visible[i] = stroke.reveal;
  if (!stroke.reveal) delete edits[i]; // an edit nobody sees would change nothing
  return true;
}

function at(event) {
  const box = board.getBoundingClientRect();
  const inside = (x, n) => Math.min(n - 1, Math.max(0, Math.floor(x * n)));
  const column = inside((event.clientX - box.left) / box.width, columns);
  return [inside((event.clientY - box.top) / box.height, rows), column];
}

// A fast pointer skips patches: touch all on the line from the last one.
function touchLine(to) {
  const from = stroke.last || to;
  const steps = Math.max(1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
  let changed = false;
  for (let s = 0; s <= steps; s++) {
    const row = Math.round(from[0] + ((to[0] - from[0]) * s) / steps);
    const column = Math.round(from[1] + ((to[1] - from[1]) * s) / steps);
    changed = touch(row * columns + column) || changed;
  }
  stroke.last = to;
  if (changed) send();
}

function finish() {
  stroke = null;
}

board.addEventListener("pointerdown", (event) => {
  if (!props.picture || event.button !== 0) return;
  event.preventDefault();
  board.focus({ preventScroll: true });
  board.setPointerCapture(event.pointerId);
  const cell = at(event);
  cursor = cell[0] * columns + cell[1];
  stroke = { reveal: !visible[cursor], last: null };
  touchLine(cell);
});
board.addEventListener("pointermove", (event) => stroke && touchLine(at(event)));
board.addEventListener("pointerup", finish);
board.addEventListener("pointercancel", finish);

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
board.addEventListener("keydown", (event) => {
  if (!props.picture) return;
  if (MOVES[event.key]) {
    const row = Math.floor(cursor / columns) + MOVES[event.key][0];
    const column = (cursor % columns) + MOVES[event.key][1];
    if (row >= 0 && row < rows && column >= 0 && column < columns) cursor = row * columns + column;
    draw();
  } else if (event.key === " " || event.key === "Enter") {
    stroke = { reveal: !visible[cursor], last: null };
    touchLine([Math.floor(cursor / columns), cursor % columns]);
    finish();
  } else return;
  event.preventDefault();
});

function setAll(value) {
  if (!props.picture) return;
  visible.fill(value);
  if (!value) edits = {};
  send();
}

find("all").addEventListener("click", () => setAll(true));
find("clear").addEventListener("click", () => setAll(false));
find("undo").addEventListener("click", () => {
  edits = {};
  send();
});
find("edit").addEventListener("click", () => {
  editing = !editing;
  showTool();
});
for (const name of ["class", "shift", "colour"]) find(name).addEventListener("input", showTool);

watch("value", () => {
  read();
  draw();
});
watch("picture", draw);
build();
read();
draw();
