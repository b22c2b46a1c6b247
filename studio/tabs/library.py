"""The Library tab: inspect, rename, delete and restore adapters, runs, datasets, mixes and reports."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import InvalidName, NotFound, SpecError
from core.spec.access import Role
from studio import events, formatting, labels, mix_choices
from studio.components import damaged, field_errors
from studio.tabs import adapter_import, calibration, exports
from studio.tabs.adapter_import import AdapterImport
from studio.tabs.calibration import CalibrationForm
from studio.tabs.exports import ExportForm
from studio.tree import Node, node, skeleton, view
from studio.views import library as views
from studio.views import trash as trash_views

KINDS = [
    ("Adapters", "adapters"),
    ("Runs", "runs"),
    ("Datasets", "datasets"),
    ("Mixes", "mixes"),
    ("Reports", "reports"),
]
TRASH = "trash"  # is shown like a kind
ASK = "ask"  # in place of a selected entry: the page asks whether to empty the trash
RENAMABLE = ("adapters", "datasets", "mixes", "runs")


@dataclass
class Selection:
    """What one visitor looks at, as of the newest event of theirs that has begun.

    Gradio reads the inputs of an event when it fires. A list that is drawn again after a change somewhere
    else would therefore show what was selected then, and close what the visitor has opened since.
    """

    kind: str = "adapters"
    picked: str = ""
    events: int = 0  # that have begun


@dataclass(frozen=True)
class LibraryTab:
    """The components of the Library tab; `confirmation` holds what follows it."""

    adapter_import: AdapterImport
    exports: ExportForm
    kind: gr.Radio
    shelf: gr.HTML
    damaged: gr.HTML
    picked: gr.State
    selection: gr.State
    details: gr.HTML
    tools: gr.Column
    name: gr.Textbox
    errors: field_errors.FieldErrors
    rename: gr.Button
    delete: gr.Button
    confirmation: gr.Column
    question: gr.HTML
    confirm: gr.Button
    cancel: gr.Button
    calibration: CalibrationForm


def build(engine: Engine) -> LibraryTab:
    """Makes the components."""
    imports = adapter_import.build()
    export_form = exports.build(engine)
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=5, min_width=300, elem_classes="card"):
            kind = gr.Radio(
                [*KINDS, ("Trash", TRASH)], value="adapters", label="Show", elem_classes="segments"
            )
            shelf = view(skeleton(5, "Loading the list"), elem_id="shelf")
            damaged_items = damaged.damaged_list()
        with gr.Column(scale=7, min_width=320, elem_classes="card"):
            details = view(views.NOTHING_SELECTED, elem_id="details")
            with gr.Column(visible=False) as tools, gr.Row(elem_classes="save-row"):
                name = gr.Textbox(label="Name", max_length=120, scale=3, min_width=140)
                rename = gr.Button("Rename", size="md", scale=1, min_width=90)
                delete = gr.Button("Delete", size="md", variant="stop", scale=1, min_width=80)
            errors = field_errors.field_errors({"name": name})
            with gr.Column(visible=False) as confirmation:
                question = view(elem_id="delete-question")
                with gr.Row():
                    confirm = gr.Button("Yes, delete it", variant="stop")
                    cancel = gr.Button("Keep it")
            gate_form = calibration.build()
    picked = gr.State("")
    buttons = (errors, rename, delete, confirmation, question, confirm, cancel)
    shown = (kind, shelf, damaged_items, picked, gr.State(Selection()), details, tools, name)
    return LibraryTab(imports, export_form, *shown, *buttons, gate_form)


def wire(tab: LibraryTab, engine: Engine, library_changed: events.EventGroup) -> None:
    """Connects the events."""
    adapter_import.wire(tab.adapter_import, engine)
    inputs = [tab.kind, tab.picked]
    tracked = [*inputs, tab.selection]
    outputs = [tab.shelf, tab.picked, tab.details, tab.tools, tab.name, tab.rename, tab.confirmation]
    library_changed.then(follow_changes, [tab.selection], outputs)
    damaged.wire(tab.damaged, engine, library_changed)
    picking = [
        events.bind(tab.kind.input, engine, _track(refresh), tracked, outputs),
        events.bind(tab.shelf.act, engine, _track(pick_item), tracked, outputs),
        events.bind(tab.details.act, engine, _track(act_on_item), tracked, outputs),
        events.bind(tab.confirm.click, engine, _track(delete_item), tracked, outputs),
    ]
    calibration.wire(tab.calibration, engine, library_changed, tab.kind, tab.picked, picking)
    for event in picking[1:]:
        events.refresh_after(event)
    renamed = events.bind(
        tab.rename.click, engine, _track(rename_item), [*tracked, tab.name], outputs, errors=tab.errors
    )
    events.refresh_after(renamed)
    field_errors.wire(tab.errors, engine)
    events.bind(tab.delete.click, engine, confirm_delete, inputs, [tab.confirmation, tab.question])
    events.bind(tab.cancel.click, engine, cancel_delete, None, [tab.confirmation])


def _track(fn: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """The handler `fn(engine, kind, picked, *rest)` as one that takes the visitor's selection after `picked`
    and keeps it up to date."""

    @functools.wraps(fn)
    def call(engine: Engine, kind: str, picked: str, selection: Selection, *rest: Any) -> tuple[Any, ...]:
        selection.kind, selection.events = kind, selection.events + 1
        shown = fn(engine, kind, picked, *rest)
        selection.picked = shown[1]
        return shown

    parameters = list(inspect.signature(fn).parameters.values())
    parameters.insert(3, inspect.Parameter("selection", inspect.Parameter.POSITIONAL_OR_KEYWORD))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def follow_changes(engine: Engine, selection: Selection) -> tuple[Any, ...]:
    """Updates the list and the details after a change in the library.

    What the visitor has opened or typed stays, such as a question before a deletion, unless the selected item
    is not there any more.
    """
    while True:
        now = (selection.kind, selection.picked, selection.events)
        shelf, picked, details, *rest = refresh(engine, selection.kind, selection.picked)
        if now != (selection.kind, selection.picked, selection.events):
            continue
        if picked == selection.picked:
            return shelf, gr.skip(), details if picked else gr.skip(), *(gr.skip() for _ in rest)
        selection.picked = picked
        return shelf, picked, details, *rest


def refresh(engine: Engine, kind: str, picked: str) -> tuple[Any, ...]:
    """Updates the list of one kind; the details stay open while the item exists."""
    if kind == TRASH:
        return _refresh_trash(engine, picked)
    items = list_items(engine, kind)
    item = next((i for i in items if i.id == picked), None)
    names = collect_names(engine)
    shelf = views.render_shelf(kind, items, picked if item else "", engine.library.disk_usage(), names)
    hidden, visible = gr.update(visible=False), gr.update(visible=True)
    if item is None:
        # Without a selection, the details may offer to undo a deletion.
        details = views.NOTHING_SELECTED if picked else gr.skip()
        return shelf, "", details, hidden, "", gr.skip(), hidden
    is_renamable = kind in RENAMABLE
    name = gr.update(value=getattr(item, "name", ""), visible=is_renamable)
    rename = gr.update(visible=is_renamable)
    return shelf, picked, views.render_details(kind, item, names), visible, name, rename, hidden


def _refresh_trash(engine: Engine, picked: str) -> tuple[Any, ...]:
    items = engine.library.trash()
    item = next((i for i in items if i.entry == picked), None)
    asks = picked == ASK and bool(items)
    shelf = trash_views.render_trash(items, picked, engine.library.disk_usage(), asks)
    details = views.NOTHING_SELECTED if picked and not asks else gr.skip()
    if item:
        details = trash_views.render_trash_item(item)
    hidden = gr.update(visible=False)
    return shelf, picked if item or asks else "", details, hidden, "", gr.skip(), hidden


def pick_item(engine: Engine, kind: str, picked: str, event: gr.EventData) -> tuple[Any, ...]:
    """Shows the pressed item of the list, or empties the trash after a confirmation."""
    action = event._data or {}
    if kind == TRASH and action.get("do") == "empty":
        events.require_role(Role.OWNER)
        count = formatting.count(engine.library.empty_trash(), "item")
        gr.Info(f"Deleted {count} for good.", title="Done")
        shelf, picked, _, *rest = _refresh_trash(engine, "")
        return shelf, picked, views.NOTHING_SELECTED, *rest
    if kind == TRASH and action.get("do") == "ask_empty":
        return _refresh_trash(engine, ASK)
    if kind == TRASH and action.get("do") == "keep":
        return _refresh_trash(engine, "")
    return refresh(engine, kind, str(action.get("pick", picked)))


def act_on_item(engine: Engine, kind: str, picked: str, event: gr.EventData) -> tuple[Any, ...]:
    """Runs the pressed button of the details: restores a deleted item, or verifies an adapter.

    The button that exports an adapter is bound in `studio.tabs.exports`.
    """
    action = event._data or {}
    if action.get("do") == "restore":
        events.require_role(Role.OWNER)
        return restore_item(engine, kind, str(action.get("entry", "")))
    shelf, picked, details, *rest = refresh(engine, kind, picked)
    if action.get("do") == "verify" and kind == "adapters" and picked:
        details = verify_adapter(engine, kind, picked)
    return shelf, picked, details, *rest


def restore_item(engine: Engine, kind: str, entry: str) -> tuple[Any, ...]:
    """Undoes a deletion. In the list of its kind, the item is selected again."""
    item = engine.library.restore(entry)
    shown = refresh(engine, kind, item.id if kind == item.kind else "")
    if kind == item.kind:
        return shown
    shelf, picked, _, *rest = shown
    return shelf, picked, trash_views.render_restoration(item), *rest


def verify_adapter(engine: Engine, kind: str, picked: str) -> Node:
    """Verifies an adapter's files and shows what was checked."""
    checks = views.render_checks(engine.library.verify(picked))
    details = views.render_details(kind, engine.library.adapter(picked), collect_names(engine))
    return node("div", details, checks)


def rename_item(engine: Engine, kind: str, picked: str, name: str) -> tuple[Any, ...]:
    """Changes an item's display name; its id stays. What is wrong with the name stands at its field."""
    try:
        engine.library.rename(kind, picked, name)
    except (SpecError, InvalidName) as e:
        e.at("name")
        raise
    return refresh(engine, kind, picked)


def confirm_delete(engine: Engine, kind: str, picked: str) -> tuple[Any, Node]:
    """Asks for confirmation before an item is deleted, and names what uses it."""
    item = _find_item(engine, kind, picked)
    name = views.title_of(kind, item, collect_names(engine))
    return gr.update(visible=True), views.render_question(name, engine.library.uses(kind, picked))


def _find_item(engine: Engine, kind: str, picked: str) -> Any:
    """The selected item. Raises NotFound."""
    item = next((i for i in list_items(engine, kind) if i.id == picked), None)
    if item is None:
        raise NotFound("Nothing is selected.", "Select an item in the list first.")
    return item


def cancel_delete(engine: Engine) -> Any:
    """Hides the confirmation."""
    return gr.update(visible=False)


def delete_item(engine: Engine, kind: str, picked: str) -> tuple[Any, ...]:
    """Moves an item to the trash, and offers to undo that.

    Raises:
        NotFound: no item is selected.
    """
    if not picked:
        raise NotFound("Nothing is selected.", "Select an item in the list first.")
    item = engine.library.delete(kind, picked)
    shelf, picked, _, *rest = refresh(engine, kind, "")
    return shelf, picked, trash_views.render_undo(item), *rest


def list_items(engine: Engine, kind: str) -> list[Any]:
    """All items of a kind, newest first."""
    lists: dict[str, Callable[[], Sequence[Any]]] = {
        "adapters": engine.library.adapters,
        "runs": engine.runs.list,
        "datasets": engine.datasets.list,
        "mixes": engine.library.mixes,
        "reports": engine.evaluation.reports,
    }
    return sorted(lists[kind](), key=lambda i: float(i.created), reverse=True)


def collect_names(engine: Engine) -> views.Names:
    """How adapters, datasets, runs and mixes are called now."""
    return views.Names(
        engine.library.labels(),
        labels.label_datasets(engine.datasets.list()),
        labels.label_runs(engine.runs.list()),
        {c["id"]: c["name"] for c in mix_choices.list_choices(engine)},
    )
