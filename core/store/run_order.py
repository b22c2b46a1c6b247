"""The order of queued runs: runs/lineup.json, which every process of the workspace may change.

The process that owns a queued run reads the file before it starts the next run, so another process can move
or cancel the run without owning it. The file is replaced under a file lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from core.errors import Busy, DamagedRecord, RunError
from core.store.files import delete, storage_error, write_json
from core.store.locks import FileLock
from core.store.records import read_record
from core.store.workspace import Workspace

MOVES = ("first", "up", "down", "last")
LOCK_TIMEOUT_SECONDS = 5.0  # one change holds the lock for a few milliseconds


@dataclass(frozen=True)
class RunOrder:
    """The content of the file.

    Attributes:
        order: run ids, the next one first; some may have started or been deleted.
        cancelled: runs that a process cancelled without owning them; their owner removes them from its queue.
    """

    order: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()

    def sort(self, run_ids: Iterable[str]) -> list[str]:
        """Sorts run ids by this order; ids that are not in it come last and keep their order."""
        position = {run_id: i for i, run_id in enumerate(self.order)}
        return sorted(run_ids, key=lambda run_id: position.get(run_id, len(position)))


def read(workspace: Workspace) -> RunOrder:
    """Reads the file. If it is missing or damaged, the order is empty; no run is lost."""
    try:
        return read_strictly(workspace)
    except DamagedRecord:
        return RunOrder()


def read_strictly(workspace: Workspace) -> RunOrder:
    """Reads the file; without a file, the order is empty.

    Raises:
        DamagedRecord
    """
    if not workspace.run_order_path.exists():
        return RunOrder()
    stored = read_record(workspace.run_order_path, RunOrder)
    return RunOrder(tuple(dict.fromkeys(stored.order)), tuple(dict.fromkeys(stored.cancelled)))


def read_version(workspace: Workspace) -> int:
    """A number that changes when the file is written; 0 without a file."""
    try:
        return workspace.run_order_path.stat().st_mtime_ns
    except OSError:
        return 0


def enqueue(workspace: Workspace, run_id: str) -> None:
    """Adds a run at the end; a run that is in the order already keeps its place."""
    with _lock(workspace) as now:
        order = now.order if run_id in now.order else (*now.order, run_id)
        _write(workspace, RunOrder(order, tuple(i for i in now.cancelled if i != run_id)))


def dequeue(workspace: Workspace, run_id: str) -> None:
    """Removes a run that has started or was cancelled."""
    with _lock(workspace) as now:
        order = tuple(i for i in now.order if i != run_id)
        _write(workspace, RunOrder(order, tuple(i for i in now.cancelled if i != run_id)))


def cancel(workspace: Workspace, run_ids: Sequence[str]) -> None:
    """Marks runs that another process owns as cancelled."""
    with _lock(workspace) as now:
        _write(workspace, RunOrder(now.order, tuple(dict.fromkeys((*now.cancelled, *run_ids)))))


def move(
    workspace: Workspace, queued: Mapping[str, str], after: Mapping[str, Iterable[str]], run_id: str, to: str
) -> list[str]:
    """Moves a queued run and returns the new order.

    Args:
        queued: id -> name of every queued run.
        after: id -> ids of the runs that train its parent adapter, so that it must come after them.
        to: one of MOVES.

    Raises:
        RunError: the run is not queued, `to` is unknown, or the run would come before a run that it needs.
        Busy: another process is changing the order. StorageError: the file could not be written.
    """
    with _lock(workspace) as now:
        order = reorder(now.sort(queued), after, run_id, to, queued)
        rest = [i for i in now.order if i not in order]
        _write(workspace, RunOrder((*order, *rest), now.cancelled))
    return order


def reorder(
    order: Sequence[str],
    after: Mapping[str, Iterable[str]],
    run_id: str,
    to: str,
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """The order after a move; see `move`."""
    names = names or {}
    if to not in MOVES:
        raise RunError(f"The move must be one of {', '.join(MOVES)}, got {to!r}.", "Choose one of them.")
    if run_id not in order:
        raise RunError(f"The run {run_id!r} is not queued.", "Only a queued run can be moved.")
    at, last = order.index(run_id), len(order) - 1
    target = {"first": 0, "up": max(0, at - 1), "down": min(last, at + 1), "last": last}[to]
    new = [i for i in order if i != run_id]
    new.insert(target, run_id)
    earlier: set[str] = set()
    for each in new:
        missing = [i for i in after.get(each, ()) if i in new and i not in earlier]
        if missing:
            parent = names.get(missing[0], missing[0])
            raise RunError(
                f"{names.get(each, each)!r} is trained on top of {parent!r}.",
                f"It must come after {parent!r} in the queue.",
            )
        earlier.add(each)
    return new


def _write(workspace: Workspace, new: RunOrder) -> None:
    if workspace.run_order_path.is_dir():  # in place of the file, it would keep every run out of the queue
        delete(workspace.run_order_path)
    write_json(workspace.run_order_path, {"order": list(new.order), "cancelled": list(new.cancelled)})


@contextlib.contextmanager
def _lock(workspace: Workspace) -> Iterator[RunOrder]:
    """Locks the file and yields its content."""
    path = workspace.run_order_path.with_suffix(".lock")
    try:
        lock = FileLock(path, LOCK_TIMEOUT_SECONDS)
    except Busy:
        raise Busy("Another process is changing the order of the queue.", "Try again in a moment.") from None
    except OSError as e:
        raise storage_error(e, path) from e
    with lock:
        yield read(workspace)
