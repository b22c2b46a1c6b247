"""The Compare tab: one question, two to six mixes, side by side and at once, with their names or without.

Knows its components and what follows what. Knows nothing of how mixes share a batch, nor how a blind
test keeps its secret.
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
from studio import events, fields, session
from studio.assets import read_asset
from studio.components import board, mixer
from studio.session import SAMPLING, Talk
from studio.tree import Node, title, view
from studio.views import blind, suite
from studio.views.suite import SAVE_CSV, Suite

SAME_DICE = "All columns draw with the same random numbers, so that what differs comes from the mix; it matters above temperature 0."


@dataclass(frozen=True)
class Votes:
    """The fold with the votes so far."""

    fold: gr.Accordion
    shown: gr.HTML
    save: gr.Button
    delete: gr.Button
    sure: gr.Row
    yes: gr.Button
    no: gr.Button


@dataclass(frozen=True)
class CompareTab:
    """The components of the Compare tab."""

    prompt: gr.Textbox
    ask: gr.Button
    blind: gr.Button
    stop: gr.Button
    export: gr.Button
    same_dice: gr.Checkbox
    sampling: fields.Fields
    board: gr.HTML
    votes: Votes
    suite: Suite
    written: gr.Textbox
    session: gr.State


def build() -> CompareTab:
    """Makes the components."""
    with gr.Column(elem_classes="card"):
        view(
            title(
                "Compare",
                "All columns are answered in one batch with the same dice: what differs comes from the mix.",
            )
        )
        prompt = gr.Textbox(
            label="Prompt",
            lines=2,
            max_lines=6,
            placeholder="Ask all columns the same question",
            elem_id="compare-prompt",
        )
        with gr.Row(elem_classes="actions"):
            ask = gr.Button("Answer", variant="primary", scale=0, min_width=130)
            blinded = gr.Button("Blind test", scale=0, min_width=120)
            stop = gr.Button("Stop", scale=0, min_width=90)
            export = gr.Button("Export as Markdown", scale=0, min_width=170)
        with gr.Accordion("Sampling", open=False, elem_classes="quiet-fold"):
            with gr.Row():
                sampling = fields.build(Sampling, SAMPLING)
            same_dice = gr.Checkbox(True, label="Same dice", info=SAME_DICE)
        columns = gr.HTML(
            value=None,
            choices=[],
            html_template='<div class="board"></div>',
            js_on_load=read_asset("components/board.js") + "\n/* fires 'vote' and 'again' */",
            apply_default_css=False,
            elem_id="board",
        )
        votes = _votes()
        many = suite.build()
        written = gr.Textbox(visible=False)
    return CompareTab(
        prompt,
        ask,
        blinded,
        stop,
        export,
        same_dice,
        sampling,
        columns,
        votes,
        many,
        written,
        gr.State(Talk(), delete_callback=Talk.stop),
    )


def _votes() -> Votes:
    with gr.Accordion("Votes so far", open=False, elem_classes="quiet-fold", elem_id="votes") as fold:
        shown = view(blind.NO_VOTES)
        with gr.Row(elem_classes="actions"):
            save = gr.Button("Download the votes as CSV", scale=0, min_width=210)
            delete = gr.Button("Delete all votes", variant="stop", scale=0, min_width=140)
        with gr.Row(visible=False, elem_classes="actions") as sure:
            yes = gr.Button("Yes, delete every vote", variant="stop", scale=0, min_width=180)
            no = gr.Button("Keep them", scale=0, min_width=110)
    return Votes(fold, shown, save, delete, sure, yes, no)


def wire(
    tab: CompareTab, engine: Engine, moved: events.Together, mixed: events.Together, mixer_rows: gr.HTML
) -> None:
    """Connects the events."""
    drawn = [tab.same_dice, *tab.sampling.values()]
    asked = [tab.prompt, tab.board, mixer_rows, tab.session, *drawn]
    talking: dict[str, Any] = {"concurrency_limit": 8, "trigger_mode": "multiple"}
    for trigger in (tab.ask.click, tab.prompt.submit):
        events.on(trigger, engine, answered, asked, [tab.board], **talking)
    for trigger in (tab.blind.click, tab.board.again):
        events.on(trigger, engine, blinded, asked, [tab.board], **talking)
    events.on(tab.board.vote, engine, voted, [tab.session], [tab.board, tab.votes.shown])
    events.on(tab.stop.click, engine, stopped, [tab.session], None)
    events.on(tab.export.click, engine, exported, [tab.session], [tab.written]).success(
        fn=None,
        inputs=[tab.written],
        js="(text) => { window.studio.save('comparison.md', text); }",
        api_visibility="private",
    )
    for event in (moved, mixed):
        event.add(refresh, [mixer_rows], [tab.board])
    _wire_votes(tab, engine)
    suite.wire(tab.suite, engine, [tab.board, mixer_rows], drawn)


def _wire_votes(tab: CompareTab, engine: Engine) -> None:
    votes = tab.votes
    events.on(votes.fold.expand, engine, counted, None, [votes.shown])
    events.on(votes.save.click, engine, votes_exported, None, [tab.written]).success(
        fn=None,
        inputs=[tab.written],
        js=f"(text) => ({SAVE_CSV})('votes.csv', text)",
        api_visibility="private",
    )
    events.on(votes.delete.click, engine, sure, None, [votes.sure])
    events.on(votes.no.click, engine, unsure, None, [votes.sure])
    events.on(votes.yes.click, engine, deleted, None, [votes.shown, votes.sure])


def refresh(engine: Engine, rows: Any) -> Any:
    """The mixes there are to pick."""
    return gr.HTML(choices=session.choices(engine, mixer.present(engine, rows)))


def answered(
    engine: Engine, prompt: str, shown: Any, rows: Any, talking: Talk, same_dice: bool, *sampling: Any
) -> Iterator[dict[str, Any]]:
    """Asks every column; yields the whole board at each frame."""
    picks = _asked(engine, prompt, shown)
    mixes = board.mixes(engine, picks, rows)
    reference = board.reference(mixes)
    for frame in session.frames(engine, talking, prompt, mixes, session.drawn(sampling), same_dice=same_dice):
        yield {
            "picks": picks,
            "touched": True,
            "columns": board.columns(frame, reference),
            "serial": talking.serial,
        }


def blinded(
    engine: Engine,
    prompt: str,
    shown: Any,
    rows: Any,
    talking: Talk,
    same_dice: bool,
    *sampling: Any,
    dice: random.Random | None = None,
) -> Iterator[dict[str, Any]]:
    """Asks every column in an order that only this side knows; yields the board without names."""
    picks = _asked(engine, prompt, shown)
    mixes = board.mixes(engine, picks, rows)
    yield from blind.frames(
        engine,
        talking,
        prompt,
        mixes,
        picks,
        session.drawn(sampling),
        same_dice,
        dice or random.SystemRandom(),
    )


def _asked(engine: Engine, prompt: str, shown: Any) -> list[str]:
    if not prompt.strip():
        raise SpecError("There is no prompt.", "Write what to ask.")
    return board.picks(engine, shown)


def voted(engine: Engine, talking: Talk, event: gr.EventData) -> tuple[dict[str, Any], Node]:
    """A vote was cast or taken back: the names, and the tally."""
    said = event._data if isinstance(event._data, dict) else {}
    shown = blind.withdrawn(engine, talking) if said.get("undo") else blind.voted(engine, talking, said)
    return {**shown, "serial": talking.serial + 0.5}, blind.tally(
        engine
    )  # after every frame of this round, before those of the next


def counted(engine: Engine) -> Node:
    """The votes so far."""
    return blind.tally(engine)


def votes_exported(engine: Engine) -> str:
    """All votes as CSV."""
    if not engine.tally():
        raise NotFound("There are no votes to download yet.", "Start a blind test first.")
    return engine.votes_csv()


def sure(engine: Engine) -> Any:
    """Asks once more before votes are deleted."""
    return gr.update(visible=True)


def unsure(engine: Engine) -> Any:
    """Not deleted after all."""
    return gr.update(visible=False)


def deleted(engine: Engine) -> tuple[Node, Any]:
    """Deletes every vote."""
    return blind.emptied(engine), gr.update(visible=False)


def stopped(engine: Engine, talking: Talk) -> None:
    """Ends the answer under way; what is written stays, and a blind test that is all written can still be voted on."""
    if talking.frame is None or not talking.frame.done:
        talking.stop()


def exported(engine: Engine, talking: Talk) -> str:
    """The last comparison as a Markdown document."""
    if blind.secret(talking):
        raise SpecError("The names are still covered.", "Vote first; then the comparison can be exported.")
    text = session.markdown(talking)
    if not text:
        raise NotFound("There is nothing to export yet.", "Answer a prompt first.")
    return text
