// The top of the page: polls the studio's state, redraws what changed, and fires 'library_change' when lists
// on the page are out of date. The theme switch is handled here, because the theme is stored in the browser.
//
// Gradio's client (6.31) opens a stream for results when it believes that none is open. An event that is sent
// while the close message of the old stream is on its way has no stream, and its result waits on the server
// until the next event opens one. So after events were sent, 'ping', an event without effect, is sent too,
// until its own result shows that all earlier ones were delivered.
const studio = window.studio;
const root = element.querySelector(".guide");
let timer = 0, busy = false, again = false, revision = "";
let sent = 0, pings = 0, delivered = 0; // counts of events: sent, the pings among them, and those whose results have arrived

async function poll() {
  clearTimeout(timer);
  if (busy) { again = true; return; }
  busy = true;
  try {
    if (!document.hidden) {
      const response = await server.poll({});
      if (response.tree) studio.draw(root, response.tree);
      studio.permit(response.visitor);
      if (response.revision && response.revision !== revision) { revision = response.revision; trigger("library_change"); }
      else if (sent - pings > delivered) { trigger("ping", { sent: sent - pings }); pings += 1; }
    }
  } catch { /* the server may be restarting: the next poll tries again */ } finally {
    busy = false;
    timer = setTimeout(poll, again ? 50 : 1500);
    again = false;
  }
}

new PerformanceObserver((list) => { sent += list.getEntries().filter((e) => e.name.includes("/queue/join")).length; }).observe({ type: "resource" });
watch("value", () => { delivered = Math.max(delivered, props.value?.sent ?? 0); });
root.addEventListener("click", (event) => {
  const target = event.target.closest("[data-act]");
  if (!target) return;
  const act = JSON.parse(target.dataset.act);
  if (act.do === "theme") studio.setTheme();
  else if (act.do === "sign_in") { // a provider's page does not open in the frame of another site
    if (window.top === window) location.assign("login"); else window.open("login", "_blank", "noopener");
  } else if (act.do === "sign_out") {
    const form = document.body.appendChild(Object.assign(document.createElement("form"), { method: "POST", action: "logout" }));
    form.submit();
  }
  else trigger("act", act);
});
window.addEventListener("studio:refresh", poll);
window.addEventListener("studio:stale", () => { revision = ""; poll(); }); // a list was made from old values
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
if (studio.storedTheme()) studio.setTheme(studio.storedTheme()); // by now Gradio has set the system's theme
const run = new URLSearchParams(location.search).get("run");
if (run) trigger("act", { do: "watch", run });
if (new URLSearchParams(location.search).get("view") === "present") { studio.present(true); trigger("act", { do: "tab", tab: "mix" }); }
poll();
