"""The process that writes the files of an export. Its parent is `core.engine.exports`.

A killed process leaves what `core.store.resumable_files` has written; the same request continues there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.child_process import Parent, serve
from core.progress import ReadProgress
from core.spec.export import ExportSpec
from core.store.files import sha256_of
from core.store.workspace import Workspace


@dataclass(frozen=True)
class BuildRequest:
    """What to write.

    Attributes:
        workspace: its folder. spec: of the export, as JSON.
        base, fingerprint: name and fingerprint of the base. base_folder: with its files.
        folder: receives the files; it exists.
    """

    workspace: str
    spec: dict[str, Any]
    base: str
    fingerprint: str
    base_folder: str
    folder: str


def run() -> None:
    """The entrance of the process."""
    serve(build)


def build(request: BuildRequest, parent: Parent) -> dict[str, Any]:
    """Writes the files; files of an earlier attempt that are complete are kept.

    Returns:
        {"files": [{"name", "bytes", "sha256"}], "notes": sentences}

    Raises:
        StudioError: of what cannot be exported. Cancelled
    """
    from core.export.forms import write_form

    folder = Path(request.folder)

    def step(text: str, done: int, total: int) -> None:
        parent.report(ReadProgress(done, max(1, total), text))

    notes = write_form(
        Workspace(request.workspace),
        ExportSpec.from_json(request.spec),
        request.base,
        request.fingerprint,
        Path(request.base_folder),
        folder,
        step,
    )
    files = []
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    total = sum(p.stat().st_size for p in paths)
    done = 0
    for path in paths:
        step("Computing checksums", done, total)
        size = path.stat().st_size
        files.append({"name": path.relative_to(folder).as_posix(), "bytes": size, "sha256": sha256_of(path)})
        done += size
    return {"files": files, "notes": notes}
