"""Views of the weight map: the chart, the map as a table, and the result of a weight search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from studio import formatting
from studio.components import plot
from studio.tree import Node, button, details, node, table

if TYPE_CHECKING:
    from core.analyze.search_results import SearchComparison, SearchResult
    from core.store.weight_maps import WeightMap

SEARCH_LABELS = {
    "gradient": "Gradient descent",
    "grid": "Grid search",
    "gradient-free": "Gradient-free (LoRAHub)",
    "sum": "Plain sum",
    "single": "Best single adapter",
    "base": "Base",
}
# Label of a mark on the map -> symbol, colour.
MARKS = {
    "Best": ("star", "--st-task"),
    "Mixer": ("circle-open", "--st-ink"),
    "Search result": ("diamond", "--st-mix"),
}
CLIP_QUANTILE = 0.85  # of the perplexities; higher ones share the last colour
TICKS = 5


def plot_map(
    weight_map: WeightMap,
    search: SearchComparison | None,
    names: Mapping[str, str],
    current: Mapping[str, float] | None,
) -> dict[str, Any] | None:
    """The map as a chart: darker is better, with marks at the best point, the mixer and the search result.

    Args:
        names: the names of adapters, by id.
        current: the mixer's weights; None if its mix cannot be a point of this map.

    Returns:
        the figure; None while nothing is measured.
    """
    is_share = weight_map.metric == "exact_match"
    rows = [[v if v is not None and math.isfinite(v) else None for v in row] for row in weight_map.values]
    values = [v for row in rows for v in row if v is not None]
    if not values:
        return None
    x_name, y_name = (plot.literal(names.get(a, a)) for a in weight_map.adapters)
    field = {
        "type": "contour" if weight_map.complete else "heatmap",
        "x": list(weight_map.xs),
        "y": list(weight_map.ys),
        "z": [[None if v is None else _to_scale(v, is_share) for v in row] for row in rows],
        "text": [["" if v is None else _format_value(v, is_share) for v in row] for row in rows],
        "line": {"color": "--st-line"},
        "contours": {"coloring": "heatmap"},
        "ncontours": 14,
        "hovertemplate": f"{x_name} %{{x:.2f}}<br>{y_name} %{{y:.2f}}<br><b>%{{text}}</b><extra></extra>",
        **_colours(values, is_share, weight_map.metric_label),
    }
    marks = [_mark(label, point) for label, point in _find_marks(weight_map, search, current).items()]
    layout = {
        "xaxis": {"title": {"text": f"Weight of {x_name}"}, "range": [weight_map.xs[0], weight_map.xs[-1]]},
        "yaxis": {"title": {"text": f"Weight of {y_name}"}, "range": [weight_map.ys[0], weight_map.ys[-1]]},
        "shapes": _zero_lines(weight_map.xs, weight_map.ys),
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 8, "r": 8, "t": 36, "b": 8},
    }
    return plot.figure([field, *marks], layout, pick=True)


def _to_scale(value: float, is_share: bool) -> float:
    """Shares are drawn as they are, perplexities by their logarithm."""
    return value if is_share else math.log10(value)


def _format_value(value: float, is_share: bool) -> str:
    return formatting.format_percent(value) if is_share else f"{value:.3g}"


def _colours(values: Sequence[float], is_share: bool, label: str) -> dict[str, Any]:
    """Colour scale and colour bar."""
    low, high = min(values), max(values)
    is_clipped = not is_share and len(values) > 8
    if is_clipped:  # else a few very high perplexities take up the whole scale
        high = max(sorted(values)[int(CLIP_QUANTILE * (len(values) - 1))], low * 1.01)
    start, end = _to_scale(low, is_share), _to_scale(high, is_share)
    ticks = [start + (end - start) * i / (TICKS - 1) for i in range(TICKS)]
    texts = [_format_value(t if is_share else 10**t, is_share) for t in ticks]
    if is_clipped:
        texts[-1] = f"≥ {texts[-1]}"
    worst, best = "--st-card", "--st-accent"
    return {
        "colorscale": [[0, worst], [1, best]] if is_share else [[0, best], [1, worst]],
        "zmin": start,
        "zmax": end,
        "colorbar": {
            "thickness": 12,
            "outlinewidth": 0,
            "tickvals": ticks,
            "ticktext": texts,
            "title": {"text": label, "side": "right"},
        },
    }


def _find_marks(
    weight_map: WeightMap, search: SearchComparison | None, current: Mapping[str, float] | None
) -> dict[str, tuple[float, float]]:
    points: dict[str, tuple[float, float]] = {}
    x, y = weight_map.adapters
    if weight_map.best:
        points["Best"] = (weight_map.best.x, weight_map.best.y)
    if current is not None:
        others = {a: w for a, w in current.items() if a not in (x, y)}
        if others == weight_map.fixed:  # else the mix is not on this map
            points["Mixer"] = (current.get(x, 0.0), current.get(y, 0.0))
    if search is not None and set(search.adapters) == {x, y}:
        weights = search.result("gradient").weights
        points["Search result"] = (weights[x], weights[y])
    return points


def _mark(label: str, point: tuple[float, float]) -> dict[str, Any]:
    symbol, colour = MARKS[label]
    outline = {"width": 2, "color": "--st-ink" if label == "Mixer" else "--st-card"}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [point[0]],
        "y": [point[1]],
        "name": label,
        "hoverinfo": "name",
        "marker": {"symbol": symbol, "size": 15, "color": colour, "line": outline},
    }


def _zero_lines(xs: Sequence[float], ys: Sequence[float]) -> list[dict[str, Any]]:
    style = {
        "type": "line",
        "line": {"color": "--st-quiet", "width": 1, "dash": "dot"},
        "layer": "above",
    }
    return [
        {**style, "x0": 0, "x1": 0, "y0": ys[0], "y1": ys[-1]},
        {**style, "y0": 0, "y1": 0, "x0": xs[0], "x1": xs[-1]},
    ]


def render_details(
    weight_map: WeightMap | None, search: SearchComparison | None, names: Mapping[str, str]
) -> Node:
    """The summaries of a map and of a weight search, their numbers, and buttons that set the mixer."""
    kids: list[Node] = []
    if weight_map is not None:
        kids += [node("p", weight_map.summary(names), cls="reading"), _best_button(weight_map)]
    if search is not None:
        kids += _render_search(search, names)
    if weight_map is not None:
        kids.append(_map_table(weight_map, names))
    return node("div", *kids)


def _best_button(weight_map: WeightMap) -> Node:
    best, (x, y) = weight_map.best, weight_map.adapters
    if best is None:
        return node("div", cls="row")
    weights = {**weight_map.fixed, x: best.x, y: best.y}
    return node("div", button("Use the best point", {"weights": weights, "tilt": weight_map.tilt}), cls="row")


def _map_table(weight_map: WeightMap, names: Mapping[str, str]) -> Node:
    is_share = weight_map.metric == "exact_match"
    x_name, y_name = (names.get(a, a) for a in weight_map.adapters)
    headings = [f"{y_name} \\ {x_name}", *[f"{x:g}" for x in weight_map.xs]]
    rows = []
    for y, values in reversed(list(zip(weight_map.ys, weight_map.values, strict=True))):
        cells = [formatting.NONE if v is None else _format_value(v, is_share) for v in values]
        rows.append([f"{y:g}", *cells])
    numeric = frozenset(range(1, len(headings)))
    numbers = table(headings, rows, weight_map.metric_label.capitalize(), numeric)
    return node("details", node("summary", "Show the map as a table"), numbers)


def _render_search(search: SearchComparison, names: Mapping[str, str]) -> list[Node]:
    """The weights that each method found, and whether they are better than the plain sum."""
    headings = [
        "Method",
        *[names.get(a, a) for a in search.adapters],
        "Validation",
        "Test",
        "Exact match",
        "Gain over the sum",
    ]
    rows = [_search_row(result, search.adapters) for result in search.results]
    caption = (
        "Perplexity on the validation rows, which the search uses, and on the test rows, which it does not; "
        "gain on the test rows in nats per token, with its 95 % interval"
    )
    weights = {**search.fixed, **search.result("gradient").weights}
    return [
        node("h3", "Weight search"),
        node("p", search.summary(names, ("gradient",)), cls="reading"),
        node("div", button("Use the search result", {"weights": weights, "tilt": search.tilt}), cls="row"),
        details("Details", table(headings, rows, caption, frozenset(range(1, len(headings))))),
    ]


def _search_row(result: SearchResult, adapters: Sequence[str]) -> list[str]:
    gain = result.gains.get("sum")
    losses = (result.validation_loss, result.test_loss)
    is_search = bool(result.gains)
    return [
        SEARCH_LABELS.get(result.name, result.name) + (f", {result.seconds:.0f} s" if is_search else ""),
        *[f"{result.weights.get(a, 0.0):.2f}" for a in adapters],
        *[formatting.format_number(math.exp(min(loss, 50.0)), 3) for loss in losses],
        formatting.format_percent(result.exact_match),
        f"{gain.nats:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})" if gain else formatting.NONE,
    ]
