"""The line of runs that wait: in which order they begin, and which of them somebody took out.

Knows runs/lineup.json, which every process that works in the workspace may change: the one that holds a
run reads it before it begins the next. Knows nothing of threads or models.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from core.errors import Busy, RunError, StorageError
from core.store.workspace import FileLock, Workspace, read_json, write_json

MOVES = ("first", "up", "down", "last")
LOCK_TIMEOUT_SECONDS = 5.0  # a change of the line is a few milliseconds; another process may be at it


@dataclass(frozen=True)
class RunOrder:
    """What is written down of the line.

    Attributes:
        order: run ids, the next one first; some may have begun or be gone.
        cancelled: runs that a process that does not hold them took out; their holder drops them.
    """

    order: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()

    def sort(self, run_ids: Iterable[str]) -> list[str]:
        """The given runs in order; those that the order does not know come last, as given."""
        place = {run_id: i for i, run_id in enumerate(self.order)}
        return sorted(run_ids, key=lambda run_id: place.get(run_id, len(place)))


def read(workspace: Workspace) -> RunOrder:
    """The line as it is written down; a missing or damaged file costs the order, never a run."""
    try:
        raw = read_json(workspace.run_order_path)
        order, cancelled = ([str(i) for i in raw.get(k, ())] for k in ("order", "cancelled"))
        return RunOrder(tuple(dict.fromkeys(order)), tuple(dict.fromkeys(cancelled)))
    except (StorageError, AttributeError, TypeError):
        return RunOrder()


def read_version(workspace: Workspace) -> int:
    """A number that differs once the line was written again."""
    try:
        return workspace.run_order_path.stat().st_mtime_ns
    except OSError:
        return 0


def enqueue(workspace: Workspace, run_id: str) -> None:
    """Puts a run at the end of the line; one that stands in it already keeps its place."""
    with _changing(workspace) as now:
        order = now.order if run_id in now.order else (*now.order, run_id)
        _write(workspace, RunOrder(order, tuple(i for i in now.cancelled if i != run_id)))


def dequeue(workspace: Workspace, run_id: str) -> None:
    """A run waits no longer: it began, or was taken out."""
    with _changing(workspace) as now:
        _write(
            workspace,
            RunOrder(
                tuple(i for i in now.order if i != run_id), tuple(i for i in now.cancelled if i != run_id)
            ),
        )


def cancel(workspace: Workspace, run_ids: Sequence[str]) -> None:
    """Marks runs of another process as taken out."""
    with _changing(workspace) as now:
        _write(workspace, RunOrder(now.order, tuple(dict.fromkeys((*now.cancelled, *run_ids)))))


def move(
    workspace: Workspace, waiting: Mapping[str, str], after: Mapping[str, Iterable[str]], run_id: str, to: str
) -> list[str]:
    """Moves a waiting run and returns the new order.

    Args:
        waiting: all runs that wait, with their names.
        after: run -> the runs it must come after, because they train the adapter below it.
        to: one of MOVES.

    Raises:
        RunError: it does not wait, no such move, or it would stand before a run that it needs.
        Busy: another process is changing the line. StorageError: the disk refused.
    """
    with _changing(workspace) as now:
        order = reorder(now.sort(waiting), after, run_id, to, waiting)
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
    named = names or {}
    if to not in MOVES:
        raise RunError(f"A run cannot be moved {to!r}.", f"Move it {', '.join(MOVES)}.")
    if run_id not in order:
        raise RunError(f"The run {run_id!r} is not waiting.", "Only a queued run has a place in the line.")
    at = order.index(run_id)
    place = {"first": 0, "up": max(0, at - 1), "down": min(len(order) - 1, at + 1), "last": len(order) - 1}[
        to
    ]
    new = [i for i in order if i != run_id]
    new.insert(place, run_id)
    seen: set[str] = set()
    for each in new:
        if unmet := [i for i in after.get(each, ()) if i in new and i not in seen]:
            lower = named.get(unmet[0], unmet[0])
            raise RunError(
                f"{named.get(each, each)!r} is trained on top of {lower!r}.",
                f"It has to come after {lower!r}.",
            )
        seen.add(each)
    return new


def _write(workspace: Workspace, lineup: RunOrder) -> None:
    write_json(workspace.run_order_path, {"order": list(lineup.order), "cancelled": list(lineup.cancelled)})


@contextlib.contextmanager
def _changing(workspace: Workspace) -> Iterator[RunOrder]:
    """The line, for as long as only we may write it."""
    end = time.monotonic() + LOCK_TIMEOUT_SECONDS
    while True:
        try:
            claim = FileLock(workspace.run_order_path.with_suffix(".lock"))
            break
        except Busy:
            if time.monotonic() > end:
                raise Busy(
                    "The line of runs is being changed by another process.", "Try again in a moment."
                ) from None
            time.sleep(0.01)
    try:
        yield read(workspace)
    finally:
        claim.release()
