// Saves what the server puts into props.value = {name, data, count}; count makes every click a change.
watch("value", async () => {
  if (!props.value || !props.value.data) return;
  const blob = await (await fetch(props.value.data)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = props.value.name;
  document.body.appendChild(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
