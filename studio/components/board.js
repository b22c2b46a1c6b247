// Answers side by side: a picker above each column. `props.choices` are the mixes there are (Python's),
// `props.picks` which one each column shows (the user's), `props.value` what the columns say (the stream's).
// In a blind test `props.value.blind` has what stands above and below the answers instead of the pickers; what it
// does not say, nobody on this side knows.
const studio = window.studio;
const root = element.querySelector(".board");
const LEAST = 2, MOST = 6;
let shape = "";
let newest = null; // of the values from Python: Gradio sends a stream's last one again when it is through, which may be after the vote

const first = () => (props.choices || []).slice(0, 4).map((c) => c.id);
const picks = () => {
  const known = new Set((props.choices || []).map((c) => c.id));
  const mine = (props.value?.picks || []).filter((p) => known.has(p));
  const list = props.value?.touched ? mine : first();
  while (list.length < LEAST) list.push(first()[list.length] ?? "base");
  return list;
};
const columns = () => props.value?.columns || [];

function pick(list) {
  props.value = { ...(props.value || {}), picks: list, touched: true, columns: [] };
  draw();
}

function head(list, index) {
  const choice = (props.choices || []).find((c) => c.id === list[index]);
  const box = studio.make({ tag: "header", cls: "col-head " + (choice?.kind || "base") });
  const select = document.createElement("select");
  select.setAttribute("aria-label", `Mix of column ${index + 1}`);
  for (const c of props.choices || []) {
    const option = document.createElement("option");
    option.value = c.id; option.textContent = c.name; option.selected = c.id === list[index];
    select.append(option);
  }
  select.addEventListener("change", () => pick(list.map((p, i) => (i === index ? select.value : p))));
  box.append(select);
  if (list.length > LEAST) {
    const remove = studio.make({ tag: "button", cls: "icon", attrs: { title: "Remove this column", "aria-label": `Remove column ${index + 1}` }, kids: ["×"], act: { column: index } });
    remove.addEventListener("click", () => pick(list.filter((_, i) => i !== index)));
    box.append(remove);
  }
  return box;
}

// The answers under letters; cells stay while they fill, so that nothing jumps and the focus is kept.
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
  const said = columns();
  [...root.querySelectorAll(".head-slot")].forEach((slot, i) => studio.draw(slot, heads[i]));
  [...root.querySelectorAll(".col-body")].forEach((body, i) => studio.draw(body, said[i]));
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
  const covered = props.value?.blind;
  root.classList.toggle("blind", Boolean(covered));
  if (covered) return drawBlind(covered);
  const list = picks();
  const now = JSON.stringify([list, props.choices]);
  if (now !== shape) { // the pickers are built anew only when what they offer changed
    shape = now;
    const cells = list.map((_, i) => {
      const cell = studio.make({ tag: "section", cls: "col", attrs: { "aria-label": `Column ${i + 1}` } });
      cell.append(head(list, i), studio.make({ tag: "div", cls: "col-body", attrs: { "aria-live": "off" } }));
      return cell;
    });
    if (list.length < MOST) {
      const add = studio.make({ tag: "button", cls: "col add", attrs: { title: "Add a column" }, kids: ["+ Add a column"], act: {} });
      add.addEventListener("click", () => pick([...list, (props.choices || []).find((c) => !list.includes(c.id))?.id ?? list[0]]));
      cells.push(add);
    }
    root.style.setProperty("--columns", list.length);
    root.replaceChildren(...cells);
    if (JSON.stringify(props.value?.picks) !== JSON.stringify(list)) props.value = { ...(props.value || {}), picks: list };
  }
  const said = columns();
  [...root.querySelectorAll(".col-body")].forEach((body, i) => studio.draw(body, said[i] ?? { tag: "p", cls: "quiet", kids: ["The answer appears here."] }));
}

watch(["value", "choices"], draw);
draw();
