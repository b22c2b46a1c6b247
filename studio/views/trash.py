"""Views of the trash on the Library tab: deleted items, their restoration, and emptying it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.store.trash import TrashedItem
from core.store.workspace import SINGULAR
from studio import formatting
from studio.tree import Node, button, chip, empty, facts, node


def render_trash(items: Sequence[TrashedItem], picked: str, disk: Mapping[str, int], asks: bool) -> Node:
    """The list of deleted items, with what they use of the disk.

    Args:
        picked: the entry of the selected item; "" for none.
        disk: `trash_bytes` and `free_bytes`.
        asks: ask for confirmation before the trash is emptied.
    """
    if not items:
        return node("div", empty("The trash is empty", "Deleted items can be restored here."))
    empty_button = node("div", button("Empty the trash", {"do": "ask_empty"}, "danger"), cls="row")
    size, free = formatting.format_bytes(disk["trash_bytes"]), formatting.format_bytes(disk["free_bytes"])
    return node(
        "div",
        node("div", *[_shelf_item(i, i.entry == picked) for i in items], cls="shelf"),
        node("p", f"{size} in the trash, {free} free on this disk", cls="quiet"),
        _ask(len(items)) if asks else empty_button,
    )


def _ask(count: int) -> Node:
    number, keep = ("this item", "Keep it") if count == 1 else (f"these {count} items", "Keep them")
    return node(
        "div",
        node("p", f"Delete {number} for good? This cannot be undone.", cls="problem"),
        node(
            "div",
            button("Yes, empty it", {"do": "empty"}, "danger"),
            button(keep, {"do": "keep"}),
            cls="row",
        ),
    )


def _shelf_item(item: TrashedItem, is_picked: bool) -> Node:
    deleted = f"{formatting.format_bytes(item.bytes)} · deleted {formatting.format_time(item.deleted)}"
    return node(
        "button",
        node("span", node("strong", item.name), chip(_kind(item)), cls="row"),
        node("span", deleted, cls="quiet"),
        cls="shelf-item picked" if is_picked else "shelf-item",
        act={"pick": item.entry},
        aria_pressed="true" if is_picked else "false",
    )


def render_trash_item(item: TrashedItem) -> Node:
    """A deleted item, with the button that restores it."""
    return node(
        "div",
        node("div", node("h2", item.name), chip(_kind(item)), cls="row"),
        facts(
            [
                ("Deleted", formatting.format_time(item.deleted)),
                ("Size", formatting.format_bytes(item.bytes)),
                ("Id", item.id),
            ]
        ),
        node("div", button("Restore", {"do": "restore", "entry": item.entry}, "primary"), cls="row"),
    )


def render_undo(item: TrashedItem) -> Node:
    """What follows a deletion: where the item is, and how to undo it."""
    return empty(
        f"{item.name} is in the trash",
        "It can be restored until the trash is emptied.",
        button("Undo", {"do": "restore", "entry": item.entry}),
    )


def render_restoration(item: TrashedItem) -> Node:
    """What follows a restoration."""
    return empty(f"{item.name} is restored", f"Select it in the list of {item.kind}.")


def _kind(item: TrashedItem) -> str:
    return SINGULAR.get(item.kind, item.kind)
