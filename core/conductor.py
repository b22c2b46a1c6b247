"""The queue of training runs: starting, stopping, resuming and watching them.

Knows which run is asked for, claimed and asked to stop, and that training happens on the worker's thread.
Knows nothing of how training works: that room is imported there. `Engine.conduct` is the one instance.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from core import library
from core.data.datasets import load_dataset
from core.errors import Busy, Diverged, RunError, SpecError, StudioError
from core.events import read_since
from core.spec import RunStatus, TrainSpec
from core.train import runs
from core.train.runs import Run
from core.worker import Worker
from core.workspace import Claim, Workspace, check_name

if TYPE_CHECKING:
    from core.engine import BaseInfo
    from core.model.resident import Resident

logger = logging.getLogger(__name__)

CLICK_SECONDS = 2.0  # the same start twice within this time is one start


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
        self._stopping: dict[str, str] = {}  # run id -> "keep" or "close"
        self._claims: dict[str, Claim] = {}
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
            lacking.append("Choose a text dataset." if kind == "domain" else "Choose a dataset of labelled pairs.")
        if not str(fields.get("name", "")).strip():
            lacking.append("Give the adapter a name.")
        try:
            TrainSpec.from_json(fields)
        except StudioError as e:
            lacking.append(str(e))
        return lacking

    def start_run(self, spec: TrainSpec) -> str:
        """Queues a run and returns its id at once; a second click on the same start is the same run.

        Raises:
            SpecError, NotFound, NameRefused, AdapterError, StorageError
        """
        check_name(spec.name)
        if not spec.dataset:
            raise SpecError("No dataset is chosen.", "Import one on the Data page, then choose it here.")
        when, before, run_id = self._last_start
        if before == spec and time.monotonic() - when < CLICK_SECONDS:
            return run_id
        dataset = load_dataset(self._workspace, spec.dataset)
        if dataset.kind != spec.kind:
            raise SpecError(f"{dataset.name!r} is a {dataset.kind} dataset.", f"A {spec.kind} run needs a {spec.kind} dataset.")
        if spec.stack_on:
            self._stackable(spec)
        run = runs.create(self._workspace, spec, self._base().name, dataset.sha256)
        self._last_start = (time.monotonic(), spec, run.id)
        self._queue(run)
        return run.id

    def _stackable(self, spec: TrainSpec) -> None:
        """The adapter below is in the library, or a run that is before this one in the queue will put it there."""
        if any(r.adapter == spec.stack_on and r.status.alive for r in self.runs()):
            return
        adapter = library.load(self._workspace, spec.stack_on)
        resident = self._loaded()
        if resident is not None:
            resident.check_fit(adapter)

    def _queue(self, run: Run) -> None:
        self._claims[run.id] = Claim(runs.claim_path(self._workspace, run.id))
        self._stopping.pop(run.id, None)
        self._worker.run(lambda: self._train(run.id))

    def _train(self, run_id: str) -> None:
        """On the worker's thread: one run from start to end, whatever happens."""
        run = runs.load(self._workspace, run_id)
        stop = self._stopping
        try:
            if stop.get(run_id) == "keep":
                runs.change(self._workspace, run, status=RunStatus.STOPPED)
                return
            from core.train.train import train

            train(self._workspace, self._resident(), run, self._worker.serve, lambda: stop.get(run_id, ""), self._general)
        except Diverged as e:
            self._ended(run_id, RunStatus.DIVERGED, str(e))
        except StudioError as e:
            self._ended(run_id, RunStatus.FAILED, str(e))
        except Exception as e:
            logger.exception("run %s failed", run_id)
            from core.train.train import explain

            known = explain(e)
            self._ended(run_id, RunStatus.FAILED, str(known) if isinstance(known, StudioError) else f"{type(e).__name__}: {e}")
        finally:
            stop.pop(run_id, None)
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
            RunError: it is not running here.
        """
        run = self.run(run_id)
        if not run.status.alive or run_id not in self._claims:
            raise RunError(f"The run {run.name!r} is not running here ({run.status.value}).", "Only a queued or running run can be stopped.")
        self._stopping[run_id] = "keep"
        self._worker.post(lambda: self._mark_stopping(run_id))

    def _mark_stopping(self, run_id: str) -> None:
        """On the worker's thread, so that it cannot overwrite how the run ended meanwhile."""
        run = self.run(run_id)
        if run.status is RunStatus.RUNNING and run_id in self._claims:
            runs.change(self._workspace, run, status=RunStatus.STOPPING)

    def resume_run(self, run_id: str) -> None:
        """Queues a run again, from its newest checkpoint that verifies.

        Raises:
            RunError: it is running, it ended, or it began on another base.
        """
        run = self.run(run_id)
        if not run.resumable:
            raise RunError(f"The run {run.name!r} cannot be resumed ({run.status.value}).", "Start a new run with the same settings.")
        resident = self._loaded()
        if resident is not None and run.base_fingerprint and run.base_fingerprint != resident.base.fingerprint:
            what = f"The run {run.name!r} began on the base {run.base!r}, and the resident base is {resident.base.name!r}."
            raise RunError(what, "Change the base back, then resume it.")
        self._queue(run)
        runs.change(self._workspace, run, status=RunStatus.QUEUED, error="")

    def runs(self) -> list[Run]:
        """All runs, newest first."""
        return sorted((runs.load(self._workspace, i) for i in self._workspace.ids("runs")), key=lambda r: -r.created)

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
