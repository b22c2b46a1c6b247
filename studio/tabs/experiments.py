"""The experiments on the Evaluate tab: does training help, does retrieval help, may it go to production?

`core.engine.experiments` runs them in the background; the page follows the newest one and shows its table.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.engine.mix_names import name_mix
from core.errors import NotFound, SpecError
from core.spec.access import Role
from core.spec.experiment_presets import WHAT_HELPS, ask_what_helps
from core.spec.mix import Mix
from studio import events, fields, formatting, labels, mix_choices
from studio.experiment_tables import show_results
from studio.measured_data import list_datasets, list_whole_datasets
from studio.tabs import judges
from studio.tree import Node, title, view
from studio.views import experiments as views

POLL_SECONDS = 0.5
ROWS_LIMIT = 1_000_000
ABOUT = "The same questions for the base and a mix, each without and with documents, in one batch."


@dataclass(frozen=True)
class ExperimentsTab:
    """The components."""

    dataset: gr.Dropdown
    sources: gr.Dropdown
    mix: gr.Dropdown
    limit: gr.Number
    start: gr.Button
    production: gr.HTML
    picker: gr.Dropdown
    results: gr.HTML
    judges: judges.JudgesTab


def build() -> ExperimentsTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes", elem_id="experiments"):
        with gr.Column(scale=4, min_width=300, elem_classes="card"):
            view(title(WHAT_HELPS, ABOUT))
            dataset = fields.picker("Questions")
            sources = fields.picker("Documents", value=[], multiselect=True, info="None means all of them.")
            mix = fields.picker("Mix to test")
            limit = fields.number(
                0, label="Limit of questions", info="0 means all.", minimum=0, maximum=ROWS_LIMIT, precision=0
            )
            start = gr.Button("Ask all four", variant="primary", elem_id="experiment-start")
            production = view(elem_id="production")
        with gr.Column(scale=8, min_width=320, elem_classes="card"):
            picker = fields.picker("Experiment")
            results = view(views.NO_EXPERIMENT, elem_id="experiment-results")
            judging = judges.build()
    return ExperimentsTab(dataset, sources, mix, limit, start, production, picker, results, judging)


def wire(tab: ExperimentsTab, engine: Engine, library_changed: events.EventGroup) -> None:
    """Connects the events."""
    lists = [tab.dataset, tab.sources, tab.mix, tab.picker]
    library_changed.add(refresh, lists, [*lists, tab.production])
    form = [tab.dataset, tab.sources, tab.mix, tab.limit]
    events.bind(tab.start.click, engine, start, form, [tab.picker])
    # The new experiment is picked, which opens and follows it.
    pages = [tab.picker], [tab.results]
    opened = events.bind(tab.picker.change, engine, open_experiment, *pages, concurrency_limit=8)
    judges.wire(tab.judges, engine, library_changed, opened, (tab.picker, tab.results))
    act = [tab.picker, tab.results, tab.production]
    events.bind(tab.results.act, engine, act_on_experiment, None, act, concurrency_limit=4)
    events.bind(tab.production.act, engine, roll_back, None, [tab.production])


def refresh(
    engine: Engine, dataset: str | None, sources: list[str], mix: str | None, picked: str | None
) -> tuple[Any, ...]:
    """Updates the lists, and what is promoted; a fresh page shows the newest experiment."""
    tasks = {d.id for d in engine.datasets.list() if d.kind == "task"}
    questions = [choice for choice in list_datasets(engine) if choice[1] in tasks]
    names = labels.label_datasets(engine.datasets.list())
    texts = [(names.get(d.id, d.name), d.id) for d in engine.retrieval.list_documents()]
    mixes = [(c["name"], c["id"]) for c in mix_choices.list_choices(engine) if Mix.parse(c["id"]).weights]
    known = {i for _, i in questions}
    chosen = dataset if dataset in known else next((i for _, i in questions), None)
    suggested = mix if mix in {i for _, i in mixes} else next((i for _, i in reversed(mixes)), None)
    listed = list_choices(engine)
    ids = [i for _, i in listed]
    value = picked if picked in ids else next(iter(ids), None)
    return (
        fields.update_choices(questions, chosen, dataset),
        fields.update_choices(texts, [s for s in sources or [] if s in {i for _, i in texts}], sources),
        fields.update_choices(mixes, suggested, mix),
        fields.update_choices(listed, value, picked),
        show_production(engine),
    )


def list_choices(engine: Engine) -> list[tuple[str, str]]:
    """Every experiment as a choice, the newest first."""
    return [(f"{e.name} · {formatting.format_time(e.created)}", e.id) for e in engine.experiments.list()]


def show_production(engine: Engine) -> Node:
    """What the model name `production` stands for."""
    current = engine.promotions.current()
    name = name_mix(current.mix, engine.library.labels()) if current else ""
    return views.render_production(current, name, events.find_caller().role >= Role.OWNER)


def start(engine: Engine, dataset: str | None, sources: list[str], mix: str | None, limit: Any) -> Any:
    """Starts the four rows, and picks the new experiment."""
    if not dataset:
        raise SpecError(
            "No questions are chosen.", "Import questions in the Data tab, then choose them here."
        )
    if not mix:
        raise SpecError("No mix is chosen.", "Train or import an adapter first, then choose it here.")
    split = "all" if dataset in list_whole_datasets(engine) else "test"
    settings = {"split": split, "limit": int(limit or 0)}
    key = engine.experiments.start(ask_what_helps(dataset, mix, sources or [], settings))
    return gr.update(choices=list_choices(engine), value=key)


def open_experiment(engine: Engine, picked: str | None) -> Iterator[Node]:
    """Shows the table of an experiment; of one that is running, its progress first."""
    if not picked:
        yield views.NO_EXPERIMENT
        return
    while (status := engine.experiments.status(picked)) is not None and not status.has_ended:
        yield views.render_status(status)
        time.sleep(POLL_SECONDS)
    yield show_results(engine, picked)


def act_on_experiment(engine: Engine, event: gr.EventData) -> Iterator[tuple[Any, Any, Any]]:
    """Carries out a button of the results: stops, continues, or promotes."""
    data = event._data if isinstance(event._data, dict) else {}
    action, experiment_id = data.get("do"), str(data.get("experiment", ""))
    if action in ("stop", "resume"):
        events.require_role(Role.TRAINER)
        operations = {"stop": engine.experiments.cancel, "resume": engine.experiments.resume}
        operations[str(action)](experiment_id)
        for shown in open_experiment(engine, experiment_id):
            yield gr.skip(), shown, gr.skip()
    elif action == "promote":
        events.require_role(Role.OWNER)
        decision, promotion = engine.promotions.promote(str(data.get("row", "")), experiment_id)
        if promotion is None:
            raise NotFound(decision.text, "Run the experiment again.")
        gr.Info(events.escape_markup(decision.text), title="Promoted")
        yield gr.skip(), gr.skip(), show_production(engine)


def roll_back(engine: Engine, event: gr.EventData) -> Node:
    """Makes the mix production again that was promoted before."""
    engine.promotions.roll_back()
    return show_production(engine)
