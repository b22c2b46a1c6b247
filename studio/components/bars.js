// Small bar charts in a row, coloured by kind. They are drawn again when the theme changes.
const studio = window.studio;
const root = element.querySelector(".bars");

function format(value, percent) {
  if (value === null) return "";
  if (percent) return (100 * value).toFixed(1) + " %";
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

// In a narrow chart the name of a mix takes a line for each adapter.
const wrap = (name) => name.replaceAll(" + ", " +<br>");

async function draw() {
  const panels = Array.isArray(props.value) ? props.value : [];
  root.hidden = !panels.length;
  if (!panels.length) return;
  const Plotly = await studio.loadPlotly();
  root.replaceChildren();
  const c = (name) => studio.colour(root, name);
  const places = panels.map(() => document.createElement("div"));
  root.append(...places); // all at once, so every chart is drawn at its final width
  for (const [i, p] of panels.entries()) {
    const isNarrow = places[i].clientWidth < 360, shares = isNarrow ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1];
    const bars = { type: "bar", orientation: "h", y: isNarrow ? p.names.map(wrap) : p.names, x: p.values, marker: { color: p.kinds.map((k) => c("--st-" + k)) }, width: 0.62,
      text: p.values.map((v) => format(v, p.percent)),
      textposition: "outside", cliponaxis: false, textfont: { color: c("--st-ink") }, hoverinfo: "skip" };
    const longest = Math.max(...p.values.filter((v) => v !== null), 0) || 1;
    const scale = p.percent ? { range: [0, isNarrow ? 1.5 : 1.18], tickvals: shares, tickformat: ".0%" } : { range: [0, (isNarrow ? 1.5 : 1.24) * longest], nticks: 5, tickformat: "~r" };
    const heading = p.note ? `${p.title}  <span style="font-weight:400">${p.note}</span>` : p.title;
    await Plotly.newPlot(places[i], [bars], {
      title: { text: heading, x: 0, xanchor: "left", font: { size: 14, weight: 600, color: c("--st-soft") } }, height: 84 + 34 * p.names.length,
      margin: { l: 8, r: 16, t: 34, b: 30 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(root).fontFamily, size: 12, color: c("--st-soft") }, showlegend: false, dragmode: false,
      xaxis: { ...scale, tickangle: 0, fixedrange: true, gridcolor: c("--st-line"), zeroline: true, zerolinecolor: c("--st-quiet"), color: c("--st-quiet") }, yaxis: { type: "category", ticklabelstandoff: 6, autorange: "reversed", automargin: true, fixedrange: true, color: c("--st-soft") },
    }, { responsive: true, displaylogo: false, modeBarButtons: [["toImage"]] });
  }
}

watch("value", draw);
studio.onThemeChange(draw);
draw();
