"""Runs the actions of buttons in trees. An action is the event data of a click, `{"do": name, ...}`."""

from __future__ import annotations

from typing import Any

import gradio as gr

from core.engine import Engine
from core.spec.access import Role
from core.store.known_bases import KNOWN_BASES
from studio import events, mix_choices, samples
from studio.tabs import suggestions, train

TABS = ("data", "train", "runs", "mix", "compare", "evaluate", "library", "base")
# The role that an action needs; every other one opens something.
ROLES = {
    "get_base": Role.OWNER,
    **dict.fromkeys(("sample", "train", "train_on", "calibrate", "stop", "pause", "resume"), Role.TRAINER),
}
Updates = tuple[Any, Any, Any]  # of the tabs, the dataset picker and the run picker


def run_action(engine: Engine, event: gr.EventData) -> Updates:
    """Runs the action of a pressed button; an unknown action does nothing.

    Args:
        event: the action: tab, sample, get_base, train, train_on, watch, compare, calibrate, stop, pause or
            resume.
    """
    action = event._data if isinstance(event._data, dict) else {}
    name, run_id = action.get("do"), str(action.get("run", ""))
    if name in ROLES:
        events.require_role(ROLES[name])
    if name == "tab" and action.get("tab") in TABS:
        return open_tab(action["tab"])
    if name == "sample":
        return import_samples(engine)
    if name == "get_base" and action.get("base") in KNOWN_BASES:
        engine.bases.download(str(action["base"]), use=True)
        return open_tab("base")
    if name == "train" and action.get("kind") in ("domain", "task"):
        engine.bases.current(wait=True)  # the suggested settings depend on it
        return open_tab("train", run=train.start_run(engine, suggestions.suggest_run(engine, action["kind"])))
    if name == "train_on":
        return open_tab("train", run=_run(engine, engine.runs.train_on(run_id)))
    if name == "watch":
        return open_tab("train", run=_run(engine, run_id))
    if name == "compare":
        if action.get("adapter"):  # `components/board.js` sets the columns
            mix_choices.check_adapter(engine, str(action["adapter"]))
        return open_tab("compare")
    if name == "calibrate":  # the rows of the mixer say when it is done
        engine.calibration.start_job(str(action.get("adapter", "")))
        return gr.skip(), gr.skip(), gr.skip()
    if name == "stop":
        engine.runs.stop(run_id)
        return gr.skip(), gr.skip(), gr.skip()
    if name == "pause":
        engine.runs.pause(run_id)
        return gr.skip(), gr.skip(), gr.skip()
    if name == "resume":
        engine.runs.resume(run_id)
        return open_tab("train", run=_run(engine, run_id))
    return gr.skip(), gr.skip(), gr.skip()


def open_tab(tab: str, dataset: Any = None, run: Any = None) -> Updates:
    """Opens a tab, and selects a dataset or a run on it."""
    return gr.Tabs(selected=tab), gr.skip() if dataset is None else dataset, gr.skip() if run is None else run


def import_samples(engine: Engine) -> Updates:
    """Imports the sample data and opens it."""
    samples.import_samples(engine)
    _, names = samples.choose_samples(engine)
    sets = list(reversed(engine.datasets.list()))
    first = next((d.id for d in sets if d.name == names["domain"]), None)
    return open_tab("data", dataset=gr.update(choices=[(d.name, d.id) for d in sets], value=first))


def _run(engine: Engine, run_id: str) -> Any:
    engine.runs.get(run_id)  # raises NotFound when the URL names a run that was deleted
    return gr.update(choices=train.run_choices(engine.runs.list()), value=run_id)
