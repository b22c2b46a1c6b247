"""The page's own JavaScript, style sheet and icon, as files. Knows how to read them; knows nothing of what they do."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
ICON = FOLDER / "icon.svg"


def asset(name: str) -> str:
    """The text of one of our page files, for example `"mixer.js"`."""
    return (FOLDER / name).read_text(encoding="utf-8")
