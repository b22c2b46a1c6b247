// The top of the page: asks how things stand, redraws only what moved, and tells the tabs when their
// lists are out of date. The theme switch is handled here, because the server need not know.
//
// Gradio's client (6.31) opens a stream for answers when it thinks that none is open. A question that is
// asked while the last line of the old one is under way has none, and its answer waits on the server for
// the next question. So after questions, one more is asked that means nothing, until it is answered.
const studio = window.studio;
const root = element.querySelector(".guide");
let timer = 0, busy = false, again = false, revision = "";
let asked = 0, pulses = 0, answered = 0;

async function look() {
  clearTimeout(timer);
  if (busy) { again = true; return; }
  busy = true;
  try {
    if (!document.hidden) {
      const answer = await server.look({});
      if (answer.tree) studio.draw(root, answer.tree);
      if (answer.revision && answer.revision !== revision) { revision = answer.revision; trigger("moved"); }
      else if (asked - pulses > answered) { trigger("pulse", { asked: asked - pulses }); pulses += 1; }
    }
  } catch { /* the server may be restarting: the next look will find it */ } finally {
    busy = false;
    timer = setTimeout(look, again ? 50 : 1500);
    again = false;
  }
}

new PerformanceObserver((list) => { asked += list.getEntries().filter((e) => e.name.includes("/queue/join")).length; }).observe({ type: "resource" });
watch("value", () => { answered = Math.max(answered, props.value?.asked ?? 0); });
root.addEventListener("click", (event) => {
  const target = event.target.closest("[data-act]");
  if (!target) return;
  const act = JSON.parse(target.dataset.act);
  if (act.do === "theme") studio.theme();
  else trigger("act", act);
});
window.addEventListener("studio:poke", look);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
if (studio.remembered()) studio.theme(studio.remembered()); // Gradio has set the system's by now
const run = new URLSearchParams(location.search).get("run");
if (run) trigger("act", { do: "watch", run });
if (new URLSearchParams(location.search).get("view") === "present") { studio.present(true); trigger("act", { do: "tab", tab: "mix" }); }
look();
