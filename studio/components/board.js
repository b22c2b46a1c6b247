// Answers side by side, with a picker above each column. Python sets `props.choices` (the mixes to pick from), the
// user sets `props.value.picks` (the mix of each column), the stream sets `props.value.columns` (the answers).
// In a blind test `props.value.blind` replaces the pickers. The names of the mixes are not sent before the vote.
const studio = window.studio;
const root = element.querySelector(".board");
const MINIMUM = 2, LIMIT = 6;
let shape = "";
let newest = null; // value from Python: Gradio sends a stream's last value again at its end, which may be after the vote

const defaultPicks = () => (props.choices || []).slice(0, 4).map((c) => c.id);
const currentPicks = () => {
  const known = new Set((props.choices || []).map((c) => c.id));
  const valid = (props.value?.picks || []).filter((p) => known.has(p));
  const list = props.value?.touched ? valid : defaultPicks();
  while (list.length < MINIMUM) list.push(defaultPicks()[list.length] ?? "base");
  return list;
};
const columns = () => props.value?.columns || [];

function setPicks(list) {
  props.value = { ...(props.value || {}), picks: list, touched: true, columns: [] };
  draw();
}

function makeHead(list, index) {
  const choice = (props.choices || []).find((c) => c.id === list[index]);
  const box = studio.make({ tag: "header", cls: "col-head " + (choice?.kind || "base") });
  const select = document.createElement("select");
  select.setAttribute("aria-label", `Mix of column ${index + 1}`);
  for (const c of props.choices || []) {
    const option = document.createElement("option");
    option.value = c.id; option.textContent = c.name; option.selected = c.id === list[index];
    select.append(option);
  }
  select.addEventListener("change", () => setPicks(list.map((p, i) => (i === index ? select.value : p))));
  box.append(select);
  if (list.length > MINIMUM) {
    const remove = studio.make({ tag: "button", cls: "icon", attrs: { title: "Remove this column", "aria-label": `Remove column ${index + 1}` }, kids: ["×"], act: { column: index } });
    remove.addEventListener("click", () => setPicks(list.filter((_, i) => i !== index)));
    box.append(remove);
  }
  return box;
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

function draw() {
  if (props.value?.serial !== undefined) {
    if (newest && props.value.serial < newest.serial) props.value = newest;
    newest = props.value;
  }
  const blind = props.value?.blind;
  root.classList.toggle("blind", Boolean(blind));
  if (blind) return drawBlind(blind);
  const list = currentPicks();
  const now = JSON.stringify([list, props.choices]);
  if (now !== shape) { // rebuild the pickers only when their choices change
    shape = now;
    const cells = list.map((_, i) => {
      const cell = studio.make({ tag: "section", cls: "col", attrs: { "aria-label": `Column ${i + 1}` } });
      cell.append(makeHead(list, i), studio.make({ tag: "div", cls: "col-body", attrs: { "aria-live": "off" } }));
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
  [...root.querySelectorAll(".col-body")].forEach((body, i) => studio.draw(body, answers[i] ?? { tag: "p", cls: "quiet", kids: ["The answer appears here."] }));
}

watch(["value", "choices"], draw);
draw();
