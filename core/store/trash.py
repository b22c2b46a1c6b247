"""The trash of a workspace: deleted items, which can be restored until the trash is emptied.

    trash/<entry>/entry.json     kind and id of the item, its display name, when it was deleted
                  item           the item: its folder, or its JSON file

An entry without `item` is the rest of a deletion or a restoration that a crash cut short; it does not count.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from core.errors import Busy, NotFound, StorageError
from core.store.files import delete, read_json, storage_error, sync_folder, write_json

RECORD, ITEM = "entry.json", "item"


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
    """Moves an item to the trash, in one step.

    Args:
        folder: the trash.
        path: the item.
        name: its display name; "" is its id.

    Raises:
        StorageError
    """
    entry = f"{item_id}-{secrets.token_hex(4)}"
    item = TrashedItem(entry, kind, item_id, name or item_id, time.time())
    record = asdict(item)
    del record["bytes"], record["entry"]
    try:
        write_json(folder / entry / RECORD, record)
        os.replace(path, folder / entry / ITEM)
        sync_folder(folder / entry)
        sync_folder(path.parent)
    except OSError as e:
        delete(folder / entry)
        raise storage_error(e, path) from e
    return item


def list_trash(folder: Path) -> list[TrashedItem]:
    """All deleted items, the newest first."""
    items = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(StorageError, KeyError, TypeError, ValueError, OSError):
            raw = read_json(path / RECORD)
            if (path / ITEM).exists():
                size = sum(p.lstat().st_size for p in (path / ITEM).rglob("*") if p.is_file())
                size = size or (path / ITEM).lstat().st_size
                items.append(
                    TrashedItem(
                        path.name,
                        str(raw["kind"]),
                        str(raw["id"]),
                        str(raw["name"]),
                        float(raw["deleted"]),
                        size,
                    )
                )
    return sorted(items, key=lambda i: -i.deleted)


def find_trashed(folder: Path, entry: str) -> TrashedItem:
    """One deleted item.

    Raises:
        NotFound
    """
    for item in list_trash(folder):
        if item.entry == entry:
            return item
    raise NotFound(f"The trash has no item {entry!r}.", "It may be restored or deleted already.")


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
        os.replace(folder / item.entry / ITEM, path)
        sync_folder(path.parent)
    except OSError as e:
        raise storage_error(e, path) from e
    delete(folder / item.entry)


def empty(folder: Path) -> int:
    """Deletes everything in the trash for good; returns the number of items."""
    count = len(list_trash(folder))
    delete(folder)
    return count
