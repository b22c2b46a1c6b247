"""Work of the model that outlives its request: an id at once, its progress by that id."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass, field
from typing import Any

from core.engine.worker import Stream
from core.errors import NotFound, StudioError
from core.server.events_stream import poll
from core.server.problems import Problem

JOB_LIMIT = 50  # ended jobs that are remembered


@dataclass
class Job:
    """One piece of work.

    Attributes:
        state: "running", "done", "failed" or "cancelled".
        progress: the newest value of its stream; None before the first one.
        problem: why it failed, as problem JSON.
    """

    id: str
    stream: Stream
    state: str = "running"
    progress: Any = None
    problem: dict[str, Any] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None


class Jobs:
    """The jobs of one application. Its methods are called on the event loop."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def start(self, kind: str, stream: Stream) -> Job:
        """Follows a stream of the worker in the background.

        Args:
            kind: what the id begins with.
        """
        ended = [job.id for job in self._jobs.values() if job.state != "running"]
        for job_id in ended[: max(0, len(ended) - JOB_LIMIT)]:
            del self._jobs[job_id]
        job = Job(f"{kind}-{secrets.token_hex(4)}", stream)
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._follow(job))
        return job

    def find(self, job_id: str) -> Job:
        """The job of an id.

        Raises:
            NotFound: it is not known.
        """
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFound(f"The work {job_id!r} is not known.", "It may be older than the last restart.")
        return job

    async def cancel(self, job_id: str) -> Job:
        """Stops a job; one that has ended stays as it is.

        Raises:
            NotFound: it is not known.
        """
        job = self.find(job_id)
        if job.state == "running" and job.task is not None:
            job.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await job.task
        return job

    async def _follow(self, job: Job) -> None:
        try:
            async for value in poll(job.stream):
                job.progress = value
            job.state = "done"
        except asyncio.CancelledError:
            job.state = "cancelled"
            raise
        except StudioError as e:
            job.state, job.problem = "failed", Problem.of(e).to_json()
        except Exception as e:  # noqa: BLE001 (a defect; the worker has logged it)
            job.state = "failed"
            job.problem = Problem(500, f"The work failed ({type(e).__name__}).").to_json()
