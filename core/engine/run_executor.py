"""Trains the queued runs on the model's thread, and passes stop requests to them.

    Runs.start, Runs.resume ──> RunExecutor.enter ──> RunQueue ──> RunExecutor._train
    Runs.stop, Runs.pause ────> RunExecutor.request_stop ──> the trainer polls between its steps

A stop request of this process is kept in memory. A stop request of another process is a file in the run's
folder (`core.store.runs.write_stop_request`).
"""

from __future__ import annotations

import contextvars
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from core.data.samples import Samples
from core.engine.queue import RunQueue
from core.engine.resident_base import ResidentBase
from core.engine.run_worth import YIELD_SECONDS, Turn, limit_seconds, measure_worth
from core.engine.sliced_runs import SlicedRuns
from core.engine.worker import BackgroundTask, Worker
from core.errors import DiskFull, Diverged, OutOfMemory, StudioError
from core.spec.training import RunStatus
from core.store import run_order, runs
from core.store.runs import Run
from core.store.workspace import Workspace
from core.train import launcher

logger = logging.getLogger(__name__)

# The status of a run that ended with an error of this kind; any other error means FAILED.
ERROR_STATUS = {
    Diverged: RunStatus.DIVERGED,
    OutOfMemory: RunStatus.OUT_OF_MEMORY,
    DiskFull: RunStatus.DISK_FULL,
}


class RunExecutor:
    """Enters runs into the queue and trains them one after the other. Safe to call from any thread.

    Args:
        samples: returns the sample data; its general text is replayed when a spec names no replay dataset.
        finish: receives the id of an adapter that a run has added to the library, at the end of the run.
        slices: trains in processes with a GPU; None trains on the resident base.
    """

    def __init__(
        self,
        workspace: Workspace,
        worker: Worker,
        resident_base: ResidentBase,
        queue: RunQueue,
        samples: Callable[[], Samples],
        finish: Callable[[str], None] = lambda adapter_id: None,
        slices: SlicedRuns | None = None,
    ) -> None:
        self._finish = finish
        self.slices = slices
        self._workspace, self._worker, self._resident_base = workspace, worker, resident_base
        self._queue, self._samples = queue, samples
        self._stop_requests: dict[str, str] = {}  # run id to "keep", "pause" or "close"

    def enter(self, run: Run) -> None:
        """Locks a run and appends it to the queue.

        Raises:
            Busy: another process, or a training run that is ending, holds the lock. StorageError
        """
        self._queue.lock(run.id)
        # Only after the lock is taken: until then, a request may belong to the session that still trains.
        self._stop_requests.pop(run.id, None)
        # A run in slices uses the GPU time of the request that starts it, which the context belongs to.
        context = contextvars.copy_context() if self.slices else None
        self._queue.enter(run, lambda: self._train(run.id, context))

    def request_stop(self, run_id: str, request: str) -> None:
        """Asks a run of this process to end after its current step.

        Args:
            request: "keep" to add the adapter to the library, "pause" to save a checkpoint and resume later.
        """
        self._stop_requests[run_id] = request
        self._worker.post(lambda: self._announce_stop(run_id))

    def request_close(self) -> None:
        """Asks every run of this process to save a checkpoint, so that it can be resumed after a restart.

        A stop request that was sent before stays. `Worker.close` then waits for the run.
        """
        for run_id in list(self._queue.locks):
            self._stop_requests.setdefault(run_id, "close")

    # --- on the model's thread

    def _train(self, run_id: str, context: contextvars.Context | None = None) -> None:
        """Trains one run from start to end, and records how it ended."""
        try:
            run = runs.load(self._workspace, run_id)
            run_order.dequeue(self._workspace, run_id)
            begin = time.monotonic()
            yield_to_requests = self._worker.yield_to_requests
            if run.extra.launch:
                launcher.run_processes(
                    self._workspace, run, yield_to_requests, lambda: self._poll_stop(run_id)
                )
                self._measure_worth(run_id, time.monotonic() - begin)
                return
            if self.slices and context is not None:
                base, quantization, _ = self._resident_base.choice
                self.slices.train(
                    run, base, quantization, context, yield_to_requests, lambda: self._poll_stop(run_id)
                )
                self._measure_worth(run_id, time.monotonic() - begin)
                return
            from core.train.train import train

            train(
                self._workspace,
                self._resident_base.get(),
                run,
                yield_to_requests,
                lambda: self._poll_stop(run_id),
                lambda: self._samples().replay_texts(self._resident_base.info.name, run.spec.rules),
                background=BackgroundTask,
            )
            self._measure_worth(run_id, time.monotonic() - begin)
        except StudioError as e:
            status = next((s for kind, s in ERROR_STATUS.items() if isinstance(e, kind)), RunStatus.FAILED)
            self._record_error(run_id, status, str(e))
        except Exception as e:
            logger.exception("run %s failed", run_id)
            self._record_error(run_id, RunStatus.FAILED, f"{type(e).__name__}: {e}")
        finally:
            self._stop_requests.pop(run_id, None)
            self._resident_base.release_memory()
            try:
                runs.write_stop_request(self._workspace, run_id, "")
            except StudioError:  # the disk has become read-only
                logger.exception("the stop request of the run %s could not be withdrawn", run_id)
            finally:
                self._announce_adapter(run_id)
                self._queue.unlock(run_id)

    def _announce_adapter(self, run_id: str) -> None:
        try:
            run = runs.load(self._workspace, run_id)
            if run.status in (RunStatus.DONE, RunStatus.STOPPED):
                self._finish(run.adapter)
        except Exception:  # the run is complete, and stays so
            logger.exception("what follows the run %s could not be started", run_id)

    def _measure_worth(self, run_id: str, seconds: float) -> None:
        """Measures the adapter of a run that has just added one to the library, and records the verdict.

        A run with processes of its own is measured where the resident base is the one that it trained.

        Args:
            seconds: how long the run took.
        """
        try:
            run = runs.load(self._workspace, run_id)
            resident = self._resident_base.peek()
            if run.status not in (RunStatus.DONE, RunStatus.STOPPED) or resident is None:
                return
            if run.base_fingerprint != resident.base.fingerprint:
                return
            turn = Turn(
                time.monotonic() + limit_seconds(seconds),
                lambda: self._worker.yield_to_requests(YIELD_SECONDS),
                lambda: self._stop_requests.get(run_id) == "close",
            )
            verdict = measure_worth(self._workspace, resident, run, turn).verdict
            if verdict:
                runs.update(self._workspace, run, extra=replace(run.extra, verdict=verdict))
        except Exception:  # the run is complete, and stays so
            logger.exception("the worth of the run %s could not be recorded", run_id)

    def _record_error(self, run_id: str, status: RunStatus, error: str) -> None:
        try:
            runs.update(self._workspace, runs.load(self._workspace, run_id), status=status, error=error)
        except StudioError:  # the disk is full: the run will be found interrupted, and can be resumed
            logger.exception("the end of run %s could not be recorded", run_id)

    def _announce_stop(self, run_id: str) -> None:
        """Sets the status of a running run to STOPPING.

        On the model's thread, so that it cannot overwrite the status that the run ends with.
        """
        run = runs.load(self._workspace, run_id)
        if run.status is RunStatus.RUNNING and run_id in self._queue.locks and not run.extra.launch:
            runs.update(self._workspace, run, status=RunStatus.STOPPING)

    def _poll_stop(self, run_id: str) -> str:
        """The stop request of a run, or ""; the trainer calls this between its steps."""
        try:
            self._queue.poll_cancellations()
        except StudioError:  # an unreadable queue must not end the run that trains
            logger.exception("the order of the queue could not be read")
        return self._stop_requests.get(run_id) or runs.read_stop_request(self._workspace, run_id)
