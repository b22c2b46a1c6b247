"""The queue of training runs: its order, who may change it, and what leaves it. `engine.queue`.

    Runs.start ──> RunQueue.enter ──> worker.choose ──> RunExecutor trains it
                      └ moved or cancelled from any thread, or by another process (core/store/run_order.py)

A waiting run is *pending* in its owner, the process that will train it. The thread that starts a run and the
thread that cancels it both pop it from the pending runs, and only the one that finds it there proceeds. So a
run is never both started and cancelled.

The order is stored in `runs/lineup.json`, which is replaced under a lock, so another process can move or
cancel a run: the owner reads the file before it starts the next run, and between the steps of the current
one.

A run enters the queue completely or not at all: after an error it has the status that it had before, its lock
is released, and it is not pending. A run that needs the resident base starts once that base is loaded; until
then it waits, and the runs that have processes of their own go first.

A task run that waits for its parent adapter is never placed before the run that trains the parent. Cancelling
that run is refused, with the names of the runs that need it, unless they are cancelled together.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from core.engine.callers import current_caller
from core.engine.resident_base import ResidentBase
from core.engine.worker import Worker, make_lock
from core.errors import Busy, RunError, StudioError
from core.spec.training import RunStatus
from core.store import run_order, runs
from core.store.files import storage_error
from core.store.locks import FileLock
from core.store.runs import Run
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 256  # pending runs in one studio
CALLER_LIMIT = 16  # pending runs of one caller that is not an owner


@dataclass(frozen=True)
class QueuedRun:
    """A run in the queue.

    Attributes:
        after: ids of the queued runs that train its parent adapter; it must come after them.
        before: ids of the queued runs that need its adapter, directly or through another run.
        leaving: a process that is not its owner cancelled it; the owner will remove it.
        waits: why it cannot start although the model may be free, as a sentence; "" otherwise.
    """

    run: Run
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    leaving: bool = False
    waits: str = ""


class RunQueue:
    """Orders and cancels waiting runs. Safe to call from any thread.

    Attributes:
        locks: run id to lock. The lock marks this process as the owner of a queued or training run.
    """

    def __init__(
        self, workspace: Workspace, worker: Worker, resident_base: ResidentBase | None = None
    ) -> None:
        self._workspace, self._worker, self._resident_base = workspace, worker, resident_base
        self.locks: dict[str, FileLock] = {}
        self._pending: dict[str, Run] = {}
        self._callers: dict[str, str] = {}  # pending run to the name of the caller that queued it
        self._entrance = make_lock()  # held while the pending runs are counted and one is added
        self._version = 0  # of the order, as it was last read
        worker.choose = self._choose

    # --- for users of the engine

    def list(self) -> Sequence[QueuedRun]:
        """The queued runs, the next one first."""
        order = run_order.read(self._workspace)
        oldest_first = reversed(runs.load_all(self._workspace))
        waiting = {r.id: r for r in oldest_first if r.status is RunStatus.QUEUED}
        after = _map_parents(waiting.values())
        ids = order.sort(waiting)
        return [
            QueuedRun(
                waiting[i],
                after[i],
                _list_dependents(i, ids, after),
                i in order.cancelled,
                self.explain_wait(i),
            )
            for i in ids
        ]

    def explain_wait(self, run_id: str) -> str:
        """Why a pending run of this process cannot start yet, as a sentence; "" if it can."""
        pending = dict(self._pending)
        trains = {r.adapter: r for r in pending.values() if r.adapter}
        run, seen = pending.get(run_id), set[str]()
        while run is not None and run.id not in seen:  # a record may name its own adapter as its parent
            if reason := self._explain_base(run):
                return reason
            seen.add(run.id)
            run = trains.get(run.spec.stack_on)
        return ""

    def _explain_base(self, run: Run) -> str:
        """Why the resident base cannot train a run now, as a sentence; "" if it can."""
        if run.extra.launch or self._resident_base is None:
            return ""
        resident, info = self._resident_base.peek(), self._resident_base.info
        if resident is None:
            if info.loading:
                return "It starts when the base model is loaded."
            return f"It waits for a base model. {info.error or 'None is loaded.'}"
        if run.base_fingerprint not in ("", resident.base.fingerprint):
            return (
                f"It waits for the base {run.base!r}, on which it began; "
                f"the resident base is {resident.base.name!r}."
            )
        return ""

    def version(self) -> int:
        """A number that changes with the order of the queue."""
        return run_order.read_version(self._workspace)

    def move(self, run_id: str, to: str) -> None:
        """Moves a waiting run: "first", "up", "down" or "last".

        Raises:
            RunError: it is not waiting, or would be placed before a run that it needs.
            Busy: another process is changing the order. StorageError: the order could not be written.
        """
        run = runs.load(self._workspace, run_id)
        queue = self.list()
        if all(w.run.id != run_id for w in queue):
            raise RunError(
                f"The run {run.name!r} is not waiting ({run.status.value}).",
                "Only a queued run can be moved.",
            )
        names = {w.run.id: w.run.name for w in queue}
        run_order.move(self._workspace, names, {w.run.id: w.after for w in queue}, run_id, to)

    def cancel(self, run_id: str, together: bool = False) -> Sequence[str]:
        """Removes a waiting run from the queue.

        Args:
            together: also cancel the queued runs that need its adapter.

        Returns:
            ids of the cancelled runs.

        Raises:
            Busy: other queued runs need it. RunError: it has started, or is not waiting.
        """
        run = runs.load(self._workspace, run_id)
        queue = {w.run.id: w for w in self.list()}
        if run_id not in queue:
            raise RunError(
                f"The run {run.name!r} is not waiting ({run.status.value}).",
                "Stop it instead, if it is running.",
            )
        dependents = queue[run_id].before
        if dependents and not together:
            names = ", ".join(repr(queue[i].run.name) for i in dependents)
            raise Busy(
                f"{names} would be trained on top of {run.name!r}.",
                "Cancel those runs first, or all of them together.",
            )
        ids = [*reversed(dependents), run_id]
        foreign = [i for i in ids if i not in self.locks]
        if foreign:  # their owner reads the order before it starts the next run
            run_order.cancel(self._workspace, foreign)
        cancelled = [i for i in ids if i in foreign or self._remove_run(i)]
        if run_id not in cancelled:
            raise RunError(f"The run {run.name!r} has just started.", "Stop it instead.")
        return cancelled

    # --- for Runs, Grids and RunExecutor

    def check_room(self, count: int) -> None:
        """Checks that the queue can take more runs.

        Args:
            count: how many.

        Raises:
            Busy: the queue would hold more than QUEUE_LIMIT runs, or more than CALLER_LIMIT of this caller.
        """
        caller = current_caller()
        if caller is not None and caller.is_limited:
            own = sum(name == caller.name for i, name in self._callers.items() if i in self._pending)
            if own + count > CALLER_LIMIT:
                raise Busy(
                    f"{own} of your runs are waiting, and each user can have {CALLER_LIMIT} waiting runs, "
                    f"got {count} more.",
                    "Cancel some of them, or wait until they have started.",
                )
        if len(self._pending) + count > QUEUE_LIMIT:
            raise Busy(
                f"The queue holds {len(self._pending)} runs and can hold {QUEUE_LIMIT}.",
                "Cancel some runs, or wait until they have ended.",
            )

    def lock(self, run_id: str) -> None:
        """Takes the lock of a run, which marks this process as its owner.

        Raises:
            Busy: the lock is taken. StorageError: the lock file could not be written.
        """
        path = runs.lock_path(self._workspace, run_id)
        try:
            self.locks[run_id] = FileLock(path)
        except OSError as e:
            raise storage_error(e, path) from e

    def enter(self, run: Run, train: Callable[[], None]) -> None:
        """Appends a locked run. Its status is QUEUED before it can start.

        After an error the run is not queued, has its former status, and its lock is released.

        Args:
            train: called on the model's thread at the run's turn, unless the run was cancelled.

        Raises:
            Busy: the queue is full, or another process is changing the order. StorageError: the order or the
                status could not be written. StudioError: the studio is closing.
        """
        is_ordered = False
        try:
            self._worker.check_open()
            with self._entrance:
                self.check_room(1)
                caller = current_caller()
                if caller is not None:
                    self._callers = {i: name for i, name in self._callers.items() if i in self._pending}
                    self._callers[run.id] = caller.name
                self._pending[run.id] = run
            run_order.enqueue(self._workspace, run.id)
            is_ordered = True
            if run.status is not RunStatus.QUEUED:
                runs.update(self._workspace, run, status=RunStatus.QUEUED, error="")
            self._worker.run(lambda: self._begin(run.id, train), run.id)
        except BaseException:
            self._withdraw(run, is_ordered)
            raise

    def _withdraw(self, run: Run, is_ordered: bool) -> None:
        """Undoes a part of `enter`.

        Args:
            is_ordered: whether the run is in the order.
        """
        self._pending.pop(run.id, None)
        try:
            if is_ordered:
                with contextlib.suppress(StudioError):
                    run_order.dequeue(self._workspace, run.id)
            # A run that was queued when its process ended has that status on disk already.
            if run.status is not RunStatus.QUEUED and not run.was_queued:
                with contextlib.suppress(StudioError):
                    if runs.load(self._workspace, run.id).status is RunStatus.QUEUED:
                        runs.update(self._workspace, run, status=run.status, error=run.error)
        finally:
            self.unlock(run.id)

    def unlock(self, run_id: str) -> None:
        """Releases the lock of a run that has ended or was cancelled."""
        lock = self.locks.pop(run_id, None)
        if lock:
            lock.release()

    def release(self) -> None:
        """Releases the locks, at the end of the worker; a run that still trains keeps its own."""
        for run_id in list(self._pending):
            if self._pending.pop(run_id, None) is not None:
                self.unlock(run_id)
        if not self._worker.is_running:
            for run_id in list(self.locks):
                self.unlock(run_id)

    def poll_cancellations(self) -> None:
        """Drops the pending runs that another process cancelled."""
        version = run_order.read_version(self._workspace)
        if version != self._version:
            self._version = version
            for run_id in run_order.read(self._workspace).cancelled:
                try:
                    self._remove_run(run_id)
                except StudioError:  # it does not start; the next start of the studio shows it as interrupted
                    logger.exception("the end of the cancelled run %s could not be recorded", run_id)

    def _begin(self, run_id: str, train: Callable[[], None]) -> None:
        if self._pending.pop(run_id, None) is not None:
            train()

    def _remove_run(self, run_id: str) -> bool:
        """Removes one of this process's waiting runs; False if it has just started."""
        if self._pending.pop(run_id, None) is None:
            return False
        try:
            run = runs.load(self._workspace, run_id)
            extra = replace(run.extra, cancelled=True)
            runs.update(self._workspace, run, status=RunStatus.STOPPED, extra=extra)
            with contextlib.suppress(StudioError):
                runs.log(self._workspace, run_id).append("note", text="Cancelled before it began.")
            run_order.dequeue(self._workspace, run_id)
        finally:
            self.unlock(run_id)
        return True

    def _choose(self, waiting: Sequence[str]) -> str | None:
        """The next run among those that the worker holds, or None; called on its thread."""
        self.poll_cancellations()
        cancelled = [i for i in waiting if i not in self._pending]  # `_begin` returns at once for these
        if cancelled:
            return cancelled[0]
        ordered = run_order.read(self._workspace).sort(waiting)
        return next((i for i in ordered if not self.explain_wait(i)), None)


def _map_parents(waiting: Iterable[Run]) -> dict[str, tuple[str, ...]]:
    """Run id to the ids of the waiting runs that train its parent adapter."""
    listed = list(waiting)
    trains = {r.adapter: r.id for r in listed if r.adapter}
    parents = {r.id: trains.get(r.spec.stack_on, r.id) for r in listed}
    return {i: (parent,) if parent != i else () for i, parent in parents.items()}


def _list_dependents(
    run_id: str, order: Sequence[str], after: Mapping[str, Sequence[str]]
) -> tuple[str, ...]:
    """The runs that need `run_id`, and those that need them, in order."""
    dependents = [run_id]
    for candidate in order:
        if candidate not in dependents and any(i in dependents for i in after[candidate]):
            dependents.append(candidate)
    return tuple(dependents[1:])
