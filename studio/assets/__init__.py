"""The page's style sheet and icon, and the JavaScript that lies beside the Python of its component."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
STUDIO = FOLDER.parent
ICON = FOLDER / "icon.svg"


def read_asset(name: str) -> str:
    """The text of a page file, by its path below `studio/`: `"components/mixer.js"`, `"assets/studio.css"`."""
    return (STUDIO / name).read_text(encoding="utf-8")
