"""Imports in the background: starting, following and cancelling them. `engine.imports`.

One import runs at a time, in the order of their start. A job is known by its id until the engine is closed,
so that a page that is loaded again finds it. A killed process leaves a draft, which the next start removes.
"""

from __future__ import annotations

import builtins
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.engine.datasets import Datasets
from core.engine.worker import BackgroundTask
from core.errors import Cancelled, NotFound, StudioError
from core.progress import LineClock, ReadProgress, Report
from core.spec.settings import SEED
from core.store.workspace import check_name

logger = logging.getLogger(__name__)

ENDED_LIMIT = 50  # ended imports whose status is kept
POLL_SECONDS = 0.1
STATES = ("waiting", "running", "done", "failed", "cancelled")


@dataclass(frozen=True)
class ImportStatus:
    """One import, as the page and the terminal show it.

    Attributes:
        job_id: what `Imports.start` returned.
        name: display name of the dataset.
        state: one of STATES; the last three are final.
        text: what it is doing now, for example "Reading notes.jsonl".
        done_bytes, total_bytes: bytes of work that are finished, and in all; 0 while the total is not known.
        rows: rows read so far.
        eta_seconds: estimated seconds until the end, or None without an estimate.
        dataset_id: id of the dataset, once it is done.
        problem: why it failed, for the user; else "".
    """

    job_id: str
    name: str
    state: str = "waiting"
    text: str = "Waiting for another import"
    done_bytes: int = 0
    total_bytes: int = 0
    rows: int = 0
    eta_seconds: float | None = None
    dataset_id: str = ""
    problem: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the state is final."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def share(self) -> float:
        """The finished share of the work, from 0 to 1."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else 0.0


@dataclass
class _Job:
    status: ImportStatus
    run: Callable[[Report], str]
    is_cancelled: bool = False
    started: float = 0.0  # time.monotonic()
    clock: LineClock = field(default_factory=LineClock)
    task: BackgroundTask | None = field(default=None, repr=False)


class Imports:
    """Runs imports on a thread of their own. Safe to call from any thread."""

    def __init__(self, datasets: Datasets) -> None:
        self._datasets = datasets
        self._jobs: dict[str, _Job] = {}
        self._is_closing = False

    def start(
        self,
        paths: Sequence[str | Path],
        name: str,
        kind: str | None = None,
        roles: dict[str, str] | None = None,
        encoding: str = "utf-8",
        purpose: str = "training",
        seed: int = SEED,
    ) -> str:
        """Starts an import and returns the id of its job at once; the args are those of `import_files`.

        Raises:
            InvalidName: the name cannot be used. Errors of the files are in `ImportStatus.problem`.
        """
        files, name = list(paths), check_name(name)

        def run(report: Report) -> str:
            dataset = self._datasets.import_files(
                files, name, kind, roles, seed, encoding, purpose=purpose, report=report
            )
            return dataset.id

        return self._start(name, run)

    def start_hub(
        self,
        hub_id: str,
        name: str = "",
        config: str = "",
        split: str = "",
        revision: str = "",
        kind: str | None = None,
        roles: dict[str, str] | None = None,
        purpose: str = "training",
    ) -> str:
        """Starts the import of a dataset of the Hub; returns and errors as `start`, args as `import_hub`."""
        name = check_name(name or hub_id.rpartition("/")[2])

        def run(report: Report) -> str:
            return self._datasets.import_hub(
                hub_id, name, config, split, revision, kind, roles, purpose=purpose, report=report
            ).id

        return self._start(name, run)

    def _start(self, name: str, run: Callable[[Report], str]) -> str:
        """Starts a job on a thread of its own."""
        job_id = f"import-{secrets.token_hex(4)}"
        job = _Job(ImportStatus(job_id, name), run)
        self._forget_oldest()
        self._jobs[job_id] = job
        job.task = BackgroundTask(lambda task: self._run(job), name=job_id)
        return job_id

    def status(self, job_id: str) -> ImportStatus:
        """The state of one import.

        Raises:
            NotFound: no import of this engine has this id.
        """
        return self._find(job_id).status

    def list(self) -> builtins.list[ImportStatus]:
        """All imports since the engine was opened, the oldest first; of ended ones the last few."""
        return [job.status for job in list(self._jobs.values())]

    def cancel(self, job_id: str) -> None:
        """Cancels an import: it ends after the block that it reads, and leaves nothing.

        Raises:
            NotFound: no import of this engine has this id.
        """
        self._find(job_id).is_cancelled = True

    def wait(self, job_id: str, seconds: float | None = None) -> ImportStatus:
        """Waits until an import has ended, at most so long, and returns its status.

        Raises:
            NotFound: no import of this engine has this id.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not (status := self.status(job_id)).has_ended:
            if deadline is not None and time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        return status

    def close(self) -> None:
        """Cancels every import and waits until they have removed their drafts."""
        self._is_closing = True
        for job_id in list(self._jobs):
            self.cancel(job_id)
        for job_id in list(self._jobs):
            self.wait(job_id, seconds=10.0)

    def _find(self, job_id: str) -> _Job:
        job = self._jobs.get(job_id)
        if job is None:
            raise NotFound(f"The import {job_id!r} is not known.", "It may be older than the last restart.")
        return job

    def _forget_oldest(self) -> None:
        ended = [job_id for job_id, job in list(self._jobs.items()) if job.status.has_ended]
        for job_id in ended[: max(0, len(ended) - ENDED_LIMIT)]:
            del self._jobs[job_id]

    # --- on the job's thread

    def _run(self, job: _Job) -> None:
        try:
            self._wait_for_turn(job)
            job.started = time.monotonic()
            job.status = replace(job.status, state="running", text="Looking at the files")
            dataset_id = job.run(lambda progress: self._report(job, progress))
            job.status = replace(
                job.status, state="done", text="Done", eta_seconds=0.0, dataset_id=dataset_id
            )
        except Cancelled:
            job.status = replace(job.status, state="cancelled", text="Cancelled", eta_seconds=None)
        except StudioError as e:
            job.status = replace(job.status, state="failed", text="Failed", eta_seconds=None, problem=str(e))
        except Exception as e:  # a defect; the page must not wait without end
            logger.exception("an import failed")
            problem = f"The import failed: {type(e).__name__}: {e}"
            job.status = replace(job.status, state="failed", text="Failed", eta_seconds=None, problem=problem)

    def _wait_for_turn(self, job: _Job) -> None:
        """Waits for the imports that were started before."""
        while True:
            if job.is_cancelled or self._is_closing:
                raise Cancelled("The import was cancelled.")
            before = [j for j in list(self._jobs.values()) if not j.status.has_ended]
            if before[0] is job:
                return
            time.sleep(POLL_SECONDS)

    def _report(self, job: _Job, progress: ReadProgress) -> None:
        """Takes over the progress of the work; raises Cancelled once the job is cancelled."""
        if job.is_cancelled or self._is_closing:
            raise Cancelled("The import was cancelled.")
        seconds = time.monotonic() - job.started
        eta = None
        if progress.done and progress.total and seconds > 1.0:
            eta = seconds * max(0, progress.total - progress.done) / progress.done
        job.status = replace(
            job.status,
            text=progress.text,
            done_bytes=progress.done,
            total_bytes=progress.total,
            rows=progress.rows,
            eta_seconds=eta,
        )
        if job.clock.is_due():
            logger.info("%s: %s, %.0f %%", job.status.name, progress.text, 100 * job.status.share)
