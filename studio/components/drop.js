// The drop area: files and folders by drag and drop, by a button or by keyboard. Files are uploaded in batches with
// one progress bar, and moved into a drop by the server. A problem stays until the next files are chosen.
const studio = window.studio;
const root = element.querySelector(".drop");
const SHOWN = 6, BATCH_FILES = 40, BATCH_BYTES = 64e6;
let uploading = null; // {done, total, request} in bytes
let problem = "";

const make = (tag, cls, attrs, ...kids) => studio.make({ tag, cls, attrs, kids });
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
function size(bytes) {
  for (const unit of ["B", "kB", "MB"]) { if (bytes < 1000) return `${unit === "B" ? bytes : Number(bytes.toPrecision(3))} ${unit}`; bytes /= 1000; }
  return `${Number(bytes.toPrecision(3))} GB`;
}
const suffixOf = (name) => { const base = name.split("/").pop(), dot = base.lastIndexOf("."); return dot > 0 ? base.slice(dot).toLowerCase() : ""; };
const isHidden = (name) => name.split("/").some((part) => part.startsWith(".") || part === "__MACOSX");

// The files of a dropped entry, with their path below what was dropped.
async function walk(entry, prefix) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, name: prefix + file.name }];
  }
  const reader = entry.createReader(), found = [];
  for (;;) { // a reader returns at most 100 entries at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    for (const inner of some) if (!inner.name.startsWith(".")) found.push(...await walk(inner, prefix + entry.name + "/"));
  }
}

function send(batch) { // XMLHttpRequest, because fetch reports no progress of an upload
  return new Promise((resolve, reject) => {
    const form = new FormData(), request = new XMLHttpRequest(), before = uploading.done;
    for (const { file } of batch) form.append("files", file);
    uploading.request = request;
    request.open("POST", "gradio_api/upload");
    request.upload.onprogress = (event) => { uploading.done = before + event.loaded; drawProgress(); };
    request.onload = () => {
      if (request.status === 200) resolve(JSON.parse(request.responseText));
      else if (request.status === 413) reject(new Error(`A file is larger than this studio accepts from other machines (${size(props.file_limit)}). Split it into several files.`));
      else reject(new Error(request.responseText.startsWith("{") ? "The upload failed. Try again." : request.responseText.slice(0, 200)));
    };
    request.onerror = () => reject(new Error("The connection was lost during the upload. Try again."));
    request.onabort = () => reject(new Error(""));
    request.send(form);
  });
}

function choose(list, leftOut) {
  const chosen = [];
  for (const item of list) {
    if (isHidden(item.name)) continue;
    const suffix = suffixOf(item.name);
    if (props.suffixes.includes(suffix)) chosen.push(item);
    else leftOut[suffix || "no suffix"] = (leftOut[suffix || "no suffix"] || 0) + 1;
  }
  return chosen;
}

async function add(list) {
  if (uploading) return;
  problem = "";
  const leftOut = { ...(props.value?.left_out || {}) }, chosen = choose(list, leftOut);
  const count = chosen.length + (props.value?.files?.length || 0);
  const large = chosen.find(({ file, name }) => file.size > props.file_limit && !props.streamed.includes(suffixOf(name)));
  if (!chosen.length) problem = describeNothing(list, leftOut);
  else if (count > props.count_limit) problem = `One import may have at most ${plural(props.count_limit, "file")}, got ${count.toLocaleString("en")}. Drop fewer at once.`;
  else if (large) problem = `${large.name} has ${size(large.file.size)}; a file may have at most ${size(props.file_limit)}. Split it into several files.`;
  if (problem || !chosen.length) return draw();
  uploading = { done: 0, total: chosen.reduce((sum, { file }) => sum + file.size, 0) || 1, request: null };
  draw();
  try {
    let stored = null;
    while (chosen.length) {
      const batch = [];
      let bytes = 0;
      while (chosen.length && batch.length < BATCH_FILES && (!batch.length || bytes + chosen[0].file.size <= BATCH_BYTES)) { bytes += chosen[0].file.size; batch.push(chosen.shift()); }
      const paths = await send(batch);
      stored = await server.store_upload({ drop: stored?.drop || props.value?.drop || "", files: batch.map(({ name }, i) => ({ path: paths[i], name })) });
      if (stored.error) throw new Error(stored.error);
    }
    uploading = null;
    props.value = { ...stored, left_out: leftOut };
    draw();
    trigger("drop", {});
  } catch (error) { uploading = null; problem = error.message; draw(); }
}

function describeNothing(list, leftOut) {
  if (!list.length) return "This folder is empty.";
  const kinds = Object.keys(leftOut).join(", ");
  const name = list.length === 1 ? `${list[0].name} is not read` : "None of these files is read";
  return `${name}: ${kinds || "hidden files are left out"}. Read are ${props.suffixes.join(", ")}.`;
}

async function clear() {
  const drop = props.value?.drop;
  props.value = null; problem = "";
  draw();
  trigger("drop", {});
  if (drop) await server.discard_upload({ drop });
  root.querySelector(".drop-choose")?.focus();
}

async function remove(name) {
  const left = await server.remove_upload({ drop: props.value.drop, name });
  if (left.error) { problem = left.error; return draw(); }
  if (!left.files.length) return clear();
  props.value = { ...props.value, files: left.files };
  draw();
  trigger("drop", {});
}

const input = document.createElement("input");
input.type = "file"; input.multiple = true; input.accept = props.suffixes.join(",");
input.setAttribute("aria-label", "Choose files"); input.tabIndex = -1; input.className = "hidden-text";
input.addEventListener("change", () => {
  const list = [...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name }));
  input.value = ""; // the same file can be chosen again
  input.webkitdirectory = false;
  if (list.length) add(list);
});
function browse(folder) {
  input.webkitdirectory = folder;
  input.click();
}
input.addEventListener("cancel", () => { input.webkitdirectory = false; });

root.addEventListener("dragover", (event) => { event.preventDefault(); root.classList.add("over"); });
root.addEventListener("dragleave", (event) => { if (!root.contains(event.relatedTarget)) root.classList.remove("over"); });
root.addEventListener("drop", async (event) => {
  event.preventDefault();
  root.classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const files = [...event.dataTransfer.files].map((file) => ({ file, name: file.name }));
  try { add(entries.length ? (await Promise.all(entries.map((entry) => walk(entry, "")))).flat() : files); } catch { problem = "The folder could not be read. Choose it with the button."; draw(); }
});
// A file that misses the area would replace the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => { if (event.dataTransfer?.types?.includes("Files") && !event.defaultPrevented) event.preventDefault(); });

function drawProgress() {
  const share = Math.min(1, uploading.done / uploading.total);
  const bar = root.querySelector("[role=progressbar]");
  if (!bar) return;
  bar.style.setProperty("--share", 100 * share + "%");
  bar.setAttribute("aria-valuenow", Math.round(100 * share));
  root.querySelector(".drop-share").textContent = share < 1 ? `Uploading ${size(uploading.done)} of ${size(uploading.total)}` : "Storing the files";
}

function press(text, cls, run, label) {
  const button = make("button", cls, { ...(label ? { "aria-label": label } : {}) }, text);
  button.type = "button";
  button.addEventListener("click", run);
  return button;
}

function drawFiles(files) {
  const list = make("ul", "drop-files", { "aria-label": "Files" });
  for (const file of files.slice(0, SHOWN)) {
    const item = make("li", "", {}, { tag: "span", cls: "drop-name", kids: [file.name], attrs: { title: file.name } }, { tag: "span", cls: "quiet", kids: [size(file.bytes)] });
    if (files.length > 1) item.append(press("×", "icon", () => remove(file.name), `Remove ${file.name}`));
    list.append(item);
  }
  if (files.length > SHOWN) list.append(make("li", "quiet", {}, `and ${plural(files.length - SHOWN, "more file")}`));
  return list;
}

function draw() {
  const files = props.value?.files || [], parts = [];
  root.classList.toggle("full", files.length > 0 || Boolean(uploading));
  root.classList.toggle("loaded", files.length > 0); // the style sheet shows the form, and hides the datasets
  if (uploading) {
    const bar = make("div", "bar busy", { role: "progressbar", "aria-label": "Upload", "aria-valuemin": "0", "aria-valuemax": "100" }, { tag: "div", cls: "bar-fill", kids: [] });
    parts.push(make("p", "drop-share quiet", { role: "status" }, "Uploading"), bar, press("Cancel the upload", "btn quiet", () => uploading?.request?.abort()));
  } else if (files.length) {
    const total = files.reduce((sum, f) => sum + f.bytes, 0), leftOut = Object.entries(props.value.left_out || {});
    const head = make("div", "row drop-head", {}, { tag: "strong", kids: [`${plural(files.length, "file")}, ${size(total)}`] });
    head.append(press("Clear", "btn quiet push", clear));
    parts.push(head, drawFiles(files));
    if (leftOut.length) parts.push(make("p", "quiet", {}, `Left out, because these kinds are not read: ${leftOut.map(([s, n]) => `${s} (${n})`).join(", ")}`));
    const more = make("div", "row", {});
    more.append(press("Add files", "btn quiet drop-choose", () => browse(false)), press("Add a folder", "btn quiet", () => browse(true)));
    parts.push(more);
  } else {
    parts.push(make("strong", "drop-title", {}, "Drop documents, spreadsheets or a folder here"));
    const choices = make("div", "row", {});
    choices.append(press("Choose files", "btn quiet drop-choose", () => browse(false)), press("Choose a folder", "btn quiet", () => browse(true)));
    const rows = props.formats.map(([name, suffixes]) => ({ tag: "div", kids: [{ tag: "dt", kids: [name] }, { tag: "dd", kids: [suffixes] }] }));
    parts.push(choices, make("dl", "drop-formats", {}, ...rows), make("p", "quiet", {}, "Files stay on this machine."));
  }
  if (problem) parts.push(make("p", "problem", { role: "alert" }, problem));
  root.replaceChildren(input, ...parts);
  if (uploading) drawProgress();
}

watch("value", () => { if (!uploading) draw(); });
draw();
