// The live view of one run: polls `server.metrics` for what is new, appends it to the chart, and shows the numbers,
// samples and notes.
const studio = window.studio;
const root = element.querySelector(".live");
const head = root.querySelector(".live-head"), plot = root.querySelector(".live-plot"), tail = root.querySelector(".live-tail");
let run = "", cursor = 0, timer = 0, busy = false, series = null, drawn = false, samples = [], notes = [], status = null, latest = {};

const emptySeries = () => ({ train: [[], []], smooth: [[], []], validation: [[], []], gap: [[], []], rate: [[], []] });

function truncate(pair, step) { // a resumed run repeats the steps after its checkpoint, and the newer points count
  while (pair[0].length && pair[0][pair[0].length - 1] >= step) { pair[0].pop(); pair[1].pop(); }
}

// Appends points to the series. Returns whether earlier points were replaced, so that the chart must be redrawn.
function append(points) {
  let replaced = false;
  for (const [name, pair] of [["train", series.train], ["rate", series.rate], ["validation", series.validation], ["gap", series.gap]]) {
    for (const [step, value] of points[name] || []) {
      if (pair[0].length && pair[0][pair[0].length - 1] >= step) {
        replaced = true;
        truncate(pair, step);
        if (name === "train") truncate(series.smooth, step);
      }
      pair[0].push(step); pair[1].push(value);
      if (name === "train") {
        const [steps, values] = series.smooth;
        const before = values.length ? values[values.length - 1] : value;
        steps.push(step); values.push(values.length ? 0.85 * before + 0.15 * value : value);
      }
    }
  }
  return replaced;
}

function traces() {
  const c = (name) => studio.colour(root, name);
  const type = series.train[0].length > 3000 ? "scattergl" : "scatter";
  const line = (name, [x, y], colour, more = {}) => ({ type, mode: "lines", name, x: [...x], y: [...y], line: { color: colour, width: 2, ...more.line }, ...more.trace });
  return [
    line("Training", series.train, c("--st-faint"), { line: { width: 1 }, trace: { hovertemplate: "%{y:.4f}" } }),
    line("Training, smoothed", series.smooth, c("--st-accent"), { trace: { hovertemplate: "%{y:.4f}" } }),
    line("Validation", series.validation, c("--st-task"), { trace: { mode: "lines+markers", marker: { size: 7, color: c("--st-task") }, hovertemplate: "%{y:.4f}" } }),
    line("Gap (validation minus training)", series.gap, c("--st-quiet"), { line: { width: 1.5, dash: "dot" }, trace: { yaxis: "y3", visible: series.gap[0].length > 0, hovertemplate: "%{y:.4f}" } }),
    line("Learning rate", series.rate, c("--st-mix"), { trace: { yaxis: "y2", hovertemplate: "%{y:.2e}", showlegend: false } }),
  ];
}

function layout() {
  const c = (name) => studio.colour(root, name);
  const axis = { gridcolor: c("--st-line"), zerolinecolor: c("--st-line"), linecolor: c("--st-line"), color: c("--st-quiet"), automargin: true };
  return {
    uirevision: run, height: 340, margin: { l: 52, r: 12, t: 8, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(root).fontFamily, size: 12, color: c("--st-soft") }, hovermode: "x unified",
    hoverlabel: { bgcolor: c("--st-card"), bordercolor: c("--st-line"), font: { color: c("--st-ink") } },
    legend: { orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
    xaxis: { ...axis, title: { text: "Step" }, rangemode: "tozero", anchor: "y2", tickformat: ",d" },
    yaxis: { ...axis, title: { text: "Loss" }, domain: [0.3, 1] },
    yaxis3: { ...axis, title: { text: "Gap" }, visible: series.gap[0].length > 0, overlaying: "y", side: "right", showgrid: false, zeroline: false, tickmode: "auto", nticks: 4 },
    yaxis2: { ...axis, title: { text: "Rate" }, domain: [0, 0.2], tickformat: ".0e", nticks: 3 },
  };
}

async function paint(points, redraw) {
  const Plotly = await studio.loadPlotly();
  if (!drawn || redraw) {
    await Plotly.react(plot, traces(), layout(), { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
    drawn = true;
    return;
  }
  const fill = (name) => { const got = points[name] || []; return [got.map((p) => p[0]), got.map((p) => p[1])]; };
  const count = (points.train || []).length;
  const smooth = [series.smooth[0].slice(series.smooth[0].length - count), series.smooth[1].slice(series.smooth[1].length - count)];
  const parts = [fill("train"), smooth, fill("validation"), fill("gap"), fill("rate")];
  const which = [0, 1, 2, 3, 4].filter((i) => parts[i][0].length);
  if (which.length) await Plotly.extendTraces(plot, { x: which.map((i) => parts[i][0]), y: which.map((i) => parts[i][1]) }, which);
}

function restart() {
  cursor = 0; series = emptySeries(); drawn = false; samples = []; notes = []; status = null; latest = {};
  plot.replaceChildren(); plot.hidden = true; delete plot.dataset.points;
  if (window.Plotly) window.Plotly.purge(plot);
}

async function poll() {
  clearTimeout(timer);
  if (busy) return;
  busy = true;
  let wait = 3000; // milliseconds until the next poll
  try {
    const selected = props.value || "";
    if (selected !== run || series === null) {
      run = selected;
      restart();
      const url = new URL(location.href);
      if (run) {
        url.searchParams.set("run", run);
        history.replaceState(history.state, "", url);
      }
    }
    if (!studio.isHidden(root)) {
      const response = await server.metrics({ run, since: cursor, latest });
      if (run === (props.value || "")) {
        wait = await show(response);
        if (status && status !== response.status) studio.refresh(); // the rest of the page shows at once that a run ended
        status = response.status || null;
      } else wait = 0;
    }
  } catch { wait = 4000; } finally { // the server may be restarting: the next poll tries again
    busy = false;
    timer = setTimeout(poll, wait);
  }
}

// Shows a response of the server. Returns the milliseconds until the next poll.
async function show(response) {
  studio.draw(head, response.head);
  samples = samples.concat(response.samples || []);
  notes = notes.concat(response.notes || []);
  const answers = (s) => s.answers ? { tag: "div", cls: "sample-answers", kids: s.answers.map((a, i) => ({
    tag: "div", cls: "sample-answer" + (i === s.answers.length - 1 ? " trainee" : ""), kids: [{ tag: "small", kids: [a.who] }, { tag: "p", kids: [a.text] }] })) } : { tag: "p", kids: [s.text] };
  const list = samples.slice(-3).reverse().map((s) => ({ tag: "li", kids: [
    { tag: "span", cls: "quiet", kids: ["Step " + s.step] }, { tag: "strong", kids: [s.prompt] }, answers(s)] }));
  const newest = notes.slice(-3).map((n) => ({ tag: "p", cls: "note", kids: [n] }));
  studio.draw(tail, { tag: "div", kids: [...newest, ...(list.length ? [{ tag: "h3", kids: ["Samples during training"] }, { tag: "ul", cls: "samples", kids: list }] : [])] });
  if (!run || response.error) return 3000;
  cursor = response.cursor;
  latest = response.latest;
  const hadGap = series.gap[0].length > 0;
  const redraw = append(response.points) || hadGap !== series.gap[0].length > 0; // Plotly cannot draw an axis without points, so the first gap adds its axis
  const hasPoints = series.train[0].length + series.validation[0].length;
  plot.hidden = !hasPoints;
  if (hasPoints) await paint(response.points, redraw);
  plot.dataset.points = series.train[0].length;
  plot.dataset.validations = series.validation[0].length;
  if (response.more) return 0;
  return response.alive ? 1000 : 4000;
}

// A notice when a run ends, also while another tab of the page, or of the browser, is open.
const title = document.title;
let alive = [], endTimer = 0;

async function pollEndings() {
  clearTimeout(endTimer);
  try {
    const response = await server.endings({ alive });
    if (response.alive) alive = response.alive;
    for (const end of response.ended || []) announce(end);
  } catch { /* the server may be restarting: the next poll tries again */ } finally {
    endTimer = setTimeout(pollEndings, alive.length ? 3000 : 10000);
  }
}

function announce(end) {
  studio.refresh();
  document.querySelector(".run-notice")?.remove();
  const box = studio.make({ tag: "div", cls: "run-notice", attrs: { role: "status" }, kids: [
    { tag: "strong", kids: [end.title] }, { tag: "p", kids: [end.text] }, { tag: "button", cls: "btn quiet", attrs: { type: "button" }, kids: ["Close"] }] });
  box.querySelector("button").addEventListener("click", () => box.remove());
  (document.querySelector(".gradio-container") || document.body).append(box);
  setTimeout(() => box.remove(), 20000);
  if (document.hidden || !document.hasFocus()) document.title = "● " + end.title;
  if (document.hidden && window.Notification?.permission === "granted") new Notification(end.title, { body: end.text });
}

const restoreTitle = () => { if (!document.hidden) document.title = title; };
document.addEventListener("visibilitychange", restoreTitle);
window.addEventListener("focus", restoreTitle);
window.addEventListener("studio:refresh", () => { if (!alive.length) { clearTimeout(endTimer); endTimer = setTimeout(pollEndings, 500); } });
pollEndings();

watch("value", poll);
studio.bindActions(head, trigger); /* fires 'act' */
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
window.addEventListener("studio:refresh", poll);
studio.onThemeChange(() => { if (drawn) paint({}, true); });
new ResizeObserver(() => { if (drawn && root.offsetParent) window.Plotly.Plots.resize(plot); }).observe(plot);
poll();
