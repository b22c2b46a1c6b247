"""Event logs: append-only JSON lines, read by cursor.

A log is the only link between a run and the processes that follow it. A cursor is a byte offset: the end of
the last complete line that was read. `core.store.events` lists the kinds of events and their fields.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

from core.errors import DamagedRecord
from core.store.events import EVENT_KINDS, UnreadableEvent, is_damaged
from core.store.files import storage_error
from core.store.json_text import parse_object
from core.store.permissions import open_private

READ_LIMIT_BYTES = 4 * 1024 * 1024  # the most that one call of `read_since` reads


class EventLog:
    """Appends events to one file. Safe to use from several threads of one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._torn = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._end_torn_line()
        except OSError as e:
            raise storage_error(e, path) from e

    def _end_torn_line(self) -> None:
        """Ends a line that a crash left unterminated, so that the next event starts on its own line."""
        if self.path.exists() and self.path.stat().st_size:
            with open(self.path, "rb+") as f:
                f.seek(-1, os.SEEK_END)
                if f.read(1) != b"\n":
                    f.write(b"\n")

    def append(self, kind: str, **fields: Any) -> None:
        """Appends one event.

        Args:
            kind: one of `core.store.events.EVENT_KINDS`.
            fields: the fields of that kind. Numbers that are not finite are written as strings, because JSON
                has none.

        Raises:
            StorageError: the line could not be written.
        """
        event = {
            "kind": kind,
            "time": round(time.time(), 3),
            "elapsed": round(time.monotonic() - self._start, 3),
            **fields,
        }
        line = json.dumps({k: _to_json(v) for k, v in event.items()}, ensure_ascii=False) + "\n"
        with self._lock:
            try:
                with open(self.path, "ab", opener=open_private) as f:
                    f.write(("\n" * self._torn + line).encode("utf-8", "replace"))
                self._torn = False
            except OSError as e:
                self._torn = True  # part of a line may be written: the next event starts on its own line
                raise storage_error(e, self.path) from e


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_since(path: Path, cursor: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Reads the events after `cursor`.

    A last line without its newline is left for the next call. A line that is not an event is returned as an
    `UnreadableEvent`, so that readers can count it.

    Args:
        path: an event log; a missing file has no events.
        cursor: byte offset returned by the previous call; 0 reads from the start.

    Raises:
        DamagedRecord: the log is not a file that can be read.

    Returns:
        (events, new cursor). One call reads at most `READ_LIMIT_BYTES`; call again until the cursor stays the
        same.
    """
    try:
        with open(path, "rb") as f:
            if cursor > os.fstat(f.fileno()).st_size:
                cursor = 0
            f.seek(cursor)
            block = f.read(READ_LIMIT_BYTES)
    except FileNotFoundError:
        return [], 0
    except OSError as e:
        raise DamagedRecord(f"{path.parent.name}/{path.name}", e.strerror or str(e)) from e
    end = block.rfind(b"\n") + 1
    if not end and len(block) == READ_LIMIT_BYTES:
        # The line is longer than one read. Without this, the cursor would never move on.
        return [_unreadable()], cursor + len(block)
    return [parse_line(line) for line in block[:end].split(b"\n") if line.strip()], cursor + end


def parse_line(line: bytes) -> dict[str, Any]:
    """The event of a line; an `UnreadableEvent` if the line is not an event of a known form."""
    try:
        event = parse_object(line)
    except ValueError:
        return _unreadable()
    return _unreadable() if is_damaged(event) else event


def _unreadable() -> dict[str, Any]:
    return {"kind": EVENT_KINDS[UnreadableEvent]}


def read_all(path: Path) -> list[dict[str, Any]]:
    """Reads every event of a log."""
    events: list[dict[str, Any]] = []
    cursor, end = -1, 0
    while end != cursor:
        cursor = end
        new, end = read_since(path, cursor)
        events += new
    return events
