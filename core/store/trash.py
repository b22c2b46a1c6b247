"""The trash of a workspace: deleted items, which can be restored until the trash is emptied.

    trash/<kind>.<id>.<hex>/entry.json     display name of the item, and when it was deleted
                            item           the item: its folder, or its JSON file
    trash/<kind>.<id>.<hex>                the item itself, deleted on a disk that was too full for a record
         .<entry>.partial                  is being deleted for good

An entry folder without `item` is the rest of a deletion or a restoration that a crash cut short; it does not
count. An entry whose record is damaged keeps the kind and the id of its item, which are in its name.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from core.errors import Busy, DiskFull, NotFound, StorageError
from core.store.files import (
    delete,
    read_json,
    rename,
    replace,
    size_of,
    storage_error,
    sync_folder,
    write_json,
)
from core.store.json_text import parse_object
from core.store.record_types import Time, check_type

RECORD, ITEM = "entry.json", "item"
ENTRY = re.compile(r"([a-z]+)\.([a-z0-9][a-z0-9-]{0,63})\.[0-9a-f]{8}")
UNFINISHED_SECONDS = 60.0  # an older entry without its item was left by a killed process


@dataclass(frozen=True)
class TrashedItem:
    """A deleted item.

    Attributes:
        entry: name of its folder in the trash.
        kind, id, name: of the item.
        deleted: Unix seconds.
        bytes: size on the disk.
    """

    entry: str
    kind: str
    id: str
    name: str
    deleted: float
    bytes: int = 0


def move_to_trash(folder: Path, path: Path, kind: str, item_id: str, name: str = "") -> TrashedItem:
    """Moves an item to the trash, in one step. It works on a full disk, too; the display name is then lost.

    Args:
        folder: the trash.
        path: the item.
        name: its display name; "" reads it from the item.

    Raises:
        StorageError
    """
    entry = f"{kind}.{item_id}.{secrets.token_hex(4)}"
    item = TrashedItem(entry, kind, item_id, name or read_name(path) or item_id, time.time())
    try:
        try:
            write_json(folder / entry / RECORD, {"name": item.name, "deleted": item.deleted})
            target = folder / entry / ITEM
        except DiskFull:
            delete(folder / entry)
            target = folder / entry
        replace(path, target)
        sync_folder(target.parent)
        sync_folder(path.parent)
    except (OSError, StorageError) as e:
        if path.exists():  # it was not moved
            delete(folder / entry)
        raise (storage_error(e, path) if isinstance(e, OSError) else e) from e
    return item


def read_name(path: Path) -> str:
    """The display name in the JSON of an item; "" if it has none, or is damaged."""
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        with contextlib.suppress(StorageError, AttributeError):
            record = read_json(file)
            if isinstance(name := record.get("name") or record.get("dataset_name"), str):
                return name
    return ""


def list_trash(folder: Path) -> list[TrashedItem]:
    """All deleted items, the newest first."""
    items = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):  # another process has just removed it
            if (name := ENTRY.fullmatch(path.name)) and (content := _find_content(path)) is not None:
                display_name, deleted = _read_record(path)
                kind, item_id = name.groups()
                items.append(
                    TrashedItem(path.name, kind, item_id, display_name or item_id, deleted, size_of(content))
                )
    return sorted(items, key=lambda i: -i.deleted)


def _find_content(path: Path) -> Path | None:
    """The item of an entry; None if the entry has none, or not yet."""
    if (path / ITEM).exists():
        return path / ITEM
    is_record_only = path.is_dir() and all(p.name == RECORD or p.suffix == ".partial" for p in path.iterdir())
    return None if is_record_only else path


def _read_record(path: Path) -> tuple[str, float]:
    """(display name, when it was deleted) of an entry; ("", time of its folder) without a readable record."""
    try:
        raw = parse_object((path / RECORD).read_bytes())
        return check_type(str, raw["name"]), float(check_type(Time, raw["deleted"]))
    except (OSError, KeyError, ValueError):
        return "", path.stat().st_ctime


def find_item(folder: Path, entry: str) -> TrashedItem:
    """One deleted item.

    Raises:
        NotFound
    """
    for item in list_trash(folder):
        if item.entry == entry:
            return item
    raise NotFound(f"The trash has no item {entry!r}.", "It may be restored or deleted already.")


def item_path(folder: Path, item: TrashedItem) -> Path:
    """Where a deleted item lies in the trash."""
    return _find_content(folder / item.entry) or folder / item.entry / ITEM


def restore_item(folder: Path, item: TrashedItem, path: Path) -> None:
    """Moves a deleted item back.

    Args:
        path: where it was.

    Raises:
        Busy: its place is taken. StorageError
    """
    if path.exists():
        raise Busy(f"{item.name!r} is in the workspace already.", "Delete that one first.")
    try:
        replace(item_path(folder, item), path)
        sync_folder(path.parent)
    except OSError as e:
        raise storage_error(e, path) from e
    delete(folder / item.entry)


def empty(folder: Path) -> int:
    """Deletes everything in the trash for good; returns the number of items.

    An entry is renamed first, so that a crash leaves no half of an item that could be restored.

    Raises:
        StorageError: something could not be deleted.
    """
    items = list_trash(folder)
    names = {item.entry for item in items}
    for path in [*folder.iterdir()] if folder.is_dir() else ():
        try:
            with contextlib.suppress(FileNotFoundError):  # another process has just restored or deleted it
                if path.name in names or time.time() - path.stat().st_mtime > UNFINISHED_SECONDS:
                    delete_entry(path)
        except OSError as e:
            raise storage_error(e, path) from e
    return len(items)


def delete_entry(path: Path) -> None:
    """Deletes one entry for good.

    Raises:
        OSError
    """
    if path.suffix != ".partial":
        partial = path.with_name(f".{path.name}.partial")
        rename(path, partial)
        path = partial
    delete(path)


def remove_partials(folder: Path) -> None:
    """Ends the deletions and restorations that a crash cut short. Only for the startup."""
    for path in folder.glob(".*.partial"):
        delete(path)
    for path in [*folder.iterdir()] if folder.is_dir() else ():
        with contextlib.suppress(OSError):  # another process has just removed it
            is_old = time.time() - path.stat().st_mtime > UNFINISHED_SECONDS
            if is_old and ENTRY.fullmatch(path.name) and _find_content(path) is None:
                delete_entry(path)
