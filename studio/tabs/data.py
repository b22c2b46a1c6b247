"""The Data tab: files become a dataset, which is shown down to its tokens.

`core/data` reads, splits and encodes the files; `studio/tabs/data_import.py` previews and imports them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import StudioError
from core.spec.access import Role
from studio import events, fields, formatting
from studio.components import damaged, drop, field_errors, imports, inspection
from studio.components.field_errors import FieldErrors
from studio.reading_choices import Choices
from studio.tabs import data_derive, data_hub, data_import
from studio.tree import Node, node, skeleton, title, view
from studio.views import data as views

KINDS = [(label, kind) for kind, label in views.KIND_NAMES.items()]
PENDING = -1  # the index of the shown example while the base still loads
FOR_TRAINERS = "The rows of a dataset are shown to trainers and owners only."
HELD_OUT = "Every row becomes test data: nothing is trained on it, and Evaluate offers it first."


@dataclass(frozen=True)
class DataTab:
    """The components of the Data tab; those up to `forms` are about new files."""

    files: gr.HTML
    kind: gr.Radio
    name: gr.Textbox
    held_out: gr.Checkbox
    add: gr.Button
    hint: gr.HTML
    errors: FieldErrors
    imports: gr.HTML
    hub: data_hub.HubForm
    forms: imports.Forms
    choices: gr.State
    picker: gr.Dropdown
    damaged: gr.HTML
    split: gr.Radio
    preview: gr.HTML
    page: gr.HTML
    hub_preview: gr.HTML
    dataset: gr.HTML
    inspection: gr.HTML
    rows: gr.HTML
    example: gr.HTML
    note: gr.Textbox
    extras: gr.HTML
    partners: gr.Dropdown
    merge: gr.Button
    example_index: gr.State


def build(engine: Engine) -> DataTab:
    """Makes the components."""
    forms = imports.Forms()
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=4, min_width=300, elem_classes="card"):
            view(title("Add data"))
            files = drop.drop_area(engine)
            with gr.Column(elem_classes="import-settings"):
                kind = gr.Radio(
                    KINDS, label="Kind", value="domain", info="Detected; change it if it is wrong."
                )
                name = gr.Textbox(label="Dataset name", max_length=120)
                held_out = gr.Checkbox(label="For evaluation only", info=HELD_OUT)
                add = gr.Button("Import the files", variant="primary", interactive=False)
                hint = view(None, elem_id="import-hint")
            errors = field_errors.field_errors({"name": name})
            running = imports.imports(engine, forms)
            hub = data_hub.build()
        with gr.Column(scale=8, min_width=320, elem_classes="card"):
            preview = view(None, elem_id="preview")
            page = view(None, elem_id="first-page")
            hub_preview = data_hub.build_preview()
            # The style sheet hides it while files are previewed: Gradio (6.31) may lose an update of
            # `visible` that arrives while the page is still being built.
            with gr.Column(elem_id="dataset"):
                picker = fields.picker("Dataset")
                damaged_items = damaged.damaged_list("datasets")
                dataset = view(views.NO_DATASET)
                inspected = inspection.inspection(engine)
                splits = [(label, name) for name, label in views.SPLITS.items()]
                split = gr.Radio(splits, value="train", label="Rows", elem_classes="with-dataset")
                rows = view(None)
                example = view(elem_id="tokens")
                more = gr.Accordion(
                    "Note, download, merge", open=False, elem_classes="quiet-fold with-dataset"
                )
                with more:
                    note = gr.Textbox(
                        label="Note", placeholder="What this data is, and where it comes from", lines=2
                    )
                    extras = view(None)
                    with gr.Row(elem_classes="save-row"):
                        partners = fields.picker("Merge with", multiselect=True, scale=3)
                        merge = gr.Button("Make a merged dataset", scale=1, min_width=190)
    return DataTab(
        files,
        kind,
        name,
        held_out,
        add,
        hint,
        errors,
        running,
        hub,
        forms,
        gr.State(Choices()),
        picker,
        damaged_items,
        split,
        preview,
        page,
        hub_preview,
        dataset,
        inspected,
        rows,
        example,
        note,
        extras,
        partners,
        merge,
        gr.State(0),
    )


def wire(tab: DataTab, engine: Engine, library_changed: events.EventGroup) -> None:
    """Connects the events."""
    data_import.wire(tab, engine)
    data_derive.wire(tab, engine)
    data_hub.wire(tab.hub, engine, tab.hub_preview, tab.imports)
    shown = [tab.dataset, tab.inspection, tab.split, tab.rows, tab.note, tab.extras, tab.partners]
    events.bind_sequential(tab.picker.change, engine, show_dataset, [tab.picker], shown)
    events.bind_sequential(tab.split.input, engine, show_rows, [tab.picker, tab.split], [tab.rows])
    # The example has events of its own, because encoding waits for the model's thread.
    example = [tab.example, tab.example_index]
    events.bind_sequential(tab.picker.change, engine, show_example, [tab.picker], example)
    library_changed.then(show_pending_example, [tab.picker, tab.example_index], example)
    events.bind(tab.example.act, engine, show_next_example, [tab.picker, tab.example_index], example)
    library_changed.add(refresh, [tab.picker], [tab.picker])
    library_changed.then("() => { window.dispatchEvent(new Event('studio:library')); }")
    damaged.wire(tab.damaged, engine, library_changed, "datasets")


def list_choices(engine: Engine) -> list[tuple[str, str]]:
    """The datasets as choices of a picker, newest first; those of one name show their time and rows."""
    datasets = list(reversed(engine.datasets.list()))
    names = [d.name for d in datasets]
    choices = []
    for dataset in datasets:
        label = dataset.name
        if names.count(label) > 1:
            rows = formatting.count(dataset.rows, "row")
            label = f"{label} ({formatting.format_time(dataset.created)}, {rows})"
        choices.append((label, dataset.id))
    labels = [label for label, _ in choices]
    return [(f"{n} [{i[-4:]}]" if labels.count(n) > 1 else n, i) for n, i in choices]


def refresh(engine: Engine, picked: str | None) -> Any:
    """Updates the picker's choices; the picked dataset stays picked while it exists."""
    choices = list_choices(engine)
    ids = [value for _, value in choices]
    value = picked if picked in ids else next(iter(ids), None)
    return fields.update_choices(choices, value, picked)


def show_dataset(engine: Engine, picked: str | None) -> tuple[Any, ...]:
    """Shows a dataset: its facts, and to trainers the rows of its first split that has any."""
    if not picked:
        return views.NO_DATASET, None, gr.skip(), None, "", None, gr.skip()
    dataset = engine.datasets.get(picked)
    split = next((s for s in views.SPLITS if dataset.splits.get(s)), "train")
    choices = [(f"{label} ({dataset.splits.get(s, 0):,})", s) for s, label in views.SPLITS.items()]
    names = {d.id: d.name for d in engine.datasets.list()} if dataset.parents else {}
    shown = views.render_dataset(dataset, names)
    splits = gr.update(choices=choices, value=split)
    if events.find_caller().role < Role.TRAINER:
        return shown, None, splits, node("p", FOR_TRAINERS, cls="quiet"), "", None, gr.skip()
    partners = gr.update(choices=data_derive.list_partners(engine, dataset), value=[])
    more = (dataset.note, data_derive.render_extras(picked), partners)
    return shown, {"dataset": picked}, splits, show_rows(engine, picked, split), *more


def show_rows(engine: Engine, picked: str | None, split: str) -> Node | None:
    """Shows the first rows of a split."""
    if not picked:
        return None
    rows = engine.datasets.rows(picked, split, limit=views.PREVIEW_ROWS)
    return views.render_split(engine.datasets.get(picked), split, rows)


def show_example(engine: Engine, picked: str | None) -> Any:
    """Shows the first training example as tokens, and grey lines until they are known."""
    if not picked:
        yield None, 0
        return
    yield skeleton(3, "The tokens of an example are being read"), 0
    yield _render_example(engine, picked, 0), PENDING if engine.bases.current().loading else 0


def show_pending_example(engine: Engine, picked: str | None, index: int) -> tuple[Any, ...]:
    """Shows the first example if the base was still loading when it was due."""
    if index != PENDING or not picked:
        return gr.skip(), gr.skip()
    return _render_example(engine, picked, 0), PENDING if engine.bases.current().loading else 0


def show_next_example(engine: Engine, picked: str | None, index: int) -> tuple[Any, ...]:
    """Shows the next training example as tokens."""
    if not picked:
        return None, 0
    splits = engine.datasets.get(picked).splits
    following = (index + 1) % max(1, splits.get("train") or splits.get("test", 1))
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
