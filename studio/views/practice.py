"""What the embedded base can learn and what it cannot, in one sentence."""

from __future__ import annotations

from typing import Any

from core.engine.resident_base import DEFAULT_BASE
from studio.tree import Node, button, node

TEXT = "Practice base with a small invented language: facts and style can be learned, real English cannot."


def practice_base_note(base: Any) -> Node | None:
    """The sentence with a button that opens the Base tab; None where another base is in use.

    Args:
        base: `core.engine.resident_base.BaseInfo`.
    """
    if base.name != DEFAULT_BASE:
        return None
    choose = button("Choose a real base", {"do": "tab", "tab": "base"}, "link")
    return node("p", node("span", f"{TEXT} "), choose, cls="practice")
