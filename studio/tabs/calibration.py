"""Calibrating a gate in the Library tab: what the adapter is for, what it is not for, and how far it is.

`engine.calibration` measures in the background; a page that is loaded again shows it, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.engine.calibration_data import GENERAL
from core.errors import SpecError, StudioError
from studio import events, fields, labels
from studio.components import field_errors
from studio.tree import Node, node, view
from studio.views import calibration as views

POLL_SECONDS = 0.3
OWN_INFO = "Data like what the adapter is for. Usually what it was trained on."
AGAINST_INFO = "Data that it is not for. Empty: general text and what other adapters were trained on."
QUESTIONS_INFO = "For prompts that are questions. Both sides then need labelled data."
TEXTS_INFO = "One a line, at least 4; they take the place of its own data, and the others are questions, too."


@dataclass(frozen=True)
class CalibrationForm:
    """The components; `shown` holds the id of the adapter that the form was filled for."""

    fold: gr.Accordion
    shown: gr.State
    own: gr.Dropdown
    against: gr.Dropdown
    questions: gr.Checkbox
    texts: gr.Textbox
    result: gr.HTML
    errors: field_errors.FieldErrors
    start: gr.Button
    stop: gr.Button

    @property
    def outputs(self) -> list[Any]:
        """The components that `refresh` updates."""
        return [self.fold, self.shown, self.own, self.against, self.questions, self.texts, self.result]


def build() -> CalibrationForm:
    """Makes the components."""
    with gr.Accordion(
        "Calibrate for Auto", open=False, visible=False, elem_classes="quiet-fold", elem_id="calibration-fold"
    ) as fold:
        view(views.EXPLANATION)
        own = fields.picker("Its own", info=OWN_INFO)
        against = fields.picker("Against", value=[], multiselect=True, info=AGAINST_INFO)
        questions = gr.Checkbox(False, label="Only questions", info=QUESTIONS_INFO)
        texts = gr.Textbox(label="Or a few questions that it is for", info=TEXTS_INFO, lines=2, max_lines=8)
        result = view(elem_id="calibration-result")
        with gr.Row(elem_classes="actions"):
            start = gr.Button("Calibrate", variant="primary", size="md", min_width=120)
            stop = gr.Button("Stop", size="md", min_width=80)
    errors = field_errors.field_errors(
        {"own": own, "against": against, "questions": questions, "texts": texts, "result": result},
        default="result",
    )
    return CalibrationForm(fold, gr.State(""), own, against, questions, texts, result, errors, start, stop)


def wire(
    form: CalibrationForm,
    engine: Engine,
    library_changed: events.EventGroup,
    kind: gr.Radio,
    picked: gr.State,
    picking: Sequence[Any],
) -> None:
    """Connects the events.

    Args:
        kind, picked: of the Library tab: which item is selected.
        picking: events that change them.
    """
    inputs = [kind, picked, form.shown, form.own, form.against]
    library_changed.then(refresh, inputs, form.outputs)
    for event in picking:
        events.bind_sequential(event.then, engine, refresh, inputs, form.outputs)
    given = [picked, form.own, form.against, form.questions, form.texts]
    events.refresh_after(
        events.bind(
            form.start.click, engine, calibrate, given, [form.result], errors=form.errors, refuse=clear
        )
    )
    events.bind(form.stop.click, engine, stop, [picked])
    field_errors.wire(form.errors, engine)


def refresh(
    engine: Engine, kind: str, picked: str, shown: str, own: str | None, against: list[str] | None
) -> tuple[Any, ...]:
    """Shows the form for an adapter. What the user has chosen stays while the same adapter is selected."""
    skipped = (gr.skip(),) * 5
    try:
        adapter = engine.library.adapter(picked) if kind == "adapters" and picked else None
    except StudioError:  # deleted meanwhile
        adapter = None
    if adapter is None:
        return gr.update(visible=False), "", *skipped
    names = labels.label_datasets(engine.datasets.list())
    datasets = [(name, dataset_id) for dataset_id, name in names.items()]
    everything = [("General text", GENERAL), *datasets]
    status = engine.calibration.status(picked)
    result = views.render_progress(status) if status and not status.has_ended else gr.skip()
    if shown == picked:
        own_update = fields.update_choices(datasets, own, own)
        against_update = fields.update_choices(everything, against, against)
        return gr.update(visible=True), picked, own_update, against_update, gr.skip(), gr.skip(), result
    suggested = [i for i in engine.calibration.suggest_against(picked) if i == GENERAL or i in names]
    return (
        gr.update(visible=True),
        picked,
        gr.update(choices=datasets, value=adapter.dataset if adapter.dataset in names else None),
        gr.update(choices=everything, value=suggested),
        False,
        "",
        result if status and not status.has_ended else node("div"),
    )


def calibrate(
    engine: Engine, picked: str, own: str | None, against: list[str] | None, questions: bool, texts: str = ""
) -> Iterator[Node]:
    """Calibrates the selected adapter; yields the progress, then what was measured.

    Args:
        texts: questions, one a line, in place of its own data.

    Raises:
        StudioError: it cannot be calibrated; names the field where one is the cause.
    """
    lines = [line.strip() for line in (texts or "").splitlines() if line.strip()]
    if not own and not lines:
        raise SpecError("No dataset is chosen.", "Choose one that is like what the adapter is for.").at("own")
    chosen = list(against or [])
    if set(chosen) == set(engine.calibration.suggest_against(picked)):
        chosen = []  # with only questions, the default leaves out what has none
    engine.bases.load()
    engine.calibration.start_job(picked, own, chosen, bool(questions), lines)
    while not (status := engine.calibration.status(picked)) or not status.has_ended:
        yield views.render_progress(status)
        time.sleep(POLL_SECONDS)
    if status.error is not None:
        if lines and status.error.field == "own":
            status.error.at("texts")
        raise status.error
    yield views.render_result(status.result)


def stop(engine: Engine, picked: str) -> None:
    """Stops the calibration of the selected adapter."""
    if engine.calibration.status(picked):
        engine.calibration.cancel(picked)


def clear(engine: Engine, *values: Any) -> Node:
    """The place of the result while the form has an error."""
    return node("div")
