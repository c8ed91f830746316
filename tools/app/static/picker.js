// Thumbnails: a click reports its number.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-index]");
  if (!button) return;
  for (const other of element.querySelectorAll("button")) {
    other.setAttribute("aria-pressed", other === button);
  }
  trigger("select", { index: Number(button.dataset.index) });
});
watch("value", () => {
  for (const button of element.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", button.dataset.index === String(props.value));
  }
});
