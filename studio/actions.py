"""What the buttons inside trees do: one word each, carried out here.

Knows the words and which tab they lead to. Knows nothing of who drew the button.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from core.engine import Engine
from studio import samples
from studio.tabs import train

TABS = ("data", "train", "runs", "mix", "compare", "evaluate", "library", "base")
Shown = tuple[Any, Any, Any]  # the selected tab, the dataset picker, the run picker


def act(engine: Engine, event: gr.EventData) -> Shown:
    """Carries out what a pressed button says.

    Args:
        event: its data is `{"do": word, ...}`: tab, sample, train, watch, compare, stop, pause, resume.
    """
    said = event._data if isinstance(event._data, dict) else {}
    word = said.get("do")
    if word == "tab" and said.get("tab") in TABS:
        return to(said["tab"])
    if word == "sample":
        return sample(engine)
    if word == "train" and said.get("kind") in ("domain", "task"):
        engine.base(wait=True)  # what is suggested hangs on it
        return to("train", run=train.started(engine, train.suggested(engine, said["kind"])))
    if word == "watch":
        return to("train", run=_run(engine, str(said.get("run", ""))))
    if word == "compare":
        return to("compare")
    if word == "stop":
        engine.stop_run(str(said.get("run", "")))
        return gr.skip(), gr.skip(), gr.skip()
    if word == "pause":
        engine.pause_run(str(said.get("run", "")))
        return gr.skip(), gr.skip(), gr.skip()
    if word == "resume":
        engine.resume_run(str(said.get("run", "")))
        return to("train", run=_run(engine, str(said.get("run", ""))))
    return gr.skip(), gr.skip(), gr.skip()


def to(tab: str, dataset: Any = None, run: Any = None) -> Shown:
    """Selects a tab, with a dataset or a run chosen on it."""
    return gr.Tabs(selected=tab), gr.skip() if dataset is None else dataset, gr.skip() if run is None else run


def sample(engine: Engine) -> Shown:
    """Imports the sample data and shows it."""
    samples.bring(engine)
    sets = list(reversed(engine.datasets()))
    first = next((d.id for d in sets if d.name == samples.NAMES["domain"]), None)
    return to("data", dataset=gr.update(choices=[(d.name, d.id) for d in sets], value=first))


def _run(engine: Engine, run_id: str) -> Any:
    engine.run(run_id)  # an address may name a run that is gone: the error says so
    return gr.update(choices=train.run_choices(engine.runs()), value=run_id)
