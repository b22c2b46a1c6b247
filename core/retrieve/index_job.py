"""Builds the index of a dataset in a process of its own, so that the model's thread shares no time with it.

The parent is `core.engine.retrieval`, which kills the child to cancel it; see `core.data.child_process`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.child_process import Parent, serve
from core.data.dataset_records import load_dataset
from core.progress import ReadProgress
from core.retrieve.documents import iterate_documents
from core.retrieve.encoders import load_encoder
from core.retrieve.index import build_index, save_index
from core.spec.retrieval import RetrievalSettings
from core.store.workspace import Workspace


@dataclass(frozen=True)
class Request:
    """What to index.

    Attributes:
        root: of the workspace.
        dataset_id: the dataset.
        settings: how.
        path: of the file that keeps the index; its folder exists.
    """

    root: Path
    dataset_id: str
    settings: RetrievalSettings
    path: Path


def run() -> None:
    """The entrance of the child."""
    serve(_build)


def _build(request: Request, parent: Parent) -> dict[str, Any]:
    def step(text: str, done: int, total: int) -> None:
        parent.report(ReadProgress(done, total, text))

    workspace = Workspace(request.root)
    dataset = load_dataset(workspace, request.dataset_id)
    step("Reading the documents", 0, 1)
    size = workspace.path("datasets", dataset.id, "rows.jsonl").stat().st_size
    encoder = load_encoder(request.settings.encoder)
    index = build_index(iterate_documents(workspace, dataset), request.settings, encoder, step, size)
    save_index(request.path, index)
    return {"chunks": len(index.chunks), "encoder": index.encoder}
