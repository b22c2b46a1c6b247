"""Ownership of a workspace: the first process that opens it owns it, and the others say what that means.

Several processes can use one workspace. Records are changed under locks of their own (`Workspace.lock`), so
the owner has one task more than the others: it removes what killed processes left. `owner.lock` holds its
process, its machine and the time of its start.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import time
from pathlib import Path

from core.errors import Busy, DiskFull, StorageError
from core.store.files import storage_error
from core.store.locks import FileLock
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)


class Ownership:
    """Holds the lock of a workspace, if no other process does.

    Attributes:
        notices: what is not possible because another process owns the workspace, or because it cannot be
            written; a sentence or more each.
    """

    def __init__(self, workspace: Workspace) -> None:
        self.notices: list[str] = []
        self._lock: FileLock | None = None
        path = workspace.root / "owner.lock"
        try:
            self._lock = FileLock(path)
            with contextlib.suppress(OSError):  # the disk is full: a second process then names no process
                path.write_text(json.dumps(_describe_process()), encoding="utf-8")
            workspace.remove_partials()
        except Busy:
            self.notices = [explain_second_process(path)]
        except (OSError, StorageError) as e:
            error = storage_error(e, path) if isinstance(e, OSError) else e
            is_full = isinstance(error, DiskFull)
            self.notices = [str(error) if is_full else explain_read_only(workspace.root, error)]
        for text in self.notices:
            logger.warning(text)

    def release(self) -> None:
        """Gives the workspace up; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _describe_process() -> dict[str, object]:
    return {"process": os.getpid(), "machine": platform.node(), "started": time.time()}


def explain_second_process(path: Path) -> str:
    """Says which process owns the workspace, and what works beside it."""
    owner = "Another process"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, OverflowError):  # of another version
        raw = json.loads(path.read_text(encoding="utf-8"))
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(raw["started"])))
        owner = f"Process {int(raw['process'])} on {str(raw['machine'])[:80]!r}, started {since},"
    return (
        f"{owner} has this workspace open too. Datasets, adapters, mixes, runs and reports are shared, and "
        "both can change them. Each process has a base model of its own in memory. A run trains in the "
        "process that queued it: here it can be followed, paused, moved and cancelled, but not stopped."
    )


def explain_read_only(root: Path, error: StorageError) -> str:
    """Says that a workspace cannot be written, why, and what works nevertheless."""
    return (
        f"The workspace {root.name!r} is read-only. {error.what} Its datasets, adapters, mixes, runs and "
        "reports can be read, and its adapters can be mixed and asked. Importing, training, saving, "
        "renaming, voting and deleting are not possible. Change the permissions of the folder, or open "
        "another workspace."
    )
