"""The Compare tab: two to six mixes answer one prompt side by side, with or without their names.

`views/blind.py` runs the blind test, `views/suite.py` the prompt suite.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import NotFound, SpecError, StudioError
from core.spec.mix import Mix, Sampling
from studio import answers, events, fields, mix_choices
from studio.assets import read_asset
from studio.components import board, composer, documents, field_errors, mixer
from studio.components.composer import Composer
from studio.components.documents import DocumentsField
from studio.components.field_errors import FieldErrors
from studio.session import SAMPLING, Session, make_messages, read_settings
from studio.tree import Node, title, view
from studio.views import blind, suite, what_helps
from studio.views.suite import Suite
from studio.views.what_helps import WhatHelps

SAME_NOISE_INFO = (
    "Every column samples with the same random numbers, so differences come from the mix. "
    "Matters only at temperatures above 0."
)


@dataclass(frozen=True)
class Votes:
    """The components of the votes' accordion; `confirmation` is the row with the last two buttons."""

    accordion: gr.Accordion
    tally: gr.HTML
    download: gr.Button
    delete: gr.Button
    confirmation: gr.Row
    confirm: gr.Button
    cancel: gr.Button


@dataclass(frozen=True)
class CompareTab:
    """The components of the Compare tab.

    Attributes:
        errors: of the prompt and of the columns.
        file_text: takes a file's text to the browser. Hidden.
    """

    composer: Composer
    errors: FieldErrors
    ask: gr.Button
    blind: gr.Button
    stop: gr.Button
    export: gr.Button
    what_helps: WhatHelps
    same_noise: gr.Checkbox
    system: gr.Textbox
    thinking: gr.Checkbox
    documents: DocumentsField
    sampling: fields.Fields
    board: gr.HTML
    votes: Votes
    suite: Suite
    file_text: gr.Textbox
    session: gr.State

    @property
    def settings(self) -> list[Any]:
        """The same-noise checkbox, and the components that `read_settings` reads."""
        return [
            self.same_noise,
            *self.sampling.values(),
            self.composer.continue_text,
            self.system,
            self.thinking,
        ]


def build() -> CompareTab:
    """Makes the components."""
    made: dict[str, Any] = {}
    with gr.Column(elem_classes="card", elem_id="compare-side"):
        about = "All columns answer in one batch with the same noise, so differences come from the mix."
        view(title("Compare", about))
        made["composer"] = composer.composer("compare", "Ask every column the same question")
        with gr.Row(elem_classes="actions"):
            made["ask"] = gr.Button("Answer", variant="primary", scale=0, min_width=130)
            made["blind"] = gr.Button("Blind test", scale=0, min_width=120)
            made["stop"] = gr.Button("Stop", scale=0, min_width=90)
            made["export"] = gr.Button("Export as Markdown", scale=0, min_width=170)
        made["what_helps"] = what_helps.build()
        made["board"] = gr.HTML(
            value=None,
            choices=[],
            documents=False,
            html_template='<div class="board"></div>',
            js_on_load=read_asset("components/board.js") + "\n/* fires 'vote', 'again' and 'pick' */",
            apply_default_css=False,
            elem_id="board",
        )
        form = {"prompt": made["composer"].prompt, "columns": made["board"]}
        made["errors"] = field_errors.field_errors(form, default="prompt", texts=["prompt"])
        made["documents"] = documents.documents_field("compare")
        made["system"], made["thinking"] = mix_choices.system_fields()
        with gr.Accordion("Sampling", open=False, elem_classes="quiet-fold"):
            with gr.Row():
                made["sampling"] = fields.build(Sampling, SAMPLING)
            made["same_noise"] = gr.Checkbox(True, label="Same noise in every column", info=SAME_NOISE_INFO)
        made["votes"] = _build_votes()
        made["suite"] = suite.build()
        made["file_text"] = gr.Textbox(visible=False)
    made["session"] = gr.State(Session(), delete_callback=Session.stop)
    return CompareTab(**made)


def _build_votes() -> Votes:
    with gr.Accordion("Votes so far", open=False, elem_classes="quiet-fold", elem_id="votes") as accordion:
        tally = view(blind.NO_VOTES)
        with gr.Row(elem_classes="actions"):
            download = gr.Button("Download the votes as CSV", scale=0, min_width=210)
            delete = gr.Button("Delete all votes", variant="stop", scale=0, min_width=140)
        with gr.Row(visible=False, elem_classes="actions") as confirmation:
            confirm = gr.Button("Yes, delete all votes", variant="stop", scale=0, min_width=180)
            cancel = gr.Button("Keep them", scale=0, min_width=110)
    return Votes(accordion, tally, download, delete, confirmation, confirm, cancel)


def wire(
    tab: CompareTab,
    engine: Engine,
    library_changed: events.EventGroup,
    mix_changed: events.EventGroup,
    mixer_rows: gr.HTML,
) -> None:
    """Connects the events."""
    prompt = tab.composer.prompt
    inputs = [prompt, tab.board, mixer_rows, tab.session, *tab.settings, tab.documents.choice]
    how: dict[str, Any] = {"concurrency_limit": 8, "trigger_mode": "multiple", "errors": tab.errors}
    for trigger in (tab.ask.click, prompt.submit):
        answered = events.bind(
            trigger, engine, stream_answers, inputs, [tab.board], refuse=refuse_answers, **how
        )
        for event in (trigger, answered.then):  # the browser has moved the page while the answers grew
            event(fn=None, js=mix_choices.show_prompt("compare-side"), api_visibility="private")
    _wire_what_helps(tab, engine, inputs, how)
    library_changed.add(what_helps.refresh, None, [tab.what_helps.ask, tab.what_helps.about])
    for trigger in (tab.blind.click, tab.board.again):
        events.bind(trigger, engine, stream_blind_test, inputs, [tab.board], refuse=refuse_answers, **how)
    field_errors.wire(tab.errors, engine)
    events.bind(tab.board.vote, engine, vote, [tab.session], [tab.board, tab.votes.tally])
    events.bind(tab.stop.click, engine, stop, [tab.session], None)
    events.bind(tab.export.click, engine, export_markdown, [tab.session], [tab.file_text]).success(
        fn=None,
        inputs=[tab.file_text],
        js="(text) => { window.studio.saveFile('comparison.md', text); }",
        api_visibility="private",
    )
    columns, described = [mixer_rows, tab.board, *tab.composer.mode], tab.composer.outputs
    keys = [tab.composer.has_chosen_mode]
    for event in (library_changed, mix_changed):
        event.add(refresh, columns, [tab.board, tab.thinking, *described], keys)
    picked = [tab.board, *tab.composer.mode]
    events.bind_fill(
        tab.board.pick, engine, describe_columns, picked, described, keys=keys, errors=tab.errors
    )
    composer.wire(tab.composer, engine, tab.errors)
    documents.wire(tab.documents, engine, library_changed)
    events.bind(tab.documents.choice.change, engine, show_switches, [tab.documents.choice], [tab.board])
    _wire_votes(tab, engine)
    suite.wire(tab.suite, engine, [tab.board, mixer_rows], tab.settings)


def _wire_what_helps(tab: CompareTab, engine: Engine, inputs: list[Any], how: dict[str, Any]) -> None:
    outputs = [tab.board, tab.documents.choice, tab.same_noise, *tab.composer.mode]
    click = tab.what_helps.ask.click
    chosen = events.bind(click, engine, set_what_helps, inputs, outputs, **how)
    answered = events.bind(
        chosen.success, engine, answer_what_helps, inputs, [tab.board], refuse=refuse_answers, **how
    )
    answered.then(
        fn=None,
        js="() => { const field = document.querySelector('#compare-prompt textarea');"
        " if (!field.value.trim()) field.focus(); }",
        api_visibility="private",
    )
    click(fn=None, js=mix_choices.show_prompt("compare-side"), api_visibility="private")


def _wire_votes(tab: CompareTab, engine: Engine) -> None:
    votes = tab.votes
    events.bind(votes.accordion.expand, engine, show_tally, None, [votes.tally])
    events.bind(votes.download.click, engine, export_votes_csv, None, [tab.file_text]).success(
        fn=None,
        inputs=[tab.file_text],
        js="(text) => { window.studio.saveFile('votes.csv', text); }",
        api_visibility="private",
    )
    events.bind(votes.delete.click, engine, confirm_delete_votes, None, [votes.confirmation])
    events.bind(votes.cancel.click, engine, cancel_delete_votes, None, [votes.confirmation])
    events.bind(votes.confirm.click, engine, delete_votes, None, [votes.tally, votes.confirmation])


def refresh(
    engine: Engine, rows: Any, board_value: Any, continue_text: bool, has_chosen_mode: bool
) -> tuple[Any, ...]:
    """Updates the mixes that the columns offer, whether the base can think, and what follows the columns."""
    choices = mix_choices.list_choices(engine, mixer.current_mix(engine, rows))
    thinking = gr.update(visible=engine.bases.current().thinks)
    return (
        gr.HTML(choices=choices),
        thinking,
        *describe_columns(engine, board_value, continue_text, has_chosen_mode),
    )


def show_switches(engine: Engine, chosen: Any) -> Any:
    """Shows a switch above every column once documents are chosen, and hides it without any."""
    return gr.HTML(documents=bool(documents.read_choice(chosen)))


def describe_columns(
    engine: Engine, board_value: Any, continue_text: bool, has_chosen_mode: bool
) -> tuple[Any, ...]:
    """What `composer.describe_prompt` returns for the adapters of the columns."""
    try:
        mixes = [Mix.parse(p) for p in board.read_picks(engine, board_value)]
    except StudioError:
        mixes = []
    active = dict.fromkeys(a for m in mixes for a in m.weights)
    return composer.describe_prompt(engine, active, continue_text, has_chosen_mode)


def refuse_answers(
    engine: Engine, prompt: str, board_value: Any, rows: Any, session: Session, *_: Any
) -> dict[str, Any]:
    """The board after an error: a refused prompt leaves no answers behind."""
    session.stop()
    session.frame = None
    return {**(board_value or {}), "columns": [], "blind": None, "serial": session.serial}


def stream_answers(
    engine: Engine,
    prompt: str,
    board_value: Any,
    rows: Any,
    session: Session,
    same_noise: bool,
    *settings: Any,
) -> Iterator[dict[str, Any]]:
    """Answers the prompt in every column; yields the whole board for each frame.

    Args:
        settings: see `read_settings`.
    """
    picks, mixes = _read_columns(engine, prompt, board_value, rows)
    how = read_settings(settings)
    reference = board.find_reference(mixes)
    plain = board.read_plain(board_value, len(picks))
    names = dict(zip(picks, [m.name for m in mixes], strict=True))
    value = {"picks": picks, "names": names, "touched": True, "plain": plain}
    serial = session.serial
    yield {**value, "columns": board.render_placeholders(len(mixes)), "serial": session.serial + 1}
    passages = None
    if how.documents and not all(plain):
        for note in documents.wait_for_indexes(engine, how.documents):
            yield {**value, "columns": board.render_placeholders(len(mixes), note), "serial": serial + 1}
            if session.serial != serial:  # stopped, or another prompt
                yield {**value, "columns": [], "serial": session.serial}
                return
        found = documents.find_passages(engine, how.documents, prompt)
        passages = [None if is_plain else found for is_plain in plain]
    frames = session.stream_frames(
        engine,
        prompt,
        mixes,
        how.sampling,
        chat=not how.continue_text,
        same_noise=same_noise,
        messages=make_messages(how.system, [], prompt),
        thinking=how.thinking,
        passages=passages,
    )
    for frame in frames:
        columns = board.render_columns(frame, reference, session.labels)
        yield {**value, "columns": columns, "serial": session.serial}


def set_what_helps(
    engine: Engine,
    prompt: str,
    board_value: Any,
    rows: Any,
    session: Session,
    same_noise: bool,
    *settings: Any,
) -> tuple[Any, ...]:
    """Sets the four columns of `studio.views.what_helps`; `answer_what_helps` follows.

    An event of its own: where a stream's values come quickly, the page (Gradio 6.31) may show the last one
    only, and what the first one has set is lost.

    Returns:
        the board, the datasets, the same noise, and `Composer.mode`: documents answer questions of a chat.
    """
    session.stop()
    columns, ids = what_helps.choose_columns(engine, rows, read_settings(settings).documents)
    value = {**columns, "columns": [], "blind": None, "serial": session.serial}
    return gr.HTML(value=value, documents=True), gr.update(value=ids), True, False, True


def answer_what_helps(engine: Engine, prompt: str, *values: Any) -> Iterator[Any]:
    """Answers the prompt in the columns of `set_what_helps`, if there is one."""
    if prompt.strip():
        yield from stream_answers(engine, prompt, *values)
    else:
        yield gr.skip()


def stream_blind_test(
    engine: Engine,
    prompt: str,
    board_value: Any,
    rows: Any,
    session: Session,
    same_noise: bool,
    *settings: Any,
    rng: random.Random | None = None,
) -> Iterator[dict[str, Any]]:
    """Answers the prompt in every column, in an order that only the server knows; yields unnamed boards.

    Args:
        settings: see `read_settings`.
        rng: shuffles the columns; by default the operating system's, which cannot be predicted.
    """
    picks, mixes = _read_columns(engine, prompt, board_value, rows)
    how = read_settings(settings)
    if how.documents:
        raise SpecError(
            "A blind test compares mixes without documents.", "Choose no documents, then start it again."
        )
    yield from blind.stream_covered_board(
        engine,
        session,
        prompt,
        mixes,
        picks,
        how.sampling,
        same_noise,
        rng or random.SystemRandom(),
        how,
    )


def _read_columns(engine: Engine, prompt: str, board_value: Any, rows: Any) -> tuple[list[str], list[Mix]]:
    if not prompt.strip():
        raise SpecError("The prompt is empty.", "Write a prompt first.")
    picks = board.read_picks(engine, board_value)
    return picks, board.read_mixes(engine, picks, rows)


def vote(engine: Engine, session: Session, event: gr.EventData) -> tuple[dict[str, Any], Node]:
    """Casts a vote or takes it back; returns the uncovered board and the tally."""
    data = event._data if isinstance(event._data, dict) else {}
    value = blind.undo_vote(engine, session) if data.get("undo") else blind.cast_vote(engine, session, data)
    serial = session.serial + 0.5  # after every frame of this test, before those of the next
    return {**value, "serial": serial}, blind.render_tally(engine)


def show_tally(engine: Engine) -> Node:
    """Shows all votes so far."""
    return blind.render_tally(engine)


def export_votes_csv(engine: Engine) -> str:
    """All votes as CSV.

    Raises:
        NotFound: no vote was cast yet.
    """
    if not engine.votes.tally():
        raise NotFound("No votes to download yet.", "Start a blind test first.")
    return engine.votes.csv()


def confirm_delete_votes(engine: Engine) -> Any:
    """Asks for confirmation before votes are deleted."""
    return gr.update(visible=True)


def cancel_delete_votes(engine: Engine) -> Any:
    """Hides the confirmation."""
    return gr.update(visible=False)


def delete_votes(engine: Engine) -> tuple[Node, Any]:
    """Deletes every vote."""
    return blind.delete_votes(engine), gr.update(visible=False)


def stop(engine: Engine, session: Session) -> None:
    """Stops the answers and keeps their text; a complete blind test can still be voted on."""
    if session.frame is None or not session.frame.done:
        session.stop()


def export_markdown(engine: Engine, session: Session) -> str:
    """The last comparison as a Markdown document.

    Raises:
        SpecError: a blind test waits for its vote. NotFound: nothing was answered yet.
    """
    if blind.is_covered(session):
        raise SpecError("The names are still covered.", "Vote first, then export the comparison.")
    text = answers.to_markdown(session)
    if not text:
        raise NotFound("There is nothing to export yet.", "Answer a prompt first.")
    return text
