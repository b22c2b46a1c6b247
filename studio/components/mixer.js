// The mixer: one row for each adapter. Python sets `props.adapters` (which exist), the user sets `props.value`
// (what is on, and how much). They are joined here, so an update never overwrites a move. `mixer.py` writes
// LIMIT and STEP of a weight above this source.
const studio = window.studio;
const root = element.querySelector(".mixer");
const TILTS = { "0": "all layers", "1": "deep", "-1": "shallow" }; // which layers an adapter applies to most
const GATES = { hard: "by prompt", soft: "soft", token: "each token" }; // how a weight on Auto follows the text
const GATE_HELP = "By prompt: on or off for the whole answer. Soft: a part of the weight. Each token: on or off while the answer is written";
const MOVE_MS = 450; // of a slider that a gate moves
const shownRows = new Map(); // adapter id -> how its row is painted again, and its gate changed
const EXCLUDED = { soft: "token", token: "soft" }; // the gates that one mix cannot have beside each other
const tiltLabel = (tilt) => TILTS[tilt] || "@" + tilt; // a link or the API may set any other tilt
let waiting = false; // whether the rows are drawn again once the user has ended a move or a text
let held = false; // whether a slider is held by the pointer
let timer = 0, drawn = "";

const rows = () => {
  const set = new Map((Array.isArray(props.value) ? props.value : []).map((r) => [r.id, r]));
  return (props.adapters || []).map((a) => ({ ...a, on: a.fits && (set.get(a.id)?.on ?? a.on), weight: set.get(a.id)?.weight ?? a.weight, tilt: set.get(a.id)?.tilt ?? 0, auto: set.get(a.id)?.auto || "" }));
};

function setRows(list, wait) {
  props.value = list;
  drawFormula(list);
  clearTimeout(timer);
  timer = setTimeout(() => trigger("mix_change"), wait);
}

const change = (id, part, wait = 120) => setRows(rows().map((r) => (r.id === id ? { ...r, ...part } : r)), wait);

const upTo = (r) => (r.weight === 1 ? "" : `, up to ${Math.abs(r.weight).toFixed(2)}`);
const amount = (r) => (r.auto ? "auto" + (r.auto === "hard" ? "" : ", " + GATES[r.auto]) + upTo(r) : Math.abs(r.weight).toFixed(2));

function drawFormula(list) {
  const parts = list.filter((r) => r.on && r.weight).map((r) => ({ tag: "span", cls: "term " + r.kind,
    kids: [(r.weight < 0 ? "− " : "+ ") + amount(r) + " · " + r.name + (r.tilt ? ` (${tiltLabel(r.tilt)})` : "")] }));
  studio.draw(root.querySelector(".formula"), { tag: "p", kids: [{ tag: "span", cls: "term base", kids: ["base"] }, ...parts] });
}

const snap = (text) => {
  const n = Number(String(text).replace(",", ".").replace("−", "-"));
  return Number.isFinite(n) ? Math.round(Math.max(-LIMIT, Math.min(LIMIT, n)) / STEP) * STEP : null;
};

function colourTrack(range, weight) { // from zero to the weight
  const at = (w) => ((w + LIMIT) / (2 * LIMIT)) * 100;
  range.style.setProperty("--from", Math.min(at(0), at(weight)) + "%");
  range.style.setProperty("--to", Math.max(at(0), at(weight)) + "%");
}

// Moves a slider to what a gate chose, in a few steps, so that the move is seen.
function moveTo(range, weight) {
  const from = Number(range.value), begin = performance.now(), target = String(weight);
  if (range.dataset.target === target) return;
  range.dataset.target = target;
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches || document.hidden;
  const step = (now) => {
    if (range.dataset.target !== target) return; // the user or another choice has moved it since
    const part = isStill ? 1 : Math.min(1, Math.max(0, (now - begin) / MOVE_MS));
    const at = part === 1 ? weight : from + (weight - from) * (1 - (1 - part) ** 3);
    range.value = at; colourTrack(range, at);
    if (part < 1) requestAnimationFrame(step);
  };
  if (isStill) step(begin); else requestAnimationFrame(step);
}

// A user's key or press begins at what the gate chose, not at a point on the way to it.
function endMove(range) {
  if (range.dataset.target === undefined) return;
  range.value = Number(range.dataset.target);
  delete range.dataset.target;
}

const isWriting = (input) => document.activeElement === input && input.dataset.shown !== undefined && input.value !== input.dataset.shown;

// The line below a weight on Auto: what its gate chose for the newest answer, and why.
function makeGateLine(r, setGate) {
  const line = studio.make({ tag: "div", cls: "gate-line" });
  const mode = Object.assign(document.createElement("select"), { className: "tilt gate", title: GATE_HELP });
  mode.setAttribute("aria-label", `How Auto sets ${r.name}`);
  for (const [value, textContent] of Object.entries(GATES)) mode.append(Object.assign(document.createElement("option"), { value, textContent }));
  mode.addEventListener("change", () => setGate(mode.value));
  const now = studio.make({ tag: "span", cls: "gate-now" });
  const why = studio.make({ tag: "span", cls: "gate-why", attrs: { role: "status" } });
  line.append(mode, now, why);
  if (!r.gate?.usable && !r.training) { // otherwise it can be calibrated again in the Library
    const act = { do: "calibrate", adapter: r.id };
    line.append(studio.make({ tag: "button", cls: "btn small", attrs: { "aria-label": `Calibrate ${r.name}`, ...(r.gate?.running ? { disabled: "" } : {}) }, act, kids: [r.gate?.running ? "Calibrating…" : "Calibrate"] }));
  }
  return { line, mode, now, why };
}

function describeGate(r, choice) {
  if (!r.gate?.usable) return `Stays off: ${r.gate?.reason || "it is not calibrated yet"}.`;
  return choice ? choice.text[0].toUpperCase() + choice.text.slice(1) + "." : "Follows the next prompt.";
}

function makeRow(r) {
  const input = (attrs) => Object.assign(document.createElement("input"), attrs);
  const box = studio.make({ tag: "div", cls: `mix-row ${r.kind}${r.on ? "" : " off"}`, attrs: { role: "group", "aria-label": r.name } });
  const toggle = input({ type: "checkbox", checked: r.on, disabled: !r.fits, className: "switch" });
  toggle.setAttribute("role", "switch");
  toggle.setAttribute("aria-label", `${r.name} on`);
  const range = input({ type: "range", min: -LIMIT, max: LIMIT, step: STEP, value: r.weight, disabled: !r.fits, className: "weight" });
  range.setAttribute("aria-label", `Weight of ${r.name}`);
  const exact = input({ type: "text", inputMode: "decimal", value: r.weight.toFixed(2), disabled: !r.fits, className: "exact" });
  exact.setAttribute("aria-label", `Exact weight of ${r.name}`);
  const auto = studio.make({ tag: "button", cls: "auto", attrs: { title: "Auto: the weight follows the prompt", "aria-label": `Auto for ${r.name}` }, kids: ["Auto"] });
  auto.type = "button"; auto.disabled = !r.fits;
  let weight = r.weight, gate = r.auto;
  const setGate = (mode) => {
    gate = mode;
    if (mode && !weight) weight = 1; // where the gate is open
    toggle.checked = true; box.classList.remove("off");
    paint();
    const list = rows().map((other) => (other.id !== r.id && other.auto === EXCLUDED[mode] ? { ...other, auto: mode } : other));
    list.forEach((other) => { if (other.id !== r.id && other.auto === mode) shownRows.get(other.id)?.follow(mode); });
    setRows(list.map((other) => (other.id === r.id ? { ...other, auto: mode, weight, on: true } : other)), 0);
  };
  const shown = makeGateLine(r, setGate);
  // The text of the exact weight, unless the user is writing another one.
  const showExact = (text) => {
    if (isWriting(exact)) exact.dataset.shown = text;
    else exact.value = exact.dataset.shown = text;
  };
  const readExact = () => {
    const text = exact.value, before = exact.dataset.shown;
    exact.value = before;
    if (text !== before && /^\s*auto\s*$/i.test(text)) setGate(gate || "hard");
    else if (text !== before && snap(text) !== null) set(snap(text), 0); // else it is not a number
    drawWhatWaited();
  };
  // What the controls show: a number that the user sets, or "auto" and what the gate chose.
  const paint = () => {
    const choice = r.gate?.usable ? studio.gates?.[r.id] : undefined;
    box.classList.toggle("gated", Boolean(gate));
    auto.setAttribute("aria-pressed", String(Boolean(gate)));
    showExact(gate ? "auto" : weight.toFixed(2));
    if (!gate) { delete range.dataset.target; range.value = weight; range.removeAttribute("aria-valuetext"); colourTrack(range, weight); return; }
    const live = choice?.weight ?? 0;
    shown.mode.value = gate;
    shown.now.textContent = choice ? live.toFixed(2) : "";
    shown.now.classList.toggle("on", Boolean(live));
    const text = describeGate({ ...r, weight }, choice);
    if (shown.why.textContent !== text) shown.why.textContent = text;
    range.setAttribute("aria-valuetext", `auto, now ${live.toFixed(2)}`);
    moveTo(range, live);
  };
  shownRows.set(r.id, { paint, follow: (mode) => { gate = mode; paint(); } });
  const set = (number, wait) => {
    weight = number; gate = "";
    toggle.checked = true; box.classList.remove("off");
    paint();
    change(r.id, { weight, auto: "", on: true }, wait);
  };
  toggle.addEventListener("change", () => { box.classList.toggle("off", !toggle.checked); change(r.id, { on: toggle.checked }, 0); });
  for (const kind of ["keydown", "pointerdown"]) range.addEventListener(kind, () => endMove(range)); // before the input
  range.addEventListener("pointerdown", () => { held = true; });
  range.addEventListener("input", () => { delete range.dataset.target; set(snap(range.value), 120); });
  range.addEventListener("dblclick", () => set(1, 0));
  exact.addEventListener("focus", () => exact.select());
  exact.addEventListener("keydown", (event) => { if (event.key === "Enter") readExact(); });
  exact.addEventListener("blur", readExact);
  auto.addEventListener("click", () => (gate ? set(weight, 0) : setGate("hard")));
  const tilt = document.createElement("select");
  tilt.className = "tilt"; tilt.disabled = !r.fits;
  tilt.title = "Tilt: applies the adapter to all layers equally, more to the deep ones (near the output), or more to the shallow ones (near the input)";
  tilt.setAttribute("aria-label", `Tilt of ${r.name}`);
  for (const value of new Set([0, 1, -1, r.tilt || 0]))
    tilt.append(Object.assign(document.createElement("option"), { value, textContent: tiltLabel(value), selected: value === r.tilt }));
  tilt.addEventListener("change", () => change(r.id, { tilt: Number(tilt.value) }, 0));
  const about = [r.kind, r.rank ? "rank " + r.rank : "", r.base || ""].filter(Boolean).join(" · ");
  const name = studio.make({ tag: "div", cls: "mix-name", kids: [
    { tag: "strong", kids: [r.name] }, r.training ? { tag: "span", cls: "chip live", kids: ["training"] } : null,
    r.alone ? { tag: "span", cls: "chip warn", attrs: { title: r.alone }, kids: ["alone only"] } : null,
    { tag: "span", cls: "quiet", kids: [r.fits ? about : r.reason || "was trained on another base"] }] });
  const number = studio.make({ tag: "div", cls: "amount" });
  number.append(exact, auto);
  box.append(toggle, name, range, number, tilt, shown.line);
  if (gate) range.value = studio.gates?.[r.id]?.weight ?? 0;
  paint();
  return box;
}

function draw() {
  const list = rows();
  const text = JSON.stringify(list);
  if (text === drawn) return;
  const shape = (l) => JSON.stringify(l.map((r) => [r.id, r.name, r.rank, r.training, r.fits, r.gate]));
  const active = root.contains(document.activeElement) ? document.activeElement : null;
  if (held || (active?.type === "text" && isWriting(active))) { waiting = true; return; }
  const same = drawn && active && shape(JSON.parse(drawn)) === shape(list);
  drawn = text;
  if (JSON.stringify(props.value || null) !== text) props.value = list;
  drawFormula(list);
  if (same) return; // the user is moving a slider, which already shows its weight
  const place = root.querySelector(".mix-rows");
  if (list.length) place.replaceChildren(...list.map(makeRow));
  else place.replaceChildren(studio.make(props.empty));
  const label = active?.getAttribute("aria-label");
  if (label) [...place.querySelectorAll("[aria-label]")].find((e) => e.getAttribute("aria-label") === label)?.focus();
}

function drawWhatWaited() {
  if (!waiting) return;
  waiting = false;
  setTimeout(draw);
}

for (const kind of ["pointerup", "pointercancel"]) window.addEventListener(kind, () => { held = false; drawWhatWaited(); });
studio.bindActions(root, trigger); /* fires 'act' */
watch(["value", "adapters"], draw);
window.addEventListener("studio:gates", () => shownRows.forEach(({ paint }) => paint()));
draw();
