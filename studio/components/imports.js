// Running imports: polls their progress while there are any, and fires 'imported' when one that this page has seen
// running is done. A failed one stays until the user dismisses it or shows its files again ('reopen').
const studio = window.studio;
const root = element.querySelector(".imports");
let timer = 0, busy = false, again = false;
const running = new Set(), drawn = new Set(), gone = new Set(); // ids of jobs

async function poll() {
  clearTimeout(timer);
  if (busy) { again = true; return; }
  busy = true;
  let wait = 0;
  try {
    const { jobs } = await server.poll_imports({});
    for (const job of jobs || []) {
      if (job.state === "done" && running.has(job.id)) trigger("imported", { dataset: job.dataset });
      if (job.state === "cancelled" && !running.has(job.id) && !drawn.has(job.id)) gone.add(job.id); // another page's, or an old one
      if (job.ended) running.delete(job.id); else running.add(job.id);
    }
    const visible = (jobs || []).filter((job) => job.state !== "done" && !gone.has(job.id));
    for (const job of visible) drawn.add(job.id);
    studio.draw(root, visible.length ? { tag: "div", cls: "import-list", kids: visible.map((job) => job.tree) } : null);
    if (running.size) wait = 400;
  } catch { wait = running.size ? 2000 : 0; } finally { // the server may be restarting
    busy = false;
    if (again) wait = 50;
    again = false;
    if (wait) timer = setTimeout(poll, wait);
  }
}

root.addEventListener("click", async (event) => {
  const target = event.target.closest("[data-act]");
  if (!target) return;
  const act = JSON.parse(target.dataset.act);
  if (act.do === "cancel") { target.disabled = true; target.textContent = "Cancelling"; await server.cancel_import({ job: act.job }); }
  if (act.do === "dismiss") { gone.add(act.job); await server.dismiss_import({ job: act.job }); }
  if (act.do === "reopen") { gone.add(act.job); trigger("reopen", { job: act.job }); }
  poll();
});
watch("value", () => { // the id of the import that this page has started
  if (props.value?.job && !gone.has(props.value.job)) running.add(props.value.job);
  poll();
});
window.addEventListener("studio:refresh", poll);
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
poll();
