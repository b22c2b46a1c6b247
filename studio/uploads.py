"""Files that the user dropped on the page: one folder for each drop, with the names that the files had.

Gradio stores an upload as `<upload folder>/<sha256>/<name>`, without the folder that it came from. A drop
moves such files to `<upload folder>/drop-<id>/<path as it was>`, so that two files of one name stay apart and
a folder is read as a folder. A request names files that Gradio has stored, or the id of a drop; it never
names another path of this machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradio.utils import get_upload_folder

from core.data.formats.readers import FILE_COUNT_LIMIT
from core.errors import DataError
from core.store.locks import FileLock, is_locked

PREFIX = "drop-"
FOLDER, LOCK = "adapter-studio-uploads-", ".lock"  # the upload folder of one studio
KEEP_SECONDS = 86_400  # a drop that was never imported, as for Gradio's own uploads
PART_LIMIT = 120  # characters of each part of a name
DEPTH_LIMIT = 20  # folders in folders

_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class DroppedFile:
    """A file of a drop: the name that it had, with its folder, and its size in bytes."""

    name: str
    bytes: int


@contextlib.contextmanager
def keep_uploads(chosen: str = "") -> Iterator[str]:
    """A folder for uploads that only this user can read. It is removed at the end of the block.

    What a killed studio has left is removed at the next start; its lock is free then.

    Args:
        chosen: a folder of the user, which is used as it is; "" makes one.
    """
    if chosen:
        yield chosen
        return
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with contextlib.suppress(OSError):  # of another user
            if (left / LOCK).is_file() and not is_locked(left / LOCK):
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER))
    try:
        with FileLock(folder / LOCK):
            yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def add_files(claimed: Sequence[tuple[str, str]], drop: str = "") -> str:
    """Moves uploaded files into a drop.

    Args:
        claimed: (path of an upload, name that the file had) of each file, as the page claims them.
        drop: id of the drop to add them to; "" begins a new one.

    Returns:
        the id of the drop.

    Raises:
        DataError: a path is not an upload, or there are too many files.
    """
    _remove_old()
    present = list_files(drop) if drop else []
    if len(present) + len(claimed) > FILE_COUNT_LIMIT:
        raise DataError(
            f"One import may have at most {FILE_COUNT_LIMIT:,} files, got {len(present) + len(claimed):,}.",
            "Drop fewer files at once, and import them as several datasets.",
        )
    sources = [_check_upload(path) for path, _ in claimed]
    drop = drop or secrets.token_hex(16)
    folder = _folder(drop)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (source, (_, name)) in enumerate(zip(sources, claimed, strict=True), start=1):
        target = _free_path(folder / clean_name(name or source.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        if source in sources[number:]:  # Gradio stores two equal files of one name once
            shutil.copyfile(source, target)
        else:
            os.replace(source, target)
            with contextlib.suppress(OSError):
                source.parent.rmdir()  # empty now, unless a file of the same content has another name
    return drop


def make_drop() -> tuple[str, Path]:
    """Makes an empty drop, for files that the studio writes itself; returns its id and its folder."""
    _remove_old()
    drop = secrets.token_hex(16)
    folder = _folder(drop)
    folder.mkdir(parents=True)
    return drop, folder


def list_files(drop: str) -> list[DroppedFile]:
    """The files of a drop, sorted by name.

    Raises:
        DataError: the drop does not exist, or no longer.
    """
    folder = find_folder(drop)
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    return sorted(
        (DroppedFile(p.relative_to(folder).as_posix(), p.stat().st_size) for p in files), key=lambda f: f.name
    )


def find_folder(drop: str) -> Path:
    """The folder of a drop, which the readers read.

    Raises:
        DataError: the drop does not exist, or no longer.
    """
    folder = _folder(drop)
    if not folder.is_dir():
        raise DataError("The dropped files are no longer there.", "Drop them again.")
    return folder


def remove_file(drop: str, name: str) -> None:
    """Removes one file from a drop; a name that is not there is ignored."""
    folder = find_folder(drop)
    path = folder / clean_name(name)
    if path.is_file() and not path.is_symlink():
        path.unlink()


def discard(drop: str) -> None:
    """Deletes a drop, if it exists."""
    shutil.rmtree(_folder(drop), ignore_errors=True)


def clean_name(name: str) -> str:
    """A relative path that is safe below any folder, from the name that a browser gives a file."""
    parts = []
    for part in str(name).replace("\\", "/").split("/"):
        kept = "".join(c for c in part if unicodedata.category(c)[0] != "C" and c not in ':*?"<>|').strip()
        if kept.strip("."):
            parts.append(_shorten(kept))
    return "/".join(parts[-DEPTH_LIMIT:]) or "file"


def _shorten(part: str) -> str:
    stem, dot, suffix = part.rpartition(".")
    if len(part) <= PART_LIMIT or not dot or len(suffix) > 10:
        return part[-PART_LIMIT:]
    return f"{stem[: PART_LIMIT - len(suffix) - 1]}.{suffix}"


def _root() -> Path:
    return Path(os.path.realpath(get_upload_folder()))


def _folder(drop: str) -> Path:
    if not _ID.fullmatch(str(drop)):
        raise DataError("The dropped files are no longer there.", "Drop them again.")
    return _root() / f"{PREFIX}{drop}"


def _check_upload(claimed_path: str) -> Path:
    """The path of a file that Gradio has stored: `<upload folder>/<sha256>/<name>`, never a link."""
    path = Path(os.path.abspath(claimed_path))
    stored = path.parent.parent == Path(os.path.abspath(get_upload_folder()))
    if not stored or path.parent.name.startswith(PREFIX) or path.is_symlink() or not path.is_file():
        raise DataError("A file did not arrive.", "Drop it again.")
    return path


def _free_path(path: Path) -> Path:
    """The path itself, or with a number where a file of that name is there already."""
    number = 2
    free = path
    while free.exists():
        free = path.with_name(f"{path.stem} ({number}){path.suffix}")
        number += 1
    return free


def _remove_old() -> None:
    """Deletes drops that were made more than a day ago."""
    for folder in _root().glob(f"{PREFIX}*"):
        try:
            old = time.time() - folder.stat().st_mtime > KEEP_SECONDS
        except OSError:
            continue
        if old:
            shutil.rmtree(folder, ignore_errors=True)
