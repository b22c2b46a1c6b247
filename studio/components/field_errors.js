// Shows errors at the fields that caused them. The value maps the element id of a field to its message. A message
// stays until the value no longer has it. When the user edits a field that has one, a form that checks itself
// fires 'edit'; in any other form the message goes at once, so that no late answer removes a newer message.
const CLASS = "field-error";
const refused = new WeakMap(); // of the blocks of text fields: the length of the text that was refused
let timer = 0;

function show() {
  const messages = props.value ?? {};
  for (const id of Object.keys(props.fields)) {
    const block = document.getElementById(id);
    if (!block) continue; // its tab has not been opened yet
    const input = block.querySelector("input:not([type=hidden]), textarea, select") ?? block;
    const old = block.querySelector(":scope > ." + CLASS), message = messages[id];
    if (!message) { refused.delete(block); old?.remove(); input.removeAttribute("aria-invalid"); input.removeAttribute("aria-errormessage"); continue; }
    const note = old ?? document.createElement("p");
    if (note.textContent !== message) note.textContent = message;
    note.className = CLASS;
    note.id = id + "-error";
    note.setAttribute("role", "alert");
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-errormessage", note.id);
    if (!old) { open(block); if (props.above.includes(id)) block.prepend(note); else block.append(note); block.scrollIntoView({ block: "nearest" }); input.focus({ preventScroll: true }); }
  }
}

// Opens the folds around a field, so that its error can be seen.
function open(block) {
  for (let e = block.parentElement; e; e = e.parentElement) {
    const fold = e.querySelector(":scope > .label-wrap:not(.open)");
    if (fold) fold.click();
  }
}

const find = (event) => event.target.closest?.(".block:has(> ." + CLASS + ")");
const measure = (event) => (event.target.value ?? "").trim().length;

// Whether a text can be right again: it is shorter than the refused one, or not blank any more.
function canBeRight(block, event) {
  if (!props.texts.includes(block.id)) return true;
  const length = refused.get(block) ?? 0, now = measure(event);
  return length ? now < length : now > 0;
}

function remember(event) {
  const block = find(event);
  if (block && !refused.has(block)) refused.set(block, measure(event));
}

function edit(event) {
  const block = find(event);
  if (!block || !Object.keys(props.value ?? {}).length || !canBeRight(block, event)) return;
  if (!props.is_checked) { const { [block.id]: _, ...others } = props.value; props.value = others; show(); return; }
  clearTimeout(timer);
  timer = setTimeout(() => trigger("edit", {}), 400); // after Gradio has the new value
}
document.addEventListener("beforeinput", remember, true);
for (const kind of ["input", "change", "click"]) document.addEventListener(kind, edit, true);

watch("value", () => { clearTimeout(timer); show(); });
show();
