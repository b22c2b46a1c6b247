"""The chart and the tables of a weight map, without an engine."""

from __future__ import annotations

import json

import pytest

from core.analyze.search_results import SearchComparison, SearchResult
from studio.components import bars, plot
from studio.views import weight_map as map_views
from tests.studio.tabs.conftest import EVIL, acts, cells, marks, texts, toy_map

pytestmark = pytest.mark.slow


def test_darker_is_better_for_every_metric():
    low, high = (
        map_views.plot_map(toy_map(), None, {}, {}),
        map_views.plot_map(toy_map("exact_match"), None, {}, {}),
    )
    assert [c for _, c in low["traces"][0]["colorscale"]] == ["--st-accent", "--st-card"]
    assert [c for _, c in high["traces"][0]["colorscale"]] == ["--st-card", "--st-accent"]
    assert (marks(low)["Best"], marks(high)["Best"]) == ((0.5, 0.0), (0.5, 0.0))
    assert high["traces"][0]["z"] == [list(row) for row in toy_map("exact_match").values] and low["traces"][
        0
    ]["z"][1][2] == pytest.approx(1.954, abs=1e-3)
    assert (
        high["traces"][0]["colorbar"]["ticktext"][0] == "0.0 %"
        and high["traces"][0]["colorbar"]["ticktext"][-1] == "100.0 %"
    )
    assert low["traces"][0]["zmax"] < 1.0, "a hopeless corner does not take all the colours"
    assert low["traces"][0]["colorbar"]["title"]["text"] == "answer perplexity"
    assert map_views.plot_map(toy_map(kind="domain"), None, {}, {})["layout"]["xaxis"]["range"] == [0.0, 1.0]


@pytest.mark.parametrize("metric", ["perplexity", "exact_match"])
def test_a_partial_map_is_drawn_and_an_empty_one_is_not(metric):
    part = map_views.plot_map(toy_map(metric, holes=1), None, {}, {})
    assert (
        part["traces"][0]["type"] == "heatmap"
        and part["traces"][0]["z"][2] == [None] * 3
        and part["traces"][0]["text"][2] == [""] * 3
    )
    assert map_views.plot_map(toy_map(metric, holes=3), None, {}, {}) is None
    assert cells(map_views.render_details(toy_map(metric, holes=1), None, {}))[1] == ["1", "–", "–", "–"]
    assert acts(
        map_views.render_details(toy_map(metric, holes=3), None, {})
    ) == [] and "Nothing has been measured yet" in texts(
        map_views.render_details(toy_map(metric, holes=3), None, {})
    )


def test_a_flat_map_is_drawn_too():
    for metric, value in (("perplexity", 7.0), ("exact_match", 0.0)):
        figure = map_views.plot_map(toy_map(metric, values=((value,) * 3,) * 3), None, {}, {})
        assert json.dumps(figure, allow_nan=False) and marks(figure)["Best"] == (1.0, 1.0)


def test_a_search_result_is_marked_only_on_a_map_of_the_same_adapters():
    def learned(a, b):
        found = tuple(
            SearchResult(n, {a: 0.7, b: 0.2}, 1.0, 1, 1.0, 1.0) for n in ("gradient", "sum", "single")
        )
        return SearchComparison((a, b), {"f": 0.5}, {}, "v", "t", "", "", 0, found)

    assert marks(map_views.plot_map(toy_map(), learned("d", "t"), {}, {"d": 1.0}))["Search result"] == (
        0.7,
        0.2,
    )
    assert "Mixer" not in marks(map_views.plot_map(toy_map(), None, {}, {"d": 1.0})), (
        "the map holds another adapter at 0.5"
    )
    assert marks(map_views.plot_map(toy_map(), learned("t", "d"), {}, {"d": 1.0, "f": 0.5})) == {
        "Best": (0.5, 0.0),
        "Mixer": (1.0, 0.0),
        "Search result": (0.2, 0.7),
    }
    assert "Search result" not in marks(map_views.plot_map(toy_map(), learned("d", "other"), {}, {}))
    assert acts(map_views.render_details(None, learned("d", "t"), {})) == [
        {"weights": {"f": 0.5, "d": 0.7, "t": 0.2}, "tilt": {}}
    ]


def test_plotly_draws_an_escaped_name_as_it_was_written():
    """In a real browser, as axis title, hover text and label of a bar."""
    from pathlib import Path

    import plotly

    api, chromium = pytest.importorskip("playwright.sync_api"), "/usr/bin/chromium"
    if not Path(chromium).exists():
        pytest.skip(f"there is no {chromium}")
    name = EVIL + ' <a href="https:x">go</a><br>'
    figure = map_views.plot_map(toy_map(), None, {"d": name, "t": name}, {})
    figure = json.loads(json.dumps(figure).replace("--st-", "#"))
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_content("<div id=a></div><div id=b></div>")
        page.add_script_tag(path=Path(plotly.__file__).parent / "package_data" / "plotly.min.js")
        said = page.evaluate(
            """async ([f, name]) => {
              const a = document.getElementById("a"), b = document.getElementById("b");
              const size = { width: 900, height: 500 }, options = { displayModeBar: false };
              for (const t of f.traces) { delete t.colorscale; delete t.line; delete t.marker; }
              f.traces[0].type = "heatmap";
              await Plotly.newPlot(a, [f.traces[0]], { xaxis: f.layout.xaxis, ...size }, options);
              Plotly.Fx.hover(a, [{ xval: 0.5, yval: 0 }]);
              await new Promise((r) => setTimeout(r, 300));
              const bars = [{ type: "bar", orientation: "h", y: [name], x: [1] }];
              await Plotly.newPlot(b, bars, { ...size, height: 300, yaxis: { type: "category" } }, options);
              const text = (root, part) => root.querySelector(part).textContent;
              return { title: text(a, ".xtitle"), hover: text(a, ".hoverlayer"), bar: text(b, ".ytick"),
                       links: document.querySelectorAll("svg a, img").length };
            }""",
            [figure, plot.literal(name)],
        )
        browser.close()
    assert said["title"] == f"Weight of {name}" and said["bar"] == name and said["links"] == 0
    assert f"{name} 0.50" in said["hover"] and "1.5" in said["hover"]


@pytest.mark.parametrize("name, escaped", [
    ("Sample domain", "Sample domain"),
    ("a<b>c</b>", "a&lt;b&gt;c&lt;/b&gt;"),
    ("&lt;", "&amp;lt;"),
    ("100 % %{x}", "100 &#37; &#37;{x}"),
    ("--st-accent", "&#45;-st-accent"),
])  # fmt: skip
def test_text_that_plotly_would_interpret_is_escaped(name, escaped):
    assert plot.literal(name) == escaped
    assert bars.panel("F1", [name], ["mix"], [1.0])["names"] == [escaped]
