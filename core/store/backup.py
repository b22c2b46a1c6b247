"""A backup of a whole workspace: one zip file with the sha256 of every file, and a folder made from it.

    backup.zip   WORKSPACE.json                     the `BackupRecord`: order of the items, what is left out
                 base.json   datasets/<id>/*  ...   as they lie in the workspace
                 SHA256SUMS                         the sha256 of every member

A backup is consistent while a studio uses the workspace (`core.store.snapshot`). A run that is training is
packed with its committed checkpoints, as if its process had been killed at that moment.
"""

from __future__ import annotations

import glob
import json
import os
import re
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.errors import Busy, DataError, NotFound, StorageError
from core.store import archives
from core.store.archives import Limits, Report
from core.store.files import (
    delete,
    read_json,
    remove_partial_file,
    storage_error,
    sync_file,
    sync_folder,
)
from core.store.locks import FileLock
from core.store.new_folders import make_folder
from core.store.snapshot import NAMES, open_snapshot
from core.store.workspace import KINDS, Workspace

RECORD = "WORKSPACE.json"
FORMAT = 1
LIMITS = Limits(count=1_000_000, member_bytes=1 << 40, total_bytes=16 << 40, sums_bytes=256 << 20)
MEMBERS = re.compile(rf"{RECORD}|{NAMES.pattern}")


DOWNLOAD = ".backup.zip"  # in the workspace; hidden, so that no backup holds it
DOWNLOAD_SECONDS = 24 * 3600.0  # no download takes longer


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
        NotFound: the folder is not a workspace. DiskFull, StorageError: the file could not be written.
    """
    if not any((root / kind).is_dir() for kind in KINDS):
        raise NotFound(f"{str(root)!r} is not a workspace.", "Give its folder with --workspace.")
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        remove_partial_file(partial)  # left by a killed process
    with open_snapshot(Workspace(root), with_trash) as snapshot:
        sizes = [p.stat().st_size for p in snapshot.members.values()]
        record = BackupRecord(
            created=time.time(),
            items=snapshot.items,
            modified=snapshot.modified,
            damaged=snapshot.damaged,
            left_out=snapshot.left_out,
            files=len(sizes),
            bytes=sum(sizes),
        )
        text = json.dumps(record.to_json(), ensure_ascii=False, indent=1)
        archives.write(path, {RECORD: text.encode(), **snapshot.members}, LIMITS, report)
    return record


def pack_download(workspace: Workspace) -> Path:
    """Packs a workspace into a file of its own folder, which the caller deletes; one at a time.

    Raises:
        Busy: another backup of this workspace is being made or downloaded. DiskFull, StorageError
    """
    path = workspace.root / f"{DOWNLOAD}.{secrets.token_hex(4)}.partial"
    try:
        with FileLock(workspace.root / f"{DOWNLOAD}.lock", temporary=True):
            for old in workspace.root.glob(f"{DOWNLOAD}.*.partial"):  # of a download that broke off
                if time.time() - old.stat().st_mtime > DOWNLOAD_SECONDS:
                    delete(old)
            pack(workspace.root, path)
    except Busy as e:
        raise Busy("Another backup of this workspace is being made.", "Wait until it has ended.") from e
    except OSError as e:
        raise storage_error(e, path) from e
    return path


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
    with make_folder(folder, "unpacks into") as partial:
        archives.extract(path, partial, MEMBERS, LIMITS, report)
        record = _read_record(path, partial)
        _complete(partial, record)
    return record


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
        damaged, left_out = (
            {str(n): str(why) for n, why in raw[key].items()} for key in ("damaged", "left_out")
        )
        files, size = int(raw["files"]), int(raw["bytes"])
        record = BackupRecord(float(raw["created"]), items, modified, damaged, left_out, files, size)
    except StorageError as e:
        raise DataError(
            f"It is not a backup of a workspace: {RECORD} is missing.", fix, file=path.name
        ) from e
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
