"""The Runs tab: the queue with its order, grids, and runs side by side.

Knows which of the three is shown and what is picked. Knows nothing of how runs are trained or drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.engine.runs import COMPARISON_LIMITS
from core.spec.training import RunStatus
from studio import events, fields
from studio.components import plot
from studio.tabs import grid, train
from studio.tree import Node, title, view
from studio.views import runs as run_views

SCALES = [("Linear", "linear"), ("Log", "log")]


@dataclass(frozen=True)
class RunsTab:
    """The components of the Runs tab."""

    queue: gr.HTML
    grid: grid.GridTab
    picked: gr.Dropdown
    scale: gr.Radio
    only: gr.Checkbox
    curves: gr.HTML
    table: gr.HTML


def build() -> RunsTab:
    """Makes the components."""
    with gr.Tabs(elem_classes="inner"):
        with gr.Tab("Queue"), gr.Column(elem_classes="card"):
            view(title("Queue", "One run trains at a time. The order can be changed until a run begins."))
            queue = view(run_views.NO_QUEUE, elem_id="queue")
        with gr.Tab("Grid") as page:
            made = grid.build(page)
        with gr.Tab("Side by side"), gr.Column(elem_classes="card"):
            view(title("Runs side by side", "Training loss is thin, validation loss thick."))
            with gr.Row():
                picked = fields.picker(
                    "Runs", value=[], multiselect=True, max_choices=COMPARISON_LIMITS[1], scale=4, min_width=260
                )
                scale = gr.Radio(SCALES, value="linear", label="Scale", scale=1, min_width=150)
            curves = plot.plot("curves")
            only = gr.Checkbox(True, label="Show differences only")
            table = view(run_views.NO_PAIR, elem_id="side-by-side")
    return RunsTab(queue, made, picked, scale, only, curves, table)


def wire(tab: RunsTab, engine: Engine, library_changed: events.EventGroup, form: train.TrainTab, tabs: gr.Tabs) -> None:
    """Connects the events; see `grid.wire`."""
    library_changed.add(queued, None, [tab.queue])
    events.refresh_after(events.bind(tab.queue.act, engine, pressed, None, [tab.queue]))
    library_changed.add(refresh, [tab.picked], [tab.picked])
    asked = [tab.picked, tab.scale, tab.only]
    library_changed.add(compared, asked, [tab.curves, tab.table])
    events.bind(
        events.any_of((tab.picked.change, tab.scale.change, tab.only.change)),
        engine,
        compared,
        asked,
        [tab.curves, tab.table],
    )
    grid.wire(tab.grid, engine, library_changed, form, tabs)


def queued(engine: Engine) -> Node:
    """The queue as it stands."""
    runs = engine.runs.list()
    alive = [r for r in reversed(runs) if r.status in (RunStatus.RUNNING, RunStatus.STOPPING)]
    return run_views.queue(alive, engine.queue.list(), [r for r in reversed(runs) if r.was_queued])


def pressed(engine: Engine, event: gr.EventData) -> Any:
    """Moves, cancels or queues again; other words of the queue's buttons are `acts.act`'s."""
    said = event._data if isinstance(event._data, dict) else {}
    word, run = said.get("do"), str(said.get("run", ""))
    if word == "move":
        engine.queue.move(run, str(said.get("to", "")))
    elif word == "cancel":
        engine.queue.cancel(run, said.get("together") is True)
    elif word == "again":
        engine.runs.requeue()
    else:
        return gr.skip()
    return queued(engine)


def refresh(engine: Engine, picked: list[str] | None) -> Any:
    """The runs there are to compare; at first the newest two that have learned something."""
    runs = [r for r in engine.runs.list() if r.step]
    ids = [r.id for r in runs]
    kept = [i for i in picked or [] if i in ids]
    wanted = kept or (ids[:2] if len(ids) >= COMPARISON_LIMITS[0] else [])
    return fields.update_choices(train.run_choices(runs), wanted, picked or [])


def compared(engine: Engine, picked: list[str] | None, scale: str, only: bool) -> tuple[Any, Any]:
    """The picked runs' curves over each other, and their figures and settings."""
    if not COMPARISON_LIMITS[0] <= len(picked or []) <= COMPARISON_LIMITS[1]:
        return None, run_views.NO_PAIR
    found = engine.runs.compare(picked or [])
    return run_views.curves(found, scale == "log"), run_views.compared(
        found, only, {d.id: d.name for d in engine.datasets.list()}
    )
