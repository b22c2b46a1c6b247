"""Imports in the background: starting, following and cancelling them. `engine.imports`.

Each reads and writes in a process of its own (`core.data.import_job`), one at a time, so that answers and
runs keep their speed. A killed process leaves a draft, which this process or the next start removes.
"""

from __future__ import annotations

import builtins
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.data.child_process import ChildProcess
from core.data.datasets import Dataset
from core.engine.background_jobs import BackgroundJobs, Job, JobStatus
from core.engine.datasets import Datasets
from core.errors import StudioError
from core.progress import LineClock, ReadProgress, Report
from core.spec.settings import SEED
from core.store.workspace import check_name

logger = logging.getLogger(__name__)

ENDED_LIMIT = 50  # ended imports whose status is kept
GRACE_SECONDS = 5.0  # that a cancelled import has to remove its draft


@dataclass(frozen=True)
class ImportStatus(JobStatus):
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
        error: why it failed: what `Datasets.import_files` raises; else None.
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
    error: StudioError | None = None

    @property
    def share(self) -> float:
        """The finished share of the work, from 0 to 1."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else 0.0


@dataclass(kw_only=True)
class ImportJob(Job):
    """An import."""

    status: ImportStatus


Run = Callable[[ChildProcess, Report], Dataset]


class Imports:
    """Runs imports in processes of their own. Safe to call from any thread."""

    def __init__(self, datasets: Datasets) -> None:
        self._datasets = datasets
        self._jobs: BackgroundJobs[ImportJob] = BackgroundJobs("import", ENDED_LIMIT)

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
            InvalidName: the name cannot be used. Errors of the files are in `ImportStatus.error`.
        """
        files, name = list(paths), check_name(name)

        def run(process: ChildProcess, report: Report) -> Dataset:
            return self._datasets.import_files(
                files, name, kind, roles, seed, encoding, purpose=purpose, report=report, process=process
            )

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

        def run(process: ChildProcess, report: Report) -> Dataset:
            return self._datasets.import_hub(
                hub_id, name, config, split, revision, kind, roles,
                purpose=purpose, report=report, process=process,
            )  # fmt: skip

        return self._start(name, run)

    def _start(self, name: str, run: Run) -> str:
        """Starts a job on a thread of its own."""
        job_id = f"import-{secrets.token_hex(4)}"
        self._jobs.start(
            ImportJob(
                key=job_id,
                status=ImportStatus(job_id, name),
                work=lambda job: self._run(job, run),
                process=ChildProcess("core.data.import_job", "import"),
                grace_seconds=GRACE_SECONDS,
            )
        )
        return job_id

    def status(self, job_id: str) -> ImportStatus:
        """The state of one import.

        Raises:
            NotFound: no import of this engine has this id.
        """
        return self._jobs.find(job_id).status

    def list(self) -> builtins.list[ImportStatus]:
        """All imports since the engine was opened, the oldest first; of ended ones the last few."""
        return [job.status for job in self._jobs.list_jobs()]

    def cancel(self, job_id: str) -> None:
        """Cancels an import: it ends after the block that it reads, and leaves nothing.

        Raises:
            NotFound: no import of this engine has this id.
        """
        self._jobs.cancel(job_id)

    def wait(self, job_id: str, seconds: float | None = None) -> ImportStatus:
        """Waits until an import has ended, at most so long, and returns its status.

        Raises:
            NotFound: no import of this engine has this id.
        """
        return self._jobs.wait(job_id, seconds).status

    def close(self) -> None:
        """Cancels every import and waits until they have removed their drafts."""
        self._jobs.close()

    # --- on the job's thread

    def _run(self, job: ImportJob, run: Run) -> dict[str, str | float]:
        job.set_status(text="Looking at the files")
        started, clock = time.monotonic(), LineClock()

        def report(progress: ReadProgress) -> None:
            self._jobs.poll_cancel(job)
            seconds, eta = time.monotonic() - started, None
            if progress.done and progress.total and seconds > 1.0:
                eta = seconds * max(0, progress.total - progress.done) / progress.done
            job.set_status(
                text=progress.text,
                done_bytes=progress.done,
                total_bytes=progress.total,
                rows=progress.rows,
                eta_seconds=eta,
            )
            if clock.is_due():
                logger.info("%s: %s, %.0f %%", job.status.name, progress.text, 100 * job.status.share)

        try:
            dataset = run(job.process, report)
        finally:
            job.set_status(eta_seconds=None)
        return {"dataset_id": dataset.id, "rows": max(job.status.rows, dataset.rows), "eta_seconds": 0.0}
