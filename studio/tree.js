// Draws trees of plain nodes: the only way data reaches the page. Text goes in as text nodes and
// attributes through a short list, so nothing that a user, a file or a model wrote can become markup.
window.studio = (() => {
  const TAGS = new Set(("div span p h2 h3 h4 strong em code pre ul ol li table caption thead tbody tr th td button a dl dt dd " +
    "mark small section header nav label details summary").split(" "));
  const ATTRS = new Set("title role type download scope colspan tabindex disabled".split(" "));

  function make(node) {
    if (node === null || node === undefined) return document.createTextNode("");
    if (typeof node !== "object") return document.createTextNode(String(node));
    const e = document.createElement(TAGS.has(node.tag) ? node.tag : "span");
    if (node.cls) e.className = node.cls;
    for (const [name, value] of Object.entries(node.attrs || {})) {
      if (ATTRS.has(name) || name.startsWith("aria-")) e.setAttribute(name, value);
      if (name === "href" && /^gradio_api\/studio\/[\w./-]+$/.test(value)) e.setAttribute("href", value);
    }
    for (const [name, value] of Object.entries(node.vars || {})) e.style.setProperty("--" + name, value);
    if (node.act) { e.dataset.act = JSON.stringify(node.act); if (e.tagName === "BUTTON") e.type = "button"; }
    for (const kid of node.kids || []) e.append(make(kid));
    return e;
  }

  // Draws `node` into `root` unless it shows it already; the focused control stays focused.
  function draw(root, node) {
    const text = JSON.stringify(node ?? null);
    if (root.dataset.drawn === text) return;
    const held = root.contains(document.activeElement) ? document.activeElement.dataset.act : undefined;
    root.replaceChildren(make(node));
    root.dataset.drawn = text;
    if (held) [...root.querySelectorAll("[data-act]")].find((e) => e.dataset.act === held)?.focus({ preventScroll: true });
  }

  // Makes `element` show `props.value` (a tree) and report clicks on nodes that carry an act.
  function view(element, props, watch, trigger) {
    const root = element.querySelector(".tree");
    let newest = 0;
    const show = () => {
      const value = props.value;
      if (value?.serial !== undefined && value.serial < newest) return; // a late frame of an answer that was replaced
      newest = value?.serial ?? newest;
      draw(root, value);
    };
    watch("value", show);
    acts(root, trigger);
    show();
  }

  function acts(root, trigger) {
    root.addEventListener("click", (event) => {
      const target = event.target.closest("[data-act]");
      if (target && root.contains(target) && !target.disabled) trigger("act", JSON.parse(target.dataset.act));
    });
  }

  const hidden = (element) => document.hidden || element.offsetParent === null;
  const colour = (element, name) => getComputedStyle(element).getPropertyValue(name).trim();

  let loading = null;
  function plotly() {
    loading ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = "gradio_api/studio/plotly.min.js";
      script.onload = () => resolve(window.Plotly);
      script.onerror = () => reject(new Error("plotly.min.js did not load"));
      document.head.append(script);
    });
    return loading;
  }

  // Colours change with the theme, which is a class on the body.
  const onTheme = (run) => new MutationObserver(run).observe(document.body, { attributes: true, attributeFilter: ["class"] });

  function theme(choice) {
    const dark = choice ? choice === "dark" : !document.body.classList.contains("dark");
    document.body.classList.toggle("dark", dark);
    try { localStorage.setItem("studio-theme", dark ? "dark" : "light"); } catch { /* private windows have no storage */ }
  }
  function remembered() {
    try { return localStorage.getItem("studio-theme"); } catch { return null; }
  }
  const refresh = () => window.dispatchEvent(new Event("studio:refresh"));


  // The view for a projector: the prompt, the sliders and the answer in big type, and nothing else.
  function present(on) {
    document.body.classList.toggle("presenting", on);
    const url = new URL(location.href);
    if (on) url.searchParams.set("view", "present"); else url.searchParams.delete("view");
    history.replaceState(null, "", url);
    window.dispatchEvent(new Event("resize"));
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") present(false); });

  // The address that brings a mix and its prompt back; it also becomes this page's own.
  async function share(prompt, rows) {
    const on = (Array.isArray(rows) ? rows : []).filter((r) => r.on && r.weight);
    const mix = on.map((r) => r.id + "=" + Number(r.weight.toFixed(4)) + (r.tilt ? "@" + r.tilt : "")).join(",") || "base";
    const url = new URL(location.href);
    url.searchParams.set("mix", mix);
    if (prompt) url.searchParams.set("prompt", prompt); else url.searchParams.delete("prompt");
    url.searchParams.delete("run");
    history.replaceState(null, "", url);
    let said = "Link copied";
    try { await navigator.clipboard.writeText(url.href); } catch { said = "The link is in the address bar"; }
    const note = make({ tag: "div", cls: "passing", attrs: { role: "status" }, kids: [said] });
    document.body.append(note);
    setTimeout(() => note.remove(), 2500);
  }

  return { make, draw, view, acts, hidden, colour, plotly, onTheme, theme, remembered, refresh, present, share };
})();
// A text that the browser keeps as a file.
window.studio.save = (name, text) => {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type: "text/markdown" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};
