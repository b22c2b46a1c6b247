"""The layout of a workspace and atomic writes: every path inside a workspace is formed here.

    <root>/datasets/<id>/{source/, rows.jsonl, splits/<id>_{train,val,test}.jsonl, dataset.json}
           runs/<id>/{run.json, events.jsonl, checkpoints/}            (core.store.runs)
           adapters/<id>/{adapter_model.safetensors, adapter_config.json, EXPERIMENT_METADATA.json,
                          checksums.txt, README.md}                    (core.store.adapters)
           mixes/<id>.json   grids/<id>.json   reports/<id>/   maps/<sha256>/map.json   exports/<id>/
           mixes/votes.jsonl    runs/lineup.json    base.json
           */.<id>.partial      not committed yet; removed at the next start

A file or folder appears complete or not at all: it is written beside its place as `.partial`, flushed to the
disk, and renamed. The module of each kind names the files inside the folder of an item.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from core.errors import Busy, DiskFull, InvalidName, NotFound, StorageError

ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
KINDS = ("datasets", "runs", "adapters", "mixes", "grids", "reports", "maps", "exports")
FILE_KINDS = ("mixes", "grids")  # an item is one JSON file; items of the other kinds are folders
NAME_LIMIT = 120  # characters of a display name
# Bidirectional control characters reorder text, so that one name can look like another.
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
MARGIN_BYTES = 64 * 1024 * 1024  # stays free, so that event logs and run states can still be written


def make_id(name: str) -> str:
    """A new id from a display name: a readable stem and four random hexadecimal digits."""
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "unnamed"
    return f"{stem}-{secrets.token_hex(2)}"


def check_name(name: str) -> str:
    """Checks a display name and returns it without surrounding spaces.

    Raises:
        InvalidName: the name is empty, longer than 120 characters, or has slashes or control characters.
    """
    clean = name.strip() if isinstance(name, str) else ""
    allowed = f"Use 1 to {NAME_LIMIT} characters without slashes or control characters."
    if not clean:
        raise InvalidName("The name must not be empty.", allowed)
    if len(clean) > NAME_LIMIT:
        raise InvalidName(f"The name must have at most {NAME_LIMIT} characters, got {len(clean)}.", allowed)
    if (
        any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDI for c in clean)
        or "/" in clean
        or "\\" in clean
        or clean.strip(".") == ""
    ):
        raise InvalidName(f"The name {clean!r} is not allowed.", allowed)
    return clean


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
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = {"encoding": "utf-8", "newline": "\n"} if "b" not in mode else {}
        with open(partial, mode, **text) as f:  # type: ignore[call-overload]
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(partial, path)
    except OSError as e:
        raise storage_error(e, path) from e
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


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


class Workspace:
    """The folder that holds all datasets, runs, adapters, mixes and reports of one studio."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().resolve()
        try:
            for kind in KINDS:
                (self.root / kind).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise storage_error(e, self.root) from e

    def path(self, kind: str, item_id: str, *parts: str) -> Path:
        """The path of an item, or of a file in it; it need not exist.

        Raises:
            InvalidName: the id does not have the form of `make_id`, or the path leaves the folder of the
                item.
        """
        if kind not in KINDS or not isinstance(item_id, str) or not ID.fullmatch(item_id):
            raise InvalidName(
                f"{item_id!r} is not an id of this workspace.",
                "An id has 1 to 64 characters: lowercase letters, digits and hyphens.",
            )
        leaf = item_id + (".json" if kind in FILE_KINDS else "")
        path = self.root.joinpath(kind, leaf, *parts)
        if any("\0" in part for part in parts) or not path.resolve().is_relative_to(self.root / kind / leaf):
            raise InvalidName(
                f"{'/'.join(parts)!r} leaves the folder of {item_id!r}.", "Use plain file names."
            )
        return path

    def find(self, kind: str, item_id: str) -> Path:
        """The path of an existing item.

        Raises:
            NotFound: it does not exist. InvalidName: see `path`.
        """
        path = self.path(kind, item_id)
        if not path.exists():
            raise NotFound(
                f"There is no {'mix' if kind == 'mixes' else kind[:-1]} {item_id!r} in this workspace.",
                "See Library for the items of this workspace.",
            )
        return path

    def ids(self, kind: str) -> list[str]:
        """The ids of all items of a kind, oldest first."""
        suffix = ".json" if kind in FILE_KINDS else ""
        items = []
        for path in (self.root / kind).iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                if path.suffix == suffix and ID.fullmatch(path.stem):
                    items.append((path.stat().st_mtime_ns, path.stem))
        return [item_id for _, item_id in sorted(items)]

    @property
    def votes_path(self) -> Path:
        """The event log of the votes of blind tests. Its name is not an id, so it does not count as a mix."""
        return self.root / "mixes" / "votes.jsonl"

    @property
    def run_order_path(self) -> Path:
        """The order of queued runs. Its name is not an id, so it does not count as a run."""
        return self.root / "runs" / "lineup.json"

    @property
    def base_path(self) -> Path:
        """The base model that was chosen last."""
        return self.root / "base.json"

    def new_dir(self, kind: str, name: str, item_id: str = "") -> tuple[str, Path]:
        """Creates a hidden folder for a new item. Fill it, then `commit_dir` renames it to its id.

        Args:
            name: the display name that a new id is made from.
            item_id: the id, if one is reserved already.

        Returns:
            (id, partial folder)

        Raises:
            StorageError: the folder could not be created, or that of `item_id` exists already.
        """
        while True:
            chosen = item_id or make_id(name)
            partial = self.root / kind / f".{chosen}.partial"
            if not item_id and self.path(kind, chosen).exists():
                continue
            try:
                partial.mkdir(parents=True)
            except FileExistsError as e:
                if item_id:
                    raise storage_error(e, partial) from e
                continue
            except OSError as e:
                raise storage_error(e, partial) from e
            return chosen, partial

    def clear_partial(self, kind: str, item_id: str) -> None:
        """Removes the partial folder of a killed process. Only the owner of the id may call it."""
        shutil.rmtree(self.path(kind, item_id).with_name(f".{item_id}.partial"), ignore_errors=True)

    def commit_dir(self, kind: str, item_id: str, partial: Path) -> Path:
        """Flushes a partial folder to the disk and renames it to its id; returns its path."""
        final = self.path(kind, item_id)
        try:
            for file in partial.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as f:
                        os.fsync(f.fileno())
            os.replace(partial, final)
        except OSError as e:
            shutil.rmtree(partial, ignore_errors=True)
            raise storage_error(e, final) from e
        return final

    def remove(self, kind: str, item_id: str) -> None:
        """Deletes an item. It is renamed first, so that a crash leaves no partial item under its id."""
        path = self.find(kind, item_id)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            os.replace(path, partial)
        except OSError as e:
            raise storage_error(e, path) from e
        _delete(partial)

    def remove_partials(self) -> int:
        """Removes partial files and folders that a crash left; returns their number. Only for the startup."""
        count = 0
        for kind in KINDS:
            for path in (self.root / kind).glob(".*.partial"):
                _delete(path)
                count += 1
        return count


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class FileLock:
    """An exclusive lock on a file. The operating system releases it when the process dies.

    Raises:
        Busy: another process or object holds it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] | None = open(path, "ab")  # noqa: SIM115 (open while the lock is held)
        if not _lock(self._file):
            self.release()
            raise Busy(
                f"{path.parent.name!r} is already in use.",
                "Wait until the process that uses it has finished, or stop that process.",
            )

    def release(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock on `path`."""
    if not path.exists():
        return False
    with open(path, "ab") as f:
        return not _lock(f)


def _lock(file: IO[bytes]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            return True
        except OSError:
            return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
