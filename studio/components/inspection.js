// What was found in a dataset: shows grey lines at once, then polls the server until the inspection is done.
const studio = window.studio;
const root = element.querySelector(".tree");
let dataset = "", timer = 0, busy = false, done = false;
const PENDING = { tag: "div", cls: "skeleton", kids: [1, 2, 3, 4].map(() => ({ tag: "span", cls: "skeleton-line", kids: [] })) };

async function poll() {
  clearTimeout(timer);
  if (!element.isConnected || !dataset || done || busy) return;
  busy = true;
  const asked = dataset;
  try {
    if (!studio.isHidden(root) || !root.childElementCount) {
      const response = await server.poll_inspection({ dataset: asked });
      if (asked === dataset) {
        done = Boolean(response.done || response.error);
        studio.draw(root, response.error ? { tag: "p", cls: "problem", attrs: { role: "alert" }, kids: [response.error] } : response.tree);
      }
    }
  } catch { /* the server may be restarting: the next poll tries again */ } finally {
    busy = false;
    if (!done && dataset) timer = setTimeout(poll, asked === dataset ? 700 : 0);
  }
}

function show() {
  const next = props.value?.dataset || "";
  if (next !== dataset || !next) { dataset = next; studio.draw(root, next ? PENDING : null); }
  done = false;
  poll();
}

studio.bindActions(root, trigger); // fires 'act'
watch("value", show);
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
show();
