// The top of the page: asks how things stand, redraws only what moved, and tells the tabs when their
// lists are out of date. The theme switch is handled here, because the server need not know.
const studio = window.studio;
const root = element.querySelector(".guide");
let timer = 0, busy = false, again = false, revision = "";

async function look() {
  clearTimeout(timer);
  if (busy) { again = true; return; }
  busy = true;
  try {
    if (!document.hidden) {
      const answer = await server.look({});
      if (answer.tree) studio.draw(root, answer.tree);
      if (answer.revision && answer.revision !== revision) { revision = answer.revision; trigger("moved"); }
    }
  } catch { /* the server may be restarting: the next look will find it */ } finally {
    busy = false;
    timer = setTimeout(look, again ? 50 : 1500);
    again = false;
  }
}

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
