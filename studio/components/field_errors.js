// Shows errors at the fields that caused them. The value maps the element id of a field to its message. A message
// stays until the value no longer has it; when the user edits a field that has one, 'edit' is fired.
const CLASS = "field-error";
let timer = 0;

function show() {
  const messages = props.value ?? {};
  for (const id of Object.keys(props.fields)) {
    const block = document.getElementById(id);
    if (!block) continue; // its tab has not been opened yet
    const input = block.querySelector("input:not([type=hidden]), textarea, select") ?? block;
    const old = block.querySelector(":scope > ." + CLASS), message = messages[id];
    if (!message) { old?.remove(); input.removeAttribute("aria-invalid"); input.removeAttribute("aria-errormessage"); continue; }
    const note = old ?? document.createElement("p");
    if (note.textContent !== message) note.textContent = message;
    note.className = CLASS;
    note.id = id + "-error";
    note.setAttribute("role", "alert");
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-errormessage", note.id);
    if (!old) { open(block); block.append(note); block.scrollIntoView({ block: "nearest" }); input.focus({ preventScroll: true }); }
  }
}

// Opens the folds around a field, so that its error can be seen.
function open(block) {
  for (let e = block.parentElement; e; e = e.parentElement) {
    const fold = e.querySelector(":scope > .label-wrap:not(.open)");
    if (fold) fold.click();
  }
}

function edit(event) {
  const block = event.target.closest?.("[aria-invalid], .block:has(> ." + CLASS + ")");
  if (!block || !Object.keys(props.value ?? {}).length) return;
  clearTimeout(timer);
  timer = setTimeout(() => trigger("edit", {}), 400); // after Gradio has the new value
}
for (const kind of ["input", "change", "click"]) document.addEventListener(kind, edit, true);

watch("value", show);
show();
