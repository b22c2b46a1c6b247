// Answers side by side, with a picker above each column. Python sets `props.choices` (the mixes to pick from), the
// user sets `props.value.picks` (the mix of each column), the stream sets `props.value.columns` (the answers).
// In a blind test `props.value.blind` replaces the pickers. The names of the mixes are not sent before the vote.
const studio = window.studio;
const root = element.querySelector(".board");
const MINIMUM = 2, LIMIT = 6;
const PICKER_EDGES = 86; // pixels of a column beside the name of its mix: the button, the gap, the paddings
const pen = document.createElement("canvas").getContext("2d");
let shape = "";
let newest = null; // value from Python: Gradio sends a stream's last value again at its end, which may be after the vote

const defaultPicks = () => (props.choices || []).slice(0, 4).map((c) => c.id);
const currentPicks = () => {
  const list = props.value?.touched ? [...(props.value?.picks || [])] : defaultPicks();
  while (list.length < MINIMUM) list.push(defaultPicks()[list.length] ?? "base");
  return list;
};
const columns = () => props.value?.columns || [];
// The adapters of a mix's id, which reads "a=0.5@1 + b".
const adaptersIn = (pick) => (pick === "base" ? [] : pick.split(" + ").map((part) => part.split(/[=@]/)[0]));
const known = () => new Set((props.choices || []).flatMap((c) => adaptersIn(c.id)));
const isGone = (pick) => Boolean(props.choices?.length) && !adaptersIn(pick).every((a) => known().has(a));
const names = () => ({ ...(props.value?.names || {}), ...Object.fromEntries((props.choices || []).map((c) => [c.id, c.name])) });

// Whether each column answers without the documents that are chosen.
const plain = () => currentPicks().map((_, i) => props.value?.plain?.[i] === true);

function setPicks(list, without = plain()) {
  props.value = { ...(props.value || {}), picks: list, plain: list.map((_, i) => without[i] === true), names: names(), touched: true, columns: [] };
  draw();
  trigger("pick");
}

function addOptions(select, picked) {
  const groups = new Map();
  for (const c of props.choices || []) {
    if (!groups.has(c.group)) {
      groups.set(c.group, Object.assign(document.createElement("optgroup"), { label: c.group || "Mixes" }));
      select.append(groups.get(c.group));
    }
    const option = document.createElement("option");
    option.value = c.id; option.textContent = c.name; option.selected = c.id === picked; option.title = c.about || "";
    groups.get(c.group).append(option);
  }
}

function makeHead(list, index) {
  const choice = (props.choices || []).find((c) => c.id === list[index]);
  const box = studio.make({ tag: "header", cls: "col-head " + (choice?.kind || "base") });
  const select = document.createElement("select");
  select.setAttribute("aria-label", `Mix of column ${index + 1}`);
  addOptions(select, list[index]);
  if (!choice) { // an earlier state of the mixer; or a mix that is gone: the column does not show another one instead
    const other = Object.assign(document.createElement("option"), { value: list[index] });
    other.textContent = (names()[list[index]] || "Another mix") + (isGone(list[index]) ? " (gone)" : "");
    select.prepend(other);
    other.selected = true;
  }
  select.title = choice?.about || "";
  select.addEventListener("change", () => setPicks(list.map((p, i) => (i === index ? select.value : p))));
  box.append(select);
  if (list.length > MINIMUM) {
    const remove = studio.make({ tag: "button", cls: "icon", attrs: { title: "Remove this column", "aria-label": `Remove column ${index + 1}` }, kids: ["×"], act: { column: index } });
    remove.addEventListener("click", () => setPicks(list.filter((_, i) => i !== index), plain().filter((_, i) => i !== index)));
    box.append(remove);
  }
  if (props.documents) box.append(makeSwitch(list, index));
  return box;
}

// A switch above a column: it answers from the documents that are chosen, or without them.
function makeSwitch(list, index) {
  const on = !plain()[index];
  const box = studio.make({ tag: "label", cls: "documents-switch", kids: [{ tag: "input", attrs: { type: "checkbox", "aria-label": `Documents in column ${index + 1}` } }, "Documents"] });
  const input = box.querySelector("input");
  input.checked = on;
  input.addEventListener("change", () => setPicks(list, plain().map((p, i) => (i === index ? !input.checked : p))));
  return box;
}

// What a column is, where documents are chosen.
const describe = (pick, isPlain) => `${names()[pick] || "Mix"} ${isPlain ? "without" : "with"} documents`;

// Whether a picker shows the whole name of its mix.
function fits(name, count) {
  const width = matchMedia("(max-width: 640px)").matches ? Math.min(320, 0.84 * root.clientWidth) : root.clientWidth / count;
  if (!width) return name.length <= 26; // the tab is hidden
  pen.font = `650 14px ${getComputedStyle(root).fontFamily}`;
  return pen.measureText(name).width <= width - PICKER_EDGES;
}

// What a column's mix holds, where its picker has no room for the whole name, or the name does not say it.
function makeAbout(pick, count) {
  const choice = (props.choices || []).find((c) => c.id === pick);
  if (!choice?.about || (choice.about === choice.name && fits(choice.name, count))) return [];
  return [studio.make({ tag: "p", cls: "col-about", kids: [choice.about] })];
}

// Answers with letters instead of names. Cells are reused while answers grow, so nothing jumps and the focus stays.
function drawBlind({ heads, foot }) {
  const now = "blind " + heads.length;
  if (now !== shape) {
    shape = now;
    const slot = (cls) => studio.make({ tag: "div", cls });
    const cells = heads.map((_, i) => {
      const cell = studio.make({ tag: "section", cls: "col", attrs: { "aria-label": "Answer " + "ABCDEF"[i] } });
      cell.append(slot("head-slot"), slot("col-body"));
      return cell;
    });
    const last = slot("blind-foot");
    last.setAttribute("aria-live", "polite");
    root.style.setProperty("--columns", heads.length);
    root.replaceChildren(...cells, last);
  }
  const answers = columns();
  [...root.querySelectorAll(".head-slot")].forEach((slot, i) => studio.draw(slot, heads[i]));
  [...root.querySelectorAll(".col-body")].forEach((body, i) => studio.draw(body, answers[i]));
  studio.draw(root.querySelector(".blind-foot"), foot);
}

root.addEventListener("click", (event) => {
  const target = event.target.closest(".blind [data-act]");
  if (!target) return;
  const act = JSON.parse(target.dataset.act);
  if (act.again) trigger("again", act);
  else if (act.leave) { props.value = { ...props.value, columns: [], blind: null }; draw(); }
  else trigger("vote", act);
});

function placeholder(pick, index) {
  const isAlone = props.choices?.length === 1 && index > 0; // the base is the only mix
  if (isAlone) return { tag: "p", cls: "quiet", kids: ["An adapter that you train or add to the Library can answer here, beside the base."] };
  if (!isGone(pick)) return { tag: "p", cls: "quiet", kids: ["The answer appears here."] };
  const text = `${names()[pick] || "This mix"} is gone: an adapter of it was deleted, or belongs to another base. Choose another mix above, or restore the adapter in the Library.`;
  return { tag: "p", cls: "problem", attrs: { role: "alert" }, kids: [text] };
}

// A button elsewhere on the page asks to compare an adapter: with the base, and with the mixes that hold it.
function compareAdapter() {
  const adapter = studio.comparing?.adapter;
  if (!adapter || !adaptersIn(adapter).every((a) => known().has(a))) return; // the next lists may have it
  studio.comparing = null;
  const mixes = (props.choices || []).filter((c) => adaptersIn(c.id).length > 1 && adaptersIn(c.id).includes(adapter));
  setPicks(["base", adapter, ...mixes.map((c) => c.id)].slice(0, 3));
}
window.addEventListener("studio:compare", compareAdapter);

function draw() {
  if (props.value?.serial !== undefined) {
    if (newest && props.value.serial < newest.serial) props.value = newest;
    newest = props.value;
  }
  const blind = props.value?.blind;
  root.classList.toggle("blind", Boolean(blind));
  if (blind) return drawBlind(blind);
  const list = currentPicks();
  const now = JSON.stringify([list, props.choices, props.documents, plain()]);
  if (now !== shape) { // rebuild the pickers only when their choices change
    shape = now;
    const cells = list.map((_, i) => {
      const title = props.documents ? describe(list[i], plain()[i]) : "";
      const cell = studio.make({ tag: "section", cls: "col", attrs: { "aria-label": `Column ${i + 1}${title && ": " + title}`, tabindex: "0" } });
      const heading = title ? [studio.make({ tag: "h3", cls: "col-title", kids: [title] })] : [];
      cell.append(makeHead(list, i), ...heading, ...makeAbout(list[i], list.length), studio.make({ tag: "div", cls: "col-body", attrs: { "aria-live": "off" } }));
      return cell;
    });
    if (list.length < LIMIT) {
      const add = studio.make({ tag: "button", cls: "col add", attrs: { title: "Add a column" }, kids: ["+ Add a column"], act: {} });
      add.addEventListener("click", () => setPicks([...list, (props.choices || []).find((c) => !list.includes(c.id))?.id ?? list[0]]));
      cells.push(add);
    }
    root.style.setProperty("--columns", list.length);
    root.replaceChildren(...cells);
    if (JSON.stringify(props.value?.picks) !== JSON.stringify(list)) props.value = { ...(props.value || {}), picks: list };
  }
  const answers = columns();
  [...root.querySelectorAll(".col-body")].forEach((body, i) => studio.draw(body, answers[i] ?? placeholder(list[i], i)));
}

watch(["value", "choices", "documents"], () => { draw(); compareAdapter(); });
draw();
compareAdapter();
