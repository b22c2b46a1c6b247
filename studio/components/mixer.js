// The mixer: one row for each adapter. Python sets `props.adapters` (which exist), the user sets `props.value`
// (what is on, and how much). They are joined here, so an update never overwrites a move. `mixer.py` writes
// LIMIT and STEP of a weight above this source.
const studio = window.studio;
const root = element.querySelector(".mixer");
const TILTS = { "0": "all layers", "1": "deep", "-1": "shallow" }; // which layers an adapter applies to most
const tiltLabel = (tilt) => TILTS[tilt] || "@" + tilt; // a link or the API may set any other tilt
let timer = 0, drawn = "";

const rows = () => {
  const set = new Map((Array.isArray(props.value) ? props.value : []).map((r) => [r.id, r]));
  return (props.adapters || []).map((a) => ({ ...a, on: a.fits && (set.get(a.id)?.on ?? a.on), weight: set.get(a.id)?.weight ?? a.weight, tilt: set.get(a.id)?.tilt ?? 0 }));
};

function setRows(list, wait) {
  props.value = list;
  drawFormula(list);
  clearTimeout(timer);
  timer = setTimeout(() => trigger("mix_change"), wait);
}

const change = (id, part, wait = 120) => setRows(rows().map((r) => (r.id === id ? { ...r, ...part } : r)), wait);

function drawFormula(list) {
  const parts = list.filter((r) => r.on && r.weight).map((r) => ({ tag: "span", cls: "term " + r.kind,
    kids: [(r.weight < 0 ? "− " : "+ ") + Math.abs(r.weight).toFixed(2) + " · " + r.name + (r.tilt ? ` (${tiltLabel(r.tilt)})` : "")] }));
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
  const set = (weight, wait) => {
    range.value = weight; exact.value = weight.toFixed(2); colourTrack(range, weight);
    toggle.checked = true; box.classList.remove("off");
    change(r.id, { weight, on: true }, wait);
  };
  toggle.addEventListener("change", () => { box.classList.toggle("off", !toggle.checked); change(r.id, { on: toggle.checked }, 0); });
  range.addEventListener("input", () => set(snap(range.value), 120));
  range.addEventListener("dblclick", () => set(1, 0));
  exact.addEventListener("change", () => { const weight = snap(exact.value); set(weight ?? Number(range.value), 0); });
  const tilt = document.createElement("select");
  tilt.className = "tilt"; tilt.disabled = !r.fits;
  tilt.title = "Tilt: applies the adapter to all layers equally, more to the deep ones (near the output), or more to the shallow ones (near the input)";
  tilt.setAttribute("aria-label", `Tilt of ${r.name}`);
  for (const value of new Set([0, 1, -1, r.tilt || 0]))
    tilt.append(Object.assign(document.createElement("option"), { value, textContent: tiltLabel(value), selected: value === r.tilt }));
  tilt.addEventListener("change", () => change(r.id, { tilt: Number(tilt.value) }, 0));
  colourTrack(range, r.weight);
  const about = [r.kind, r.rank ? "rank " + r.rank : "", r.base || ""].filter(Boolean).join(" · ");
  const name = studio.make({ tag: "div", cls: "mix-name", kids: [
    { tag: "strong", kids: [r.name] }, r.training ? { tag: "span", cls: "chip live", kids: ["training"] } : null,
    { tag: "span", cls: "quiet", kids: [r.fits ? about : r.reason || "was trained on another base"] }] });
  box.append(toggle, name, range, exact, tilt);
  return box;
}

function draw() {
  const list = rows();
  const text = JSON.stringify(list);
  if (text === drawn) return;
  const shape = (l) => JSON.stringify(l.map((r) => [r.id, r.name, r.rank, r.training, r.fits]));
  const same = drawn && shape(JSON.parse(drawn)) === shape(list) && root.contains(document.activeElement);
  drawn = text;
  if (JSON.stringify(props.value || null) !== text) props.value = list;
  drawFormula(list);
  if (same) return; // the user is moving a slider, which already shows its weight
  const place = root.querySelector(".mix-rows");
  if (list.length) place.replaceChildren(...list.map(makeRow));
  else place.replaceChildren(studio.make(props.empty));
}

studio.bindActions(root, trigger); /* fires 'act' */
watch(["value", "adapters"], draw);
draw();
