"""The Library tab: inspect, rename and delete adapters, runs, datasets, mixes and reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import NotFound
from studio import events
from studio.tree import Node, node, view
from studio.views import library as views

KINDS = [
    ("Adapters", "adapters"),
    ("Runs", "runs"),
    ("Datasets", "datasets"),
    ("Mixes", "mixes"),
    ("Reports", "reports"),
]
RENAMABLE = ("adapters", "datasets", "mixes")


@dataclass(frozen=True)
class LibraryTab:
    """The components of the Library tab; `confirmation` holds the last two buttons."""

    kind: gr.Radio
    shelf: gr.HTML
    picked: gr.State
    details: gr.HTML
    tools: gr.Column
    name: gr.Textbox
    rename: gr.Button
    delete: gr.Button
    confirmation: gr.Column
    confirm: gr.Button
    cancel: gr.Button


def build() -> LibraryTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=5, min_width=300, elem_classes="card"):
            kind = gr.Radio(KINDS, value="adapters", label="Show", elem_classes="segments")
            shelf = view(elem_id="shelf")
        with gr.Column(scale=7, min_width=320, elem_classes="card"):
            details = view(views.NOTHING_SELECTED, elem_id="details")
            with gr.Column(visible=False) as tools, gr.Row(elem_classes="save-row"):
                name = gr.Textbox(label="Name", max_length=120, scale=3, min_width=140)
                rename = gr.Button("Rename", size="md", scale=1, min_width=90)
                delete = gr.Button("Delete", size="md", variant="stop", scale=1, min_width=80)
            with gr.Column(visible=False) as confirmation:
                view(node("p", "Delete this item? This cannot be undone.", cls="problem"))
                with gr.Row():
                    confirm = gr.Button("Yes, delete it", variant="stop")
                    cancel = gr.Button("Keep it")
    picked = gr.State("")
    return LibraryTab(
        kind, shelf, picked, details, tools, name, rename, delete, confirmation, confirm, cancel
    )


def wire(tab: LibraryTab, engine: Engine, library_changed: events.EventGroup) -> None:
    """Connects the events."""
    inputs = [tab.kind, tab.picked]
    outputs = [tab.shelf, tab.picked, tab.details, tab.tools, tab.name, tab.rename, tab.confirmation]
    library_changed.add(refresh, inputs, outputs)
    events.bind(tab.kind.input, engine, refresh, inputs, outputs)
    events.bind(tab.shelf.act, engine, pick_item, inputs, outputs)
    events.bind(tab.details.act, engine, verify_adapter, inputs, [tab.details], show_progress="minimal")
    events.refresh_after(events.bind(tab.rename.click, engine, rename_item, [*inputs, tab.name], outputs))
    events.bind(tab.delete.click, engine, confirm_delete, None, [tab.confirmation])
    events.bind(tab.cancel.click, engine, cancel_delete, None, [tab.confirmation])
    events.refresh_after(events.bind(tab.confirm.click, engine, delete_item, inputs, outputs))


def refresh(engine: Engine, kind: str, picked: str) -> tuple[Any, ...]:
    """Updates the list of one kind; the details stay open while the item exists."""
    items = list_items(engine, kind)
    item = next((i for i in items if i.id == picked), None)
    shelf = views.render_shelf(kind, items, picked if item else "", engine.library.disk_usage())
    hidden, visible = gr.update(visible=False), gr.update(visible=True)
    if item is None:
        return shelf, "", views.NOTHING_SELECTED, hidden, "", gr.skip(), hidden
    is_renamable = kind in RENAMABLE
    name = gr.update(value=getattr(item, "name", ""), visible=is_renamable)
    rename = gr.update(visible=is_renamable)
    return shelf, picked, _render_details(engine, kind, item), visible, name, rename, hidden


def pick_item(engine: Engine, kind: str, picked: str, event: gr.EventData) -> tuple[Any, ...]:
    """Shows the pressed item of the list."""
    return refresh(engine, kind, str((event._data or {}).get("pick", picked)))


def verify_adapter(engine: Engine, kind: str, picked: str) -> Node:
    """Verifies an adapter's files and shows what was checked."""
    checks = views.render_checks(engine.library.verify(picked))
    return node("div", _render_details(engine, kind, engine.library.adapter(picked)), checks)


def rename_item(engine: Engine, kind: str, picked: str, name: str) -> tuple[Any, ...]:
    """Changes an item's display name; its id stays."""
    engine.library.rename(kind, picked, name)
    return refresh(engine, kind, picked)


def confirm_delete(engine: Engine) -> Any:
    """Asks for confirmation before an item is deleted."""
    return gr.update(visible=True)


def cancel_delete(engine: Engine) -> Any:
    """Hides the confirmation."""
    return gr.update(visible=False)


def delete_item(engine: Engine, kind: str, picked: str) -> tuple[Any, ...]:
    """Deletes an item.

    Raises:
        NotFound: no item is selected.
    """
    if not picked:
        raise NotFound("Nothing is selected.", "Select an item in the list first.")
    engine.library.delete(kind, picked)
    return refresh(engine, kind, "")


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


def _render_details(engine: Engine, kind: str, item: Any) -> Node:
    names = {a.id: a.name for a in engine.library.mixable_adapters()} if kind == "mixes" else {}
    return views.render_details(kind, item, names)
