// Disables the controls that the visitor may not use, and says why when one is pressed. The table comes from
// `studio/permissions.py`; the role arrives with the first poll of the page's top.
(() => {
  const needs = NEEDS;
  const CONTROLS = "button, select, input, textarea, [data-act], a[download]";
  const OWNER = 3;
  let role = OWNER, reasons = {}, waiting = false;

  const needOfLink = (link) => {
    const address = link.getAttribute("href") || "";
    const found = Object.keys(needs.links).filter((beginning) => address.startsWith(beginning));
    return found.length ? needs.links[found.sort((a, b) => b.length - a.length)[0]] : 0;
  };
  const actOf = (element) => { try { return JSON.parse(element.dataset.act || "{}").do; } catch { return undefined; } };

  function mark(element, need) {
    const isRefused = need > role;
    if (!isRefused && element.dataset.needs === undefined) return;
    if (isRefused && element.dataset.needs === String(need)) return;
    if (isRefused) {
      element.dataset.needs = need;
      element.dataset.title ??= element.title;
      element.title = reasons[need];
      element.setAttribute("aria-disabled", "true");
      if (element.matches("input, select, textarea")) element.disabled = true;
      return;
    }
    element.title = element.dataset.title || "";
    delete element.dataset.needs;
    delete element.dataset.title;
    element.removeAttribute("aria-disabled");
    if (element.matches("input, select, textarea")) element.disabled = false;
  }

  function apply() {
    waiting = false;
    for (const [id, need] of Object.entries(needs.blocks)) {
      const block = document.getElementById(id);
      if (!block) continue;
      if (block.matches("button")) mark(block, need);
      else for (const control of block.querySelectorAll(CONTROLS)) mark(control, Math.max(need, needs.acts[id]?.[actOf(control)] || 0));
    }
    for (const [id, acts] of Object.entries(needs.acts)) {
      if (needs.blocks[id]) continue;
      for (const control of document.getElementById(id)?.querySelectorAll("[data-act]") || []) mark(control, acts[actOf(control)] || 0);
    }
    for (const link of document.querySelectorAll("a[download]")) mark(link, needOfLink(link));
  }
  function schedule() {
    if (!waiting) { waiting = true; setTimeout(apply, 60); }
  }

  function refuse(event) {
    const control = event.target.closest?.("[data-needs]");
    if (!control) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    window.studio.say(control.title, 5000);
  }

  const observer = new MutationObserver(schedule);
  // Called with what `studio.permissions.describe` returns.
  window.studio.permit = (visitor) => {
    if (!visitor || visitor.role === role) return;
    ({ role, reasons } = visitor);
    document.documentElement.dataset.role = role;
    observer.disconnect();
    if (role < OWNER) observer.observe(document.body, { childList: true, subtree: true });
    document.removeEventListener("click", refuse, true);
    if (role < OWNER) document.addEventListener("click", refuse, true);
    apply();
  };
})();
