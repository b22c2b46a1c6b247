"""The process that uploads an export to the Hub. Its parent is `core.engine.export_uploads`.

A killed process has committed nothing: all files are in one commit, the last request of an upload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.data.child_process import Parent, serve
from core.progress import ReadProgress
from core.store import hub_upload
from core.store.exports import ExportedFile


@dataclass(frozen=True)
class UploadRequest:
    """What to upload.

    Attributes:
        folder: with the files. files: those that the record of the export names.
        repo: "owner/name". is_private: whether a new repository is private.
        title: of the commit.
    """

    folder: str
    files: Sequence[ExportedFile]
    repo: str
    is_private: bool
    title: str


def run() -> None:
    """The entrance of the process."""
    serve(upload)


def upload(request: UploadRequest, parent: Parent) -> str:
    """Uploads the files; returns the address of the commit.

    Raises:
        StudioError: as `core.store.hub_upload.upload`. Cancelled
    """

    def report(text: str) -> None:
        parent.report(ReadProgress(0, 1, text))

    folder = Path(request.folder)
    return hub_upload.upload(folder, request.files, request.repo, request.is_private, request.title, report)
