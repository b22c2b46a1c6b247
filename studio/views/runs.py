"""How runs are drawn side by side: the queue, the table and the lines of a grid, curves over each other.

Knows the fields of runs, grids and comparisons. Knows nothing of who asked, or of how a run is queued.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from core.spec.settings import label_of
from core.store import grids
from core.train.comparison import format_nats, thin_out
from studio import formatting
from studio.components import plot
from studio.components.live import COLOURS
from studio.tree import Node, button, chip, download, empty, node, table

NO_QUEUE = empty(
    "Nothing is waiting", "A run that is started while another trains waits here. So do the cells of a grid."
)
NO_GRID = empty(
    "No grid yet",
    "Choose what to vary on the left. Every combination becomes one run, and the results stand here side by side.",
)
NO_PAIR = empty(
    "Choose two to eight runs",
    "Their curves are drawn over each other, and the settings that differ stand below.",
)
HUES = 8  # colours of runs in `web/studio.css`
FIGURES = (
    "Best loss",
    "Best perplexity",
    "Behind",
    "Final loss",
    "Final perplexity",
    "Time",
    "Tokens / s",
    "Adapter",
)
DASHES = ("solid", "solid", "solid", "solid", "dash", "dash", "dash", "dash")


# --- the queue


def queue(alive: Sequence[Any], line: Sequence[Any], waited: Sequence[Any]) -> Node:
    """What trains, what waits, and what waited when a studio ended.

    Args:
        alive: runs that have begun. line: `QueuedRun` of those that have not. waited: runs that can be queued again.
    """
    kids: list[Node] = []
    if waited:
        names = ", ".join(r.name for r in waited[:3]) + (
            f" and {len(waited) - 3} more" if len(waited) > 3 else ""
        )
        text = f"{names} waited in the queue when the studio ended."
        again = button(
            "Queue it again" if len(waited) == 1 else f"Queue all {len(waited)} again",
            {"do": "again"},
            "primary",
        )
        kids.append(node("div", node("p", text), again, cls="aside row"))
    if not alive and not line:
        return node("div", *kids, NO_QUEUE)
    items = [_training(r) for r in alive] + [_waiting(i, w, line) for i, w in enumerate(line)]
    return node("div", *kids, node("ol", *items, cls="line", aria_label="Queue"))


def _training(run: Any) -> Node:
    stop = button("Stop and keep", {"do": "stop", "run": run.id}) if run.status.value == "running" else None
    tools = node("div", button("Watch", {"do": "watch", "run": run.id}), stop, cls="row push")
    return node(
        "li", node("span", "▶", cls="line-no", aria_hidden="true"), _who(run, ""), tools, cls="line-item now"
    )


def _waiting(i: int, waiting: Any, line: Sequence[Any]) -> Node:
    run = waiting.run
    if waiting.leaving:
        return node(
            "li",
            node("span", str(i + 1), cls="line-no"),
            _who(run, "Taken out; it will not begin."),
            cls="line-item",
        )
    before, below = (line[i - 1].run if i else None), (line[i + 1] if i + 1 < len(line) else None)
    up = before is not None and before.id not in waiting.after
    down = below is not None and run.id not in below.after
    first = up and not any(w.run.id in waiting.after for w in line)
    needed = (
        f"It is needed by {', '.join(w.run.name for w in line if w.run.id in waiting.before)}."
        if waiting.before
        else ""
    )
    needs = "".join(f"On top of {w.run.name}." for w in line if w.run.id in waiting.after)
    moves = [("First", "first", "to the front", first), ("↑", "up", "up", up), ("↓", "down", "down", down)]
    arrows = []
    for sign, to, where, can in moves:
        act, cls = {"do": "move", "run": run.id, "to": to}, "icon word" if len(sign) > 1 else "icon"
        attrs: dict[str, Any] = {
            "title": f"Move {where}",
            "aria_label": f"Move {run.name} {where}",
            "disabled": None if can else "",
        }
        arrows.append(node("button", sign, cls=cls, act=act if can else None, **attrs))
    text = f"Cancel with the {len(waiting.before)} on top" if waiting.before else "Cancel"
    cancel = button(
        text,
        {"do": "cancel", "run": run.id, "together": bool(waiting.before)},
        "quiet danger",
        aria_label=f"{text}: {run.name}",
    )
    said = " ".join(filter(None, [needs, needed]))
    return node(
        "li",
        node("span", str(i + 1), cls="line-no"),
        _who(run, said),
        node("div", *arrows, cancel, cls="row push"),
        cls="line-item",
    )


def _who(run: Any, said: str) -> Node:
    head = node(
        "div",
        node("strong", run.name),
        chip(run.kind, run.kind),
        chip(run.status.value, COLOURS[run.status]),
        cls="row",
    )
    return node("div", head, node("p", said, cls="quiet") if said else None, cls="line-who")


# --- a grid


def estimate(cells: int, seconds: float | None) -> Node:
    """How many cells there are, and what they will take."""
    unknown = "no run did the like yet, so that the time is not known"
    time = (
        unknown
        if seconds is None
        else f"about {formatting.format_duration(seconds)}, going by the newest run that did the like"
    )
    return node("p", node("strong", f"{cells} cell{'s' if cells > 1 else ''}"), f": {time}.", cls="reading")


def results(found: Any) -> Node:
    """The results of a grid as a table, the best first, with what its differences are worth."""
    heads = ["", *[label_of(grids.FIELDS[n]) for n in found.grid.axes], *FIGURES]
    lines = [_result(found.grid, r) for r in found.rows]
    told = ", ".join(f"{n} {word}" for word, n in found.counts.items())
    waiting = found.counts.get("queued", 0)
    rest = f"Cancel the {waiting} that wait" if waiting > 1 else "Cancel the one that waits"
    buttons = [button(rest, {"do": "rest", "grid": found.grid.id}, "quiet danger")] if waiting else []
    buttons.append(download("Download CSV", f"grid/{found.grid.id}.csv", f"{found.grid.id}.csv"))
    numeric = frozenset(range(1 + len(found.grid.axes), len(heads) - 1))  # the last is the adapter
    caption = (
        "Validation loss in nats per token; behind the best, with the standard error over the validation rows"
    )
    head = node("div", node("p", told, cls="quiet"), node("div", *buttons, cls="row push"), cls="row")
    return node(
        "div",
        head,
        node("p", found.note, cls="reading") if found.note else None,
        table(heads, lines, caption, numeric),
        cls="grid-results",
    )


def _result(grid: Any, row: Any) -> list[Any]:
    figures, status = row.figures(), row.run.status if row.run else None
    mark = (
        chip("best", "good")
        if row.best
        else chip(status.value, COLOURS[status])
        if status
        else chip("not run")
    )
    use = button(
        "Use these settings",
        {"do": "use", "grid": grid.id, "cell": row.cell.index},
        "quiet",
        aria_label=f"Use these settings: {row.cell.spec.name}",
    )
    best = [formatting.format_number(figures["best_loss"], 4), formatting.format_number(figures["best_perplexity"], 3)]
    final = [formatting.format_number(figures["final_loss"], 4), formatting.format_number(figures["final_perplexity"], 3)]
    rate = [
        formatting.format_duration(figures["seconds"]) if figures["seconds"] else formatting.NONE,
        formatting.format_number(figures["tokens_per_second"], 0),
    ]
    settings = [grids.format_value(row.cell.values[n]) for n in grid.axes]
    return [
        node("div", mark, use, cls="row"),
        *settings,
        *best,
        _behind(row.behind),
        *final,
        *rate,
        figures["adapter"] or formatting.NONE,
    ]


def _behind(behind: Any) -> str:
    if behind is None:
        return formatting.NONE
    return f"+{format_nats(behind.nats)}" + ("" if math.isnan(behind.error) else f" ± {format_nats(behind.error)}")


def parallel(found: Any) -> dict[str, Any] | None:
    """A line for each cell through its settings to its loss and its time; the better, the bluer."""
    rows = [r for r in found.rows if not math.isnan(r.loss)]
    if len(rows) < 2:
        return None
    dimensions = [
        _ordinal(label_of(grids.FIELDS[n]), [r.cell.values[n] for r in rows], found.grid.axes[n])
        for n in found.grid.axes
    ]
    dimensions.append(_measured("Validation loss", [r.loss for r in rows], ".4g"))
    dimensions.append(_measured("Seconds", [r.history.seconds for r in rows], ".3g"))
    low, high = min(r.loss for r in rows), max(r.loss for r in rows)
    line = {
        "color": [r.loss for r in rows],
        "colorscale": [[0, "--st-accent"], [1, "--st-base"]],
        "cmin": low,
        "cmax": high if high > low else low + 1e-9,
    }
    fonts = {
        f"{which}font": {"size": 12, "color": colour}
        for which, colour in (("label", "--st-ink"), ("tick", "--st-soft"), ("range", "--st-quiet"))
    }
    trace = {
        "type": "parcoords",
        "line": line,
        "dimensions": dimensions,
        "unselected": {"line": {"color": "--st-line", "opacity": 0.25}},
        **fonts,
    }
    return plot.figure([trace], {"margin": {"l": 56, "r": 56, "t": 52, "b": 26}}, height=320)


def _ordinal(label: str, values: Sequence[Any], axis: Sequence[Any]) -> dict[str, Any]:
    """An axis of given values, evenly spaced: rates and names have no common scale."""
    known = sorted(
        {v if not isinstance(v, list) else tuple(v) for v in axis}, key=lambda v: (isinstance(v, str), v)
    )
    places = [known.index(tuple(v) if isinstance(v, list) else v) for v in values]
    ends = [-0.5, 0.5] if len(known) == 1 else [0, len(known) - 1]
    return {
        "label": label,
        "values": places,
        "tickvals": list(range(len(known))),
        "ticktext": [plot.literal(grids.format_value(v)) for v in known],
        "range": ends,
    }


def _measured(label: str, values: Sequence[float], form: str) -> dict[str, Any]:
    low, high = min(values), max(values)
    pad = (high - low) * 0.03 or abs(high) * 0.01 or 1.0
    return {"label": label, "values": list(values), "range": [low - pad, high + pad], "tickformat": form}


# --- runs side by side


def curves(found: Any, log: bool) -> dict[str, Any] | None:
    """Loss over steps: training thin, validation thick, a colour for each run."""
    traces: list[dict[str, Any]] = []
    for i, (run, history) in enumerate(zip(found.runs, found.histories, strict=True)):
        colour, name = f"--st-run-{i % HUES + 1}", plot.literal(run.name)
        both = {
            "type": "scatter",
            "legendgroup": run.id,
            "hovertemplate": f"{name}<br>step %{{x}}: <b>%{{y:.4f}}</b><extra></extra>",
        }
        if history.train:
            thin = thin_out(history.train)
            traces.append({**both, "x": [s for s, _ in thin], "y": [v for _, v in thin], "mode": "lines", "opacity": 0.45, "name": f"{name}, training",
                           "showlegend": not history.validation, "line": {"width": 1, "color": colour}})  # fmt: skip
        if history.validation:
            thick = thin_out(history.validation)
            traces.append({**both, "x": [s for s, _ in thick], "y": [v for _, v in thick], "mode": "lines+markers", "name": name, "marker": {"size": 5},
                           "line": {"width": 3, "color": colour, "dash": DASHES[i % HUES]}})  # fmt: skip
    if not traces:
        return None
    layout = {
        "xaxis": {"title": {"text": "Step"}}, "yaxis": {"title": {"text": "Loss, nats per token"}, "type": "log" if log else "linear"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}, "margin": {"l": 8, "r": 8, "t": 40, "b": 8},
    }  # fmt: skip
    return plot.figure(traces, layout, height=400)


def compared(found: Any, only: bool, datasets: Mapping[str, str]) -> Node:
    """Final figures of the runs, and their settings.

    Args:
        only: leave out what all have in common.
        datasets: id -> name.
    """
    heads = ["", *[r.name for r in found.runs]]
    numeric = frozenset(range(1, len(heads)))
    pairs = list(zip(found.runs, found.histories, strict=True))
    figures = [
        ["Status", *[r.status.value for r in found.runs]],
        [
            "Best validation loss",
            *[formatting.format_number(h.best.loss, 4) if h.best else formatting.NONE for _, h in pairs],
        ],
        [
            "Final validation loss",
            *[formatting.format_number(h.final.loss, 4) if h.final else formatting.NONE for _, h in pairs],
        ],
        [
            "Final perplexity",
            *[formatting.format_number(h.final.perplexity, 3) if h.final else formatting.NONE for _, h in pairs],
        ],
        ["Steps", *[str(h.train[-1][0]) if h.train else formatting.NONE for _, h in pairs]],
        ["Time", *[formatting.format_duration(h.seconds) for _, h in pairs]],
        ["Tokens / s", *[formatting.format_number(h.tokens_per_second, 0) for _, h in pairs]],
    ]
    chosen = [s for s in found.settings if s.is_varied or not only]
    lines = [[s.label, *[_setting(s.name, v, datasets) for v in s.values]] for s in chosen]
    kids = [
        node("h3", "Figures"),
        table(heads, figures, "Validation is the same scorer for all, nats over tokens", numeric),
        node("h3", "Settings"),
    ]
    kids.append(
        table(heads, lines, "What differs" if only else "All settings", numeric)
        if lines
        else node("p", "All settings are the same.", cls="quiet")
    )
    return node("div", *kids)


def _setting(name: str, value: Any, datasets: Mapping[str, str]) -> str:
    if name == "dataset":
        return datasets.get(value, value) or formatting.NONE
    return (
        formatting.format_base(value) if name == "base" else grids.format_value(value) if value != "" else formatting.NONE
    )
