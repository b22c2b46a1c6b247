// Draws trees of plain nodes, the only way in which data reaches the page. Texts become text nodes, and only
// listed tags and attributes are used, so nothing that a user, a file or a model wrote can become markup.
window.studio = (() => {
  const TAGS = new Set(("div span p h1 h2 h3 h4 strong em code pre ul ol li table caption thead tbody tr th td button a dl dt dd " +
    "mark small section header nav label details summary select option img input").split(" "));
  const ATTRS = new Set("title role type download scope colspan tabindex disabled value selected alt checked placeholder".split(" "));

  function make(node) {
    if (node === null || node === undefined) return document.createTextNode("");
    if (typeof node !== "object") return document.createTextNode(String(node));
    const e = document.createElement(TAGS.has(node.tag) ? node.tag : "span");
    if (node.cls) e.className = node.cls;
    for (const [name, value] of Object.entries(node.attrs || {})) {
      if (ATTRS.has(name) || name.startsWith("aria-")) e.setAttribute(name, value);
      if (name === "src" && /^data:image\/(png|jpeg);base64,[\w+/=]+$/.test(value)) e.setAttribute("src", value);
      if (name === "href" && /^gradio_api\/studio\/[\w./-]+$/.test(value)) e.setAttribute("href", value);
      // The only links to another host: what the user has uploaded. No request names this page.
      if (name === "href" && /^https:\/\/huggingface\.co\/[\w./-]+$/.test(value)) Object.assign(e, { href: value, target: "_blank", rel: "noopener noreferrer" });
    }
    for (const [name, value] of Object.entries(node.vars || {})) e.style.setProperty("--" + name, value);
    if (node.act) { e.dataset.act = JSON.stringify(node.act); if (e.tagName === "BUTTON") e.type = "button"; }
    for (const kid of node.kids || []) e.append(make(kid));
    return e;
  }

  // Changes element `e`, which shows `before`, so that it shows `now`. What is the same stays in place: a
  // selection, the scroll position and open folds survive while an answer grows.
  const isText = (node) => node === null || node === undefined || typeof node !== "object";
  const traits = ({ tag, attrs, act, vars }) => JSON.stringify([tag, attrs, act, vars]);
  function update(e, before, now) {
    if (isText(before) && isText(now)) { if (String(before ?? "") !== String(now ?? "")) e.data = String(now ?? ""); return; }
    if (isText(before) || isText(now) || traits(before) !== traits(now)) { e.replaceWith(make(now)); return; }
    if ((before.cls || "") !== (now.cls || "")) e.className = now.cls || "";
    const old = before.kids || [], kids = now.kids || [];
    kids.forEach((kid, i) => { if (i < old.length) update(e.childNodes[i], old[i], kid); else e.append(make(kid)); });
    while (e.childNodes.length > kids.length) e.lastChild.remove();
  }

  // Draws `node` into `root` unless `root` shows it already. The focused control keeps the focus, and a thought
  // that the user has unfolded stays open while its answer grows.
  function draw(root, node) {
    const text = JSON.stringify(node ?? null);
    if (root.dataset.drawn === text) return;
    const focused = root.contains(document.activeElement) ? document.activeElement.dataset.act : undefined;
    const thoughts = () => [...root.querySelectorAll("details.thought, details.passage")];
    const open = thoughts().map((e) => e.open);
    const before = root.dataset.drawn; // as text, because Gradio changes a streamed value in place
    if (before !== undefined && root.childNodes.length === 1) update(root.firstChild, JSON.parse(before), node);
    else root.replaceChildren(make(node));
    thoughts().forEach((e, i) => { e.open = Boolean(open[i]); });
    root.dataset.drawn = text;
    if (focused) [...root.querySelectorAll("[data-act]")].find((e) => e.dataset.act === focused)?.focus({ preventScroll: true });
  }

  // Shows the tree `props.value` in `element` and fires 'act' for clicks on nodes that have an action.
  function view(element, props, watch, trigger) {
    const root = element.querySelector(".tree");
    let newest = 0;
    const show = () => {
      const value = props.value;
      if (value?.serial !== undefined && value.serial < newest) return; // a late frame of an answer that a newer one has replaced
      newest = value?.serial ?? newest;
      draw(root, value);
      if (value?.gates) { window.studio.gates = value.gates; window.dispatchEvent(new Event("studio:gates")); } // for the mixer
    };
    watch("value", show);
    bindActions(root, trigger);
    show();
  }

  function bindActions(root, trigger) {
    root.addEventListener("click", (event) => {
      const target = event.target.closest("[data-act]");
      if (!target || !root.contains(target) || target.disabled || target.tagName === "SELECT") return;
      const act = JSON.parse(target.dataset.act);
      if (act.do === "copy") copyText(act.text, "Copied"); // needs no server
      else if (act.do === "cite") return; // the document's listener below
      else {
        if (act.do === "compare" && act.adapter) { window.studio.comparing = act; window.dispatchEvent(new Event("studio:compare")); }
        trigger("act", act);
      }
    });
    root.addEventListener("change", (event) => {
      const target = event.target.closest("select[data-act]");
      if (target && root.contains(target)) trigger("act", { ...JSON.parse(target.dataset.act), value: target.value });
    });
  }

  // A citation opens its passage, in a conversation and on the board alike.
  document.addEventListener("click", (event) => {
    const target = event.target.closest("button.cite[data-act]");
    const passages = target?.closest(".answer, .col")?.querySelectorAll("details.passage");
    const passage = passages?.[JSON.parse(target.dataset.act).passage - 1];
    if (!passage) return;
    passage.open = true;
    passage.querySelector("summary").focus({ preventScroll: true });
    passage.scrollIntoView({ block: "nearest" });
  });

  const isHidden = (element) => document.hidden || element.offsetParent === null;
  const colour = (element, name) => getComputedStyle(element).getPropertyValue(name).trim();

  let loading = null;
  function loadPlotly() {
    loading ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = "gradio_api/studio/plotly.min.js";
      script.onload = () => resolve(window.Plotly);
      script.onerror = () => reject(new Error("plotly.min.js did not load"));
      document.head.append(script);
    });
    return loading;
  }

  // The theme is a class of the body, and the colours follow it.
  const onThemeChange = (run) => new MutationObserver(run).observe(document.body, { attributes: true, attributeFilter: ["class"] });

  function setTheme(choice) {
    const dark = choice ? choice === "dark" : !document.body.classList.contains("dark");
    document.body.classList.toggle("dark", dark);
    try { localStorage.setItem("studio-theme", dark ? "dark" : "light"); } catch { /* a private window has no storage */ }
  }
  function storedTheme() {
    try { return localStorage.getItem("studio-theme"); } catch { return null; }
  }
  // Makes the guide and the live chart poll at once.
  const refresh = () => window.dispatchEvent(new Event("studio:refresh"));

  // The presentation view for a projector: only the prompt, the sliders and the answer, in large type.
  function present(on) {
    document.body.classList.toggle("presenting", on);
    const url = new URL(location.href);
    if (on) url.searchParams.set("view", "present"); else url.searchParams.delete("view");
    history.replaceState(null, "", url);
    window.dispatchEvent(new Event("resize"));
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") present(false); });

  // Copies a link to the current mix and prompt, which also becomes the URL of this page.
  async function copyLink(prompt, rows) {
    const on = (Array.isArray(rows) ? rows : []).filter((r) => r.on && r.weight);
    const gate = (r) => (r.auto ? "auto" + (r.auto === "hard" ? "" : "-" + r.auto) + ":" : ""); // as `Mix.parse` reads it
    const mix = on.map((r) => r.id + "=" + gate(r) + Number(r.weight.toFixed(4)) + (r.tilt ? "@" + r.tilt : "")).join(",") || "base";
    const url = new URL(location.href);
    url.searchParams.set("mix", mix);
    if (prompt) url.searchParams.set("prompt", prompt); else url.searchParams.delete("prompt");
    url.searchParams.delete("run");
    history.replaceState(null, "", url);
    copyText(url.href, "Link copied", "Copy the link from the address bar");
  }

  // Copies a text, and says whether that worked.
  async function copyText(text, done, failed = "This browser does not allow copying. Select the text instead.") {
    let message = done;
    try { await navigator.clipboard.writeText(text); } catch { message = failed; }
    say(message);
  }

  // Shows a message at the bottom of the window for a moment, in place of the one before.
  function say(message, milliseconds = 2500) {
    document.querySelectorAll(".snackbar").forEach((e) => e.remove());
    const snackbar = make({ tag: "div", cls: "snackbar", attrs: { role: "status" }, kids: [message] });
    document.body.append(snackbar);
    setTimeout(() => snackbar.remove(), milliseconds);
  }

  // Downloads a text as a file: CSV if its name says so, else Markdown.
  function saveFile(name, text) {
    const blob = new Blob([text], { type: name.endsWith(".csv") ? "text/csv" : "text/markdown" });
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  return {
    make, draw, view, bindActions, isHidden, colour, loadPlotly, onThemeChange, setTheme, storedTheme, refresh, present,
    copyLink, saveFile, say,
  };
})();
