// The live view of one run: asks `server.metrics` for what is new, appends it to the chart, and says
// the numbers. It knows the answer's fields; it knows nothing of training.
const studio = window.studio;
const root = element.querySelector(".live");
const head = root.querySelector(".live-head"), plot = root.querySelector(".live-plot"), tail = root.querySelector(".live-tail");
let run = "", cursor = 0, timer = 0, busy = false, series = null, drawn = false, samples = [], notes = [], last = null, latest = {};

const fresh = () => ({ train: [[], []], smooth: [[], []], validation: [[], []], gap: [[], []], rate: [[], []] });

function truncate(pair, step) { // a resumed run repeats the steps after its checkpoint: the later ones count
  while (pair[0].length && pair[0][pair[0].length - 1] >= step) { pair[0].pop(); pair[1].pop(); }
}

// Adds points; returns whether the drawn points had to change (then the chart is drawn anew).
function take(points) {
  let rewound = false;
  for (const [name, pair] of [["train", series.train], ["rate", series.rate], ["validation", series.validation], ["gap", series.gap]]) {
    for (const [step, value] of points[name] || []) {
      if (pair[0].length && pair[0][pair[0].length - 1] >= step) {
        rewound = true;
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
  return rewound;
}

function traces() {
  const c = (name) => studio.colour(root, name);
  const type = series.train[0].length > 3000 ? "scattergl" : "scatter";
  const line = (name, [x, y], colour, more = {}) => ({ type, mode: "lines", name, x: [...x], y: [...y], line: { color: colour, width: 2, ...more.line }, ...more.trace });
  return [
    line("Training", series.train, c("--st-faint"), { line: { width: 1 }, trace: { hovertemplate: "%{y:.4f}" } }),
    line("Training, smoothed", series.smooth, c("--st-accent"), { trace: { hovertemplate: "%{y:.4f}" } }),
    line("Validation", series.validation, c("--st-task"), { trace: { mode: "lines+markers", marker: { size: 7, color: c("--st-task") }, hovertemplate: "%{y:.4f}" } }),
    line("Gap (validation above training)", series.gap, c("--st-quiet"), { line: { width: 1.5, dash: "dot" }, trace: { yaxis: "y3", visible: series.gap[0].length > 0, hovertemplate: "%{y:.4f}" } }),
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
    xaxis: { ...axis, title: { text: "Step" }, rangemode: "tozero", anchor: "y2" },
    yaxis: { ...axis, title: { text: "Loss" }, domain: [0.3, 1] },
    yaxis3: { ...axis, title: { text: "Gap" }, visible: series.gap[0].length > 0, overlaying: "y", side: "right", showgrid: false, zeroline: false, tickmode: "auto", nticks: 4 },
    yaxis2: { ...axis, title: { text: "Rate" }, domain: [0, 0.2], tickformat: ".0e", nticks: 3 },
  };
}

async function paint(points, anew) {
  const Plotly = await studio.plotly();
  if (!drawn || anew) {
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
  cursor = 0; series = fresh(); drawn = false; samples = []; notes = []; last = null; latest = {};
  plot.replaceChildren(); plot.hidden = true; delete plot.dataset.points;
  if (window.Plotly) window.Plotly.purge(plot);
}

async function look() {
  clearTimeout(timer);
  if (busy) return;
  busy = true;
  let soon = 3000;
  try {
    const wanted = props.value || "";
    if (wanted !== run || series === null) {
      run = wanted;
      restart();
      const address = new URL(location.href);
      if (run) {
        address.searchParams.set("run", run);
        history.replaceState(history.state, "", address);
      }
    }
    if (!studio.hidden(root)) {
      const asked = run;
      const answer = await server.metrics({ run, since: cursor, latest });
      if (asked === (props.value || "")) {
        soon = await show(answer);
        if (last && last !== answer.status) studio.refresh(); // the rest of the page hears at once that a run ended
        last = answer.status || null;
      } else soon = 0;
    }
  } catch { soon = 4000; } finally { // the server may be restarting: the next look will find it
    busy = false;
    timer = setTimeout(look, soon);
  }
}

async function show(answer) {
  studio.draw(head, answer.head);
  samples = samples.concat(answer.samples || []);
  notes = notes.concat(answer.notes || []);
  const voices = (s) => s.answers ? { tag: "div", cls: "voices", kids: s.answers.map((a, i) => ({
    tag: "div", cls: "voice" + (i === s.answers.length - 1 ? " learning" : ""), kids: [{ tag: "small", kids: [a.who] }, { tag: "p", kids: [a.text] }] })) } : { tag: "p", kids: [s.text] };
  const list = samples.slice(-3).reverse().map((s) => ({ tag: "li", kids: [
    { tag: "span", cls: "quiet", kids: ["Step " + s.step] }, { tag: "strong", kids: [s.prompt] }, voices(s)] }));
  const said = notes.slice(-3).map((n) => ({ tag: "p", cls: "note", kids: [n] }));
  studio.draw(tail, { tag: "div", kids: [...said, ...(list.length ? [{ tag: "h3", kids: ["Samples while training"] }, { tag: "ul", cls: "samples", kids: list }] : [])] });
  if (!run || answer.error) return 3000;
  cursor = answer.cursor;
  latest = answer.latest;
  const level = series.gap[0].length > 0;
  const rewound = take(answer.points) || level !== series.gap[0].length > 0; // an axis without a point on it is none that plotly can draw
  const some = series.train[0].length + series.validation[0].length;
  plot.hidden = !some;
  if (some) await paint(answer.points, rewound);
  plot.dataset.points = series.train[0].length;
  plot.dataset.validations = series.validation[0].length;
  return answer.more ? 0 : answer.alive ? 1000 : 4000;
}

watch("value", look);
studio.acts(head, trigger); /* fires 'act' */
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
window.addEventListener("studio:refresh", look);
studio.onTheme(() => { if (drawn) paint({}, true); });
new ResizeObserver(() => { if (drawn && root.offsetParent) window.Plotly.Plots.resize(plot); }).observe(plot);
look();
