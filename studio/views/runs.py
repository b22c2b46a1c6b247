"""Views of the Runs tab: the queue, and runs side by side with their curves, results and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.engine.queue import QueuedRun
from core.engine.runs import RunComparison
from core.store import grids
from core.store.runs import Run
from core.train.comparison import thin_out
from studio import formatting
from studio.components import plot
from studio.components.live import status_chip
from studio.tree import Node, button, chip, empty, node, table

NO_QUEUE = empty(
    "The queue is empty",
    "A run that you start while another one trains waits here, and so do the runs of a grid.",
)
NO_COMPARISON = empty(
    "Choose two to eight runs",
    "Their loss curves are drawn in one chart, with their results and settings below.",
)
HUES = 8  # colours of runs in `studio.css`
DASHES = ("solid", "solid", "solid", "solid", "dash", "dash", "dash", "dash")


# --- the queue


def render_queue(
    running: Sequence[Run],
    queue: Sequence[QueuedRun],
    unqueued: Sequence[Run],
    datasets: Mapping[str, str] | None = None,
) -> Node:
    """The queue.

    Args:
        running: runs that have started.
        queue: runs that wait, in their order.
        unqueued: runs that waited when an earlier studio ended, which can be queued again.
        datasets: the names of datasets, by id.
    """
    places = {r.id: _describe_place(r, datasets or {}) for r in (*running, *(q.run for q in queue))}
    notice = [_requeue_notice(unqueued)] if unqueued else []
    if not running and not queue:
        return node("div", *notice, NO_QUEUE)
    items = [_render_active_run(r, places[r.id]) for r in running] + [
        _render_waiting_run(i, q, queue, places[q.run.id]) for i, q in enumerate(queue)
    ]
    return node("div", *notice, node("ol", *items, cls="queue", aria_label="Queue"))


def _requeue_notice(runs: Sequence[Run]) -> Node:
    count = len(runs)
    names = ", ".join(r.name for r in runs[:3]) + (f" and {count - 3} more" if count > 3 else "")
    text = f"{names} {'was' if count == 1 else 'were'} still in the queue when the studio was closed."
    label = "Queue it again" if count == 1 else f"Queue all {count} again"
    return node("div", node("p", text), button(label, {"do": "requeue"}, "primary"), cls="aside row")


def _describe_place(run: Run, datasets: Mapping[str, str]) -> str:
    """The dataset and the base of a run, as a sentence."""
    dataset = datasets.get(run.spec.dataset)
    on = f"On {dataset}, over" if dataset else "Over"
    return f"{on} the base {formatting.format_base(run.base)}."


def _render_active_run(run: Run, place: str) -> Node:
    stop = None
    if run.status.value == "running":
        stop = button("Stop and save", {"do": "stop", "run": run.id}, aria_label=f"Stop and save {run.name}")
    watch = button("Watch", {"do": "watch", "run": run.id}, aria_label=f"Watch {run.name}")
    return node(
        "li",
        node("span", "▶", cls="queue-number", aria_hidden="true"),
        _describe_run(run, place),
        node("div", watch, stop, cls="row push"),
        cls="queue-item now",
    )


def _render_waiting_run(place: int, queued: QueuedRun, queue: Sequence[QueuedRun], trains_on: str) -> Node:
    number = node("span", str(place + 1), cls="queue-number")
    run = queued.run
    if queued.leaving:
        return node("li", number, _describe_run(run, "Cancelled; it will not start."), cls="queue-item")
    parents = [f"Trains on top of {q.run.name}." for q in queue if q.run.id in queued.after]
    children = [q.run.name for q in queue if q.run.id in queued.before]
    needed = [f"Needed by {', '.join(children)}."] if queued.before else []
    text = f"Cancel with {len(queued.before)} dependent run{'s' if len(queued.before) > 1 else ''}"
    cancel_label = text if queued.before else "Cancel"
    cancel = button(
        cancel_label,
        {"do": "cancel", "run": run.id, "together": bool(queued.before)},
        "quiet danger",
        aria_label=f"{cancel_label}: {run.name}",
    )
    tools = node("div", *_move_buttons(place, queued, queue), cancel, cls="row push")
    details = " ".join(filter(None, [queued.waits, trains_on, *parents, *needed]))
    return node("li", number, _describe_run(run, details), tools, cls="queue-item")


def _move_buttons(place: int, queued: QueuedRun, queue: Sequence[QueuedRun]) -> list[Node]:
    """Buttons that move a run; one that would move it past a run it depends on is disabled."""
    run = queued.run
    previous = queue[place - 1] if place else None
    following = queue[place + 1] if place + 1 < len(queue) else None
    can_rise = previous is not None and previous.run.id not in queued.after
    can_sink = following is not None and run.id not in following.after
    can_be_first = can_rise and not any(q.run.id in queued.after for q in queue)
    moves = [
        ("First", "first", "to the front", can_be_first),
        ("↑", "up", "up", can_rise),
        ("↓", "down", "down", can_sink),
    ]
    return [
        node(
            "button",
            sign,
            cls="icon word" if len(sign) > 1 else "icon",
            act={"do": "move", "run": run.id, "to": to} if is_enabled else None,
            title=f"Move {where}",
            aria_label=f"Move {run.name} {where}",
            disabled=None if is_enabled else "",
        )
        for sign, to, where, is_enabled in moves
    ]


def _describe_run(run: Run, note: str) -> Node:
    head = node(
        "div",
        node("strong", run.name),
        chip(run.kind, run.kind),
        status_chip(run),
        cls="row",
    )
    return node("div", head, node("p", note, cls="quiet") if note else None, cls="queue-run")


# --- runs side by side


def plot_curves(comparison: RunComparison, log: bool) -> dict[str, Any] | None:
    """Loss over steps: training thin, validation thick, one colour for each run.

    Args:
        log: with a logarithmic loss axis.
    """
    traces: list[dict[str, Any]] = []
    for i, (run, history) in enumerate(zip(comparison.runs, comparison.histories, strict=True)):
        colour, name = f"--st-run-{i % HUES + 1}", plot.literal(run.name)
        if history.train:
            trace = _curve(run.id, name, thin_out(history.train))
            line = {"width": 1, "color": colour}
            trace |= {"mode": "lines", "opacity": 0.45, "name": f"{name}, training", "line": line}
            traces.append(trace | {"showlegend": not history.validation})
        if history.validation:
            trace = _curve(run.id, name, thin_out(history.validation))
            line = {"width": 3, "color": colour, "dash": DASHES[i % HUES]}
            traces.append(
                trace | {"mode": "lines+markers", "name": name, "marker": {"size": 5}, "line": line}
            )
    if not traces:
        return None
    layout = {
        "xaxis": {"title": {"text": "Step"}},
        "yaxis": {"title": {"text": "Loss, nats per token"}, "type": "log" if log else "linear"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 8, "r": 8, "t": 40, "b": 8},
    }
    return plot.figure(traces, layout, height=400)


def _curve(run_id: str, name: str, points: Sequence[tuple[int, float]]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "legendgroup": run_id,
        "hovertemplate": f"{name}<br>step %{{x}}: <b>%{{y:.4f}}</b><extra></extra>",
        "x": [step for step, _ in points],
        "y": [loss for _, loss in points],
    }


def render_comparison(comparison: RunComparison, differing: bool, datasets: Mapping[str, str]) -> Node:
    """The results of the runs, and their settings.

    Args:
        differing: show only the settings that differ.
        datasets: the names of datasets, by id.
    """
    headings = ["", *[r.name for r in comparison.runs]]
    numeric = frozenset(range(1, len(headings)))
    settings = [
        [s.label, *[_format_setting(s.name, v, datasets) for v in s.values]]
        for s in comparison.settings
        if s.is_varied or not differing
    ]
    caption = "Validation losses in nats per token, measured the same way for every run"
    settings_table = node("p", "All settings are the same.", cls="quiet")
    if settings:
        settings_caption = "Settings that differ" if differing else "All settings"
        settings_table = table(headings, settings, settings_caption, numeric)
    return node(
        "div",
        node("h3", "Results"),
        table(headings, _result_rows(comparison), caption, numeric),
        node("h3", "Settings"),
        settings_table,
    )


def _result_rows(comparison: RunComparison) -> list[list[str]]:
    histories = comparison.histories
    finals = [h.final for h in histories]
    return [
        ["Status", *[formatting.format_status(r) for r in comparison.runs]],
        ["Best validation loss", *[_format(h.best.loss if h.best else None, 4) for h in histories]],
        ["Final validation loss", *[_format(f.loss if f else None, 4) for f in finals]],
        ["Final perplexity", *[_format(f.perplexity if f else None, 3) for f in finals]],
        ["Steps", *[str(h.train[-1][0]) if h.train else formatting.NONE for h in histories]],
        ["Time", *[formatting.format_duration(h.seconds) for h in histories]],
        ["Tokens / s", *[_format(h.tokens_per_second, 0) for h in histories]],
    ]


def _format(value: float | None, digits: int) -> str:
    return formatting.NONE if value is None else formatting.format_number(value, digits)


def _format_setting(name: str, value: Any, datasets: Mapping[str, str]) -> str:
    if name == "dataset":
        return datasets.get(value, value) or formatting.NONE
    if name == "base":
        return formatting.format_base(value)
    return formatting.NONE if value == "" else grids.format_value(value)
