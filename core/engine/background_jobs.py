"""Jobs in the background: starting, following, cancelling and forgetting them, for imports and inspections.

    start ─> waiting ─ the jobs started before have ended ─> running ─> done, failed or cancelled

One job of a kind runs at a time, in the order of their start, each on a thread of its own, which mostly waits
for a child process. A job is known by its key until the engine is closed, so that a page that is loaded again
finds it.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from core.data.child_process import ChildProcess
from core.engine.worker import BackgroundTask
from core.errors import Cancelled, NotFound, StudioError

logger = logging.getLogger(__name__)

STATES = ("waiting", "running", "done", "failed", "cancelled")
POLL_SECONDS = 0.1
CLOSE_SECONDS = 15.0  # that `close` waits for the jobs


class JobStatus:
    """What the statuses of all kinds of jobs share: frozen dataclasses with these fields.

    Attributes:
        state: one of STATES; the last three are final.
        text: what the job is doing now.
        problem: why it failed, for the user; else "".
        error: why it failed, as the error itself; else None.
    """

    state: str
    text: str
    problem: str
    error: StudioError | None

    @property
    def has_ended(self) -> bool:
        """Whether the state is final."""
        return self.state in ("done", "failed", "cancelled")


@dataclass(kw_only=True)
class Job:
    """One job. A kind of job has a subclass with a status of its own.

    Attributes:
        key: how it is known.
        status: a frozen dataclass, replaced as a whole whenever something changes.
        work: does the job, on the job's thread; returns the fields of the final status.
        process: the child process that does the work.
        grace_seconds: that a cancelled process has to remove what it has written, before it is killed.
    """

    key: str
    status: JobStatus
    work: Callable[[Any], dict[str, Any]]
    process: ChildProcess
    grace_seconds: float = 0.0
    is_cancelled: bool = False
    task: BackgroundTask | None = field(default=None, repr=False)

    def set_status(self, **changes: Any) -> None:
        """Replaces fields of the status."""
        self.status = dataclasses.replace(self.status, **changes)  # type: ignore[type-var]


class _NoProcess:
    """Stands in for a child process."""

    def end(self) -> None:
        """Does nothing."""


@dataclass(kw_only=True)
class InProcessJob(Job):
    """A job without a child process: a cancelled one ends with its next `BackgroundJobs.poll_cancel`."""

    process: Any = field(default_factory=_NoProcess)


J = TypeVar("J", bound=Job)


class BackgroundJobs(Generic[J]):
    """The jobs of one kind. Safe to call from any thread.

    Args:
        what: what messages call a job, such as "import".
        ended_limit: ended jobs that are remembered.
    """

    def __init__(self, what: str, ended_limit: int) -> None:
        self._what, self._ended_limit = what, ended_limit
        self._jobs: dict[str, J] = {}
        self._is_closing = False

    def start(self, job: J) -> None:
        """Starts a job in its turn; one that has the same key is forgotten."""
        self.add(job)
        job.task = BackgroundTask(lambda task: self._run(job), name=f"{self._what} {job.key}")

    def add(self, job: J) -> None:
        """Remembers a job that has ended already."""
        ended = [key for key, known in list(self._jobs.items()) if known.status.has_ended]
        for key in ended[: max(0, len(ended) - self._ended_limit)]:
            del self._jobs[key]
        self._jobs.pop(job.key, None)  # so that the new one comes last
        self._jobs[job.key] = job

    def get(self, key: str) -> J | None:
        """The job of a key; None if it is not known."""
        return self._jobs.get(key)

    def find(self, key: str) -> J:
        """The job of a key.

        Raises:
            NotFound: it is not known.
        """
        job = self._jobs.get(key)
        if job is None:
            raise NotFound(
                f"The {self._what} {key!r} is not known.",
                "It may be older than the last restart. Start it again.",
            )
        return job

    def list_jobs(self) -> list[J]:
        """Every job, the oldest first; of ended ones the last few."""
        return list(self._jobs.values())

    def cancel(self, key: str) -> None:
        """Cancels a job: it ends with its next report, and is killed if that takes long.

        Raises:
            NotFound: it is not known.
        """
        job = self.find(key)
        job.is_cancelled = True
        if job.status.has_ended:
            return
        if job.grace_seconds:
            BackgroundTask(lambda task: self._end_late(job), name=f"end of {job.key}")
        else:
            job.process.end()

    def _end_late(self, job: J) -> None:
        deadline = time.monotonic() + job.grace_seconds
        while not job.status.has_ended and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if not job.status.has_ended:
            job.process.end()

    def wait(self, key: str, seconds: float | None = None) -> J:
        """Waits until a job has ended, at most so long, and returns it.

        Raises:
            NotFound: it is not known.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        job = self.find(key)
        while not job.status.has_ended:
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        return job

    def close(self) -> None:
        """Cancels every job and waits until it has removed what it wrote."""
        self._is_closing = True
        jobs = [job for job in list(self._jobs.values()) if not job.status.has_ended]
        for job in jobs:
            self.cancel(job.key)
        deadline = time.monotonic() + CLOSE_SECONDS
        for job in jobs:
            if job.task is not None:
                job.task.join(max(0.0, deadline - time.monotonic()))

    # --- on the job's thread

    def poll_cancel(self, job: J) -> None:
        """Ends the work of a job that is cancelled.

        Raises:
            Cancelled: it is.
        """
        if job.is_cancelled or self._is_closing:
            raise Cancelled(f"The {self._what} was cancelled.")

    def _run(self, job: J) -> None:
        try:
            self._wait_for_turn(job)
            job.set_status(state="running")
            job.set_status(**{"state": "done", "text": "Done", **job.work(job)})
        except Cancelled:
            job.set_status(state="cancelled", text="Cancelled")
        except StudioError as e:
            job.set_status(state="failed", text="Failed", problem=str(e), error=e)
        except Exception as e:  # a defect; the page must not wait without end
            logger.exception("an %s failed", self._what)
            problem = f"The {self._what} failed: {type(e).__name__}: {e}"
            job.set_status(state="failed", text="Failed", problem=problem, error=StudioError(problem))

    def _wait_for_turn(self, job: J) -> None:
        """Waits for the jobs that were started before."""
        while True:
            self.poll_cancel(job)
            before = [known for known in list(self._jobs.values()) if not known.status.has_ended]
            if not before or before[0] is job:
                return
            time.sleep(POLL_SECONDS)
