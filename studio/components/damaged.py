"""The damaged items of some kinds: each with its file, the reason and a Delete button. Empty without any.

The lists of the page leave such items out, so this component stands below them. One click deletes, because
an item can be restored from the trash.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from core.engine import Engine
from core.engine.damaged import WORKSPACE, describe_deletion
from core.store.records import Damaged
from core.store.workspace import SINGULAR
from studio import events
from studio.tree import Node, button, chip, node, view

ABOUT = "These cannot be read, so the lists leave them out. Everything else works as usual."
NAME_CHARACTERS = 60  # a map whose record is damaged has only its id, which is a sha256


def damaged_list(*kinds: str) -> gr.HTML:
    """Makes the component.

    Args:
        kinds: whose damaged items it shows; none means all, with the files that belong to no item.
    """
    return view(None, elem_id="damaged-" + ("-".join(kinds) or "all"))


def wire(panel: gr.HTML, engine: Engine, library_changed: events.EventGroup, *kinds: str) -> None:
    """Connects the events of a component with the same `kinds`."""

    def refresh_damaged(engine: Engine) -> Any:
        return render_damaged(engine.library.damaged(*kinds))

    def act_on_damaged(engine: Engine, event: gr.EventData) -> Any:
        delete_damaged(engine, event)
        return refresh_damaged(engine)

    library_changed.add(refresh_damaged, None, [panel])
    events.refresh_after(events.bind(panel.act, engine, act_on_damaged, None, [panel]))


def delete_damaged(engine: Engine, event: gr.EventData) -> None:
    """Deletes the item whose button was pressed."""
    action = event._data if isinstance(event._data, dict) else {}
    if action.get("do") != "delete_damaged":
        return
    kind, item_id = str(action.get("kind", "")), str(action.get("id", ""))
    engine.library.delete_damaged(kind, item_id)
    place = "" if kind == WORKSPACE else " It can be restored under Library, Trash."
    text = f"Deleted {describe_deletion(kind, item_id)}.{place}"
    gr.Info(events.escape_markup(text), title="Done")


def render_damaged(items: Sequence[Damaged]) -> Node | None:
    """The damaged items; None without any."""
    if not items:
        return None
    return node(
        "div",
        node("div", node("h3", "Damaged"), chip(str(len(items)), "bad"), cls="row"),
        node("p", ABOUT, cls="quiet"),
        node("ul", *[_render_item(item) for item in items], cls="queue", aria_label="Damaged"),
        cls="damaged",
    )


def _shorten(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS else f"{name[:12]} …"


def _render_item(item: Damaged) -> Node:
    delete = button(
        "Delete",
        {"do": "delete_damaged", "kind": item.kind, "id": item.id},
        "quiet danger",
        aria_label=f"Delete {item.name}",
    )
    kind = chip(SINGULAR.get(item.kind, "file"), "warn")
    about = node(
        "div",
        node("div", node("strong", _shorten(item.name)), kind, cls="row"),
        node("p", f"{item.file}: {item.reason}.", cls="quiet"),
        cls="queue-run",
    )
    return node("li", about, node("div", delete, cls="row push"), cls="queue-item")
