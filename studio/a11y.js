// Accessibility of Gradio's own components (6.31) where their markup lacks it: names of tab lists and groups of
// radio buttons, arrow keys between tabs and between radio buttons, menus that close when the focus leaves, and
// toasts that cover no main button. It only adds attributes and styles, after every change of the page.
(() => {
  const MAIN_BUTTONS = "button.primary, .btn.primary";
  const SCROLLING = ".tree pre, .tree .tokens, .tree .thought-text, .live pre, .tree ul, .tree ol";
  const GAP = 12; // pixels between a toast and whatever it must not cover
  const text = (element) => (element?.textContent || "").trim();
  const set = (element, name, value) => { if (element.getAttribute(name) !== value) element.setAttribute(name, value); };
  const isVisible = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  let groups = 0, waiting = false;

  function nameTabs(list) {
    const panel = list.closest("[role=tabpanel]"), heading = list.closest(".card")?.querySelector(".section-title h2, h2");
    const outer = panel && document.querySelector("#tabs > .tab-wrapper [role=tab][aria-selected=true]");
    set(list, "aria-label", text(heading) || (outer ? text(outer) + ": views" : "Parts of the studio"));
    for (const tab of list.querySelectorAll("[role=tab]")) {
      set(tab, "tabindex", tab.getAttribute("aria-selected") === "true" ? "0" : "-1");
      if (tab.getAttribute("aria-controls") === "") tab.removeAttribute("aria-controls");
    }
  }

  function nameGroup(group) {
    const radios = group.querySelectorAll("input[type=radio]"), label = text(group.querySelector("[data-testid=block-info]"));
    if (!radios.length && !group.querySelector("input[type=checkbox]")) return;
    if (radios.length) set(group, "role", "radiogroup");
    if (label) set(group, "aria-label", label);
    // Radio buttons of one name are one stop of the Tab key, and the browser moves between them with arrows.
    group.dataset.name ||= "group-" + ++groups;
    for (const radio of radios) set(radio, "name", group.dataset.name);
  }

  function improve() {
    waiting = false;
    document.querySelectorAll("[role=tablist]").forEach(nameTabs);
    document.querySelectorAll("fieldset").forEach(nameGroup);
    for (const remove of document.querySelectorAll(".token > .token-remove")) {
      set(remove, "aria-label", "Remove " + text(remove.parentElement.querySelector("span")));
      remove.removeAttribute("title");
    }
    for (const fold of document.querySelectorAll("button.label-wrap")) set(fold, "aria-expanded", String(fold.classList.contains("open")));
    // What scrolls can be scrolled with the keyboard, too.
    for (const box of document.querySelectorAll(SCROLLING))
      if (box.scrollHeight > box.clientHeight + 1 && !box.querySelector("button, a, input, [tabindex]")) set(box, "tabindex", "0");
    placeToasts();
  }
  function schedule() {
    if (!waiting) { waiting = true; setTimeout(improve, 150); }
  }

  // Moves the toasts to the first place, from the lower right corner upwards, where they cover no main button.
  function placeToasts() {
    for (const wrap of document.querySelectorAll(".toast-wrap, .snackbar")) if (wrap.firstChild) place(wrap);
  }
  function place(wrap) {
    const { width, height } = wrap.getBoundingClientRect();
    const blocked = [...document.querySelectorAll(MAIN_BUTTONS)].filter((e) => !wrap.contains(e) && isVisible(e))
      .map((e) => e.getBoundingClientRect());
    const isFree = (left, top) => blocked.every((r) =>
      left + width + GAP <= r.left || left - GAP >= r.right || top + height + GAP <= r.top || top - GAP >= r.bottom);
    const lefts = [innerWidth - width - GAP, GAP, (innerWidth - width) / 2].map((left) => Math.max(left, 0));
    const tops = [];
    for (let top = innerHeight - height - GAP; top >= 0; top -= 8) tops.push(top);
    const places = lefts.slice(0, 2).flatMap((left) => tops.slice(0, 6).map((top) => [left, top]))
      .concat(lefts.flatMap((left) => tops.map((top) => [left, top])));
    const [left, top] = places.find((place) => isFree(...place)) ?? [lefts[0], tops[0] ?? 0];
    for (const [name, value] of [["left", left + "px"], ["top", top + "px"], ["right", "auto"], ["bottom", "auto"], ["transform", "none"]])
      wrap.style.setProperty(name, value, "important");
  }

  document.addEventListener("keydown", (event) => {
    const tab = event.target.closest?.("[role=tab]"), list = tab?.closest("[role=tablist]");
    if (!list) return;
    const tabs = [...list.querySelectorAll("[role=tab]")].filter((t) => !t.disabled && isVisible(t)), at = tabs.indexOf(tab);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const target = tabs[(next + tabs.length) % tabs.length];
    target.click();
    target.focus();
    schedule();
  });
  // Gradio gives every radio button a name of its own again when it draws it, also just before a key is pressed.
  document.addEventListener("keydown", (event) => {
    const group = event.target.type === "radio" && event.target.closest("fieldset");
    if (group) nameGroup(group);
  }, true);
  // A menu of Gradio's stays open when the focus leaves it with the Tab key; its own Escape closes it.
  document.addEventListener("focusout", (event) => {
    const input = event.target;
    if (input.getAttribute?.("role") !== "combobox" || input.closest(".wrap")?.contains(event.relatedTarget)) return;
    setTimeout(() => {
      if (document.activeElement !== input && input.getAttribute("aria-expanded") === "true")
        input.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", code: "Escape", bubbles: true }));
    }, 150);
  });
  for (const kind of ["scroll", "resize"]) addEventListener(kind, placeToasts, { passive: true, capture: true });
  const start = () => {
    new MutationObserver(schedule).observe(document.body, {
      childList: true, subtree: true, attributes: true, attributeFilter: ["aria-selected", "class"],
    });
    improve();
  };
  if (document.body) start(); else addEventListener("DOMContentLoaded", start);
})();
