// One chart from plain traces. Strings that begin with "--st-" are colours of the page; they are resolved at every
// drawing, so a chart follows the theme. A click on a point fires 'point_click' with its x and y.
const studio = window.studio;
const root = element.querySelector(".plot");
let bound = false, drawing = false, drawn = "";

const resolveColours = (value) => {
  if (typeof value === "string") return value.startsWith("--st-") ? studio.colour(root, value) : value;
  if (Array.isArray(value)) return value.map(resolveColours);
  return value && typeof value === "object" ? Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolveColours(v)])) : value;
};

// Draws the newest value, one drawing at a time, unless it is drawn already.
async function draw() {
  if (drawing) return;
  drawing = true;
  try {
    for (let next = key(); next !== drawn; next = key()) { drawn = next; await paint(props.value); }
  } finally { drawing = false; }
}
const key = () => JSON.stringify(props.value ?? null) + document.body.classList.contains("dark");

async function paint(figure) {
  root.hidden = !figure;
  if (!figure) return;
  const Plotly = await studio.loadPlotly();
  const c = (name) => studio.colour(root, "--st-" + name);
  const axis = { gridcolor: c("line"), linecolor: c("line"), zeroline: false, color: c("soft"), automargin: true, fixedrange: true };
  const own = resolveColours(figure.layout);
  const layout = {
    height: figure.height, margin: { l: 8, r: 8, t: 12, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false,
    font: { family: getComputedStyle(root).fontFamily, size: 12.5, color: c("soft") }, hoverlabel: { bgcolor: c("card"), bordercolor: c("line"), font: { color: c("ink") } },
    ...own, xaxis: { ...axis, ...own.xaxis }, yaxis: { ...axis, ...own.yaxis },
  };
  await Plotly.react(root, resolveColours(figure.traces), layout, { responsive: true, displaylogo: false, modeBarButtons: [["toImage"]] });
  root.classList.toggle("pick", figure.pick);
  if (!bound) {
    bound = true;
    root.on("plotly_click", (event) => {
      const point = event.points?.[0];
      if (props.value?.pick && point) trigger("point_click", { x: point.x, y: point.y });
    });
  }
}

watch("value", draw);
studio.onThemeChange(draw);
draw();
