"""Files that appear complete or not at all, and checks before and after writing.

A file is written beside its place as `.partial`, flushed to the disk, and renamed; then the folder is
flushed. The partial file is locked while it is written, so that a sweep of another process leaves it alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from core.errors import DiskFull, InvalidName, NotFound, StorageError
from core.store.locks import is_same_file, lock_file

MARGIN_BYTES = 64 * 1024 * 1024  # stays free, so that event logs and run states can still be written
CAN_REPLACE_OPEN_FILES = os.name != "nt"


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as f:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(f, "sha256").hexdigest()
        return _digest(f)


def _digest(file: IO[bytes]) -> str:  # Python 3.10 has no hashlib.file_digest
    sha = hashlib.sha256()
    while block := file.read(1 << 20):
        sha.update(block)
    return sha.hexdigest()


def storage_error(error: OSError, path: Path) -> StorageError:
    """Converts an OSError into the error that the user sees.

    Args:
        path: the file or folder that was written.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"The disk is full: {path.name} could not be written, and no partial file was left.",
            "Free some space (delete unused items under Library) and try again.",
        )
    if error.errno == errno.EFBIG:
        return DiskFull(
            f"{path.name} is larger than the system's file size limit.",
            "Raise the limit (`ulimit -f`), or use another disk.",
        )
    return StorageError(
        f"{path.name} could not be written: {error.strerror or error}.",
        "Check the permissions of the workspace folder.",
    )


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file that appears at `path` complete or not at all (partial file, fsync, os.replace).

    Args:
        mode: "wb", or "w" for UTF-8 text.

    Raises:
        StorageError: the file could not be written; the partial file is removed.
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, file = _open_partial(path, mode)
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if CAN_REPLACE_OPEN_FILES:  # its lock then lasts until it has its name
                os.replace(partial, path)
        if not CAN_REPLACE_OPEN_FILES:
            os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as e:
        raise storage_error(e, path) from e
    finally:
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def _open_partial(path: Path, mode: str) -> tuple[Path, IO[Any]]:
    """Creates and locks a partial file beside `path`."""
    text = {"encoding": "utf-8", "newline": "\n"} if "b" not in mode else {}
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        file = open(partial, mode.replace("w", "x"), **text)  # type: ignore[call-overload] # noqa: SIM115
        if lock_file(file) and is_same_file(file, partial):
            return partial, file
        file.close()  # a sweep removed it between the two lines


def remove_partial_file(path: Path) -> bool:
    """Removes a partial file that no living process is writing; returns whether it was removed."""
    try:
        with open(path, "rb+") as f:
            if not lock_file(f):
                return False
            path.unlink()
            return True
    except OSError:
        return False


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, completely or not at all."""
    with atomic_write(path, "w") as f:
        json.dump(value, f, ensure_ascii=False, indent=2, sort_keys=True)
        f.write("\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file of the workspace.

    Raises:
        StorageError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise StorageError(
            f"{path.parent.name}/{path.name} cannot be read: {e}.",
            "Delete the item under Library, or restore it from a backup.",
        ) from e


def ensure_space(path: Path, need_bytes: int) -> None:
    """Checks that the disk has enough free space, before a large write.

    Raises:
        DiskFull: less than `need_bytes` plus a margin is free.
    """
    path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path).free
    if free < need_bytes + MARGIN_BYTES:
        raise DiskFull(
            f"The disk is full: {need_bytes / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free.",
            "Free some space (delete unused items under Library) and try again.",
        )


def check_regular_file(path: Path) -> Path:
    """Checks that `path` is a regular file, not a link, FIFO, device or folder; returns it.

    Raises:
        InvalidName: it is not a regular file. NotFound: it does not exist.
    """
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError) as e:
        raise NotFound(f"File not found: {str(path)!r}.", "Check the path.") from e
    if not stat.S_ISREG(mode):
        raise InvalidName(
            f"{path.name!r} is not a regular file.", "Choose a file, not a link, folder or device."
        )
    return path


def sync_file(path: Path) -> None:
    """Flushes a file to the disk."""
    with open(path, "rb") as f:
        os.fsync(f.fileno())


def sync_folder(path: Path) -> None:
    """Flushes a folder to the disk, so that the renames inside it survive a power failure.

    Systems that cannot open a folder (Windows) write renames in order by themselves.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def delete(path: Path) -> None:
    """Deletes a file, or a folder with all its content."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
