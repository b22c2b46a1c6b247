"""Every path that we form, and the only ways we put bytes on a disk.

Knows the layout of a workspace and how a file appears whole or not at all. Knows nothing of what
the files mean.

    <root>/datasets/<id>/{source/, rows.jsonl, splits/<id>_{train,val,test}.jsonl, dataset.json}
           runs/<id>/{run.json, events.jsonl, checkpoints/}
           adapters/<id>/{adapter_model.safetensors, adapter_config.json,
                          EXPERIMENT_METADATA.json, checksums.txt, README.md}
           runs/lineup.json   mixes/<id>.json    grids/<id>.json    reports/<id>/    maps/<sha256>/map.json    exports/<id>/    trash/
           base.json
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
FILES = ("mixes", "grids")  # kinds whose items are one JSON file each
NAME_LIMIT = 120  # characters of a display name
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they turn text around, so that a name reads as another
MARGIN_BYTES = 64 * 1024 * 1024  # kept free on the disk, so that logs and state can still be written


def make_id(name: str) -> str:
    """An id of our own for a thing called `name`: a readable stem and four random hex digits."""
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "unnamed"
    return f"{stem}-{secrets.token_hex(2)}"


def check_name(name: str) -> str:
    """Returns a display name, stripped, or refuses it.

    Raises:
        InvalidName: empty, longer than 120 characters, control characters, or path parts.
    """
    clean = name.strip() if isinstance(name, str) else ""
    allowed = f"Use 1 to {NAME_LIMIT} characters without slashes or control characters."
    if not clean:
        raise InvalidName("The name is empty.", allowed)
    if len(clean) > NAME_LIMIT:
        raise InvalidName(f"The name has {len(clean)} characters.", allowed)
    if (
        any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDI for c in clean)
        or "/" in clean
        or "\\" in clean
        or clean.strip(".") == ""
    ):
        raise InvalidName(f"The name {clean!r} cannot be used.", allowed)
    return clean


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(f)


def _digest(f: IO[bytes]) -> str:  # Python 3.10 has no hashlib.file_digest
    sha = hashlib.sha256()
    while block := f.read(1 << 20):
        sha.update(block)
    return sha.hexdigest()


def storage_error(error: OSError, path: Path) -> StorageError:
    """What an OSError of ours means for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"The disk is full: {path.name} could not be written, and nothing half-written was kept.",
            "Free some space (Library: delete what you no longer need) and try again.",
        )
    if error.errno == errno.EFBIG:
        return DiskFull(
            f"{path.name} is larger than this account may write (a limit of the system).",
            "Raise the limit (`ulimit -f`), or use another disk.",
        )
    return StorageError(
        f"{path.name} could not be written: {error.strerror or error}.",
        "Check the workspace folder's permissions.",
    )


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Opens a file that appears at `path` whole or not at all (partial, fsync, os.replace).

    Raises:
        StorageError: the disk refused; the partial file is removed.
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
    """Writes `value` as indented JSON, whole or not at all."""
    with atomic_write(path, "w") as f:
        json.dump(value, f, ensure_ascii=False, indent=2, sort_keys=True)
        f.write("\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file of ours.

    Raises:
        StorageError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise StorageError(
            f"{path.parent.name}/{path.name} cannot be read: {e}.",
            "Delete the item in the Library, or restore it from a copy.",
        ) from e


def ensure_space(path: Path, need_bytes: int) -> None:
    """Refuses before writing what will not fit.

    Raises:
        StorageError: fewer than `need_bytes` plus a margin are free.
    """
    path.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path).free
    if free < need_bytes + MARGIN_BYTES:
        raise DiskFull(
            f"The disk is full: {need_bytes / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free.",
            "Free some space (Library: delete what you no longer need) and try again.",
        )


def check_regular_file(path: Path) -> Path:
    """Returns `path` if it is a regular file (no link, FIFO, device or folder).

    Raises:
        InvalidName: it is anything else.
        NotFound: it does not exist.
    """
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError) as e:
        raise NotFound(f"There is no file {str(path)!r}.", "Check the path.") from e
    if not stat.S_ISREG(mode):
        raise InvalidName(
            f"{path.name!r} is not a regular file.", "Give a file itself, not a link, folder or device."
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
        """The path of an item, or of a file in it. Ids are ours; anything else is refused.

        Raises:
            InvalidName: the id has a form that we never make, or the path leaves the workspace.
        """
        if kind not in KINDS or not isinstance(item_id, str) or not ID.fullmatch(item_id):
            raise InvalidName(
                f"{item_id!r} is not an id of this workspace.",
                "Ids have 1 to 64 letters a-z, digits and hyphens.",
            )
        leaf = item_id + (".json" if kind in FILES else "")
        path = self.root.joinpath(kind, leaf, *parts)
        if any("\0" in part for part in parts) or not path.resolve().is_relative_to(self.root / kind / leaf):
            raise InvalidName(f"{'/'.join(parts)!r} leaves the folder of {item_id!r}.", "Use plain names.")
        return path

    def find(self, kind: str, item_id: str) -> Path:
        """The path of an item that is there.

        Raises:
            NotFound: it is not.
        """
        path = self.path(kind, item_id)
        if not path.exists():
            raise NotFound(
                f"There is no {'mix' if kind == 'mixes' else kind[:-1]} {item_id!r} here.",
                "See the Library for what there is.",
            )
        return path

    def ids(self, kind: str) -> list[str]:
        """The ids of all items of a kind, oldest first."""
        suffix = ".json" if kind in FILES else ""
        found = []
        for path in (self.root / kind).iterdir():
            with contextlib.suppress(FileNotFoundError):  # removed by somebody a moment ago
                if path.suffix == suffix and ID.fullmatch(path.stem):
                    found.append((path.stat().st_mtime_ns, path.stem))
        return [item_id for _, item_id in sorted(found)]

    @property
    def votes_path(self) -> Path:
        """The log of the blind tests' votes, kept with the mixes; no id ends like it."""
        return self.root / "mixes" / "votes.jsonl"

    @property
    def run_order_path(self) -> Path:
        """The order in which queued runs begin, kept with the runs; no id ends like it."""
        return self.root / "runs" / "lineup.json"

    @property
    def base_path(self) -> Path:
        """Which base was chosen last."""
        return self.root / "base.json"

    def new_dir(self, kind: str, name: str, item_id: str = "") -> tuple[str, Path]:
        """Makes an id for `name` (or takes `item_id`) and a hidden building place: (id, partial folder).

        Fill the folder, then `commit_dir` makes it appear under its id at once.
        """
        while True:
            chosen = item_id or make_id(name)
            place = self.root / kind / f".{chosen}.partial"
            if not item_id and self.path(kind, chosen).exists():
                continue
            try:
                place.mkdir(parents=True)
            except FileExistsError as e:
                if item_id:
                    raise storage_error(e, place) from e
                continue
            except OSError as e:
                raise storage_error(e, place) from e
            return chosen, place

    def clear_partial(self, kind: str, item_id: str) -> None:
        """Removes what a killed process left in the building place of `item_id`; for whoever owns that id."""
        shutil.rmtree(self.path(kind, item_id).with_name(f".{item_id}.partial"), ignore_errors=True)

    def commit_dir(self, kind: str, item_id: str, place: Path) -> Path:
        """Moves a filled building place to its final name in one rename."""
        final = self.path(kind, item_id)
        try:
            for file in place.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as f:
                        os.fsync(f.fileno())
            os.replace(place, final)
        except OSError as e:
            shutil.rmtree(place, ignore_errors=True)
            raise storage_error(e, final) from e
        return final

    def remove(self, kind: str, item_id: str) -> None:
        """Deletes an item: renamed away first, so that it is gone whole even if we die halfway."""
        path = self.find(kind, item_id)
        doomed = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            os.replace(path, doomed)
        except OSError as e:
            raise storage_error(e, path) from e
        shutil.rmtree(doomed, ignore_errors=True) if doomed.is_dir() else doomed.unlink(missing_ok=True)

    def remove_partials(self) -> int:
        """Removes half-made things that a crash left behind; returns how many. Call at start only."""
        count = 0
        for kind in KINDS:
            for path in (self.root / kind).glob(".*.partial"):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
                count += 1
        return count


class FileLock:
    """Ownership of something by a living process: the operating system drops it when the process dies.

    Raises:
        Busy: another living owner holds it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] | None = open(path, "ab")  # noqa: SIM115 (open as long as it is is_locked)
        if not _lock(self._file):
            self.release()
            raise Busy(
                f"{path.parent.name!r} is already in use.",
                "Wait until it is free, or stop the other user of it.",
            )

    def release(self) -> None:
        """Gives it up; safe to call twice."""
        if self._file is not None:
            self._file.close()
            self._file = None


def is_locked(path: Path) -> bool:
    """Is someone alive holding the claim at `path`?"""
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
