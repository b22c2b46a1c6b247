// The mixer: one row for each adapter. `props.adapters` says which exist (Python's), `props.value` what is
// on and how much (the user's); they are joined here, so a move is never overwritten by news. LIMIT and
// STEP of a weight come from the spec, written above this text.
const studio = window.studio;
const root = element.querySelector(".mixer");
const LEANS = { "0": "all layers", "1": "deep", "-1": "shallow" }; // where in the depth of the model an adapter is heard
const leaning = (tilt) => LEANS[tilt] || "@" + tilt; // a tilt between these comes by a link or the API
let timer = 0, drawn = "";

const rows = () => {
  const set = new Map((Array.isArray(props.value) ? props.value : []).map((r) => [r.id, r]));
  return (props.adapters || []).map((a) => ({ ...a, on: a.fits && (set.get(a.id)?.on ?? a.on), weight: set.get(a.id)?.weight ?? a.weight, tilt: set.get(a.id)?.tilt ?? 0 }));
};

function put(list, wait) {
  props.value = list;
  formula(list);
  clearTimeout(timer);
  timer = setTimeout(() => trigger("mix_change"), wait);
}

const change = (id, part, wait = 120) => put(rows().map((r) => (r.id === id ? { ...r, ...part } : r)), wait);

function formula(list) {
  const parts = list.filter((r) => r.on && r.weight).map((r) => ({ tag: "span", cls: "term " + r.kind,
    kids: [(r.weight < 0 ? "− " : "+ ") + Math.abs(r.weight).toFixed(2) + " · " + r.name + (r.tilt ? ` (${leaning(r.tilt)})` : "")] }));
  studio.draw(root.querySelector(".formula"), { tag: "p", kids: [{ tag: "span", cls: "term base", kids: ["base"] }, ...parts] });
}

const snap = (text) => {
  const n = Number(String(text).replace(",", ".").replace("−", "-"));
  return Number.isFinite(n) ? Math.round(Math.max(-LIMIT, Math.min(LIMIT, n)) / STEP) * STEP : null;
};

function fill(range, weight) { // the track is coloured from zero to the weight
  const at = (w) => ((w + LIMIT) / (2 * LIMIT)) * 100;
  range.style.setProperty("--from", Math.min(at(0), at(weight)) + "%");
  range.style.setProperty("--to", Math.max(at(0), at(weight)) + "%");
}

function rowOf(r) {
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
    range.value = weight; exact.value = weight.toFixed(2); fill(range, weight);
    toggle.checked = true; box.classList.remove("off");
    change(r.id, { weight, on: true }, wait);
  };
  toggle.addEventListener("change", () => { box.classList.toggle("off", !toggle.checked); change(r.id, { on: toggle.checked }, 0); });
  range.addEventListener("input", () => set(snap(range.value), 120));
  range.addEventListener("dblclick", () => set(1, 0));
  exact.addEventListener("change", () => { const weight = snap(exact.value); set(weight ?? Number(range.value), 0); });
  const lean = document.createElement("select");
  lean.className = "lean"; lean.disabled = !r.fits;
  lean.title = "Where in the model it is heard: in all layers alike, more in the deep ones (near the output), or more in the shallow ones (near the input)";
  lean.setAttribute("aria-label", `Depth of ${r.name}`);
  for (const tilt of new Set([0, 1, -1, r.tilt || 0]))
    lean.append(Object.assign(document.createElement("option"), { value: tilt, textContent: leaning(tilt), selected: tilt === r.tilt }));
  lean.addEventListener("change", () => change(r.id, { tilt: Number(lean.value) }, 0));
  fill(range, r.weight);
  const about = [r.kind, r.rank ? "rank " + r.rank : "", r.base || ""].filter(Boolean).join(" · ");
  const name = studio.make({ tag: "div", cls: "mix-name", kids: [
    { tag: "strong", kids: [r.name] }, r.training ? { tag: "span", cls: "chip live", kids: ["training"] } : null,
    { tag: "span", cls: "quiet", kids: [r.fits ? about : r.why || "does not fit this base"] }] });
  box.append(toggle, name, range, exact, lean);
  return box;
}

function draw() {
  const list = rows();
  const text = JSON.stringify(list);
  if (text === drawn) return;
  const shape = (l) => JSON.stringify(l.map((r) => [r.id, r.name, r.rank, r.training, r.fits]));
  const same = drawn && shape(JSON.parse(drawn)) === shape(list) && root.contains(document.activeElement);
  drawn = text;
  const had = JSON.stringify(props.value || null);
  if (had !== text) props.value = list;
  formula(list);
  if (same) return; // someone has a slider in hand: it already shows what it says
  const place = root.querySelector(".mix-rows");
  if (list.length) place.replaceChildren(...list.map(rowOf));
  else place.replaceChildren(studio.make(props.nothing));
}

studio.acts(root, trigger); /* fires 'act' */
watch(["value", "adapters"], draw);
draw();
