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
from core.errors import NotFound, SpecError
from core.spec.mix import Sampling
from studio import answers, events, fields, mix_choices
from studio.assets import read_asset
from studio.components import board, mixer
from studio.session import SAMPLING, Session, read_sampling
from studio.tree import Node, title, view
from studio.views import blind, suite
from studio.views.suite import Suite

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
    """The components of the Compare tab; the hidden `file_text` takes a file's text to the browser."""

    prompt: gr.Textbox
    ask: gr.Button
    blind: gr.Button
    stop: gr.Button
    export: gr.Button
    same_noise: gr.Checkbox
    sampling: fields.Fields
    board: gr.HTML
    votes: Votes
    suite: Suite
    file_text: gr.Textbox
    session: gr.State


def build() -> CompareTab:
    """Makes the components."""
    with gr.Column(elem_classes="card"):
        view(
            title(
                "Compare",
                "All columns answer in one batch with the same noise, so differences come from the mix.",
            )
        )
        prompt = gr.Textbox(
            label="Prompt",
            lines=2,
            max_lines=6,
            placeholder="Ask every column the same question",
            elem_id="compare-prompt",
        )
        with gr.Row(elem_classes="actions"):
            ask = gr.Button("Answer", variant="primary", scale=0, min_width=130)
            blind_test = gr.Button("Blind test", scale=0, min_width=120)
            stop = gr.Button("Stop", scale=0, min_width=90)
            export = gr.Button("Export as Markdown", scale=0, min_width=170)
        with gr.Accordion("Sampling", open=False, elem_classes="quiet-fold"):
            with gr.Row():
                sampling = fields.build(Sampling, SAMPLING)
            same_noise = gr.Checkbox(True, label="Same noise in every column", info=SAME_NOISE_INFO)
        columns = gr.HTML(
            value=None,
            choices=[],
            html_template='<div class="board"></div>',
            js_on_load=read_asset("components/board.js") + "\n/* fires 'vote' and 'again' */",
            apply_default_css=False,
            elem_id="board",
        )
        votes = _build_votes()
        prompt_suite = suite.build()
        file_text = gr.Textbox(visible=False)
    return CompareTab(
        prompt,
        ask,
        blind_test,
        stop,
        export,
        same_noise,
        sampling,
        columns,
        votes,
        prompt_suite,
        file_text,
        gr.State(Session(), delete_callback=Session.stop),
    )


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
    sampling = [tab.same_noise, *tab.sampling.values()]
    inputs = [tab.prompt, tab.board, mixer_rows, tab.session, *sampling]
    queueing: dict[str, Any] = {"concurrency_limit": 8, "trigger_mode": "multiple"}
    for trigger in (tab.ask.click, tab.prompt.submit):
        events.bind(trigger, engine, stream_answers, inputs, [tab.board], **queueing)
    for trigger in (tab.blind.click, tab.board.again):
        events.bind(trigger, engine, stream_blind_test, inputs, [tab.board], **queueing)
    events.bind(tab.board.vote, engine, vote, [tab.session], [tab.board, tab.votes.tally])
    events.bind(tab.stop.click, engine, stop, [tab.session], None)
    events.bind(tab.export.click, engine, export_markdown, [tab.session], [tab.file_text]).success(
        fn=None,
        inputs=[tab.file_text],
        js="(text) => { window.studio.saveFile('comparison.md', text); }",
        api_visibility="private",
    )
    for event in (library_changed, mix_changed):
        event.add(refresh, [mixer_rows], [tab.board])
    _wire_votes(tab, engine)
    suite.wire(tab.suite, engine, [tab.board, mixer_rows], sampling)


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


def refresh(engine: Engine, rows: Any) -> Any:
    """Updates the mixes that the columns offer."""
    return gr.HTML(choices=mix_choices.list_choices(engine, mixer.current_mix(engine, rows)))


def stream_answers(
    engine: Engine,
    prompt: str,
    board_value: Any,
    rows: Any,
    session: Session,
    same_noise: bool,
    *sampling: Any,
) -> Iterator[dict[str, Any]]:
    """Answers the prompt in every column; yields the whole board for each frame."""
    picks = _read_picks(engine, prompt, board_value)
    mixes = board.read_mixes(engine, picks, rows)
    reference = board.find_reference(mixes)
    for frame in session.stream_frames(engine, prompt, mixes, read_sampling(sampling), same_noise=same_noise):
        yield {
            "picks": picks,
            "touched": True,
            "columns": board.render_columns(frame, reference),
            "serial": session.serial,
        }


def stream_blind_test(
    engine: Engine,
    prompt: str,
    board_value: Any,
    rows: Any,
    session: Session,
    same_noise: bool,
    *sampling: Any,
    rng: random.Random | None = None,
) -> Iterator[dict[str, Any]]:
    """Answers the prompt in every column, in an order that only the server knows; yields unnamed boards.

    Args:
        rng: shuffles the columns; by default the operating system's, which cannot be predicted.
    """
    picks = _read_picks(engine, prompt, board_value)
    mixes = board.read_mixes(engine, picks, rows)
    yield from blind.stream_covered_board(
        engine,
        session,
        prompt,
        mixes,
        picks,
        read_sampling(sampling),
        same_noise,
        rng or random.SystemRandom(),
    )


def _read_picks(engine: Engine, prompt: str, board_value: Any) -> list[str]:
    if not prompt.strip():
        raise SpecError("The prompt is empty.", "Write a prompt first.")
    return board.read_picks(engine, board_value)


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
