// The list of exports: polls while one is running, and draws each into an element of its own, so that its open
// folds stay open when another one is added. The older ones are folded away.
const studio = window.studio;
const root = element.querySelector(".exports");
const SHOWN = 3; // of those that are not running
const SEND = ".export-upload .btn", FOLD = "details:has(> .export-upload) > summary"; // of the upload
const rows = new Map(), problems = new Map(); // by id: an element; why the last button failed
let timer = 0, busy = false, again = false, running = 0;
let asking = "", question = ""; // the id of the export whose row asks a question, and which one: "delete" or "upload"
let newest = null, older = null, summary = null; // what the rows are in
let focused = "", started = ""; // ids: whose button gets the focus, and which one is scrolled to
let selector = ""; // of that button

function place(parent, wanted) {
  const present = [...parent.children].filter((e) => e.tagName !== "SUMMARY");
  if (present.length === wanted.length && wanted.every((e, i) => e === present[i])) return;
  for (const e of present) if (!wanted.includes(e)) e.remove();
  for (const e of wanted) parent.append(e);
}

function build() {
  const heading = studio.make({ tag: "h2", kids: ["Exports"] });
  newest = studio.make({ tag: "div", cls: "import-list" });
  older = studio.make({ tag: "details", cls: "fold", kids: [{ tag: "summary" }, { tag: "div", cls: "import-list" }] });
  summary = older.firstChild;
  root.append(heading, newest, older);
}

function draw(exports) {
  for (const id of rows.keys()) if (!exports.some((one) => one.id === id)) { rows.delete(id); problems.delete(id); }
  if (!exports.length) { root.replaceChildren(); newest = null; return; }
  if (!newest) build();
  const top = [], below = [];
  let shown = 0;
  for (const one of exports) {
    if (!rows.has(one.id)) rows.set(one.id, document.createElement("div"));
    const row = rows.get(one.id), problem = problems.get(one.id);
    const alert = problem ? [{ tag: "p", cls: "problem", attrs: { role: "alert" }, kids: [problem] }] : [];
    studio.draw(row, { ...one.tree, kids: [...one.tree.kids, ...alert] });
    const isTop = one.running || one.id === asking || shown < SHOWN;
    if (!one.running) shown += 1;
    (isTop ? top : below).push(row);
  }
  place(newest, top);
  place(older.lastChild, below);
  older.hidden = !below.length;
  rows.get(focused)?.querySelector(selector)?.focus();
  rows.get(started)?.scrollIntoView({ block: "nearest" });
  focused = started = "";
  summary.textContent = below.length === 1 ? "1 older export" : below.length + " older exports";
}

async function poll() {
  clearTimeout(timer);
  if (busy) { again = true; return; }
  busy = true;
  let wait = 0;
  try {
    const { exports, error } = await server.poll_exports({ asking, question });
    if (!error) {
      running = exports.filter((one) => one.running).length;
      draw(exports);
    }
    if (running) wait = studio.isHidden(root) ? 2000 : 500;
  } catch { wait = running ? 2000 : 0; } finally { // the server may be restarting
    busy = false;
    if (again) wait = 50;
    again = false;
    if (wait) timer = setTimeout(poll, wait);
  }
}

root.addEventListener("click", async (event) => {
  const target = event.target.closest("[data-act]");
  if (!target || target.disabled) return;
  const act = JSON.parse(target.dataset.act);
  problems.delete(act.export);
  if (act.do === "ask") ask(act.export, "delete");
  else if (act.do === "keep") {
    [asking, focused] = ["", act.export];
    selector = question === "upload" ? SEND : ".danger";
  } else {
    if (act.do === "push") Object.assign(act, readForm(rows.get(act.export)));
    target.disabled = true;
    try {
      const { error, asks } = await server.act_on_export(act);
      if (error) problems.set(act.export, error);
      if (asks) ask(act.export, "upload");
      else if (act.do === "delete" || act.do === "push") asking = "";
      if (act.do === "push" && !error && !asks) [focused, selector] = [act.export, FOLD]; // its button is disabled now
    } finally { target.disabled = false; }
  }
  poll();
});

function ask(id, about) { [asking, question, focused, selector] = [id, about, id, ".danger"]; }

const readForm = (row) => ({
  repo: row.querySelector(".export-repo input").value,
  private: row.querySelector(".export-private input").checked,
});

root.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches(".export-repo input"))
    event.target.closest(".import-job").querySelector(SEND)?.click();
});

function follow() { // an export was started, or the form was opened by a button elsewhere
  started = props.value?.export ?? "";
  if (props.value?.show) setTimeout(() => document.getElementById("export-fold")?.scrollIntoView({ block: "start" }), 200);
  poll();
}
watch("value", follow);
window.addEventListener("studio:refresh", poll);
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
follow();
