"""What was read from the files of a workspace, for as long as these files stay as they are.

Every list on the page is made from the records on disk, and thirty visitors read the same ones. A record is
read again as soon as the inode, the size or a time of one of its files differs, whichever process changed it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ENTRY_LIMIT = 20_000
# Two changes within one tick of a file system's clock can leave the same times behind. What was changed just
# now is therefore read again.
SETTLE_NANOSECONDS = 100_000_000
Stamp = tuple[tuple[int, int, int, int], ...]


class RecordCache:
    """Records of one workspace. Safe to use from any thread; the callers must not change what they get."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._entries: dict[tuple[str, ...], tuple[Stamp, Any]] = {}

    def read(self, folder: tuple[str, ...], names: Sequence[str], read: Callable[[], T]) -> T:
        """What `read` returns; it is called only if a file has changed since it last was.

        Args:
            folder: the parts of a path in the workspace, such as ("runs", id). They need not be valid: `read`
                checks them, and what it refuses is not kept.
            names: of the files below it that `read` reads; "" is the folder, of which only the names count.

        Raises:
            Whatever `read` raises, which is then called the next time, too.
        """
        base = os.path.join(self._root, *map(str, folder))
        paths = [os.path.join(base, name) if name else base for name in names]
        stamp = _stamp(paths)
        key = (*folder, *names)
        found = self._entries.get(key)
        if found is not None and stamp and found[0] == stamp:
            value: T = found[1]
            return value
        value = read()
        if stamp and _is_settled(stamp) and _stamp(paths) == stamp:
            if len(self._entries) >= ENTRY_LIMIT:
                self._entries.clear()
            self._entries[key] = (stamp, value)
        return value


def _stamp(paths: Sequence[str]) -> Stamp:
    """The inode, size and times of each file; empty if one is missing."""
    try:
        found = [os.stat(path) for path in paths]
    except (OSError, ValueError):
        return ()
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found)


def _is_settled(stamp: Stamp) -> bool:
    newest = max(max(mtime, ctime) for *_, mtime, ctime in stamp)
    return newest + SETTLE_NANOSECONDS < time.time_ns()
