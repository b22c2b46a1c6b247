"""The import on the Data tab: dropped files are previewed, their reading corrected, and imported.

`preview` holds what the user can change; every change reads the files again with the new `Choices`.
"""

from __future__ import annotations

import codecs
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.data.formats.text_encodings import Candidate, choose_codec, list_candidates
from core.engine import Engine
from core.errors import DataError, SpecError, StudioError, UnknownEncoding
from studio import events, first_page, formatting, uploads
from studio.components import drop, field_errors, imports
from studio.reading_choices import Choices, assign_role, kind_of, swap_roles
from studio.tree import Node, node, skeleton
from studio.views import data_preview as views

if TYPE_CHECKING:
    from core.data.datasets import Preview
    from studio.tabs.data import DataTab

logger = logging.getLogger(__name__)
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".html", ".htm", ".csv", ".tsv", ".json", ".jsonl")
FILES = 200  # whose encoding is looked at
READING = "The files are being read"
SEE_QUESTION = "First answer the question in the preview."
SEE_PROBLEM = "The preview says what has to be corrected first."


def wire(tab: DataTab, engine: Engine) -> None:
    """Connects the events of the drop area, the preview and the imports."""
    reading = [tab.choices, tab.kind, tab.preview, tab.add, tab.hint]
    settings = [tab.name, tab.held_out]
    opened = events.bind_sequential(
        tab.files.drop,
        engine,
        open_form,
        [tab.files, tab.name, tab.held_out],
        [*settings, tab.preview, tab.page, tab.add, tab.hint],
    )
    inputs = [tab.files, tab.choices, tab.held_out]
    read = events.bind_sequential(opened.then, engine, read_files, inputs, reading)
    # The first page has an event of its own, because drawing it takes a process.
    events.bind_sequential(read.then, engine, show_page, [tab.files], [tab.page])
    events.bind_sequential(tab.page.act, engine, pick_page, [tab.files], [tab.page])
    events.bind_sequential(tab.kind.input, engine, change_kind, [*inputs, tab.kind], reading)
    events.bind_sequential(tab.held_out.input, engine, read_files, inputs, reading)
    events.bind_sequential(tab.preview.act, engine, change_choices, inputs, reading)

    def start(engine: Engine, files: Any, choices: Choices, name: str, held_out: bool) -> tuple[Any, ...]:
        return start_import(engine, tab.forms, files, choices, name, held_out)

    def reopen(engine: Engine, event: gr.EventData) -> tuple[Any, ...]:
        return reopen_files(engine, tab.forms, str((event._data or {}).get("job", "")))

    form = [tab.files, tab.choices, tab.name, tab.held_out]
    after = [tab.imports, tab.files, *settings, tab.preview, tab.page, tab.add, tab.hint]
    events.bind(tab.add.click, engine, start, form, after, errors=tab.errors)
    field_errors.wire(tab.errors, engine, check_name_field, [tab.name])
    shown = [*form, *reading[1:]]
    events.bind(tab.imports.reopen, engine, reopen, None, shown)
    events.refresh_after(events.bind(tab.imports.imported, engine, show_new_dataset, None, [tab.picker]))


def open_form(engine: Engine, files: Any, name: str, held_out: bool) -> tuple[Any, ...]:
    """Fills the form of an import and shows grey lines for the preview; without files, empties both."""
    if not files:
        return "", False, None, None, *_no_import()
    return name or drop.name_of(files), held_out, skeleton(6, READING), None, *_no_import()


def read_files(engine: Engine, files: Any, choices: Choices, held_out: bool) -> tuple[Any, ...]:
    """Shows a preview of the dropped files, with their detected kind.

    Earlier choices of the user stay where they fit.
    """
    reading = _read(engine, files, choices, held_out)
    if choices.roles and not set(choices.roles.values()) <= set(reading[0].shown_columns):
        reading = _read(engine, files, Choices(encoding=choices.encoding), held_out)
    return reading


def show_page(engine: Engine, files: Any, name: str = "") -> Node | None:
    """Shows the first page of a document beside its text; None where no document was dropped."""
    if not files:
        return None
    folder = uploads.find_folder(str(files.get("drop")))
    names = first_page.list_documents(folder)
    if not names:
        return None
    chosen = name if name in names else names[0]
    return views.render_first_page(first_page.read_first_page(folder, chosen), names)


def pick_page(engine: Engine, files: Any, event: gr.EventData) -> Node | None:
    """Shows the first page of the document that the user picked."""
    return show_page(engine, files, str((event._data or {}).get("value", "")))


def change_kind(engine: Engine, files: Any, choices: Choices, held_out: bool, kind: str) -> tuple[Any, ...]:
    """Reads the dropped files as another kind, with the roles that the reader guesses for it."""
    return _read(engine, files, Choices(kind=kind, encoding=choices.encoding), held_out)


def change_choices(
    engine: Engine, files: Any, choices: Choices, held_out: bool, event: gr.EventData
) -> tuple[Any, ...]:
    """Applies what the user pressed or picked in the preview, and reads the files again."""
    act = event._data if isinstance(event._data, dict) else {}
    return _read(engine, files, apply_action(choices, act), held_out)


def apply_action(choices: Choices, act: dict[str, Any]) -> Choices:
    """The choices after an action of the preview."""
    what, kind, roles = act.get("do"), choices.shown_kind, choices.shown_roles
    if what == "encoding":
        return replace(choices, encoding=str(act.get("encoding")))
    if what == "role":
        role = str(act.get("value"))
        kind = kind_of(role, kind)
        changed = assign_role(kind, roles, str(act.get("column")), role)
        return replace(choices, kind=kind, roles=changed, answered=True)
    if what == "swap":
        return replace(choices, kind=kind, roles=swap_roles(roles), answered=True)
    if what == "confirm":
        return replace(choices, kind=kind, roles=dict(roles), answered=True)
    if what == "other":
        return replace(choices, answered=True)
    return choices


def start_import(
    engine: Engine, forms: imports.Forms, files: Any, choices: Choices, name: str, held_out: bool
) -> tuple[Any, ...]:
    """Starts the import of the dropped files and clears the form, so that more files can be dropped."""
    paths = drop.folder_of(files)
    if not paths:
        raise DataError("No files to import.", "Drop files first.")
    check_name_field(engine, name)
    job_id = engine.imports.start(
        paths,
        name.strip(),
        kind=choices.kind,
        roles=choices.roles,
        encoding=choices.encoding,
        purpose=_purpose(held_out),
    )
    forms.by_job[job_id] = imports.Form(files, choices, name, held_out)
    return {"job": job_id}, None, "", False, None, None, *_no_import()


def check_name_field(engine: Engine, name: str) -> None:
    """Checks the name of the dataset.

    Raises:
        SpecError: it is empty.
    """
    if not str(name or "").strip():
        raise SpecError("The dataset has no name.", "Enter a name.").at("name")


def reopen_files(engine: Engine, forms: imports.Forms, job_id: str) -> tuple[Any, ...]:
    """Shows the files of a failed import again, with what the user had chosen."""
    form = imports.find_form(engine, forms, job_id)
    choices, *reading = _read(engine, form.files, form.choices, form.held_out)
    return form.files, choices, form.name, form.held_out, *reading


def show_new_dataset(engine: Engine, event: gr.EventData) -> Any:
    """Picks the dataset that an import has made."""
    from studio.tabs.data import list_choices

    dataset = engine.datasets.get(str((event._data or {}).get("dataset", "")))
    left_out = f" {dataset.left_out:,} left out." if dataset.left_out else ""
    gr.Info(f"Imported {formatting.count(dataset.rows, 'row')}.{left_out}", title="Done")
    return gr.update(choices=list_choices(engine), value=dataset.id)


def _read(engine: Engine, files: Any, choices: Choices, held_out: bool) -> tuple[Any, ...]:
    """Reads the files.

    Returns:
        choices with the kind and roles that were used, the kind, the preview, the button, the hint below it.
    """
    if not files:
        return Choices(), gr.skip(), None, *_no_import()
    paths: list[str] = []
    try:
        paths = drop.folder_of(files)
        used, preview = preview_files(engine, paths, choices, held_out)
    except Exception as e:
        if not isinstance(e, StudioError):
            logger.exception("The preview of dropped files failed")
        candidates = e.candidates if isinstance(e, UnknownEncoding) else find_candidates(paths)
        shown = _render_problem(e, candidates, choices.encoding)
        return choices, gr.skip(), shown, *_no_import(SEE_PROBLEM)
    ask = bool(preview.skipped) or choices.encoding != "utf-8"
    scope = views.describe_scope(preview, len(files.get("files") or []))
    shown = views.render_preview(preview, scope, used, find_candidates(paths) if ask else ())
    if not preview.problem:
        return used, preview.kind, shown, gr.update(interactive=True), None
    asks = preview.question and not choices.answered
    return used, preview.kind, shown, *_no_import(SEE_QUESTION if asks else SEE_PROBLEM)


def preview_files(
    engine: Engine, paths: Sequence[str], choices: Choices, held_out: bool
) -> tuple[Choices, Preview]:
    """Reads files as an import would; returns the choices with what was used, and the preview.

    Raises:
        DataError: a file cannot be read at all.
    """
    preview = engine.datasets.preview(
        paths, choices.kind, choices.roles, choices.encoding, purpose=_purpose(held_out)
    )
    columns = tuple(dict.fromkeys([*preview.columns, *preview.choices]))
    used = replace(choices, shown_kind=preview.kind, shown_roles=dict(preview.roles), shown_columns=columns)
    return used, preview


def _render_problem(error: Exception, candidates: Sequence[Candidate], encoding: str) -> Node:
    message = events.user_message(error)
    if candidates and isinstance(error, StudioError):
        message = f"{error.what} Choose below how it is read."  # the candidates stand there with their lines
    return views.render_problem(message, candidates, encoding)


def find_candidates(paths: Sequence[str]) -> list[Candidate]:
    """The encodings of the first text file that is not UTF-8 and does not say its own; [] without one."""
    for folder in paths:
        for path in sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in TEXT_SUFFIXES)[:FILES]:
            if not _is_clear(path):
                return list_candidates(path)
    return []


def _is_clear(path: Path) -> bool:
    """Whether a file identifies its encoding or is UTF-8 from its beginning to its end."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    with open(path, "rb") as file:
        if choose_codec(file, "utf-8")[1]:
            return True
        try:
            while block := file.read(1 << 20):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _purpose(held_out: bool) -> str:
    return "evaluation" if held_out else "training"


def _no_import(reason: str = "") -> tuple[Any, Node | None]:
    """The import button while nothing can be imported, and the hint below it."""
    return gr.update(interactive=False), node("p", reason, cls="quiet") if reason else None
