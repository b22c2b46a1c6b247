"""Judges below an experiment on the Evaluate tab: a mix that judges its answers, and a person who does.

`core.engine.judges` runs the judge in the background. A judge at an address is started in the terminal, whose
environment holds its key; its verdicts are shown here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import SpecError
from core.spec.access import Role
from core.spec.judge import CRITERIA, KAPPA_FLOOR, NEEDED_VOTES, JudgeSpec
from core.spec.mix import Mix
from studio import events, fields, mix_choices
from studio.experiment_tables import name_judge, show_results
from studio.tree import Node, node, view
from studio.views import judges as views

POLL_SECONDS = 0.5
LIMIT = 1_000_000
ABOUT = (
    "A judge says Good or Poor of each answer. Its score is shown once people have judged "
    f"{NEEDED_VOTES} of the same answers and agree with it: Cohen's kappa above {KAPPA_FLOOR} with its whole "
    "95 % interval. A judge at an address is started in the terminal."
)


@dataclass(frozen=True)
class JudgesTab:
    """The components."""

    mix: gr.Dropdown
    limit: gr.Number
    criteria: gr.Textbox
    start: gr.Button
    panel: gr.HTML


def build() -> JudgesTab:
    """Makes the components."""
    with gr.Accordion("Judge the answers", open=False, elem_classes="quiet-fold", elem_id="judges"):
        view(node("p", ABOUT, cls="quiet"))
        with gr.Row():
            mix = fields.picker("Judge", info="A mix on the base that is loaded.")
            limit = fields.number(
                0, label="Limit of answers", info="0 means all.", minimum=0, maximum=LIMIT, precision=0
            )
        criteria = gr.Textbox(CRITERIA, label="Criteria", lines=2, max_lines=6)
        start = gr.Button("Let it judge", elem_id="judge-start")
        panel = view(elem_id="judge-panel")
    return JudgesTab(mix, limit, criteria, start, panel)


def wire(tab: JudgesTab, engine: Engine, library_changed: events.EventGroup, opened: Any, pages: Any) -> None:
    """Connects the events.

    Args:
        opened: the event after which another experiment is shown.
        pages: the picker of experiments, and the view of their results.
    """
    picker, results = pages
    library_changed.add(refresh, [tab.mix], [tab.mix])
    events.bind(opened.then, engine, open_panel, [picker], [tab.panel], concurrency_limit=8)
    form = [picker, tab.mix, tab.limit, tab.criteria]
    shown = [tab.panel, results]
    events.bind(tab.start.click, engine, start, form, shown, concurrency_limit=4)
    events.bind(tab.panel.act, engine, act_on_panel, None, shown, concurrency_limit=4)


def refresh(engine: Engine, mix: str | None) -> Any:
    """Updates the list of mixes that can judge."""
    choices = [(c["name"], c["id"]) for c in mix_choices.list_choices(engine) if not Mix.parse(c["id"]).auto]
    ids = [i for _, i in choices]
    return fields.update_choices(choices, mix if mix in ids else next(iter(ids), None), mix)


def open_panel(engine: Engine, picked: str | None) -> Iterator[Node | None]:
    """Follows the judge of an experiment, then shows the next answer for a person."""
    if not picked:
        yield None
        return
    while (status := engine.judges.status(picked)) is not None and not status.has_ended:
        yield views.render_status(status, name_judge(engine, status.name))
        time.sleep(POLL_SECONDS)
    yield _show_panel(engine, picked)


def _show_panel(engine: Engine, experiment_id: str) -> Node:
    """How the last judge has ended, and the next answer for a person."""
    status = engine.judges.status(experiment_id)
    ended = views.render_status(status, name_judge(engine, status.name)) if status else None
    if events.find_caller().role < Role.TRAINER:
        return node("div", ended, node("p", views.FOR_TRAINERS, cls="quiet"))
    return node("div", ended, views.render_ballot(engine.judges.draw(experiment_id), experiment_id))


def start(
    engine: Engine, picked: str | None, mix: str | None, limit: Any, criteria: str
) -> Iterator[tuple[Any, Any]]:
    """Starts a judge and follows it."""
    if not picked:
        raise SpecError("No experiment is chosen.", "Run one first.")
    engine.judges.start(
        picked, JudgeSpec(mix=mix or "", limit=int(limit or 0), criteria=criteria or CRITERIA)
    )
    yield from _follow(engine, picked)


def _follow(engine: Engine, experiment_id: str) -> Iterator[tuple[Any, Any]]:
    for shown in open_panel(engine, experiment_id):
        yield shown, gr.skip()
    yield gr.skip(), show_results(engine, experiment_id)


def act_on_panel(engine: Engine, event: gr.EventData) -> Iterator[tuple[Any, Any]]:
    """Carries out a button of the panel: stops a judge, or stores what a person says."""
    data = event._data if isinstance(event._data, dict) else {}
    experiment_id = str(data.get("experiment", ""))
    events.require_role(Role.TRAINER)
    if data.get("do") == "stop":
        engine.judges.cancel(experiment_id)
        yield from _follow(engine, experiment_id)
    elif data.get("do") == "vote":
        words = (str(data.get(name, "")) for name in ("answer", "verdict", "criteria"))
        ballot = engine.judges.vote(experiment_id, *words)
        yield views.render_ballot(ballot, experiment_id), gr.skip()
        if ballot.count >= ballot.needed and data.get("verdict") != "skip":
            yield gr.skip(), show_results(engine, experiment_id)
