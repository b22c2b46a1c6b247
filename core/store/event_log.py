"""The log of a run: append-only JSON lines, read by cursor.

The only link between a run and whoever watches it. Knows how to append and how to read what is new;
knows nothing of training. A cursor is a byte offset: the end of the last whole line that was read.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

from core.store.workspace import storage_error

READ_LIMIT_BYTES = 4 * 1024 * 1024  # one read never returns more than this; call again for the rest


class EventLog:
    """Appends events to one file. Safe to use from several threads of one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._torn = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._mend()
        except OSError as e:
            raise storage_error(e, path) from e

    def _mend(self) -> None:
        """Ends a line that a crash left unterminated, so that the next event starts on its own line."""
        if self.path.exists() and self.path.stat().st_size:
            with open(self.path, "rb+") as f:
                f.seek(-1, os.SEEK_END)
                if f.read(1) != b"\n":
                    f.write(b"\n")

    def append(self, kind: str, **fields: Any) -> None:
        """Writes one event: its kind, the wall clock, seconds since this log was opened, and fields.

        Non-finite numbers are written as strings, because JSON has none.

        Raises:
            StorageError: the disk refused.
        """
        event = {
            "kind": kind,
            "time": round(time.time(), 3),
            "elapsed": round(time.monotonic() - self._start, 3),
            **fields,
        }
        line = json.dumps({k: _plain(v) for k, v in event.items()}, ensure_ascii=False) + "\n"
        with self._lock:
            try:
                with open(self.path, "ab") as f:
                    f.write(("\n" * self._torn + line).encode("utf-8", "replace"))
                self._torn = False
            except OSError as e:
                self._torn = True  # half a line may stand there: the next event starts on its own line
                raise storage_error(e, self.path) from e


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_since(path: Path, cursor: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Reads the events after `cursor`.

    A last line without its newline is left for the next call; a torn line in the middle is
    returned as `{"kind": "unreadable"}`, so that readers can count it.

    Args:
        path: the events.jsonl of a run; a missing file has no events.
        cursor: byte offset returned by the call before; 0 for all.

    Returns:
        (events, new cursor)
    """
    try:
        with open(path, "rb") as f:
            if cursor > os.fstat(f.fileno()).st_size:
                cursor = 0
            f.seek(cursor)
            block = f.read(READ_LIMIT_BYTES)
    except FileNotFoundError:
        return [], 0
    end = block.rfind(b"\n") + 1
    if (
        not end and len(block) == READ_LIMIT_BYTES
    ):  # a line longer than one read would hold readers up for ever
        return [{"kind": "unreadable"}], cursor + len(block)
    events: list[dict[str, Any]] = []
    for line in block[:end].split(b"\n"):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            events.append(event if isinstance(event, dict) else {"kind": "unreadable"})
        except (ValueError, RecursionError):
            events.append({"kind": "unreadable"})
    return events, cursor + end
