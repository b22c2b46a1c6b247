"""One slice of a run: restores its newest checkpoint, trains for a limited time, and saves a checkpoint.

    slice 1   load | steps ............ | save
    slice 2   load | restore | steps .. | save          a killed slice: the next one restores what was saved
              <-------- seconds -------->                before it, and nothing else is lost

Each slice runs in a process of its own, which has a GPU for so many seconds and can be killed at any moment.
`core.engine.sliced_runs` starts one after the other; the folder of the run is the link between them, as it is
for the processes of `core.train.launcher`. A run in slices ends with the adapter of a run without slices, to
the bit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.data.samples import Samples
from core.model.resident import Resident
from core.store import runs
from core.store.files import storage_error
from core.store.locks import FileLock
from core.store.runs import Run
from core.store.workspace import Workspace
from core.train.train import train

LOCK_SECONDS = 10.0  # a slice that was killed a moment ago may still hold the lock


@dataclass(frozen=True)
class SliceJob:
    """What a slice is given; plain values, which are pickled.

    Attributes:
        workspace: its folder. run: the run's id.
        base, quantization, device: how the base is loaded, as in `core.model.base.load_base`.
        seconds: how long the process may take, from its start to its end.
        parent: id of the process that started it; the slice ends when that process has died.
        reserve: seconds at the end in which no step begins: the last checkpoint is still saved.
    """

    workspace: str
    run: str
    base: str
    quantization: str
    device: str
    seconds: float
    parent: int
    reserve: float


class SliceLimit:
    """Decides after every step whether another one fits into the slice.

    Args:
        seconds: from now to the end of the slice.
        reserve: seconds at the end in which no step begins.
        now: the clock, in seconds.
    """

    def __init__(self, seconds: float, reserve: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._end = now() + seconds - reserve
        self._last: float | None = None
        self._longest = 0.0

    def is_reached(self) -> bool:
        """Whether a step as long as the longest one so far would end too late; called after every step.

        A step counts with the validation and the checkpoint that follow it.
        """
        now = self._now()
        if self._last is not None:
            self._longest = max(self._longest, now - self._last)
        self._last = now
        return now + self._longest > self._end


class SliceStop:
    """The stop request of a slice: of the user, of a parent process that has died, or of the clock.

    The first request stays, so that the end of the training and what follows it agree.
    """

    def __init__(self, workspace: Workspace, job: SliceJob, limit: SliceLimit) -> None:
        self._workspace, self._job, self._limit = workspace, job, limit
        self._request = ""

    def __call__(self) -> str:
        self._request = self._request or self._poll()
        return self._request

    def _poll(self) -> str:
        if request := runs.read_stop_request(self._workspace, self._job.run):
            return request
        if os.getppid() != self._job.parent:
            return "close"
        return "slice" if self._limit.is_reached() else ""


def train_slice(resident: Resident, job: SliceJob, limit: SliceLimit) -> Run:
    """Trains a run from its newest checkpoint until it ends, or the time is over.

    Args:
        resident: on the base of the job.
        limit: of this slice; its clock began before the base was loaded.

    Returns:
        The run; RUNNING where the next slice continues it.

    Raises:
        StudioError: as `core.train.train.train` raises it. Busy: another process trains the run.
    """
    workspace = Workspace(Path(job.workspace))
    path = runs.job_lock_path(workspace, job.run)
    try:
        lock = FileLock(path, LOCK_SECONDS)
    except OSError as e:
        raise storage_error(e, path) from e
    with lock:
        run = runs.load(workspace, job.run)
        return train(
            workspace,
            resident,
            run,
            lambda seconds: None,
            SliceStop(workspace, job, limit),
            lambda: Samples().replay_texts(job.base, run.spec.rules),
        )
