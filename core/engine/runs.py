"""The queue of training runs: starting, moving, cancelling, stopping, resuming and watching them.

Knows which run is asked for, claimed and asked to stop, and that training happens on the worker's thread.
Knows nothing of how training works: that room is imported there. `Engine.conduct` is the one instance.

    start ──> line (core/train/lineup.py: order, cancelled) ──> worker.choose ──> _train
                └ moved or cancelled from any thread, or by another process
"""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.data.datasets import Dataset, load_dataset
from core.engine.worker import Worker
from core.errors import Busy, DiskFull, Diverged, OutOfMemory, RunError, SpecError, StudioError
from core.spec.training import Launch, RunStatus, TrainSpec
from core.store import adapters, run_order, runs
from core.store.event_log import read_since
from core.store.runs import Run
from core.store.workspace import Claim, Workspace, check_name
from core.train import launcher

if TYPE_CHECKING:
    from core.engine.resident_base import BaseInfo
    from core.model.resident import Resident

logger = logging.getLogger(__name__)

REPORTERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}  # what brings each of them
ENDS = {
    Diverged: RunStatus.DIVERGED,
    OutOfMemory: RunStatus.OUT_OF_MEMORY,
    DiskFull: RunStatus.DISK_FULL,
}  # how a run ends by an error
CLICK_SECONDS = 2.0  # the same start twice within this time is one start
WAITING_LIMIT = 256  # runs that wait in one studio


@dataclass(frozen=True)
class Waiting:
    """A run in the queue.

    Attributes:
        after: ids of the waiting runs that it has to come after, because they train the adapter below it.
        before: ids of the waiting runs that need what it will have learned, however indirectly.
        leaving: it was taken out by another process than the one that holds it, and will not begin.
    """

    run: Run
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    leaving: bool = False


class Conductor:
    """Verbs over runs. Safe to call from any thread.

    Args:
        base: what the resident base is; on any thread.
        resident: the base itself, or an error that says why there is none; on the model's thread only.
        loaded: the base itself, or None; on any thread, to be looked at only.
        general: gives the texts of ours that are replayed.
    """

    def __init__(
        self,
        workspace: Workspace,
        worker: Worker,
        base: Callable[[], BaseInfo],
        resident: Callable[[], Resident],
        loaded: Callable[[], Resident | None],
        general: Callable[[], Sequence[str]],
    ) -> None:
        self._workspace, self._worker = workspace, worker
        self._base, self._resident, self._loaded, self._general = base, resident, loaded, general
        self._stopping: dict[str, str] = {}  # run id -> "keep", "pause" or "close"
        self._claims: dict[str, Claim] = {}
        self._shape: tuple[str, Any] | None = None  # (a base's fingerprint, what decides its memory)
        self._tickets: dict[
            str, bool
        ] = {}  # runs that wait here; whoever takes a ticket out has the run, to begin or to cancel it
        self._heard = 0  # stamp of the line as it was last read
        worker.choose = self._next
        self._last_start: tuple[float, TrainSpec | None, str] = (0.0, None, "")

    def ask_to_close(self) -> None:
        """Asks every run of ours to save a checkpoint and be resumed later; the worker ends after that."""
        for run_id in list(self._claims):
            self._stopping.setdefault(run_id, "close")

    def release(self) -> None:
        """Gives up what is still claimed, once the worker has ended."""
        for claim in list(self._claims.values()):
            claim.release()

    def missing(self, fields: dict[str, Any]) -> list[str]:
        """What a run still lacks before it can start, a sentence each; empty when it is ready."""
        lacking = []
        kind = fields.get("kind", "domain")
        if self._base().error:
            lacking.append(self._base().error)
        if not fields.get("dataset"):
            lacking.append(
                "Choose a text dataset." if kind == "domain" else "Choose a dataset of labelled pairs."
            )
        if not str(fields.get("name", "")).strip():
            lacking.append("Give the adapter a name.")
        try:
            lacking += not_installed(TrainSpec.from_json(fields))
        except StudioError as e:
            lacking.append(str(e))
        return lacking

    def estimate(self, spec: TrainSpec) -> dict[str, Any]:
        """What a run would need of the device's memory, against what that has: figures in bytes and a sentence, `text`.

        Calibrated by the newest run on the same base whose first step was measured. Without a base, `text` alone, empty.
        """
        resident = self._loaded()
        if resident is None:
            return {"text": ""}
        from core.train import memory

        if self._shape is None or self._shape[0] != resident.base.fingerprint:
            self._shape = (
                resident.base.fingerprint,
                self._worker.call(lambda: memory.Shape.of(resident.base)),
            )
        shape = self._shape[1]
        alike = (
            r.extra.get("memory_ratio")
            for r in self.runs()
            if r.base_fingerprint == resident.base.fingerprint
        )
        return memory.told(shape, spec, next((r for r in alike if r), None), memory.available(shape.on_gpu))

    def start_run(self, spec: TrainSpec, extra: dict[str, Any] | None = None) -> str:
        """Queues a run and returns its id at once; a second click on the same start is the same run.

        Args:
            extra: what else is written down with the run: the grid that it belongs to, or "launch", the processes of its own that train it.

        Raises:
            SpecError, NotFound, NameRefused, AdapterError, StorageError
        """
        when, before, run_id = self._last_start
        if before == spec and time.monotonic() - when < CLICK_SECONDS:
            return run_id
        dataset = self.check(spec)
        self.room(1)
        run = runs.create(self._workspace, spec, self._base().name, dataset.sha256, extra)
        self._last_start = (time.monotonic(), spec, run.id)
        self._queue(run)
        return run.id

    def check(self, spec: TrainSpec) -> Dataset:
        """What a run needs before it can be queued: a name, its dataset, which is returned, and the adapter below it.

        Raises:
            SpecError, NotFound, NameRefused, AdapterError
        """
        check_name(spec.name)
        if not spec.dataset:
            raise SpecError("No dataset is chosen.", "Import one on the Data page, then choose it here.")
        dataset = load_dataset(self._workspace, spec.dataset)
        if dataset.kind != spec.kind:
            raise SpecError(
                f"{dataset.name!r} is a {dataset.kind} dataset.",
                f"A {spec.kind} run needs a {spec.kind} dataset.",
            )
        if lacking := not_installed(spec):
            raise SpecError(lacking[0], "Or leave it out of the places where the loss is logged.")
        if spec.stack_on:
            self._stackable(spec)
        return dataset

    def room(self, count: int) -> None:
        """Refuses what would make the queue too long.

        Raises:
            Busy
        """
        if len(self._tickets) + count > WAITING_LIMIT:
            raise Busy(
                f"{len(self._tickets)} runs are waiting already.",
                f"At most {WAITING_LIMIT} wait at once: cancel some, or wait.",
            )

    def _stackable(self, spec: TrainSpec) -> None:
        """The adapter below is in the library, or a run that is before this one in the queue will put it there."""
        if any(r.adapter == spec.stack_on and r.status.alive for r in self.runs()):
            return
        adapter = adapters.load(self._workspace, spec.stack_on)
        resident = self._loaded()
        if resident is not None:
            resident.check_fit(adapter)

    def _queue(self, run: Run) -> None:
        """Puts a run at the end of the line. It is claimed, and says that it is queued, before it can begin."""
        self._claims[run.id] = Claim(runs.claim_path(self._workspace, run.id))
        self._stopping.pop(run.id, None)
        if run.status is not RunStatus.QUEUED:
            runs.change(self._workspace, run, status=RunStatus.QUEUED, error="")
        run_order.enter(self._workspace, run.id)
        self._tickets[run.id] = True
        self._worker.run(lambda: self._train(run.id), run.id)

    # --- the line of those that wait

    def queue(self) -> list[Waiting]:
        """The runs that wait, the next one first."""
        now = run_order.read(self._workspace)
        waiting = {r.id: r for r in reversed(self.runs()) if r.status is RunStatus.QUEUED}
        after = _needs(waiting.values())
        order = now.sorted(waiting)
        return [Waiting(waiting[i], after[i], _needing(i, order, after), i in now.cancelled) for i in order]

    def line_stamp(self) -> int:
        """A number that differs once the order of the queue has changed."""
        return run_order.stamp(self._workspace)

    def move_run(self, run_id: str, to: str) -> None:
        """Moves a waiting run: "first", "up", "down" or "last".

        Raises:
            RunError: it does not wait, or would stand before a run that it needs. Busy, StorageError.
        """
        run = self.run(run_id)
        line = self.queue()
        if all(w.run.id != run_id for w in line):
            raise RunError(
                f"The run {run.name!r} is not waiting ({run.status.value}).",
                "Only a queued run has a place in the line.",
            )
        names = {w.run.id: w.run.name for w in line}
        run_order.move(self._workspace, names, {w.run.id: w.after for w in line}, run_id, to)

    def cancel_run(self, run_id: str, together: bool = False) -> list[str]:
        """Takes a waiting run out of the queue before it begins.

        Args:
            together: also those that need what it would have learned.

        Returns:
            ids of the runs that will not begin.

        Raises:
            Busy: others in the queue need it. RunError: it has begun, or does not wait.
        """
        run = self.run(run_id)
        line = {w.run.id: w for w in self.queue()}
        if run_id not in line:
            raise RunError(
                f"The run {run.name!r} is not waiting ({run.status.value}).",
                "Stop it instead, if it is running.",
            )
        above = line[run_id].before
        if above and not together:
            names = ", ".join(repr(line[i].run.name) for i in above)
            raise Busy(
                f"{names} would be trained on top of {run.name!r}.",
                "Cancel what needs it first, or all of them together.",
            )
        gone = [*reversed(above), run_id]
        strangers = [i for i in gone if i not in self._claims]
        if strangers:  # they wait in another process, which reads the line before it begins the next
            run_order.cancel(self._workspace, strangers)
        taken = [i for i in gone if i in strangers or self._drop(i)]
        if run_id not in taken:
            raise RunError(f"The run {run.name!r} has just begun.", "Stop it instead.")
        return taken

    def _drop(self, run_id: str) -> bool:
        """Takes one of our waiting runs out, unless it began in this very moment."""
        if self._tickets.pop(run_id, None) is None:
            return False
        try:
            run = self.run(run_id)
            runs.log(self._workspace, run_id).append("note", text="Cancelled before it began.")
            runs.change(
                self._workspace, run, status=RunStatus.STOPPED, extra={**run.extra, "cancelled": True}
            )
            run_order.leave(self._workspace, run_id)
        finally:
            self._claims.pop(run_id).release()
        return True

    def _next(self, waiting: Sequence[str]) -> str:
        """Which of the runs that the worker holds is next; on its thread."""
        self._heed()
        gone = [i for i in waiting if i not in self._tickets]  # cancelled ones end at once
        return gone[0] if gone else run_order.read(self._workspace).sorted(waiting)[0]

    def _heed(self) -> None:
        """Drops what another process took out of the line."""
        stamp = run_order.stamp(self._workspace)
        if stamp != self._heard:
            self._heard = stamp
            for run_id in run_order.read(self._workspace).cancelled:
                self._drop(run_id)

    def _stop_asked(self, run_id: str) -> str:
        """What the trainer asks between its steps, which is also when others are heard."""
        try:
            self._heed()
        except StudioError:  # the run that trains does not end because of those that wait
            logger.exception("the line of runs could not be read")
        return self._stopping.get(run_id) or runs.asked(self._workspace, run_id)

    def queue_again(self) -> list[str]:
        """Queues the runs again that were still waiting when their studio ended, in their order; returns their ids.

        Nothing begins by itself at a start: a studio that was opened for something else would lose its model to old runs.
        """
        line = run_order.read(self._workspace)
        waited = line.sorted(r.id for r in reversed(self.runs()) if r.waited and r.id not in line.cancelled)
        for run_id in waited:
            self.resume_run(run_id)
        return waited

    def _train(self, run_id: str) -> None:
        """On the worker's thread: one run from start to end, whatever happens."""
        if self._tickets.pop(run_id, None) is None:  # it was cancelled
            return
        try:
            run = runs.load(self._workspace, run_id)
            run_order.leave(self._workspace, run_id)
            if "launch" in run.extra:
                launcher.conduct(self._workspace, run, self._worker.serve, lambda: self._stop_asked(run_id))
                return
            from core.train.train import train

            train(
                self._workspace,
                self._resident(),
                run,
                self._worker.serve,
                lambda: self._stop_asked(run_id),
                self._general,
            )
        except StudioError as e:
            self._ended(
                run_id, next((s for kind, s in ENDS.items() if isinstance(e, kind)), RunStatus.FAILED), str(e)
            )
        except Exception as e:
            logger.exception("run %s failed", run_id)
            self._ended(run_id, RunStatus.FAILED, f"{type(e).__name__}: {e}")
        finally:
            self._stopping.pop(run_id, None)
            runs.ask(self._workspace, run_id, "")
            claim = self._claims.pop(run_id, None)
            if claim:
                claim.release()

    def _ended(self, run_id: str, status: RunStatus, error: str) -> None:
        try:
            runs.change(self._workspace, runs.load(self._workspace, run_id), status=status, error=error)
        except StudioError:  # a full disk: the run is found interrupted at the next look, and can be resumed
            logger.exception("the end of run %s could not be written down", run_id)

    def stop_run(self, run_id: str) -> None:
        """Asks a run to end after its step and keep what it learned; a queued one does not begin.

        Raises:
            RunError: it is not running here. Busy: others in the queue need it.
        """
        run = self.run(run_id)
        if run.status is RunStatus.QUEUED:
            try:
                self.cancel_run(run_id)
                return
            except RunError:  # it has just begun, and is stopped like any other
                if run_id not in self._claims:
                    raise
        if (
            run.status.alive and "launch" in run.extra and run_id not in self._claims
        ):  # another studio or terminal launched it
            runs.ask(self._workspace, run_id, "keep")
            return
        if not run.status.alive or run_id not in self._claims:
            raise RunError(
                f"The run {run.name!r} is not running here ({run.status.value}).",
                "Only a queued or running run can be stopped.",
            )
        self._stopping[run_id] = "keep"
        self._worker.post(lambda: self._mark_stopping(run_id))

    def pause_run(self, run_id: str) -> None:
        """Asks a run to save a checkpoint after its step and give the model back; the next in the queue then begins.

        One that trains in another process is left a wish, which it reads between its steps.

        Raises:
            RunError: it is not running.
        """
        run = self.run(run_id)
        if run.status is not RunStatus.RUNNING:
            raise RunError(
                f"The run {run.name!r} is not running ({run.status.value}).",
                "Only a running run can be paused.",
            )
        if run_id not in self._claims:
            runs.ask(self._workspace, run_id, "pause")
            return
        self._stopping[run_id] = "pause"
        self._worker.post(lambda: self._mark_stopping(run_id))

    def _mark_stopping(self, run_id: str) -> None:
        """On the worker's thread, so that it cannot overwrite how the run ended meanwhile."""
        run = self.run(run_id)
        if run.status is RunStatus.RUNNING and run_id in self._claims and "launch" not in run.extra:
            runs.change(self._workspace, run, status=RunStatus.STOPPING)

    def resume_run(self, run_id: str) -> None:
        """Queues a run again, from its newest checkpoint that verifies.

        Raises:
            RunError: it is running, it ended, or it began on another base.
        """
        run = self.run(run_id)
        if not run.resumable:
            raise RunError(
                f"The run {run.name!r} cannot be resumed ({run.status.value}).",
                "Start a new run with the same settings.",
            )
        resident = self._loaded()
        if (
            resident is not None
            and run.base_fingerprint
            and run.base_fingerprint != resident.base.fingerprint
        ):
            what = f"The run {run.name!r} began on the base {run.base!r}, and the resident base is {resident.base.name!r}."
            raise RunError(what, "Change the base back, then resume it.")
        if run.spec.stack_on:
            self._stackable(run.spec)
        self._queue(run)

    def join_run(self, run_id: str, launch: Launch) -> None:
        """Brings the processes of this machine to a run that another machine started; stays until they end.

        Raises:
            RunError: it is not waiting for other machines, or for other ones. StudioError: what a process raised.
        """
        run = self.run(run_id)
        asked = Launch.from_json(run.extra["launch"]) if "launch" in run.extra else Launch()
        if not run.status.alive or asked.nnodes < 2:
            what = f"The run {run.name!r} waits for no other machine ({run.status.value})."
            raise RunError(what, "Start it on the first machine with --nnodes, then join it from the others.")
        if replace(launch, node_rank=0) != replace(asked, node_rank=0) or launch.node_rank == asked.node_rank:
            raise RunError(
                f"The run {run.name!r} was started with other machines in mind.",
                f"Give --nnodes {asked.nnodes} --nproc {asked.nproc} --rdzv-endpoint {asked.rdzv_endpoint}, and a --node-rank that is still free.",
            )
        launcher.conduct(self._workspace, run, lambda seconds: None, lambda: "", launch)

    def runs(self) -> list[Run]:
        """All runs, newest first."""
        return sorted(
            (runs.load(self._workspace, i) for i in self._workspace.ids("runs")), key=lambda r: -r.created
        )

    def run(self, run_id: str) -> Run:
        return runs.load(self._workspace, run_id)

    def run_events(self, run_id: str, cursor: int = 0) -> tuple[list[dict[str, Any]], int]:
        """What happened in a run since `cursor`, and the next cursor."""
        self._workspace.existing("runs", run_id)
        return read_since(runs.events_path(self._workspace, run_id), cursor)

    def wait_run(self, run_id: str, seconds: float = 3600.0) -> Run:
        """Blocks until a run has ended."""
        end = time.monotonic() + seconds
        while (run := self.run(run_id)).status.alive or run_id in self._claims:
            if time.monotonic() > end:
                raise Busy(f"The run {run.name!r} is still {run.status.value}.", "Wait longer, or stop it.")
            time.sleep(0.05)
        return self.run(run_id)


def not_installed(spec: TrainSpec) -> list[str]:
    """A sentence for every place the loss should be logged to that is unknown, or whose package is not here."""
    found = []
    for name in spec.report_to:
        packages = REPORTERS.get(name)
        if packages is None:
            found.append(f"There is no place {name!r} to log to: choose among {', '.join(REPORTERS)}.")
        elif not any(importlib.util.find_spec(p) for p in packages):
            found.append(f"To log to {name}, install it first: pip install {packages[0]}.")
    return found


def _needs(waiting: Iterable[Run]) -> dict[str, tuple[str, ...]]:
    """Run -> the waiting runs that train the adapter below it."""
    given = list(waiting)
    trains = {r.adapter: r.id for r in given}
    return {r.id: (trains[r.spec.stack_on],) if r.spec.stack_on in trains else () for r in given}


def _needing(run_id: str, order: Sequence[str], after: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The runs that need `run_id`, and those that need them, in order."""
    found = [run_id]
    for each in order:
        if any(i in found for i in after[each]):
            found.append(each)
    return tuple(found[1:])
