"""Reads the page's style sheet, icon, fonts and JavaScript. That of a component lies beside its Python."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
STUDIO = FOLDER.parent
ICON = FOLDER / "icon.svg"
FONTS = {f.stem: f for f in (FOLDER / "fonts").glob("*.woff2")}  # by their names


def read_asset(name: str) -> str:
    """Reads a file by its path below `studio/`: "components/mixer.js", "assets/studio.css"."""
    return (STUDIO / name).read_text(encoding="utf-8")
