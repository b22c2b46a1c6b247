"""A backup of a whole workspace: one zip file with the sha256 of every file, and a folder made from it.

    backup.zip   WORKSPACE.json                     the `BackupRecord`: the order of the items, what was left out
                 base.json   datasets/<id>/*  ...   as they lie in the workspace
                 SHA256SUMS                         the sha256 of every member

A backup is consistent while a studio uses the workspace: each item is linked into a temporary folder under
its lock, before the first byte is packed. A run that is training is packed with its committed checkpoints,
as if its process had been killed at that moment. Records that name other items are linked before them: grids
before runs, runs before adapters and datasets.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.errors import Busy, DataError, InvalidName, NotFound, StorageError
from core.store import archives
from core.store.archives import Limits, Report
from core.store.files import delete, ensure_space, read_json, storage_error, sync_file, sync_folder
from core.store.json_text import parse_json
from core.store.locks import FileLock
from core.store.workspace import FILE_KINDS, KINDS, Workspace

RECORD = "WORKSPACE.json"
FORMAT = 1
LIMITS = Limits(count=1_000_000, member_bytes=1 << 40, total_bytes=16 << 40, sums_bytes=256 << 20)
TRASH = "trash"
# An item is linked before the items that it names.
LINK_ORDER = ("grids", "mixes", "reports", "maps", "runs", "adapters", "datasets", "exports", TRASH)
APPENDED = (".jsonl", ".log")  # are copied: a link would grow with the original
DEVICES = r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])"  # are not file names on Windows
_PART = (
    rf"(?!(?i:{DEVICES})(?:\.|/|$))[^\x00-\x1f\x7f/\\:*?\"<>|. ]"
    r"(?:[^\x00-\x1f\x7f/\\:*?\"<>|]{0,198}[^\x00-\x1f\x7f/\\:*?\"<>|. ])?"
)
MEMBERS = re.compile(rf"(?:{RECORD}|\w[\w-]*\.json|(?:{'|'.join(LINK_ORDER)})(?:/{_PART}){{1,12}})")
RECORDS = {  # the file of an item's folder that must be readable
    "datasets": "dataset.json",
    "runs": "run.json",
    "adapters": "EXPERIMENT_METADATA.json",
    "reports": "report.json",
    "maps": "map.json",
}


@dataclass(frozen=True)
class BackupRecord:
    """What a backup holds.

    Attributes:
        created: Unix seconds.
        items: kind -> ids, oldest first.
        modified: name of an item's folder or file -> its time, in nanoseconds; it decides the order of lists.
        damaged: name of an item whose record cannot be read -> why; it is packed as it is.
        left_out: name of a file that is not packed -> why.
        files, bytes: number and size of the packed files.
    """

    created: float
    items: dict[str, list[str]]
    modified: dict[str, int] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    files: int = 0
    bytes: int = 0

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


# --- packing


def pack(root: Path, path: Path, with_trash: bool = False, report: Report | None = None) -> BackupRecord:
    """Packs a workspace, also while a studio uses it.

    Args:
        root: the folder of the workspace.
        path: the zip file to write; it appears complete or not at all.
        with_trash: pack the deleted items, too.
        report: receives the progress before each file.

    Raises:
        NotFound: there is no workspace. DiskFull, StorageError: the file could not be written.
    """
    if not any((root / kind).is_dir() for kind in KINDS):
        raise NotFound(f"There is no workspace in {str(root)!r}.", "Give its folder with --workspace.")
    with _open_snapshot(Workspace(root), with_trash) as (members, record):
        text = json.dumps(record.to_json(), ensure_ascii=False, indent=1)
        archives.write(path, {RECORD: text.encode(), **members}, LIMITS, report)
    return record


@contextlib.contextmanager
def _open_snapshot(workspace: Workspace, with_trash: bool) -> Iterator[tuple[dict[str, Path], BackupRecord]]:
    """The files of a workspace as they were at one moment: (name -> file, record)."""
    try:
        folder = workspace.temporary_folder()
        place: Path | None = folder.__enter__()
    except StorageError:  # a read-only workspace is read in place: no studio can write to it
        folder, place = contextlib.nullcontext(), None
    with contextlib.ExitStack() as stack:
        stack.push(folder)
        snapshot = _Snapshot(workspace, place)
        snapshot.add_loose_files(workspace.root, "")
        for kind in LINK_ORDER if with_trash else LINK_ORDER[:-1]:
            snapshot.add_kind(kind)
        yield snapshot.members, snapshot.record()


class _Snapshot:
    """Collects the files of a workspace.

    Args:
        place: the folder that receives links to the files; None names the files where they are.
    """

    def __init__(self, workspace: Workspace, place: Path | None) -> None:
        self._workspace, self._place = workspace, place
        self.members: dict[str, Path] = {}
        self._items: dict[str, list[str]] = {}
        self._modified: dict[str, int] = {}
        self._damaged: dict[str, str] = {}
        self._left_out: dict[str, str] = {}
        self._folded: set[str] = set()

    def record(self) -> BackupRecord:
        sizes = [p.stat().st_size for p in self.members.values()]
        return BackupRecord(
            created=time.time(),
            items=self._items,
            modified=self._modified,
            damaged=self._damaged,
            left_out=self._left_out,
            files=len(sizes),
            bytes=sum(sizes),
        )

    def add_kind(self, kind: str) -> None:
        """Adds all items of a kind, and the files beside them, such as the log of the votes."""
        folder = self._workspace.root / kind
        if not folder.is_dir():
            return
        if kind == TRASH:
            for path in sorted(p for p in folder.iterdir() if p.is_dir()):
                self._add_folder(path, f"{TRASH}/{path.name}")
            return
        self._items[kind] = []
        for item_id in self._workspace.ids(kind):
            with self._lock(kind, item_id):
                self._add_item(kind, item_id)
        self.add_loose_files(folder, f"{kind}/")

    def add_loose_files(self, folder: Path, prefix: str) -> None:
        """Adds the files of a folder that do not belong to an item: base.json, votes.jsonl, lineup.json."""
        for path in sorted(folder.iterdir()):
            name = prefix + path.name
            if name in self.members or _is_of_this_machine(path):
                continue
            if path.is_file() and path.suffix in (".json", ".jsonl"):
                self._add_file(path, name)
            elif not (path.is_dir() and (prefix or path.name in (*KINDS, TRASH))):
                self._left_out[name] = "It does not belong to the workspace."

    def _lock(self, kind: str, item_id: str) -> contextlib.AbstractContextManager[None]:
        return self._workspace.lock(kind, item_id) if self._place else contextlib.nullcontext()

    def _add_item(self, kind: str, item_id: str) -> None:
        path = self._workspace.path(kind, item_id)
        name = f"{kind}/{path.name}"
        try:
            modified = path.stat().st_mtime_ns
            if kind in FILE_KINDS:
                self._add_file(path, name)
            else:
                self._add_folder(path, name)
        except FileNotFoundError:  # it was deleted in the meantime
            return
        self._items[kind].append(item_id)
        self._modified[name] = modified
        if defect := _describe_defect(path / RECORDS[kind] if kind in RECORDS else path):
            self._damaged[name] = defect

    def _add_folder(self, folder: Path, prefix: str) -> None:
        for path in sorted(folder.iterdir()):
            name = f"{prefix}/{path.name}"
            if _is_of_this_machine(path):
                continue
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                self._left_out[name] = "It is a link or a device, not a regular file."
            elif path.is_file():
                with contextlib.suppress(FileNotFoundError):
                    self._add_file(path, name)
            elif not path.name.startswith("checkpoint-"):
                self._add_folder(path, name)
            elif (path / "MANIFEST.json").is_file():  # others are not committed yet
                self._add_checkpoint(path, name)

    def _add_checkpoint(self, folder: Path, prefix: str) -> None:
        """Adds a checkpoint, unless the run that is training removes it in the meantime."""
        before = dict(self.members)
        self._add_folder(folder, prefix)
        if not (folder / "MANIFEST.json").is_file():  # the first file that is removed
            self.members = before

    def _add_file(self, path: Path, name: str) -> None:
        folded = unicodedata.normalize("NFC", name).casefold()
        if not MEMBERS.fullmatch(name):
            self._left_out[name] = "Its name is not portable."
        elif folded in self._folded:
            self._left_out[name] = "Its name differs from another one in upper and lower case only."
        elif self._place is None:
            self.members[name] = path
        else:
            self.members[name] = self._place / name
            _link(path, self._place / name)
        self._folded.add(folded)


def _is_of_this_machine(path: Path) -> bool:
    """Whether a file is a lock, a draft, or a file of the system's file browser."""
    return path.name.startswith(".") or path.suffix in (".lock", ".partial")


def _link(source: Path, target: Path) -> None:
    """Links a file that is only ever replaced, and copies one that grows; copies where links are missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix not in APPENDED and hasattr(os, "link"):
        try:
            os.link(source, target)
            return
        except FileNotFoundError:
            raise
        except OSError as e:
            if e.errno == errno.ENOSPC:
                raise storage_error(e, target) from e
    ensure_space(target.parent, source.stat().st_size)
    shutil.copyfile(source, target)
    if source.suffix == ".jsonl":
        _cut_torn_line(target)


def _cut_torn_line(path: Path) -> None:
    """Cuts a last line that was being written while the log was copied."""
    with open(path, "rb+") as f:
        end = f.read().rfind(b"\n") + 1
        f.truncate(end)


def _describe_defect(path: Path) -> str:
    """Why the record of an item cannot be read; "" if it can."""
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError) as e:
        return f"{path.name} cannot be read: {e}."
    return "" if isinstance(value, dict) else f"{path.name} is not an object."


# --- unpacking


def unpack(path: Path, folder: Path, report: Report | None = None) -> BackupRecord:
    """Makes a workspace from a backup. The folder appears complete and verified, or not at all.

    Args:
        path: the zip file.
        folder: a folder that does not exist yet, or is empty.
        report: receives the progress before each file.

    Raises:
        DataError: the file is not a backup, is damaged, or holds a member that is not allowed.
        InvalidName: the folder is not empty. Busy: another process unpacks into it.
        DiskFull, StorageError: the folder could not be written.
    """
    folder = folder.expanduser().resolve()
    _check_is_empty(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        with FileLock(folder.with_name(f".{folder.name}.claim"), temporary=True):
            try:
                delete(partial)  # left by a killed process: its claim was free
                partial.mkdir()
                archives.extract(path, partial, MEMBERS, LIMITS, report)
                record = _read_record(path, partial)
                _complete(partial, record)
                _check_is_empty(folder)
                if folder.exists():
                    folder.rmdir()
                os.rename(partial, folder)
                sync_folder(folder.parent)
            finally:
                delete(partial)
    except Busy as e:
        raise Busy(f"Another process unpacks into {str(folder)!r}.", "Wait until it has ended.") from e
    except OSError as e:
        raise storage_error(e, folder) from e
    return record


def _check_is_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InvalidName(f"{str(folder)!r} is a file.", "Give a folder that does not exist yet.")
    if folder.is_dir() and any(folder.iterdir()):
        raise InvalidName(
            f"The folder {str(folder)!r} is not empty; nothing was changed.",
            "Give a folder that does not exist yet, or an empty one.",
        )


def _read_record(path: Path, partial: Path) -> BackupRecord:
    """Reads and removes the record of an extracted backup.

    Raises:
        DataError: there is none, or it is of another version.
    """
    fix = "Use a file that `workspace pack` wrote."
    try:
        raw = read_json(partial / RECORD)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise DataError(
                f"{RECORD} must have the format {FORMAT}; another version of Adapter Studio wrote it.",
                "Unpack it with that version.",
                file=path.name,
            )
        items = {str(k): [str(i) for i in ids] for k, ids in raw["items"].items()}
        modified = {str(n): int(t) for n, t in raw["modified"].items()}
        texts = [{str(n): str(why) for n, why in raw[key].items()} for key in ("damaged", "left_out")]
        record = BackupRecord(
            float(raw["created"]), items, modified, *texts, int(raw["files"]), int(raw["bytes"])
        )
    except StorageError as e:
        raise DataError(f"It is not a backup of a workspace: {RECORD} is missing.", fix, file=path.name) from e
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise DataError(f"{RECORD} is not valid ({e}).", fix, file=path.name) from e
    (partial / RECORD).unlink()
    return record


def _complete(folder: Path, record: BackupRecord) -> None:
    """Flushes an extracted workspace to the disk, and gives its items their times."""
    workspace = Workspace(folder)
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            sync_file(path)
    for name, time_ns in record.modified.items():
        if MEMBERS.fullmatch(name) and (folder / name).exists():
            os.utime(folder / name, ns=(time_ns, time_ns))
    for kind in KINDS:
        _restore_order(workspace, kind, record.items.get(kind, []))
    sync_folder(folder)


def _restore_order(workspace: Workspace, kind: str, ids: list[str]) -> None:
    """Spreads the times of the items where the disk stores them too coarsely to keep their order."""
    found = workspace.ids(kind)
    if found == ids or set(found) != set(ids):
        return
    newest = max(workspace.path(kind, i).stat().st_mtime_ns for i in ids)
    for age, item_id in enumerate(reversed(ids)):
        time_ns = newest - 2_000_000_000 * age  # the coarsest disks store even seconds
        os.utime(workspace.path(kind, item_id), ns=(time_ns, time_ns))
