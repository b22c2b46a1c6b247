"""Drops of files for the tests of the Data tab, as the page makes them."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder

from studio.components import drop


def upload(content: bytes, name: str) -> str:
    """Stores a file as Gradio stores an upload, and returns its path."""
    folder = Path(get_upload_folder()) / secrets.token_hex(32)
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    return str(folder / name)


def drop_files(files: dict[str, bytes], into: str = "") -> dict[str, Any]:
    """Drops files, by their names with folders, on the page; returns the drop area's value."""
    sent = [{"path": upload(data, name.rsplit("/", 1)[-1]), "name": name} for name, data in files.items()]
    return drop.store_upload(None, {"drop": into, "files": sent})  # type: ignore[arg-type]
