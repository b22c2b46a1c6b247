// What was found in a dataset: shows grey lines at once, then polls the server until the inspection is done.
const studio = window.studio;
const root = element.querySelector(".tree");
let dataset = "", key = "", timer = 0, busy = false, done = false;
const PENDING = { tag: "div", cls: "skeleton", kids: [1, 2, 3, 4].map(() => ({ tag: "span", cls: "skeleton-line", kids: [] })) };

async function poll() {
  clearTimeout(timer);
  if (!element.isConnected || !dataset || done || busy) return;
  busy = true;
  const asked = dataset;
  try {
    if (!studio.isHidden(root) || !root.childElementCount) {
      const response = await server.poll_inspection({ dataset: asked, key });
      if (asked === dataset) {
        key = response.error ? "" : response.key;
        done = Boolean(response.done || response.error);
        studio.draw(root, response.error ? { tag: "p", cls: "problem", attrs: { role: "alert" }, kids: [response.error] } : response.tree);
      }
    }
  } catch { /* the server may be restarting: the next poll tries again */ } finally {
    busy = false;
    if (!done && dataset) timer = setTimeout(poll, asked !== dataset ? 0 : key ? 700 : 3000);
  }
}

function show() {
  const next = props.value?.dataset || "";
  if (next !== dataset || !next) { dataset = next; studio.draw(root, next ? PENDING : null); }
  again();
}

// Asks again: the base or another dataset may have changed since, and a known result comes at once.
function again() {
  key = ""; done = false;
  poll();
}

studio.bindActions(root, trigger); // fires 'act'
root.addEventListener("click", (event) => { // a second click would make a second dataset
  const target = event.target.closest("button[data-act]");
  if (!target) return;
  setTimeout(() => { target.disabled = true; });
  setTimeout(() => { target.disabled = false; }, 8000);
});
watch("value", show);
window.addEventListener("studio:library", again);
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
show();
