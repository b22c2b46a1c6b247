"""The live view of a run: its numbers, its loss curve and its samples.

`live.js` polls `metrics` with a cursor into the run's event log and appends what is new to its chart. The
cursor is the only state, so a reload starts at 0 and shows the whole curve, and two tabs may show one run.
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
    MachineEvent,
    MemoryEvent,
    NoteEvent,
    PlanEvent,
    SampleEvent,
    StepEvent,
    ValidationEvent,
    latest_by_kind,
    of_kind,
)
from core.store.worth import BETTER, UNCLEAR, WORSE, Example, Worth
from studio import events, formatting
from studio.assets import read_asset
from studio.tree import Node, button, chip, empty, node, progress_bar

COLOURS = {
    RunStatus.QUEUED: "",
    RunStatus.RUNNING: "live",
    RunStatus.STOPPING: "warn",
    RunStatus.PAUSED: "warn",
    RunStatus.DONE: "good",
    RunStatus.STOPPED: "warn",
    RunStatus.DIVERGED: "bad",
    RunStatus.OUT_OF_MEMORY: "bad",
    RunStatus.DISK_FULL: "bad",
    RunStatus.INTERRUPTED: "warn",
    RunStatus.FAILED: "bad",
}
FULL_READ = 2000  # a read of more events than this was cut off, so the log holds more
MEGABYTE = 1e6
NO_RUN = empty(
    "No run yet",
    "Choose a dataset and start training. The loss curve appears here while the adapter trains.",
)


def status_chip(run: Any) -> Node:
    """The status of a run; not green where its adapter is not better than the base."""
    colour = COLOURS[run.status]
    if run.status is RunStatus.DONE and run.is_better_than_base is False:
        colour = "bad" if run.extra.verdict == "worse" else "warn"
    elif run.has_learned_nothing or run.was_still_learning:
        colour = "warn"
    return chip(formatting.format_status(run), colour)


def chart(engine: Engine) -> gr.HTML:
    """The component. Its value is the id of a run, its event `act` carries the action of a pressed button."""
    return gr.HTML(
        value="",
        html_template=(
            '<div class="live"><div class="live-head"></div><div class="live-plot" hidden></div>'
            '<div class="live-tail"></div></div>'
        ),
        js_on_load=read_asset("components/live.js"),
        apply_default_css=False,
        server_functions=[events.server_function(metrics, engine), events.server_function(endings, engine)],
        elem_id="live",
    )


def metrics(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Reads what happened in a run since a cursor.

    Args:
        request: `{"run": id, "since": cursor, "latest": "latest" of the previous response}`.

    Returns:
        the points of each series as [step, value] pairs, samples, notes, the new cursor, `latest` (the newest
        event of each kind), `more` when the log holds more than was read, and the tree of the head.
    """
    run_id, since = str(request.get("run") or ""), request.get("since")
    if not run_id:
        return {"head": NO_RUN}
    run = engine.runs.get(run_id)
    log, cursor = engine.runs.events(run_id, since if isinstance(since, int) and since >= 0 else 0)
    previous = request.get("latest")
    latest = {
        **(previous if isinstance(previous, dict) else {}),
        **latest_by_kind(log, (PlanEvent, DataEvent, MemoryEvent, MachineEvent, StepEvent, ValidationEvent)),
    }
    return {
        "cursor": cursor,
        "latest": latest,
        "more": len(log) > FULL_READ,
        "alive": run.status.is_alive,
        "status": run.status.value,
        "points": {
            "train": _pairs(of_kind(log, StepEvent), "loss"),
            "rate": _pairs(of_kind(log, StepEvent), "learning_rate"),
            "validation": _pairs(of_kind(log, ValidationEvent), "loss"),
            "gap": _pairs(of_kind(log, ValidationEvent), "gap"),
        },
        "samples": [
            {k: e.get(k) for k in ("step", "prompt", "text", "answers")} for e in of_kind(log, SampleEvent)
        ],
        "notes": [str(e.get("text")) for e in of_kind(log, NoteEvent)],
        "name": run.name,
        "outcome": formatting.format_status(run),
        "head": _head(run, latest, None if run.status.is_alive else engine.runs.worth(run_id)),
    }


def endings(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Which runs are alive or being measured, and how those ended that were so when the page asked last.

    Args:
        request: `{"alive": ids}` of the previous response.

    Returns:
        `{"alive": ids, "ended": [{"id", "title", "text"}]}`; a run that the user cancelled is left out.
    """
    known = request.get("alive")
    runs = {r.id: r for r in engine.runs.list()}
    alive = [i for i, r in runs.items() if r.status.is_alive or engine.runs.is_ending(r)]
    ended = [runs[i] for i in known if i in runs] if isinstance(known, list) else []
    return {
        "alive": alive,
        "ended": [
            {"id": r.id, "title": f"{r.name}: {formatting.format_status(r)}", "text": r.error or r.next_step}
            for r in ended
            if r.id not in alive and not r.extra.cancelled
        ],
    }


def _pairs(events: Sequence[AnyEvent], field: str) -> list[list[Any]]:
    """[step, value] of each event whose step and value are finite numbers."""
    pairs = [[e.get("step"), e.get(field)] for e in events]
    return [p for p in pairs if all(isinstance(v, (int, float)) and math.isfinite(v) for v in p)]


def _head(run: Any, latest: dict[str, Any], worth: Worth | None) -> Node:
    step, validation = latest.get("step", {}), latest.get("validation", {})
    total = run.total_steps or latest.get("plan", {}).get("total_steps") or 0
    current = run.step or step.get("step") or 0
    eta = step.get("eta_seconds") if run.status is RunStatus.RUNNING else None
    rate = step.get("learning_rate")
    numbers = [
        ("Step", f"{current} / {total}" if total else str(current)),
        ("Training loss", formatting.format_number(step.get("loss"), 3)),
        ("Validation loss", formatting.format_number(validation.get("loss"), 3)),
        ("Gap", formatting.format_number(validation.get("gap"), 3)),
        ("Learning rate", f"{rate:.1e}" if isinstance(rate, float) else formatting.NONE),
        ("Tokens / s", formatting.format_number(step.get("tokens_per_second"), 0)),
        ("Time left", formatting.format_duration(eta)),
    ]
    heading = node(
        "div",
        node("strong", run.name),
        chip(run.kind, run.kind),
        status_chip(run),
        *_buttons(run),
        cls="row run-title",
    )
    cells = [node("div", node("span", k), node("strong", v), cls="stat") for k, v in numbers]
    explanation = node("p", f"{run.explanation} {run.next_step}", cls="run-status")
    error = node("p", run.error, cls="problem", role="alert") if run.error else None
    overfitting = validation.get("overfitting")
    warning = None
    if overfitting and isinstance(overfitting, str):
        warning = node("p", overfitting, cls="note", role="status")
    bar = progress_bar(current / total if total else 0.0, cls="bar busy" if run.status.is_alive else "bar")
    return node(
        "div",
        heading,
        render_worth(worth, run),
        explanation,
        error,
        bar,
        node("div", *cells, cls="stats"),
        _machine(latest.get("machine")) if run.status is RunStatus.RUNNING else None,
        warning,
        _data(latest.get("data")),
        _memory(latest.get("memory")),
    )


VERDICTS = {  # verdict -> (colour of the chip, words)
    BETTER: ("good", "Better than the base"),
    UNCLEAR: ("warn", "Not better than the base"),
    WORSE: ("bad", "Worse than the base"),
}


def render_worth(worth: Worth | None, run: Any) -> Node | None:
    """What the adapter of a run is worth: its figure, and held-out rows with the answers side by side."""
    if worth is None:
        return None
    if worth.main is None:
        return node("p", worth.note, cls="quiet") if worth.note else None
    colour, words = VERDICTS[worth.verdict]
    where = {"test": "the test split", "val": "the validation split"}.get(worth.split, "the data")
    others = [node("p", gain.describe(), cls="quiet") for gain in worth.others]
    few = node("p", "The time was up before all rows were measured.", cls="quiet") if worth.partial else None
    verb = "answered" if run.kind == "task" else "continued"
    caption = node("p", f"Rows of {where}, which the run did not train on, {verb} by both:", cls="quiet")
    answers = node("ul", *[_render_example(e, run.name) for e in worth.examples], cls="samples")
    return node(
        "section",
        node("p", chip(words, colour), node("strong", f" {worth.main.describe()}")),
        *others,
        few,
        *([caption, answers] if worth.examples else []),
        cls="worth",
        aria_label=f"What {run.name} is worth",
    )


def _render_example(example: Example, adapter: str) -> Node:
    """A held-out row with the answers of base and adapter and the reference, side by side."""
    named = (
        ("Base", example.base, ""),
        (adapter, example.adapter, " trainee"),
        ("Reference", example.reference, ""),
    )
    answers = [
        node("div", node("small", who), node("p", text or "–"), cls=f"sample-answer{cls}")
        for who, text, cls in named
    ]
    return node("li", node("strong", example.prompt), node("div", *answers, cls="sample-answers"))


def _machine(event: dict[str, Any] | None) -> Node | None:
    """Why the machine slows the run down, while it does."""
    text = event.get("text") if event else None
    return node("p", text, cls="note", role="status") if text and isinstance(text, str) else None


def _memory(event: dict[str, Any] | None) -> Node | None:
    """How much memory a training step was measured to need, if the measurement was large enough to count."""
    if not event or event.get("what") != "probe" or not event.get("ratio"):
        return None
    if not event.get("measured_step") or not event.get("estimated_step"):
        return None
    measured, estimated = event["measured_step"] / MEGABYTE, event["estimated_step"] / MEGABYTE
    text = (
        f"The longest batch needs {measured:,.0f} MB "
        f"({event.get('measured_as', 'measured')}; estimate: {estimated:,.0f} MB)"
    )
    if event.get("free"):
        text += f"; {event['free'] / MEGABYTE:,.0f} MB were free"
    return node("p", text + ".", cls="quiet")


def _data(event: dict[str, Any] | None) -> Node | None:
    """What the run trains on, and how much of it was too long and is left out."""
    if not event:
        return None
    layout = f"packed, {event['fill']:.0%} full" if event["packed"] else "padded"
    text = (
        f"Trains on {event['sequences']:,} sequences in {event['rows']:,} rows "
        f"of up to {event['width']:,} tokens ({layout}). The loss covers {event['trained']:,} tokens."
    )
    if not event["cut"]:
        return node("p", text, cls="quiet")
    kinds = {"lost_answer": "of answers", "lost_question": "of questions", "lost_system": "of system texts"}
    parts = [f"{event[key]:,} {name}" for key, name in kinds.items() if event.get(key)]
    detail = f" ({', '.join(parts)})" if parts else ""
    text += f" {event['cut']:,} examples were too long and lost {event['lost']:,} tokens{detail}."
    return node("p", text + " Raise Max length to keep them.", cls="note")


def _buttons(run: Any) -> list[Node]:
    if run.status is RunStatus.RUNNING:
        pause = button("Pause", {"do": "pause", "run": run.id})
        return [node("div", pause, button("Stop and save", {"do": "stop", "run": run.id}), cls="row push")]
    if run.status is RunStatus.QUEUED:
        remove = button("Remove from queue", {"do": "stop", "run": run.id})
        return [node("div", remove, cls="row push")]
    if run.resumable:
        return [button("Resume", {"do": "resume", "run": run.id}, "primary push")]
    compare = button("Compare", {"do": "compare", "adapter": run.adapter}, aria_label=f"Compare {run.name}")
    if run.status is RunStatus.STOPPED:
        return [node("div", compare, cls="row push")]
    if run.status is RunStatus.DONE:
        return [node("div", _train_on_button(run), compare, cls="row push")]
    return []


def _train_on_button(run: Any) -> Node:
    """The button that trains a finished run further; the main one where the run was still learning."""
    steps = f" for {run.extra.train_on_steps:,} steps" if run.was_still_learning else ""
    kind = "primary" if run.was_still_learning else "quiet"
    label = f"Train {run.name} on{steps}"
    return button(f"Train on{steps}", {"do": "train_on", "run": run.id}, kind, aria_label=label)
