"""The Compare tab: one question, two to six mixes, side by side and at once.

Knows the board of columns and how answers fill it. Knows nothing of how mixes share a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import NotFound, SpecError
from core.spec import COLUMN_LIMIT, Sampling
from studio import fields, guard, mixer, samples, show, talk
from studio.talk import SAMPLING, Talk
from studio.tree import Node, node, title, view
from studio.web import asset

LEAST = 2


@dataclass(frozen=True)
class CompareTab:
    """The components of the Compare tab."""

    prompt: gr.Textbox
    ask: gr.Button
    stop: gr.Button
    export: gr.Button
    sampling: fields.Fields
    board: gr.HTML
    written: gr.Textbox
    talk: gr.State


def build() -> CompareTab:
    """Makes the components."""
    with gr.Column(elem_classes="card"):
        view(title("Compare", "All columns are answered in one batch with the same dice: what differs comes from the mix."))
        prompt = gr.Textbox(label="Prompt", lines=2, max_lines=6, placeholder="Ask all columns the same question", elem_id="compare-prompt")
        with gr.Row(elem_classes="actions"):
            ask = gr.Button("Answer", variant="primary", scale=0, min_width=130)
            stop = gr.Button("Stop", scale=0, min_width=90)
            export = gr.Button("Export as Markdown", scale=0, min_width=170)
        with gr.Accordion("Sampling", open=False, elem_classes="quiet-fold"), gr.Row():
            sampling = fields.build(Sampling, SAMPLING)
        board = gr.HTML(
            value=None, choices=[], html_template='<div class="board"></div>', js_on_load=asset("board.js"), apply_default_css=False, elem_id="board"
        )
        written = gr.Textbox(visible=False)
    return CompareTab(prompt, ask, stop, export, sampling, board, written, gr.State(Talk(), delete_callback=Talk.stop))


def wire(tab: CompareTab, engine: Engine, moved: Any, mixer_rows: gr.HTML) -> None:
    """Connects the events."""
    inputs = [tab.prompt, tab.board, mixer_rows, tab.talk, *tab.sampling.values()]
    for trigger in (tab.ask.click, tab.prompt.submit):
        guard.on(trigger, engine, answered, inputs, [tab.board], concurrency_limit=8, trigger_mode="multiple")
    guard.on(tab.stop.click, engine, stopped, [tab.talk], None)
    guard.on(tab.export.click, engine, exported, [tab.talk], [tab.written]).success(
        fn=None, inputs=[tab.written], js="(text) => { window.studio.save('comparison.md', text); }", api_visibility="private"
    )
    for trigger in (moved, mixer_rows.mixed):
        guard.on(trigger, engine, refresh, [tab.prompt, mixer_rows], [tab.prompt, tab.board])


def refresh(engine: Engine, prompt: str, rows: Any) -> tuple[Any, ...]:
    """The mixes there are to pick, and a sample question while the prompt is empty."""
    return gr.skip() if prompt else samples.question(engine), gr.HTML(choices=talk.choices(engine, mixer.present(engine, rows)))


def answered(engine: Engine, prompt: str, board: Any, rows: Any, talking: Talk, *sampling: Any) -> Iterator[dict[str, Any]]:
    """Asks every column; yields the whole board at each frame."""
    if not prompt.strip():
        raise SpecError("There is no prompt.", "Write what to ask.")
    picks = [p for p in (board or {}).get("picks", []) if isinstance(p, str)] or [c["id"] for c in talk.choices(engine)][:4]
    if not LEAST <= len(picks) <= COLUMN_LIMIT:
        raise SpecError(f"There are {len(picks)} columns.", f"Compare {LEAST} to {COLUMN_LIMIT} mixes.")
    mixes = talk.named(engine, picks, mixer.present(engine, rows))
    drawn = talk.drawn(sampling)
    reference = next((i for i, m in enumerate(mixes) if not m.weights), 0)
    for frame in talk.frames(engine, talking, prompt, mixes, drawn):
        yield {"picks": picks, "touched": True, "columns": columns(frame, reference)}


def columns(frame: Any, reference: int) -> list[Node]:
    """What each column shows; words that differ from the reference column are marked."""
    base = frame.columns[reference].text
    return [_column(c, base if i != reference else c.text) for i, c in enumerate(frame.columns)]


def stopped(engine: Engine, talking: Talk) -> None:
    """Ends the answer under way; what is written stays."""
    talking.stop()


def exported(engine: Engine, talking: Talk) -> str:
    """The last comparison as a Markdown document."""
    text = talk.markdown(talking)
    if not text:
        raise NotFound("There is nothing to export yet.", "Answer a prompt first.")
    return text


def _column(column: Any, base: str) -> Node:
    pieces: list[Any] = [node("mark", text) if differs else node("span", text) for text, differs in show.differing(base, column.text)]
    text = node("p", *(pieces or ["…"]), cls="answer-text" if column.done else "answer-text writing")
    return node("div", text, node("p", talk.speed(column), cls="quiet"), node("p", talk.stamp(column), cls="stamp"))
