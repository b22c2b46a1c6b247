"""Reads records, and lists the items of a kind around the damaged ones: one damaged file costs one item.

    load(workspace, id) ── report_damage(file) ──> item, or DamagedRecord with file and reason
    load_items(workspace, kind, load) ─────> (items, Damaged)

The types of a record are the annotations of its dataclass (`core.store.record_types`). Unknown keys of other
versions are tolerated; `write_record` keeps them where a record is written back.
"""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from core.errors import DamagedRecord, NotFound, StudioError
from core.store.files import write_json
from core.store.json_text import parse_object
from core.store.record_types import check_type
from core.store.workspace import Workspace

T = TypeVar("T")
# What code that reads a damaged file can raise; all of it is converted into DamagedRecord.
_READ_ERRORS = (
    StudioError, OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class Damaged:
    """An item that cannot be read.

    Attributes:
        kind, id: as `engine.library.delete_damaged` takes them.
        name: its display name where that can still be read, else its id.
        file: the damaged file, relative to the workspace.
        reason: what is wrong with it, as a clause.
    """

    kind: str
    id: str
    name: str
    file: str
    reason: str


def load_items(
    workspace: Workspace, kind: str, load: Callable[[Workspace, str], T]
) -> tuple[list[T], list[Damaged]]:
    """Loads every item of a kind.

    Args:
        load: reads one item; it raises DamagedRecord for a damaged one.

    Returns:
        (the items, oldest first; the damaged ones)
    """
    items, damaged = [], []
    for item_id in workspace.ids(kind):
        try:
            items.append(_load_twice(workspace, load, item_id))
        except NotFound:  # deleted since its id was listed
            continue
        except StudioError as e:
            damaged.append(_describe(workspace, kind, item_id, e))
    return items, damaged


def _load_twice(workspace: Workspace, load: Callable[[Workspace, str], T], item_id: str) -> T:
    """Loads an item; a second time after an error, because another process may just have replaced it."""
    try:
        return load(workspace, item_id)
    except DamagedRecord:
        return load(workspace, item_id)


def _describe(workspace: Workspace, kind: str, item_id: str, error: StudioError) -> Damaged:
    path = workspace.path(kind, item_id)
    file, reason = path.relative_to(workspace.root).as_posix(), error.what.rstrip(".")
    if isinstance(error, DamagedRecord):
        reason = error.reason
        is_inside = path.is_dir() and error.file.startswith(f"{item_id}/")
        file = f"{kind}/{error.file}" if is_inside else file
    return Damaged(kind, item_id, _read_name(path) or item_id, file, reason)


def _read_name(path: Path) -> str:
    """The display name in the JSON of an item, or ""."""
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    for file in files:
        with contextlib.suppress(DamagedRecord):
            record = read_object(file)
            if isinstance(name := record.get("name") or record.get("dataset_name"), str):
                return name
    return ""


def read_object(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        DamagedRecord: the file is missing or is not a file, or it does not hold a JSON object whose numbers
            and texts can be shown.
    """
    with report_damage(path):
        check_file(path)
        return parse_object(path.read_bytes())


def check_file(path: Path) -> None:
    """Checks that a path is a file: opening a named pipe would wait without end.

    Raises:
        ValueError: it is not. OSError
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a file")


def read_record(path: Path, record_type: type[T], item_id: str = "") -> T:
    """Reads a JSON file as a dataclass; keys that the dataclass does not have are left out.

    Args:
        item_id: the id that the record must have; "" for a record without one.

    Raises:
        DamagedRecord
    """
    raw = read_object(path)
    with report_damage(path):
        record: T = check_type(record_type, raw)
        if item_id and raw.get("id") != item_id:
            raise ValueError(f"it is the record of {raw.get('id')!r}")
        return record


def sum_sizes(folder: Path) -> int:
    """The size of the files in a folder, in bytes; of those that another process has not just removed."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextlib.contextmanager
def report_damage(path: Path) -> Iterator[None]:
    """Converts what a damaged file raises into DamagedRecord with the name of the file.

    Args:
        path: the file that the block reads, and whose values it uses.
    """
    try:
        yield
    except DamagedRecord:
        raise
    except _READ_ERRORS as e:
        raise DamagedRecord(f"{path.parent.name}/{path.name}", _explain(e)) from e


def _explain(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    if isinstance(error, UnicodeError):
        return "it is not UTF-8 text"
    if isinstance(error, json.JSONDecodeError):
        message = error.msg.removesuffix(" at").removesuffix(" starting")
        return f"it is not JSON ({message}, line {error.lineno})"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, StudioError):
        return error.what.rstrip(".")
    if isinstance(error, (KeyError, AttributeError, TypeError)):
        return f"it has another form ({error})"
    return str(error) or type(error).__name__


def write_record(path: Path, values: dict[str, Any]) -> None:
    """Writes a record. Keys of the stored one that `values` does not have stay: another version wrote them.

    Args:
        path: a JSON file. If it is stored already, the lock of its item must be held.

    Raises:
        StorageError: it could not be written.
    """
    stored: dict[str, Any] = {}
    with contextlib.suppress(DamagedRecord):  # missing or damaged: `values` is complete
        stored = read_object(path)
    write_json(path, {**stored, **values})
