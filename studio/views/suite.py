"""The prompt suite of the Compare tab: every column answers many prompts, for a table and a CSV file.

`core/evaluate/suite.py` batches the prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.data.tokens.prompts import PROMPT_LIMIT, read_prompts
from core.engine import Engine
from core.errors import NotFound, SpecError
from studio import answers, events
from studio.components import board, field_errors
from studio.components.field_errors import FieldErrors
from studio.session import Session, read_settings
from studio.tree import Node, node, progress_bar, table, view

SUFFIXES = [".txt", ".csv", ".jsonl"]
PROMPTS_INFO = f"One per line, at most {PROMPT_LIMIT}. Every column above answers every prompt."


@dataclass(frozen=True)
class Suite:
    """The components of the suite's accordion; the hidden `csv_text` takes the file's text to the browser."""

    prompts: gr.Textbox
    errors: FieldErrors
    file: gr.File
    run: gr.Button
    stop: gr.Button
    download: gr.Button
    answers: gr.HTML
    csv_text: gr.Textbox
    session: gr.State


def build() -> Suite:
    """Makes the components."""
    with gr.Accordion("Prompt suite", open=False, elem_classes="quiet-fold", elem_id="suite"):
        with gr.Row(elem_classes="suite-form"):
            prompts = gr.Textbox(
                label="Prompts", info=PROMPTS_INFO, lines=6, max_lines=12, scale=3, min_width=260
            )
            file = gr.File(
                label="Or a file: .txt, .csv or .jsonl",
                file_types=list(SUFFIXES),
                height=150,
                scale=2,
                min_width=200,
                elem_id="suite-file",
            )
        errors = field_errors.field_errors({"prompts": prompts}, default="prompts", texts=["prompts"])
        with gr.Row(elem_classes="actions"):
            run = gr.Button("Run the suite", variant="primary", scale=0, min_width=130)
            stop = gr.Button("Stop the suite", scale=0, min_width=120)
            download = gr.Button("Download as CSV", scale=0, min_width=150, interactive=False)
        answers = view(None, elem_id="suite-answers")
        csv_text = gr.Textbox(visible=False)
    session = gr.State(Session(), delete_callback=Session.stop)
    return Suite(prompts, errors, file, run, stop, download, answers, csv_text, session)


def wire(tab: Suite, engine: Engine, columns: list[Any], sampling: list[Any]) -> None:
    """Connects the events.

    Args:
        columns: the board and the mixer, which hold the mixes of the columns.
        sampling: the same-noise checkbox, and the components that `read_settings` reads.
    """
    events.bind(
        tab.run.click,
        engine,
        run_suite,
        [tab.prompts, tab.file, *columns, tab.session, *sampling],
        [tab.answers, tab.download],
        errors=tab.errors,
        refuse=refuse,
        concurrency_limit=4,
    )
    field_errors.wire(tab.errors, engine)
    events.bind(tab.stop.click, engine, stop, [tab.session], None)
    events.bind(tab.download.click, engine, export_csv, [tab.session], [tab.csv_text]).success(
        fn=None,
        inputs=[tab.csv_text],
        js="(text) => { window.studio.saveFile('suite.csv', text); }",
        api_visibility="private",
    )


def run_suite(
    engine: Engine,
    text: str,
    file: str | None,
    board_value: Any,
    rows: Any,
    session: Session,
    same_noise: bool,
    *settings: Any,
) -> Iterator[tuple[Any, Any]]:
    """Answers every prompt in every column; yields the progress, then the table."""
    prompts = read_prompts(text or "", [file] if file else [])
    if not prompts:
        raise SpecError("The suite has no prompts.", "Write some, one per line, or choose a file.")
    mixes = board.read_mixes(engine, board.read_picks(engine, board_value), rows)
    how = read_settings(settings)
    session.stop()
    serial = session.serial
    session.stream = stream = engine.chat.stream_suite(
        prompts, mixes, how.sampling, not how.continue_text, same_noise, how.system
    )
    session.frame, answered = None, -1
    try:
        for sheet in stream:
            if session.serial != serial:
                break
            session.frame = sheet
            if sheet.done != answered:
                answered = sheet.done
                yield _render_progress(sheet), gr.update(interactive=False)
    finally:
        stream.close()
    replaced = session.serial != serial and session.stream is not None
    if session.frame is not None and not replaced:
        yield render_answers(session.frame), gr.update(interactive=bool(session.frame.rows))


def refuse(engine: Engine, *_: Any) -> tuple[Any, Any]:
    """The outputs of a suite that was refused: no answers, and nothing to download."""
    return None, gr.update(interactive=False)


def stop(engine: Engine, session: Session) -> None:
    """Stops the suite; the answers of complete batches stay."""
    session.stop()


def export_csv(engine: Engine, session: Session) -> str:
    """The last suite as CSV."""
    if session.frame is None or not session.frame.rows:
        raise NotFound("No answers to download yet.", "Run the suite first.")
    return str(session.frame.as_csv())


def render_answers(sheet: Any) -> Node:
    """Prompts by mixes, with the number of prompts on which the mixes differ."""
    rows = [
        [prompt, *map(_render_answer, columns)]
        for prompt, columns in zip(sheet.prompts, sheet.columns, strict=True)
        if columns
    ]
    notes = [f"Prompt {number} was left out: {why}" for number, why in sheet.left_out.items()]
    if len(rows) < len(sheet.prompts) - len(sheet.left_out):
        notes.append(f"Stopped: {len(rows)} of {len(sheet.prompts)} prompts were answered.")
    if rows and sheet.disagreements < len(rows):
        differing = f"The mixes differ on {sheet.disagreements} of {len(rows)} prompts"
        notes.append(f"{differing}; on the rest, all answers are identical.")
    note = node("p", " ".join(notes), cls="quiet below") if notes else None
    written = table(["Prompt", *sheet.names], rows, "Answers by mix") if rows else None
    return node("div", note, written, cls="suite")


def _render_answer(column: Any) -> Node:
    thought = answers.render_column_fold(column)
    return node("div", thought, node("span", column.text or answers.placeholder(column)))


def _render_progress(sheet: Any) -> Node:
    bar = progress_bar(sheet.done / max(sheet.total, 1), "Progress of the suite")
    return node("div", node("p", f"{sheet.done} of {sheet.total} answers", cls="quiet below"), bar)
