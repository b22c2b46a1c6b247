"""Runs in slices: one call of a process with a GPU after the other, until the run has ended. `SlicedRuns`.

    the model's thread: train ─┬─ call: a slice ─> checkpoint ─┬─ call: a slice ─> ... ─> adapter
                               └─ yields to requests meanwhile └─ the GPU time is used up: the run pauses

The events of all slices are one log, so the page follows them as one run. A slice that is killed is started
again from the last whole checkpoint; after STALLED_LIMIT slices in a row that added no checkpoint, the run
stays interrupted.
"""

from __future__ import annotations

import contextvars
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from core.engine.gpu_calls import DEVICE, Task, read_values
from core.engine.gpu_estimates import RESERVE_SECONDS
from core.engine.worker import BackgroundTask
from core.errors import GpuError, GpuQuota, StudioError
from core.spec.training import RunStatus
from core.store import runs
from core.store.runs import Run
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.engine.gpu_tasks import SliceEnd
    from core.train.slices import SliceJob

logger = logging.getLogger(__name__)

STALLED_LIMIT = 3  # slices in a row without a new checkpoint
SHORTEST_SECONDS = 20  # a slice that is shorter spends its time on loading the base
POLL_SECONDS = 0.05
YIELD_SECONDS = 0.1  # longest time for which waiting yields to requests between two polls
CLOSE_SECONDS = 20.0  # from the request to save and end until the slice is left to itself
WAITING_STATUS = {"pause": RunStatus.PAUSED, "close": RunStatus.INTERRUPTED}  # between two slices


class _Call:
    """A slice that runs, as seen by the thread that waits for it."""

    def __init__(self, task: Task, job: SliceJob, context: contextvars.Context) -> None:
        self.end: SliceEnd | None = None
        self.error: Exception | None = None
        self._task, self._job, self._context = task, job, context
        self._thread = BackgroundTask(self._follow, "gpu-slice")

    def _follow(self, thread: BackgroundTask) -> None:
        try:
            for end in read_values(self._task(self._job), self._context):
                self.end = end
            if self.end is None:
                self.error = GpuError("A slice ended without a result.")
        except Exception as e:  # noqa: BLE001 (the thread that waits raises it)
            self.error = e

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive


class SlicedRuns:
    """Trains runs in slices, on the thread that owns the model of this process.

    Args:
        task: the wrapped task of a slice (`GpuCalls.train`).
        seconds: of GPU time that a slice requests.
        reserve: seconds at the end of a slice in which no step begins.
    """

    def __init__(
        self, workspace: Workspace, task: Task, seconds: float, reserve: float = RESERVE_SECONDS
    ) -> None:
        self._workspace, self._task, self.seconds, self._reserve = workspace, task, seconds, reserve

    def train(
        self,
        run: Run,
        base: str,
        quantization: str,
        context: contextvars.Context,
        yield_to_requests: Callable[[float], None],
        poll_stop: Callable[[], str],
    ) -> None:
        """Trains a run until it has ended, or cannot continue now. The caller holds the run's lock.

        Args:
            base, quantization: how a slice loads the base.
            context: of the request that started the run, whose GPU time it uses.
            yield_to_requests, poll_stop: as in `core.train.train.train`.

        Raises:
            StudioError: the error of a slice, other than its end from outside and a used-up quota.
        """
        from core.train import checkpoints

        folder = runs.checkpoints_folder(self._workspace, run.id)
        runs.write_stop_request(self._workspace, run.id, "")
        seconds, stalled, newest = self.seconds, 0, checkpoints.find_newest(folder, run.id)
        while True:
            job = self._make_job(run.id, base, quantization, seconds)
            call = _Call(self._task, job, context)
            if not self._wait(run.id, call, yield_to_requests, poll_stop):
                return  # the studio closes: the run is interrupted, and its slice ends with this process
            before, newest = newest, checkpoints.find_newest(folder, run.id)
            stalled = 0 if newest != before else stalled + 1
            if call.error is not None and not isinstance(call.error, GpuError):
                raise call.error
            if not runs.load(self._workspace, run.id).status.is_alive:
                return  # it has ended, also where its process was killed after that
            if isinstance(call.error, GpuQuota):
                left = call.error.left_seconds or 0
                if not SHORTEST_SECONDS <= left < seconds:
                    self._pause(run.id, call.error)
                    return
                seconds = left
                continue
            step = checkpoints.step_of(newest) if newest else 0
            if call.error is not None:
                self._note(
                    run.id, f"A slice ended early: {call.error.what} The next one continues from step {step}."
                )
            if stalled >= STALLED_LIMIT:
                self._interrupt(run.id, call.error)
                return
            if request := poll_stop():
                if status := WAITING_STATUS.get(request):
                    runs.update(self._workspace, runs.load(self._workspace, run.id), status=status)
                    return

    def _make_job(self, run_id: str, base: str, quantization: str, seconds: float) -> SliceJob:
        from core.train.slices import SliceJob

        root = str(self._workspace.root)
        return SliceJob(root, run_id, base, quantization, DEVICE, seconds, os.getpid(), self._reserve)

    def _wait(
        self,
        run_id: str,
        call: _Call,
        yield_to_requests: Callable[[float], None],
        poll_stop: Callable[[], str],
    ) -> bool:
        """Waits for the end of a slice, and passes stop requests on to it; False where it waits no longer."""
        last_request, request_time = "", 0.0
        while call.is_alive:
            yield_to_requests(YIELD_SECONDS)
            request = poll_stop()
            if request and request != last_request:
                last_request, request_time = request, time.monotonic()
                runs.write_stop_request(self._workspace, run_id, request)
            if last_request == "close" and time.monotonic() - request_time > CLOSE_SECONDS:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _pause(self, run_id: str, error: GpuQuota) -> None:
        run = runs.load(self._workspace, run_id)
        self._note(run_id, f"Paused: {error}")
        runs.update(self._workspace, run, status=RunStatus.PAUSED, error=str(error))

    def _interrupt(self, run_id: str, error: Exception | None) -> None:
        why = f" {error}" if error else ""
        text = (
            f"{STALLED_LIMIT} slices of {self.seconds:g} s in a row saved no checkpoint.{why} Resume the run "
            "with longer slices, or start one with a smaller batch."
        )
        run = runs.load(self._workspace, run_id)
        runs.update(self._workspace, run, status=RunStatus.INTERRUPTED, error=text)

    def _note(self, run_id: str, text: str) -> None:
        try:
            runs.log(self._workspace, run_id).append("note", text=text)
        except StudioError:  # the run itself is recorded
            logger.exception("a note of the run %s was not logged", run_id)
