"""Files that appear complete or not at all, and checks before and after writing.

A file is written beside its place as `.partial`, flushed to the disk, and renamed; then the folder is
flushed. The partial file is locked while it is written, so that a sweep of another process leaves it alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import IO, Any

from core.errors import DiskFull, InvalidName, NotFound, StorageError
from core.store.json_text import parse_json
from core.store.locks import is_same_file, lock_file
from core.store.permissions import open_private

MARGIN_BYTES = 64 * 1024 * 1024  # stays free, so that event logs and run states can still be written
CAN_REPLACE_OPEN_FILES = os.name != "nt"
SYNC_MODE = "rb+" if os.name == "nt" else "rb"
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
# Error codes of Windows: a path is longer than 260 characters; another process has a file open.
TOO_LONG, IN_USE = (206, 111), (5, 32, 33)
OPEN_SECONDS = 2.0  # another process reads a record for milliseconds


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
    if error.errno in FULL:
        return DiskFull(
            f"The disk is full: {path.name} could not be written, and no partial file was left.",
            suggest_space(path),
        )
    if error.errno == errno.EFBIG:
        return DiskFull(
            f"{path.name} is larger than the system's file size limit.",
            "Raise the limit (`ulimit -f`), or use another disk.",
        )
    if error.errno in NO_LOCKS:
        return StorageError(
            f"{path.name} could not be locked: this disk or this system has no file locks.",
            "Move the workspace to a local disk: without locks, two processes would damage it.",
        )
    if error.errno == errno.ENAMETOOLONG or getattr(error, "winerror", None) in TOO_LONG:
        return StorageError(
            f"The path of {path.name} is too long for this system.",
            "Use a workspace in a folder with a shorter path.",
        )
    if getattr(error, "winerror", None) in IN_USE:
        return StorageError(
            f"{path.name} could not be written: it is open in another program, or you may not change it.",
            "Close that program, or check the permissions of the workspace folder.",
        )
    return StorageError(
        f"{path.name} could not be written: {error.strerror or error}.",
        "Check the permissions of the workspace folder.",
    )


def suggest_space(path: Path) -> str:
    """What to do when the disk of a path is full; names the trash of its workspace if it holds something."""
    for folder in path.parents:
        if (folder / "trash").is_dir() and (folder / "datasets").is_dir():
            size = size_of(folder / "trash")
            if size:
                return f"Empty the trash under Library ({_format_mb(size, math.ceil)}) and try again."
            break
    return "Free some space (delete unused items under Library, and empty the trash) and try again."


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    size = 0
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):  # another process removes it
            size += file.lstat().st_size if file.is_file() else 0
    return size


def describe_files(folder: Path) -> list[tuple[str, int, int, int]]:
    """(name, inode, size, time of change in ns) of each file of a folder, by name; empty without the folder.

    It differs once a file was replaced or changed, so that what was read from the folder can be kept.
    """
    try:
        with os.scandir(folder) as entries:
            found = [(e.name, e.stat()) for e in entries if e.is_file()]
    except FileNotFoundError:
        return []
    return sorted((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found)


def _format_mb(size: float, to_integer: Callable[[float], int]) -> str:
    return f"{to_integer(size / 1e6)} MB"


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
                replace(partial, path)
        if not CAN_REPLACE_OPEN_FILES:
            replace(partial, path)
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
        file = open(  # type: ignore[call-overload] # noqa: SIM115
            partial, mode.replace("w", "x"), opener=open_private, **text
        )
        try:
            if lock_file(file) and is_same_file(file, partial):
                return partial, file
        except OSError:
            file.close()
            partial.unlink(missing_ok=True)
            raise
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
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as e:
        raise StorageError(
            f"{path.parent.name}/{path.name} cannot be read: {e}.",
            "Delete the item under Library, or restore it from a backup.",
        ) from e


def ensure_space(path: Path, need_bytes: int) -> None:
    """Checks that the disk has enough free space, before a large write.

    Raises:
        DiskFull: less than `need_bytes` plus a margin is free. StorageError: the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path).free
    except OSError as e:
        raise storage_error(e, path) from e
    if free < need_bytes + MARGIN_BYTES:
        # Rounded so that the numbers add up: what is needed is more than what is free.
        need, margin = math.ceil(need_bytes / 1e6), math.ceil(MARGIN_BYTES / 1e6)
        raise DiskFull(
            f"The disk is full: {need + margin} MB are needed and {_format_mb(free, math.floor)} are free "
            f"({need} MB to write, and {margin} MB that stay free for logs).",
            suggest_space(path / "file"),
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
    """Flushes a file to the disk. Windows flushes only files that are open for writing."""
    with open(path, SYNC_MODE) as f:
        os.fsync(f.fileno())


def sync_folder(path: Path) -> None:
    """Flushes a folder to the disk, so that the renames inside it survive a power failure.

    Windows cannot open a folder, and some network disks cannot flush one; they order renames by themselves.

    Raises:
        OSError: the disk is failing.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as e:
        if e.errno == errno.EIO:
            raise
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Renames a file or folder. On Windows it waits while another process has one of its files open.

    Raises:
        OSError: `target` exists (on Windows, also a file), or the disk refused.
    """
    _retry(os.rename, source, target)


def replace(source: Path, target: Path) -> None:
    """Renames a file, in place of `target` if that exists; waits as `rename` does.

    Raises:
        OSError
    """
    _retry(os.replace, source, target)


def _retry(move: Callable[[Path, Path], None], source: Path, target: Path) -> None:
    deadline = time.monotonic() + OPEN_SECONDS
    while True:
        try:
            return move(source, target)
        except OSError as e:
            if getattr(e, "winerror", None) not in IN_USE or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def link_file(source: Path, target: Path) -> None:
    """Gives a file a second name (a hard link), or copies it where the file system has no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError, AttributeError):  # a system may have no os.link
        shutil.copy2(source, target, follow_symlinks=False)


def link_folder(source: Path, target: Path, leave_out: Container[str] = ()) -> None:
    """Fills an existing folder with links to the files of another one, without partial files.

    Args:
        leave_out: names directly in `source` that are not linked.
    """
    for path in source.iterdir():
        if path.name in leave_out or path.suffix == ".partial":
            continue
        if path.is_dir() and not path.is_symlink():
            (target / path.name).mkdir()
            link_folder(path, target / path.name)
        else:
            link_file(path, target / path.name)


def delete(path: Path) -> None:
    """Deletes a file, or a folder with all its content."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
