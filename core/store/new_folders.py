"""Folders outside the workspace that a command makes: complete, or not at all.

The folder is written as `.NAME.partial` beside its place while `.NAME.claim` is locked, then renamed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from core.errors import Busy, InvalidName
from core.store.files import delete, rename, storage_error, sync_folder
from core.store.locks import FileLock


@contextlib.contextmanager
def make_folder(folder: Path, action: str) -> Iterator[Path]:
    """Gives a partial folder to fill, which takes its place at the end of the block.

    After an error in the block, nothing of it is left.

    Args:
        folder: an absolute path where nothing exists yet, or an empty folder.
        action: what another process may be doing with it at the same time: "unpacks into".

    Raises:
        InvalidName: it is a file, or not empty. Busy: another process makes it.
        DiskFull, StorageError: the disk refused, also in the block.
    """
    check_is_empty(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.claim"), temporary=True):
            try:
                delete(partial)  # left by a killed process: its claim was free
                partial.mkdir()
                yield partial
                check_is_empty(folder)
                if folder.exists():
                    folder.rmdir()
                rename(partial, folder)
                sync_folder(folder.parent)
            finally:
                delete(partial)
    except Busy as e:
        raise Busy(f"Another process {action} {str(folder)!r}.", "Wait until it has ended.") from e
    except OSError as e:
        raise storage_error(e, folder) from e


def check_is_empty(folder: Path) -> None:
    """Checks that a path is free for a new folder.

    Raises:
        InvalidName: it is a file, or a folder with something in it.
    """
    if folder.exists() and not folder.is_dir():
        raise InvalidName(f"{str(folder)!r} is a file.", "Give a folder that does not exist yet.")
    if folder.is_dir() and any(folder.iterdir()):
        raise InvalidName(
            f"The folder {str(folder)!r} is not empty; nothing was changed.",
            "Give a folder that does not exist yet, or an empty one.",
        )
