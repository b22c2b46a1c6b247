"""Views of a grid: the estimate before its start, and its results as a table and as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from core.engine.grids import CellResult, GridResults
from core.spec.settings import label_of
from core.store import grids
from core.train.comparison import LossDifference, format_nats
from studio import formatting
from studio.components import plot
from studio.components.live import status_chip
from studio.tree import Node, button, chip, details, download, empty, node, table

NO_GRID = empty(
    "No grid yet",
    "Choose the settings to vary. Every combination is one run, and the results are listed here.",
)
HEADINGS = (
    "Best loss",
    "Best perplexity",
    "Gap to best",
    "Final loss",
    "Final perplexity",
    "Time",
    "Tokens / s",
    "Adapter",
)
SHOWN_HEADINGS = ("Best perplexity", "Time", "Tokens / s", "Adapter")  # the others are folded away


def render_estimate(cells: int, seconds: float | None) -> Node:
    """The number of cells, and how long they will take.

    Args:
        seconds: None without a comparable run to estimate from.
    """
    time = "no comparable run yet, so no estimate"
    if seconds is not None:
        time = f"about {formatting.format_duration(seconds)}, estimated from the newest comparable run"
    return node("p", node("strong", formatting.count(cells, "cell")), f": {time}.", cls="reading")


def render_experiment(grid: grids.Grid, name: str) -> Node | None:
    """The experiment that a grid ends in; None where it ends without one.

    Args:
        name: of that experiment; "" where it was deleted.
    """
    if grid.questions is None:
        return None
    if grid.follow_up is None:
        text = (
            "Experiment: it starts when the last run has ended. A paused or interrupted run can be resumed."
        )
        return node("p", text, cls="quiet")
    left_out = [f"Left out: {'; '.join(grid.follow_up.left_out)}."] if grid.follow_up.left_out else []
    if grid.follow_up.problem:
        return node(
            "p", " ".join(["Experiment: not started.", grid.follow_up.problem, *left_out]), cls="note"
        )
    if not name:
        return node("p", " ".join(["Experiment: it was deleted.", *left_out]), cls="quiet")
    show = button("Show its results", {"do": "experiment", "grid": grid.id}, "quiet small")
    return node("div", node("p", " ".join([f"Experiment: {name}.", *left_out])), show, cls="row")


def render_results(results: GridResults, names: Mapping[str, str], ending: Node | None = None) -> Node:
    """The results of a grid as a table, the best first, with how significant the differences are.

    Args:
        names: of the adapters, by their ids.
        ending: from `render_experiment`.
    """
    grid, queued = results.grid, results.counts.get("queued", 0)
    buttons = [download("Download as CSV", f"grid/{grid.id}.csv", f"{grid.id}.csv")]
    if queued:
        text = f"Cancel {formatting.count(queued, 'queued run')}"
        buttons.insert(0, button(text, {"do": "cancel_queued", "grid": grid.id}, "quiet danger"))
    axes = [label_of(grids.FIELDS[name]) for name in grid.axes]
    lines = [_result_row(grid, row, names) for row in results.rows]
    shown = [i for i, name in enumerate(HEADINGS) if name in SHOWN_HEADINGS]
    short = [[*line[: 1 + len(axes)], *[line[1 + len(axes) + i] for i in shown]] for line in lines]
    headings = ["", *axes, *[HEADINGS[i] for i in shown]]
    figures = [[name, *line[1:]] for name, line in zip(_name_cells(results), lines, strict=True)]
    caption = "Losses in nats per token; gap to the best with its standard error over the validation rows"
    counts = ", ".join(f"{count} {status}" for status, count in results.counts.items())
    return node(
        "div",
        node("div", node("p", counts, cls="quiet"), node("div", *buttons, cls="row push"), cls="row"),
        node("p", results.note, cls="reading") if results.note else None,
        ending,
        table(headings, short, "Lower perplexity is better", frozenset(range(1, len(headings) - 1))),
        details(
            "Details",
            table(
                ["Run", *axes, *HEADINGS], figures, caption, frozenset(range(1, len(axes) + len(HEADINGS)))
            ),
        ),
        cls="grid-results",
    )


def _name_cells(results: GridResults) -> list[str]:
    return [row.cell.spec.name for row in results.rows]


def _result_row(grid: grids.Grid, row: CellResult, names: Mapping[str, str]) -> list[Any]:
    figures = row.figures()
    use = button(
        "Use these settings",
        {"do": "use", "grid": grid.id, "cell": row.cell.index},
        "quiet",
        aria_label=f"Use these settings: {row.cell.spec.name}",
    )
    duration = formatting.format_duration(figures["seconds"]) if figures["seconds"] else formatting.NONE
    return [
        node("div", _status_chip(row), use, cls="row"),
        *[grids.format_value(row.cell.values[name]) for name in grid.axes],
        formatting.format_number(figures["best_loss"], 4),
        formatting.format_number(figures["best_perplexity"], 3),
        _format_gap(row.behind),
        formatting.format_number(figures["final_loss"], 4),
        formatting.format_number(figures["final_perplexity"], 3),
        duration,
        formatting.format_number(figures["tokens_per_second"], 0),
        names.get(str(figures["adapter"]), formatting.NONE),
    ]


def _status_chip(row: CellResult) -> Node:
    if row.run is None:
        return chip(row.status, "bad" if row.is_damaged else "")
    if row.best and not row.run.has_learned_nothing:
        return chip("best", "good")
    return status_chip(row.run)


def _format_gap(gap: LossDifference | None) -> str:
    if gap is None:
        return formatting.NONE
    error = "" if math.isnan(gap.error) else f" ± {format_nats(gap.error)}"
    return f"+{format_nats(gap.nats)}{error}"


def plot_cells(results: GridResults) -> dict[str, Any] | None:
    """Parallel coordinates: a line for each cell, through its settings to its loss and its time.

    Better cells are bluer. The plot needs two cells with a loss; else None.
    """
    rows = [r for r in results.rows if not math.isnan(r.loss)]
    if len(rows) < 2:
        return None
    dimensions = [
        _ordinal_axis(label_of(grids.FIELDS[name]), [r.cell.values[name] for r in rows], axis)
        for name, axis in results.grid.axes.items()
    ]
    losses = [r.loss for r in rows]
    dimensions.append(_linear_axis("Validation loss", losses, ".4g"))
    dimensions.append(_linear_axis("Seconds", [r.history.seconds for r in rows], ".3g"))
    low, high = min(losses), max(losses)
    trace = {
        "type": "parcoords",
        "line": {
            "color": losses,
            "colorscale": [[0, "--st-accent"], [1, "--st-base"]],
            "cmin": low,
            "cmax": high if high > low else low + 1e-9,
        },
        "dimensions": dimensions,
        "unselected": {"line": {"color": "--st-line", "opacity": 0.25}},
        "labelfont": {"size": 12, "color": "--st-ink"},
        "tickfont": {"size": 12, "color": "--st-soft"},
        "rangefont": {"size": 12, "color": "--st-quiet"},
    }
    return plot.figure([trace], {"margin": {"l": 56, "r": 56, "t": 52, "b": 26}}, height=320)


def _ordinal_axis(label: str, values: Sequence[Any], axis: Sequence[Any]) -> dict[str, Any]:
    """An axis of the grid's values, evenly spaced, because rates and names have no common scale."""
    known = sorted(
        {v if not isinstance(v, list) else tuple(v) for v in axis}, key=lambda v: (isinstance(v, str), v)
    )
    return {
        "label": label,
        "values": [known.index(tuple(v) if isinstance(v, list) else v) for v in values],
        "tickvals": list(range(len(known))),
        "ticktext": [plot.literal(grids.format_value(v)) for v in known],
        "range": [-0.5, 0.5] if len(known) == 1 else [0, len(known) - 1],
    }


def _linear_axis(label: str, values: Sequence[float], tick_format: str) -> dict[str, Any]:
    low, high = min(values), max(values)
    pad = (high - low) * 0.03 or abs(high) * 0.01 or 1.0
    return {
        "label": label,
        "values": list(values),
        "range": [low - pad, high + pad],
        "tickformat": tick_format,
    }
