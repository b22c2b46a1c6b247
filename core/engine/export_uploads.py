"""Uploads of exports to the Hub, in the background. `engine.exports.push` starts them.

    push ─> files checked ─> repository ─> one commit (core.export.upload_job, a process) ─> address

Uploads have a queue of their own, so that none waits for an export that is being written.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from typing import Any

from core.data.child_process import ChildProcess
from core.engine.background_jobs import BackgroundJobs, Job, JobStatus
from core.errors import StudioError
from core.store import exports
from core.store.exports import Export
from core.store.workspace import Workspace

ENDED_LIMIT = 50  # ended uploads whose status is kept


@dataclass(frozen=True)
class UploadStatus(JobStatus):
    """The upload of one export.

    Attributes:
        export_id, name: of the export.
        repo: "owner/name". is_private: whether a new repository is private.
        address: of the commit, once it is made.
        state, text, problem, error: as in `JobStatus`.
    """

    export_id: str
    name: str
    repo: str
    is_private: bool = True
    state: str = "waiting"
    text: str = "Waiting for another upload"
    address: str = ""
    problem: str = ""
    error: StudioError | None = None


@dataclass(kw_only=True)
class UploadJob(Job):
    """The upload of one export."""

    status: UploadStatus


class ExportUploads:
    """The uploads since the engine was opened. Safe to call from any thread."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._jobs: BackgroundJobs[UploadJob] = BackgroundJobs("upload", ENDED_LIMIT)

    def start(self, export: Export, repo: str, is_private: bool = True) -> None:
        """Starts the upload of a complete export, whose repository has been checked."""
        self._jobs.start(
            UploadJob(
                key=export.id,
                status=UploadStatus(export.id, export.name, repo, is_private),
                work=lambda job: self._run(job, export),
                process=ChildProcess("core.export.upload_job", "upload"),
            )
        )

    def status(self, export_id: str) -> UploadStatus | None:
        """The upload of an export; None where there was none since the engine was opened."""
        job = self._jobs.get(export_id)
        return job.status if job else None

    def statuses(self) -> builtins.list[UploadStatus]:
        """Every upload since the engine was opened, the oldest first."""
        return [job.status for job in self._jobs.list_jobs()]

    def is_running(self, export_id: str) -> bool:
        """Whether an export is being uploaded, or waits for it."""
        status = self.status(export_id)
        return status is not None and not status.has_ended

    def cancel(self, export_id: str) -> None:
        """Stops an upload.

        Raises:
            NotFound
        """
        self._jobs.cancel(export_id)

    def wait(self, export_id: str, seconds: float | None = None) -> UploadStatus:
        """Waits until an upload has ended, at most so long.

        Raises:
            NotFound
        """
        return self._jobs.wait(export_id, seconds).status

    def close(self) -> None:
        """Stops every upload."""
        self._jobs.close()

    def _run(self, job: UploadJob, export: Export) -> dict[str, Any]:
        from core.export.upload_job import UploadRequest

        job.set_status(text="Starting")
        request = UploadRequest(
            str(exports.files_folder(self._workspace, export.id)),
            export.files,
            job.status.repo,
            job.status.is_private,
            f"Export of {export.name}",
        )

        def receive(question: Any) -> None:
            self._jobs.poll_cancel(job)
            job.set_status(text=question["progress"]["text"])

        address = str(job.process.run(request, receive))
        exports.change(self._workspace, export.id, address=address)
        return {"text": "Uploaded", "address": address}
