"""Importing adapters of other tools, in the Library tab: drop or name, examine, repair, import, compare.

The state of a page is the source and the repairs that were chosen; a change of either examines it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import AdapterError, InvalidName, NotFound, SpecError, StudioError
from studio import events, uploads
from studio.components import field_errors
from studio.tree import Node, node, view
from studio.views import adapter_import as views

SUFFIXES = [".zip", ".safetensors", ".bin", ".gguf", ".json", ".jinja", ".md"]
WHOLE_FILES = (".zip", ".gguf")
SOURCE_INFO = "Or a folder or file on the studio's machine, or a Hub id: owner/name, owner/name@revision."
KINDS = [("Questions with answers (task)", "task"), ("Texts (domain)", "domain")]
POLL_SECONDS = 0.4  # between two looks at an examination
LINE = "A question that the adapter was trained for"


@dataclass(frozen=True)
class Draft:
    """An import that is being prepared.

    Attributes:
        source: what `engine.adapter_imports` reads; "" before anything was given.
        repairs: ids of the chosen repairs.
        adapter: id of the adapter after the import, or "".
        drop: id of the dropped files, or "".
    """

    source: str = ""
    repairs: tuple[str, ...] = field(default=())
    adapter: str = ""
    drop: str = ""


@dataclass(frozen=True)
class AdapterImport:
    """The components of the form."""

    fold: gr.Accordion
    files: gr.File
    source: gr.Textbox
    check: gr.Button
    card: gr.HTML
    tools: gr.Row
    name: gr.Textbox
    kind: gr.Radio
    errors: field_errors.FieldErrors
    add: gr.Button
    proof_tools: gr.Row
    line: gr.Textbox
    compare: gr.Button
    proof: gr.HTML
    draft: gr.State


def build() -> AdapterImport:
    """Makes the components."""
    with gr.Accordion(
        "Import an adapter", open=False, elem_classes="quiet-fold", elem_id="adapter-import"
    ) as fold:
        with gr.Row():
            files = gr.File(
                label="Zip, GGUF, or weights with config",
                file_count="multiple",
                file_types=SUFFIXES,
                height=150,
                scale=2,
                min_width=220,
                elem_id="adapter-files",
            )
            with gr.Column(scale=3, min_width=240):
                source = gr.Textbox(label="Folder, file or Hub id", info=SOURCE_INFO, max_length=500)
                check = gr.Button("Examine", size="md")
        card = view(node("div"), elem_id="adapter-card")
        with gr.Row(visible=False, elem_classes="save-row") as tools:
            name = gr.Textbox(label="Name in the library", max_length=120, scale=3, min_width=140)
            kind = gr.Radio(KINDS, value="task", label="It was trained on", scale=3, min_width=220)
            add = gr.Button("Import", variant="primary", size="md", scale=1, min_width=90)
        with gr.Row(visible=False, elem_classes="save-row") as proof_tools:
            line = gr.Textbox(label=LINE, max_length=2000, scale=3, min_width=140)
            compare = gr.Button("Compare with the base", size="md", scale=1, min_width=120)
        proof = view(node("div"), elem_id="adapter-proof")
        errors = field_errors.field_errors({"source": source, "name": name, "line": line}, default="source")
        draft = gr.State(Draft())
    return AdapterImport(
        fold,
        files,
        source,
        check,
        card,
        tools,
        name,
        kind,
        errors,
        add,
        proof_tools,
        line,
        compare,
        proof,
        draft,
    )


def wire(tab: AdapterImport, engine: Engine) -> None:
    """Connects the events."""
    shown = [tab.draft, tab.card, tab.tools, tab.name, tab.proof_tools, tab.proof]
    events.bind(
        tab.files.upload,
        engine,
        follow_upload,
        [tab.files, tab.draft],
        [*shown, tab.files],
        errors=tab.errors,
    )
    events.bind(tab.check.click, engine, follow_source, [tab.source, tab.draft], shown, errors=tab.errors)
    events.bind(tab.source.submit, engine, follow_source, [tab.source, tab.draft], shown, errors=tab.errors)
    events.bind(tab.card.act, engine, follow_repair, [tab.draft], shown, errors=tab.errors)
    inputs = [tab.draft, tab.name, tab.kind]
    added = events.bind(tab.add.click, engine, add_adapter, inputs, shown, errors=tab.errors)
    events.refresh_after(added)
    events.bind(tab.compare.click, engine, compare, [tab.draft, tab.line], [tab.proof], errors=tab.errors)
    field_errors.wire(tab.errors, engine)


def follow_upload(engine: Engine, files: Sequence[str] | None, draft: Draft) -> Iterator[tuple[Any, ...]]:
    """Examines dropped files; they are moved to a folder of their own and leave the drop area."""
    paths = [str(f) for f in files or []]
    if not paths:
        raise NotFound("No file arrived.", "Drop the files again.").at("source")
    if draft.drop:
        uploads.discard(draft.drop)
    drop = uploads.add_files([(p, Path(p).name) for p in paths])
    folder = uploads.find_folder(drop)
    source = _choose_file(folder)
    for shown in _follow(engine, Draft(str(source), drop=drop)):
        yield (*shown, None)


def examine_upload(engine: Engine, files: Sequence[str] | None, draft: Draft) -> tuple[Any, ...]:
    """The end of `follow_upload`."""
    return _take_last(follow_upload(engine, files, draft))


def _choose_file(folder: Path) -> Path:
    """The dropped file that is an adapter by itself, otherwise the folder of all dropped files."""
    names = sorted(p for p in folder.iterdir() if p.is_file())
    whole = [p for p in names if p.suffix.lower() in WHOLE_FILES]
    if len(whole) > 1:
        raise AdapterError("Several adapters were dropped.", "Drop one of them at a time.").at("source")
    return whole[0] if whole else folder


def follow_source(engine: Engine, source: str, draft: Draft) -> Iterator[tuple[Any, ...]]:
    """Examines a folder, a file or a repository of the Hub."""
    if not source.strip():
        raise SpecError("Nothing was given.", "Enter a folder, a file or a Hub id, or drop files.").at(
            "source"
        )
    if draft.drop:
        uploads.discard(draft.drop)
    yield from _follow(engine, Draft(source.strip()))


def examine_source(engine: Engine, source: str, draft: Draft) -> tuple[Any, ...]:
    """The end of `follow_source`."""
    return _take_last(follow_source(engine, source, draft))


def follow_repair(engine: Engine, draft: Draft, event: gr.EventData) -> Iterator[tuple[Any, ...]]:
    """Answers a finding with a repair, or takes the answer back."""
    action = event._data or {}
    repair = str(action.get("repair", ""))
    kept = tuple(r for r in draft.repairs if r != repair)
    repairs = (*kept, repair) if action.get("do") == "repair" else kept
    yield from _follow(engine, replace(draft, repairs=repairs))


def choose_repair(engine: Engine, draft: Draft, event: gr.EventData) -> tuple[Any, ...]:
    """The end of `follow_repair`."""
    return _take_last(follow_repair(engine, draft, event))


def _take_last(shown: Iterator[tuple[Any, ...]]) -> tuple[Any, ...]:
    *_, last = shown
    return last


def _follow(engine: Engine, draft: Draft) -> Iterator[tuple[Any, ...]]:
    """Shows how much was read during an examination, then its card."""
    hidden = gr.update(visible=False)
    reading = engine.adapter_imports.start_examination(draft.source, draft.repairs)
    while not reading.wait(POLL_SECONDS):
        yield draft, views.render_progress(reading.progress), hidden, gr.update(), hidden, node("div")
    try:
        preflight = reading.result()
    except StudioError as e:
        yield Draft(), node("div"), hidden, gr.update(), hidden, node("div")
        e.at("source")
        raise
    tools = gr.update(visible=preflight.can_import)
    name = gr.update() if draft.repairs else preflight.name
    yield draft, views.render_preflight(preflight), tools, name, hidden, node("div")


def add_adapter(engine: Engine, draft: Draft, name: str, kind: str = "task") -> tuple[Any, ...]:
    """Imports the examined adapter, and offers to compare it with the base."""
    if not draft.source:
        raise NotFound("Nothing was examined.", "Drop an adapter or name one first.").at("source")
    try:
        adapter = engine.adapter_imports.add(draft.source, name, draft.repairs, kind)
    except StudioError as e:
        e.at("name" if isinstance(e, InvalidName) else "source")
        raise
    if draft.drop:
        uploads.discard(draft.drop)
    hidden, visible = gr.update(visible=False), gr.update(visible=True)
    return Draft(adapter=adapter.id), views.render_success(adapter.name), hidden, "", visible, node("div")


def compare(engine: Engine, draft: Draft, line: str) -> Node:
    """Answers one line with the base and with the imported adapter."""
    if not draft.adapter:
        raise NotFound("No adapter was imported here.", "Import one first.").at("line")
    try:
        return views.render_proof(engine.adapter_imports.prove(draft.adapter, line))
    except StudioError as e:
        e.at("line")
        raise
