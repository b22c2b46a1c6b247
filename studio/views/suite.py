"""The prompt suite of the Compare tab: many prompts through every column, as a table to take away.

Knows the form, how far a suite is and how its table looks. Knows nothing of batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.data.prompts import PROMPT_LIMIT, read_prompts
from core.engine import Engine
from core.errors import NotFound, SpecError
from studio import events, session
from studio.components import board
from studio.session import Talk
from studio.tree import Node, node, table, view

SUFFIXES = [".txt", ".csv", ".jsonl"]
ABOUT = f"One per line, at most {PROMPT_LIMIT}. Every column above answers every one."
SAVE_CSV = """(name, text) => {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""


@dataclass(frozen=True)
class Suite:
    """The components of the fold."""

    prompts: gr.Textbox
    file: gr.File
    run: gr.Button
    stop: gr.Button
    save: gr.Button
    shown: gr.HTML
    written: gr.Textbox
    session: gr.State


def build() -> Suite:
    """Makes the components."""
    with gr.Accordion("Prompt suite", open=False, elem_classes="quiet-fold", elem_id="suite"):
        with gr.Row(elem_classes="suite-form"):
            prompts = gr.Textbox(label="Prompts", info=ABOUT, lines=6, max_lines=12, scale=3, min_width=260)
            file = gr.File(
                label="Or a file: .txt, .csv or .jsonl",
                file_types=list(SUFFIXES),
                height=150,
                scale=2,
                min_width=200,
                elem_id="suite-file",
            )
        with gr.Row(elem_classes="actions"):
            run = gr.Button("Run the suite", variant="primary", scale=0, min_width=130)
            stop = gr.Button("Stop the suite", scale=0, min_width=120)
            save = gr.Button("Download as CSV", scale=0, min_width=150, interactive=False)
        shown = view(None, elem_id="suite-shown")
        written = gr.Textbox(visible=False)
    return Suite(prompts, file, run, stop, save, shown, written, gr.State(Talk(), delete_callback=Talk.stop))


def wire(tab: Suite, engine: Engine, picked: list[Any], drawn: list[Any]) -> None:
    """Connects the events.

    Args:
        picked: the board and the mixer, which say what the columns are.
        drawn: the checkbox of the dice and the components of the sampling.
    """
    events.on(
        tab.run.click,
        engine,
        ran,
        [tab.prompts, tab.file, *picked, tab.session, *drawn],
        [tab.shown, tab.save],
        concurrency_limit=4,
    )
    events.on(tab.stop.click, engine, stopped, [tab.session], None)
    events.on(tab.save.click, engine, saved, [tab.session], [tab.written]).success(
        fn=None,
        inputs=[tab.written],
        js=f"(text) => ({SAVE_CSV})('suite.csv', text)",
        api_visibility="private",
    )


def ran(
    engine: Engine,
    prompts: str,
    file: str | None,
    shown: Any,
    rows: Any,
    talking: Talk,
    same_dice: bool,
    *sampling: Any,
) -> Iterator[tuple[Any, Any]]:
    """Runs every prompt through every column; yields how far it is, then the table."""
    asked = read_prompts(prompts or "", [file] if file else [])
    if not asked:
        raise SpecError("There are no prompts.", "Write some, one per line, or choose a file.")
    mixes = board.mixes(engine, board.picks(engine, shown), rows)
    talking.stop()
    serial = talking.serial
    talking.stream = stream = engine.suite(asked, mixes, session.drawn(sampling), same_dice=same_dice)
    talking.frame, at = None, -1
    try:
        for sheet in stream:
            if talking.serial != serial:
                break
            talking.frame = sheet
            if sheet.done != at:
                at = sheet.done
                yield _progress(sheet), gr.update(interactive=False)
    finally:
        stream.close()
    replaced = talking.serial != serial and talking.stream is not None
    if talking.frame is not None and not replaced:
        yield table_of(talking.frame), gr.update(interactive=bool(talking.frame.written))


def stopped(engine: Engine, talking: Talk) -> None:
    """Ends the suite under way; the answers of whole batches stay."""
    talking.stop()


def saved(engine: Engine, talking: Talk) -> str:
    """The last suite as CSV."""
    if talking.frame is None or not talking.frame.written:
        raise NotFound("There is no suite to download yet.", "Run one first.")
    return str(talking.frame.as_csv())


def table_of(sheet: Any) -> Node:
    """Prompts by mixes, with how many tell the mixes apart."""
    rows = [[prompt, *answers] for prompt, answers in sheet.written]
    notes = []
    if len(rows) < len(sheet.prompts):
        notes.append(f"Stopped: {len(rows)} of {len(sheet.prompts)} prompts were answered.")
    if rows and sheet.differing < len(rows):
        notes.append(
            f"The mixes differ on {sheet.differing} of {len(rows)} prompts; on the others they all say the same."
        )
    note = node("p", " ".join(notes), cls="quiet below") if notes else None
    return node(
        "div",
        note,
        table(["Prompt", *sheet.names], rows, "What each mix answered") if rows else None,
        cls="suite",
    )


def _progress(sheet: Any) -> Node:
    share = f"{100 * sheet.done / sheet.total:.1f}%"
    bar = node("div", node("div", cls="bar-fill"), cls="bar busy", vars={"share": share}, role="progressbar", aria_label="Progress of the suite",
               aria_valuenow=round(100 * sheet.done / sheet.total), aria_valuemin=0, aria_valuemax=100)  # fmt: skip
    return node("div", node("p", f"{sheet.done} of {sheet.total} answers", cls="quiet below"), bar)
