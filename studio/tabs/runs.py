"""The Runs tab: the queue, grids, and runs side by side.

`grid.py` is the Grid pane; `core/engine/queue.py` orders the runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.engine.runs import COMPARISON_LIMITS
from core.spec.access import Role
from core.spec.training import RunStatus
from studio import events, fields, labels
from studio.components import damaged, plot
from studio.tabs import grid, train
from studio.tree import Node, title, view
from studio.views import runs as views

SCALES = [("Linear", "linear"), ("Log", "log")]


@dataclass(frozen=True)
class RunsTab:
    """The components of the Runs tab; from `picker` on, those of the runs side by side."""

    queue: gr.HTML
    damaged: gr.HTML
    grid: grid.GridTab
    picker: gr.Dropdown
    scale: gr.Radio
    differing: gr.Checkbox
    curves: gr.HTML
    table: gr.HTML


def build() -> RunsTab:
    """Makes the components."""
    with gr.Tabs(elem_classes="inner"):
        with gr.Tab("Queue"), gr.Column(elem_classes="card"):
            view(title("Queue", "One run trains at a time. You can reorder runs until they start."))
            queue = view(views.NO_QUEUE, elem_id="queue")
            damaged_items = damaged.damaged_list("runs")
        with gr.Tab("Grid") as page:
            grid_tab = grid.build(page)
        with gr.Tab("Side by side"), gr.Column(elem_classes="card"):
            view(title("Runs side by side", "Thin lines are training loss, thick lines validation loss."))
            with gr.Row():
                picker = fields.picker(
                    "Runs",
                    value=[],
                    multiselect=True,
                    max_choices=COMPARISON_LIMITS[1],
                    scale=4,
                    min_width=260,
                )
                scale = gr.Radio(SCALES, value="linear", label="Scale", scale=1, min_width=150)
            curves = plot.plot("curves")
            differing = gr.Checkbox(True, label="Show differences only")
            table = view(views.NO_COMPARISON, elem_id="side-by-side")
    return RunsTab(queue, damaged_items, grid_tab, picker, scale, differing, curves, table)


def wire(
    tab: RunsTab,
    engine: Engine,
    library_changed: events.EventGroup,
    form: train.TrainTab,
    tabs: gr.Tabs,
    experiments: gr.Dropdown,
) -> None:
    """Connects the events; see `grid.wire`."""
    library_changed.add(show_queue, None, [tab.queue])
    damaged.wire(tab.damaged, engine, library_changed, "runs")
    events.refresh_after(events.bind(tab.queue.act, engine, change_queue, None, [tab.queue]))
    library_changed.add(refresh, [tab.picker], [tab.picker], [tab.picker])
    inputs, outputs = [tab.picker, tab.scale, tab.differing], [tab.curves, tab.table]
    library_changed.add(compare_runs, inputs, outputs)
    changes = events.any_of((tab.picker.change, tab.scale.change, tab.differing.change))
    events.bind(changes, engine, compare_runs, inputs, outputs)
    grid.wire(tab.grid, engine, library_changed, form, tabs, experiments)


def show_queue(engine: Engine) -> Node:
    """Shows the queue."""
    runs = list(reversed(engine.runs.list()))
    running = [r for r in runs if r.status in (RunStatus.RUNNING, RunStatus.STOPPING)]
    datasets = labels.label_datasets(engine.datasets.list())
    return views.render_queue(running, engine.queue.list(), [r for r in runs if r.was_queued], datasets)


def change_queue(engine: Engine, event: gr.EventData) -> Any:
    """Moves or cancels a run, or queues runs again; `actions.run_action` handles the other buttons."""
    data = event._data if isinstance(event._data, dict) else {}
    action, run = data.get("do"), str(data.get("run", ""))
    if action in ("move", "cancel", "requeue"):
        events.require_role(Role.TRAINER)
    if action == "move":
        engine.queue.move(run, str(data.get("to", "")))
    elif action == "cancel":
        engine.queue.cancel(run, data.get("together") is True)
    elif action == "requeue":
        engine.runs.requeue()
    else:
        return gr.skip()
    return show_queue(engine)


def refresh(engine: Engine, picked: list[str] | None) -> Any:
    """Updates the runs that can be compared; at first the newest two that have trained a step."""
    runs = [r for r in engine.runs.list() if r.step]
    ids = [r.id for r in runs]
    chosen = [i for i in picked or [] if i in ids]
    if not chosen and len(ids) >= COMPARISON_LIMITS[0]:
        chosen = ids[: COMPARISON_LIMITS[0]]
    return fields.update_choices(train.run_choices(runs), chosen, picked or [])


def compare_runs(
    engine: Engine, picked: list[str] | None, scale: str, differing: bool
) -> tuple[dict[str, Any] | None, Node]:
    """Shows the curves of the picked runs in one chart, with their results and settings."""
    low, high = COMPARISON_LIMITS
    if not low <= len(picked or []) <= high:
        return None, views.NO_COMPARISON
    comparison = engine.runs.compare(picked or [])
    datasets = labels.label_datasets(engine.datasets.list())
    curves = views.plot_curves(comparison, scale == "log")
    return curves, views.render_comparison(comparison, differing, datasets)
