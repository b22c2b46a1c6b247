"""Inspections of datasets in the background: starting, following and cancelling them. `engine.inspection`.

Each runs in a process of its own (`core.data.inspection.inspection_job`), one at a time: a busy thread of
this process would make the model's thread wait for the interpreter at every operation. The result is kept in
the dataset's folder as inspection.json, under a key of everything that it depends on; deleting the file costs
the time of another inspection.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data import datasets
from core.data.child_process import ChildProcess, Question
from core.data.inspection.inspection_job import Request
from core.data.inspection.records import Inspection
from core.engine.background_jobs import BackgroundJobs, Job, JobStatus
from core.engine.inspection_cache import load_inspection, save_inspection
from core.engine.tokenizer_copies import BUSY, TokenizerCopies, TokenizerCopy, compute_digest
from core.engine.worker import Worker
from core.errors import StudioError
from core.spec.training import TrainSpec
from core.store.record_types import check_type
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.model.resident import Resident

VERSION = 1  # of the checks; another version does not use what this one kept
MAX_LENGTH = TrainSpec.max_length  # the default of the form
START_WAIT = 0.5  # seconds that `start` waits for the model's thread with a copy of its tokenizer
BASE_WAIT = 60.0  # seconds that an inspection waits for it, such as while a base is loaded
ENDED_LIMIT = 100  # ended inspections whose result is kept in memory


@dataclass(frozen=True)
class InspectionStatus(JobStatus):
    """One inspection, as the page and the terminal show it.

    Attributes:
        key: what `Inspections.start` returned.
        state: one of STATES; the last three are final.
        text: what it is doing now, such as "Counting tokens".
        done, total: of that, what is finished, and in all; mostly rows.
        problem: why it failed, for the user; else "".
        error: why it failed, as the error itself; else None.
    """

    key: str
    state: str = "waiting"
    text: str = "Waiting for another inspection"
    done: int = 0
    total: int = 0
    problem: str = ""
    error: StudioError | None = None

    @property
    def share(self) -> float:
        """The finished share of what it is doing now, from 0 to 1."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.done / self.total) if self.total else 0.0


@dataclass(kw_only=True)
class InspectionJob(Job):
    """An inspection.

    Attributes:
        content: digest of what its result depends on, beside the base.
        request: what to inspect, without the base.
        copy: the base; None while the model's thread is busy.
        result: what was found, at the end.
    """

    status: InspectionStatus
    content: str
    request: Request
    copy: TokenizerCopy | None
    result: Inspection | None = None


class Inspections:
    """Inspects datasets and files. Safe to call from any thread.

    Args:
        resident: returns the resident base; called on the model's thread only.
    """

    def __init__(self, workspace: Workspace, worker: Worker, resident: Callable[[], Resident]) -> None:
        self._workspace, self._copies = workspace, TokenizerCopies(worker, resident)
        self._jobs: BackgroundJobs[InspectionJob] = BackgroundJobs("inspection", ENDED_LIMIT)

    def start(self, dataset_id: str, max_length: int = MAX_LENGTH) -> str:
        """Starts the inspection of a dataset, unless it is known already or runs; returns its key at once.

        Args:
            max_length: tokens of a training sequence, for the longer rows and the packed one.

        Returns:
            The id of the dataset, which `status`, `get` and `cancel` take.

        Raises:
            NotFound, StorageError
        """
        dataset = datasets.load_dataset(self._workspace, dataset_id)
        others = self._list_others(dataset)
        described = [(o.id, o.sha256, o.split_sha256, o.name) for o in others]
        content = compute_digest(VERSION, dataset.sha256, dataset.split_sha256, max_length, described)
        request = Request(
            self._workspace.root, dataset_id, others=[o.id for o in others], max_length=max_length
        )
        return self._start(dataset_id, content, request)

    def start_files(
        self,
        paths: Sequence[str | Path],
        kind: str | None = None,
        roles: dict[str, str] | None = None,
        encoding: str = "utf-8",
        purpose: str = "training",
        max_length: int = MAX_LENGTH,
    ) -> str:
        """Starts the inspection of files before their import; the args are those of `datasets.preview`.

        Returns:
            A key for `status`, `get` and `cancel`. Errors of the files are in `InspectionStatus.problem`.
        """
        files = [Path(path).resolve() for path in paths]
        stats = [(str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.exists()]
        content = compute_digest(VERSION, stats, kind, roles, encoding, purpose, max_length)
        others = [d.id for d in datasets.list_datasets(self._workspace) if kind in (None, d.kind)]
        request = Request(
            self._workspace.root,
            paths=files,
            kind=kind,
            roles=roles,
            encoding=encoding,
            purpose=purpose,
            others=others,
            max_length=max_length,
        )
        return self._start(f"files-{content[:16]}", content, request)

    def status(self, key: str) -> InspectionStatus:
        """The state of an inspection.

        Raises:
            NotFound: no inspection of this engine has this key.
        """
        return self._jobs.find(key).status

    def get(self, key: str) -> Inspection | None:
        """The result of an inspection; None while it runs, or where it failed.

        Raises:
            NotFound: no inspection of this engine has this key.
        """
        return self._jobs.find(key).result

    def cancel(self, key: str) -> None:
        """Cancels an inspection; its process ends at once, and nothing is left.

        Raises:
            NotFound: no inspection of this engine has this key.
        """
        self._jobs.cancel(key)

    def wait(self, key: str, seconds: float | None = None) -> InspectionStatus:
        """Waits until an inspection has ended, at most so long, and returns its status.

        Raises:
            NotFound: no inspection of this engine has this key.
        """
        return self._jobs.wait(key, seconds).status

    def close(self) -> None:
        """Cancels every inspection and waits until its process has ended."""
        self._jobs.close()

    # --- starting

    def _start(self, key: str, content: str, request: Request) -> str:
        copy = self._copies.get(START_WAIT)
        job = self._jobs.get(key)
        if job is not None and job.content == content and (copy is None or job.copy in (None, copy)):
            if job.status.state in ("waiting", "running", "done"):
                return key
        if job is not None and not job.status.has_ended:  # the base or another dataset has changed since
            self._jobs.cancel(key)
        process = ChildProcess("core.data.inspection.inspection_job", "inspection")
        job = InspectionJob(
            key=key,
            status=InspectionStatus(key),
            work=self._run,
            process=process,
            content=content,
            request=request,
            copy=copy,
        )
        self._take_result(job)
        if job.result is None:
            self._jobs.start(job)
        else:
            self._jobs.add(job)
        return key

    def _take_result(self, job: InspectionJob) -> None:
        """Takes over the inspection that was kept for this content and base, if there is one."""
        if job.request.dataset_id and job.copy is not None:
            job.result = load_inspection(self._workspace, job.request.dataset_id, _name_content(job))
        if job.result is not None:
            job.set_status(state="done", text="Done")

    def _list_others(self, dataset: datasets.Dataset) -> list[datasets.Dataset]:
        everything = datasets.list_datasets(self._workspace)
        return [other for other in everything if other.id != dataset.id and other.kind == dataset.kind]

    # --- on the job's thread

    def _run(self, job: InspectionJob) -> dict[str, Any]:
        if job.copy is None:
            self._wait_for_base(job)
        if job.result is None:
            job.set_status(text="Starting")
            job.result = self._run_process(job)
            if job.request.dataset_id:
                save_inspection(self._workspace, job.request.dataset_id, _name_content(job), job.result)
        return {}

    def _wait_for_base(self, job: InspectionJob) -> None:
        """Waits until the model's thread has a moment for a copy of the tokenizer, for at most BASE_WAIT."""
        job.set_status(text="Waiting for the model")
        deadline = time.monotonic() + BASE_WAIT
        while job.copy is None:
            self._jobs.poll_cancel(job)
            job.copy = self._copies.get(START_WAIT)
            if job.copy is None and time.monotonic() > deadline:
                job.copy = BUSY
        self._take_result(job)

    def _run_process(self, job: InspectionJob) -> Inspection:
        """Starts the child, follows its reports, and returns its result.

        Raises:
            StudioError: what the child reported, or its unexpected end. Cancelled
        """

        def answer(question: Question) -> None:
            self._jobs.poll_cancel(job)
            progress = question["progress"]
            job.set_status(text=progress["text"], done=progress["done"], total=progress["total"])

        return check_type(Inspection, job.process.run(_add_base(job), answer))  # type: ignore[no-any-return]


def _add_base(job: InspectionJob) -> Request:
    copy = job.copy or BUSY
    return dataclasses.replace(job.request, base=copy.base, tokens_problem=copy.problem)


def _name_content(job: InspectionJob) -> str:
    return compute_digest(job.content, (job.copy or BUSY).digest)
