"""The live chart of a run: a static piece of page that asks for what is new and draws it itself.

Knows a run's events and what the chart needs of them. Knows nothing of how training works. The cursor
of the log is the whole state: a reload starts at 0 and has the full curve again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gradio as gr

from core.engine import Engine
from core.spec.training import RunStatus
from core.store.events import (
    AnyEvent,
    DataEvent,
    MemoryEvent,
    NoteEvent,
    PlanEvent,
    SampleEvent,
    StepEvent,
    ValidationEvent,
    latest_by_kind,
    of_kind,
)
from studio import events, formatting
from studio.assets import read_asset
from studio.tree import Node, button, chip, empty, node

COLOURS = {
    RunStatus.QUEUED: "", RunStatus.RUNNING: "live", RunStatus.STOPPING: "warn", RunStatus.PAUSED: "warn", RunStatus.DONE: "good", RunStatus.STOPPED: "warn",
    RunStatus.DIVERGED: "bad", RunStatus.OUT_OF_MEMORY: "bad", RunStatus.DISK_FULL: "bad", RunStatus.INTERRUPTED: "warn", RunStatus.FAILED: "bad",
}  # fmt: skip
MANY = 2000  # events in one read that mean that the log holds more
NO_RUN = empty(
    "No run yet",
    "Choose what to learn from on the left and start; the curve grows here while the adapter learns.",
)


def chart(engine: Engine) -> gr.HTML:
    """The component; its value is a run's id, its event `act` carries what was pressed."""
    return gr.HTML(
        value="",
        html_template='<div class="live"><div class="live-head"></div><div class="live-plot" hidden></div><div class="live-tail"></div></div>',
        js_on_load=read_asset("components/live.js"),
        apply_default_css=False,
        server_functions=[events.server_function(metrics, engine)],
        elem_id="live",
    )


def metrics(engine: Engine, question: dict[str, Any]) -> dict[str, Any]:
    """What happened in a run since a cursor.

    Args:
        question: `{"run": id, "since": cursor, "latest": what the last answer called so}`.

    Returns:
        points by series as [step, value] pairs, samples, notes, the new cursor, the newest event of each
        kind, `more` when there is more to fetch at once, and the head's tree.
    """
    run_id, since = str(question.get("run") or ""), question.get("since")
    if not run_id:
        return {"head": NO_RUN}
    run = engine.runs.get(run_id)
    events, cursor = engine.runs.events(run_id, since if isinstance(since, int) and since >= 0 else 0)
    told = question.get("latest")
    latest = {
        **(told if isinstance(told, dict) else {}),
        **latest_by_kind(events, (PlanEvent, DataEvent, MemoryEvent, StepEvent, ValidationEvent)),
    }
    return {
        "cursor": cursor,
        "latest": latest,
        "more": len(events) > MANY,
        "alive": run.status.is_alive,
        "status": run.status.value,
        "points": {
            "train": _pairs(of_kind(events, StepEvent), "loss"),
            "rate": _pairs(of_kind(events, StepEvent), "learning_rate"),
            "validation": _pairs(of_kind(events, ValidationEvent), "loss"),
            "gap": _pairs(of_kind(events, ValidationEvent), "gap"),
        },
        "samples": [
            {k: e.get(k) for k in ("step", "prompt", "text", "answers")}
            for e in of_kind(events, SampleEvent)
        ],
        "notes": [str(e.get("text")) for e in of_kind(events, NoteEvent)],
        "head": _head(run, latest),
    }


def _pairs(events: Sequence[AnyEvent], field: str) -> list[list[Any]]:
    """[step, value] of each event whose step and value are finite numbers."""
    pairs = [[e.get("step"), e.get(field)] for e in events]
    return [p for p in pairs if all(isinstance(v, (int, float)) and math.isfinite(v) for v in p)]


def _head(run: Any, latest: dict[str, Any]) -> Node:
    step, validation = latest.get("step", {}), latest.get("validation", {})
    total = run.total_steps or latest.get("plan", {}).get("total_steps") or 0
    at = run.step or step.get("step") or 0
    share = f"{100 * at / total:.1f}%" if total else "0%"
    eta = step.get("eta_seconds") if run.status is RunStatus.RUNNING else None
    numbers = [
        ("Step", f"{at} / {total}" if total else str(at)),
        ("Training loss", formatting.format_number(step.get("loss"), 3)),
        ("Validation loss", formatting.format_number(validation.get("loss"), 3)),
        ("Gap", formatting.format_number(validation.get("gap"), 3)),
        (
            "Learning rate",
            f"{step['learning_rate']:.1e}"
            if isinstance(step.get("learning_rate"), float)
            else formatting.NONE,
        ),
        ("Tokens / s", formatting.format_number(step.get("tokens_per_second"), 0)),
        ("Time left", formatting.format_duration(eta)),
    ]
    what = node(
        "div",
        node("strong", run.name),
        chip(run.kind, run.kind),
        chip(run.status.value, COLOURS[run.status]),
        *_buttons(run),
        cls="row run-title",
    )
    cells = [node("div", node("span", k), node("strong", v), cls="stat") for k, v in numbers]
    said = node("p", f"{run.status.meaning} {run.status.next_step}", cls="run-said")
    error = node("p", run.error, cls="problem", role="alert") if run.error else None
    overfits = validation.get("overfitting")
    warning = (
        node("p", overfits, cls="note", role="status") if overfits and isinstance(overfits, str) else None
    )
    bar = node(
        "div",
        node("div", cls="bar-fill"),
        cls=f"bar {'busy' if run.status.is_alive else ''}",
        vars={"share": share},
        role="progressbar",
        aria_label="Progress",
    )
    return node(
        "div",
        what,
        said,
        error,
        bar,
        node("div", *cells, cls="stats"),
        warning,
        _data(latest.get("data")),
        _memory(latest.get("memory")),
    )


def _memory(told: dict[str, Any] | None) -> Node | None:
    """What one real step was measured to need beside the estimate, where it is enough to be measured."""
    if not told or told.get("what") != "probe" or not told.get("ratio"):
        return None
    mega = 1e6
    text = f"The longest batch needs {told['measured_step'] / mega:,.0f} MB ({told['measured_as']}; {told['estimated_step'] / mega:,.0f} MB were estimated)"
    return node(
        "p", text + (f", {told['free'] / mega:,.0f} MB were free." if told.get("free") else "."), cls="quiet"
    )


def _data(told: dict[str, Any] | None) -> Node | None:
    """What the run reads, in one sentence, and what had to be left out, in another."""
    if not told:
        return None
    form = f"packed {told['fill']:.0%} full" if told["packed"] else "padded"
    said = f"Reads {told['sequences']:,} sequences in {told['rows']:,} rows of up to {told['width']:,} tokens, {form}; {told['trained']:,} tokens are learned."
    cut = (
        f" {told['cut']:,} examples were too long and lost {told['lost']:,} tokens: raise max length to keep them."
        if told["cut"]
        else ""
    )
    return node("p", said + cut, cls="note" if cut else "quiet")


def _buttons(run: Any) -> list[Node]:
    if run.status in (RunStatus.RUNNING, RunStatus.QUEUED):
        text = "Stop and keep" if run.status is RunStatus.RUNNING else "Take out of the queue"
        pause = (
            button("Pause", {"do": "pause", "run": run.id}, "quiet")
            if run.status is RunStatus.RUNNING
            else None
        )
        return [node("div", pause, button(text, {"do": "stop", "run": run.id}, "quiet"), cls="row push")]
    if run.resumable:
        return [button("Resume", {"do": "resume", "run": run.id}, "primary push")]
    if run.status in (RunStatus.DONE, RunStatus.STOPPED):
        return [button("Compare it", {"do": "compare"}, "quiet push")]
    return []
