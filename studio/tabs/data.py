"""The Data tab: files become a dataset, which is shown down to its tokens.

`core/data` reads, splits and encodes the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.data.columns import ROLE_SETS
from core.data.columns import ROLES as ROLES_OF
from core.data.datasets import Preview
from core.data.readers import SUFFIXES
from core.engine import Engine
from core.errors import DataError, StudioError
from studio import events, fields
from studio.components import damaged
from studio.tree import Node, title, view
from studio.views import data as views

ROLES = tuple(dict.fromkeys(r for roles in ROLES_OF.values() for r in roles))
ENCODINGS = [
    ("UTF-8", "utf-8"),
    ("Latin-1 (Western European)", "latin-1"),
    ("Windows-1252", "cp1252"),
    ("UTF-16", "utf-16"),
]
KINDS = [(label, kind) for kind, label in views.KIND_NAMES.items()]
PENDING = -1  # the index of the shown example while the base still loads


@dataclass(frozen=True)
class DataTab:
    """The components of the Data tab; `settings` is the accordion of what follows it up to `name`."""

    files: gr.File
    settings: gr.Accordion
    kind: gr.Radio
    encoding: gr.Dropdown
    roles: dict[str, gr.Dropdown]
    name: gr.Textbox
    add: gr.Button
    picker: gr.Dropdown
    damaged: gr.HTML
    split: gr.Radio
    preview: gr.HTML
    dataset: gr.HTML
    example: gr.HTML
    example_index: gr.State


def build() -> DataTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=4, min_width=300, elem_classes="card"):
            view(title("Add data", "Files stay on this machine."))
            files = gr.File(
                label="Files", file_count="multiple", file_types=list(SUFFIXES), height=150, elem_id="files"
            )
            with gr.Accordion("Import settings", open=True, visible=False) as settings:
                kind = gr.Radio(
                    KINDS,
                    label="Kind",
                    value="domain",
                    info="Detected from the files; change it if it is wrong.",
                )
                with gr.Row():
                    roles = {
                        r: fields.picker(f"{r.capitalize()} column", visible=False, min_width=130)
                        for r in ROLES
                    }
                encoding = gr.Dropdown(ENCODINGS, value="utf-8", label="Encoding")
                name = gr.Textbox(label="Dataset name", max_length=120)
            add = gr.Button("Import the files", variant="primary", interactive=False)
        with gr.Column(scale=8, min_width=320, elem_classes="card"):
            splits = [(label, name) for name, label in views.SPLITS.items()]
            with gr.Row():
                picker = fields.picker("Dataset", scale=3)
                split = gr.Radio(splits, value="train", label="Split", scale=2, min_width=220)
            damaged_items = damaged.damaged_list("datasets")
            preview = view(None, elem_id="preview")
            dataset = view(views.NO_DATASET, elem_id="dataset")
            example = view(elem_id="tokens")
    return DataTab(
        files,
        settings,
        kind,
        encoding,
        roles,
        name,
        add,
        picker,
        damaged_items,
        split,
        preview,
        dataset,
        example,
        gr.State(0),
    )


def wire(tab: DataTab, engine: Engine, library_changed: events.EventGroup) -> None:
    """Connects the events."""
    roles = list(tab.roles.values())
    reading = [tab.preview, tab.add, *roles]
    dataset = [tab.dataset, tab.example]
    events.bind(
        tab.files.change,
        engine,
        read_files,
        [tab.files, tab.encoding],
        [tab.settings, tab.kind, tab.name, *dataset, *reading],
    )
    for control in (tab.kind, tab.encoding):
        events.bind(control.input, engine, preview_files, [tab.files, tab.kind, tab.encoding], reading)
    inputs = [tab.files, tab.kind, tab.encoding, *roles]
    for role in roles:
        events.bind(role.input, engine, preview_roles, inputs, [tab.preview, tab.add])
    form = [tab.files, tab.kind, tab.encoding, tab.name, *roles]
    events.refresh_after(
        events.bind(
            tab.add.click, engine, import_files, form, [tab.files, tab.picker], show_progress="minimal"
        )
    )
    events.bind_sequential(
        events.any_of((tab.picker.change, tab.split.change)),
        engine,
        show_dataset,
        [tab.picker, tab.split],
        [tab.dataset],
    )
    # The example has events of its own, because encoding waits for the model's thread.
    example = [tab.example, tab.example_index]
    events.bind_sequential(tab.picker.change, engine, show_example, [tab.picker], example)
    events.bind(tab.picker.input, engine, unhide_dataset, None, dataset)
    library_changed.then(show_pending_example, [tab.picker, tab.example_index], example)
    events.bind(tab.example.act, engine, show_next_example, [tab.picker, tab.example_index], example)
    library_changed.add(refresh, [tab.picker], [tab.picker])
    damaged.wire(tab.damaged, engine, library_changed, "datasets")


def refresh(engine: Engine, picked: str | None) -> Any:
    """Updates the picker's choices; the picked dataset stays picked while it exists."""
    datasets = list(reversed(engine.datasets.list()))
    ids = [d.id for d in datasets]
    value = picked if picked in ids else next(iter(ids), None)
    return fields.update_choices([(d.name, d.id) for d in datasets], value, picked)


def read_files(engine: Engine, files: list[str] | None, encoding: str) -> tuple[Any, ...]:
    """Shows a preview of the dropped files, with their detected kind, in the place of the dataset.

    When the files are removed, the dataset is shown again.
    """
    # Hidden, so that a dataset that arrives late does not cover the preview.
    dataset = (gr.update(visible=not files), gr.update(visible=not files))
    if not files:
        return gr.update(visible=False), gr.skip(), "", *dataset, *_no_preview()
    name = _stem(files[0])
    try:
        preview = engine.datasets.preview(files, encoding=encoding)
    except DataError as e:
        problem = views.render_problem(events.user_message(e))
        return gr.update(visible=True), "domain", name, *dataset, problem, *_no_preview()[1:]
    return gr.update(visible=True), preview.kind, name, *dataset, *_show_preview(preview, files)


def preview_files(engine: Engine, files: list[str] | None, kind: str, encoding: str) -> tuple[Any, ...]:
    """Reads the dropped files as a kind and in an encoding, and detects the role of each column."""
    if not files:
        return _no_preview()
    try:
        preview = engine.datasets.preview(files, kind=kind, encoding=encoding)
    except DataError as e:
        return views.render_problem(events.user_message(e)), *_no_preview()[1:]
    return _show_preview(preview, files)


def _show_preview(preview: Preview, files: list[str]) -> tuple[Any, ...]:
    """Shows a preview, and the role of each column in the pickers."""
    visible = _visible_roles(preview.kind, preview.roles)
    pickers = [
        gr.update(
            choices=[("(none)", ""), *[(c, c) for c in preview.choices]],
            value=preview.roles.get(r, ""),
            visible=r in visible,
        )
        for r in ROLES
    ]
    return views.render_preview(preview, files), gr.update(interactive=not preview.problem), *pickers


def preview_roles(
    engine: Engine, files: list[str] | None, kind: str, encoding: str, *columns: str
) -> tuple[Any, ...]:
    """Reads the dropped files with the columns that the user chose."""
    try:
        preview = engine.datasets.preview(files or [], kind=kind, roles=_roles(columns), encoding=encoding)
    except DataError as e:
        return views.render_problem(events.user_message(e)), gr.update(interactive=False)
    return views.render_preview(preview, files or []), gr.update(interactive=not preview.problem)


def import_files(
    engine: Engine, files: list[str] | None, kind: str, encoding: str, name: str, *columns: str
) -> tuple[Any, ...]:
    """Makes a dataset of the dropped files and picks it."""
    if not files:
        raise DataError("No files to import.", "Drop files into the Files box first.")
    dataset = engine.datasets.import_files(
        files, name or _stem(files[0]), kind=kind, roles=_roles(columns) or None, encoding=encoding
    )
    left_out = f" {dataset.left_out:,} left out." if dataset.left_out else ""
    gr.Info(f"Imported {dataset.rows:,} rows.{left_out}", title="Done")
    choices = [(d.name, d.id) for d in reversed(engine.datasets.list())]
    return None, gr.update(choices=choices, value=dataset.id)


def show_dataset(engine: Engine, picked: str | None, split: str) -> Node:
    """Shows a dataset: facts, split sizes and rows."""
    if not picked:
        return views.NO_DATASET
    rows = engine.datasets.rows(picked, split, limit=views.PREVIEW_ROWS)
    return views.render_dataset(engine.datasets.get(picked), split, rows)


def unhide_dataset(engine: Engine) -> tuple[Any, Any]:
    """Shows the dataset and its example again, below files that are not imported yet."""
    return gr.update(visible=True), gr.update(visible=True)


def show_example(engine: Engine, picked: str | None) -> tuple[Any, ...]:
    """Shows the first training example as tokens."""
    if not picked:
        return None, 0
    return _render_example(engine, picked, 0), PENDING if engine.bases.current().loading else 0


def show_pending_example(engine: Engine, picked: str | None, index: int) -> tuple[Any, ...]:
    """Shows the first example if the base was still loading when it was due."""
    return show_example(engine, picked) if index == PENDING else (gr.skip(), gr.skip())


def show_next_example(engine: Engine, picked: str | None, index: int) -> tuple[Any, ...]:
    """Shows the next training example as tokens."""
    if not picked:
        return None, 0
    following = (index + 1) % max(1, engine.datasets.get(picked).splits.get("train", 1))
    return _render_example(engine, picked, following), following


def _render_example(engine: Engine, picked: str, index: int) -> Node:
    if engine.bases.current().loading:
        return views.render_example(
            None, "The base model is still loading. The tokens appear here when it is ready."
        )
    try:
        return views.render_example(engine.datasets.example_tokens(picked, index))
    except StudioError as e:
        return views.render_example(None, events.user_message(e))


def _stem(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0][:120] or "Data"


def _roles(columns: tuple[str, ...]) -> dict[str, str]:
    return {role: column for role, column in zip(ROLES, columns, strict=False) if column}


def _visible_roles(kind: str, roles: dict[str, str]) -> set[str]:
    """The roles to show: those of the detected layout, or the usual ones of the kind."""
    layouts = [s for s in ROLE_SETS if s.kind == kind and set(s.required) <= set(roles)]
    if layouts:
        return set(layouts[0].required + layouts[0].optional)
    return {"text"} if kind == "domain" else {"question", "answer", "context", "prompt", "completion"}


def _no_preview() -> tuple[Any, ...]:
    return None, gr.update(interactive=False), *[gr.update(visible=False) for _ in ROLES]
