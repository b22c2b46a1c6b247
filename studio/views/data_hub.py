"""Views of a dataset of the Hub before its import: its configurations and splits, and its first rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.data.formats.hub_heads import HEAD_ROWS
from studio import formatting
from studio.reading_choices import Choices
from studio.tree import Node, button, node, title
from studio.views import data_preview

NAME_LIMIT = 300  # configurations and splits that are listed
WHOLE = "The import reads and checks all rows."


def render_choice(groups: Mapping[str, Sequence[str]], config: str, split: str) -> Node:
    """Pickers for the configuration and the split, and a button that closes the preview.

    Args:
        groups: configuration to the names of its splits.
        config, split: "" if the user has to choose.
    """
    pickers = []
    if len(groups) > 1:
        pickers.append(_render_picker("Configuration", "config", list(groups), config))
    if config and len(groups[config]) > 1:
        pickers.append(_render_picker("Split", "split", list(groups[config]), split))
    close = button("Close the preview", {"do": "close"})
    return node("div", *pickers, close, cls="hub-choice row")


def _render_picker(label: str, do: str, names: Sequence[str], present: str) -> Node:
    options = [node("option", "Choose one", value="", selected="selected")] if not present else []
    options += [
        node("option", name, value=name, selected="selected" if name == present else None)
        for name in names[:NAME_LIMIT]
    ]
    select = node("select", *options, cls="role", act={"do": do}, aria_label=label)
    return node("label", node("span", label), select)


def render_hub_problem(hub_id: str, head: Node, problem: str) -> Node:
    """Why the first rows are missing; without a problem, what has to be chosen first."""
    if problem:
        said = node("p", problem, cls="problem", role="alert")
    else:
        said = node("p", "This dataset has several parts. Choose the one to import.", cls="ask")
    return node("div", title(f"Preview of {hub_id}", "Nothing is imported yet."), head, said)


def render_hub_preview(hub_id: str, head: Node, preview: Any, choices: Choices) -> Node:
    """The first rows, with a role picker for each column, as for dropped files."""
    first = f"The first {formatting.count(preview.total, 'row')}. " if preview.total >= HEAD_ROWS else ""
    scope = f"{first}Nothing is imported yet."
    sample = replace(preview, split_shares={}, notes=[WHOLE, *preview.notes] if first else preview.notes)
    return data_preview.render_preview(sample, scope, choices, name=hub_id, head=head)
