"""An import in a process of its own: a busy thread would make the model's thread wait for the interpreter.

    parent ─ `Request` ─> child ─ {"progress"}, {"shapes"}, {"stored"} ─> parent, which holds the base

The child reads, checks, splits and writes. What needs the base stays with the parent, which gets one
conversation of each shape; see `base_checks`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.base_checks import BaseAnswer, Shape, list_shapes, write_notes
from core.data.child_process import ChildProcess, Parent, Question, serve
from core.data.dataset_preview import Check
from core.data.datasets import Dataset, add_notes, import_dataset, list_datasets, load_dataset
from core.data.reading import Reading
from core.errors import Cancelled, NotFound, StudioError
from core.progress import ReadProgress, Report
from core.spec.settings import SEED
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What to import, and how; the attributes are arguments of `datasets.import_dataset`.

    Attributes:
        root: of the workspace.
        is_checked: whether the base checks the rows.
    """

    root: Path
    paths: Sequence[Path]
    name: str
    kind: str | None = None
    roles: Mapping[str, str] | None = None
    seed: int = SEED
    encoding: str = "utf-8"
    purpose: str = "training"
    is_checked: bool = True


def import_files(
    request: Request,
    check: Check | None = None,
    report: Report | None = None,
    commit: Callable[[Dataset], None] = lambda dataset: None,
) -> Dataset:
    """Imports files in this process, and notes which rows are also in other datasets.

    Args:
        check, report: see `datasets.import_dataset`.
        commit: called once the dataset is stored; where it raises Cancelled, the dataset is deleted.

    Raises:
        DataError, InvalidName, StorageError: see `datasets.import_dataset`.
    """
    workspace = Workspace(request.root)
    dataset = import_dataset(
        workspace,
        request.paths,
        request.name,
        request.kind,
        request.roles,
        seed=request.seed,
        encoding=request.encoding,
        check=check,
        purpose=request.purpose,
        report=report,
    )
    try:
        commit(dataset)
    except Cancelled:
        workspace.delete("datasets", dataset.id)
        raise
    if not _has_counterpart(workspace, dataset):
        return dataset
    from core.data.inspection.leakage import describe_shared_rows  # slow to import

    notes = describe_shared_rows(workspace, dataset)
    return add_notes(workspace, dataset.id, notes) if notes else dataset


def _has_counterpart(workspace: Workspace, dataset: Dataset) -> bool:
    """Whether a dataset is for evaluation and another one is trained on, or the reverse."""
    others = [other for other in list_datasets(workspace) if other.kind == dataset.kind]
    return len({other.purpose == "evaluation" for other in others}) > 1


def import_in_child(
    process: ChildProcess,
    request: Request,
    check: Callable[[Sequence[Shape]], BaseAnswer],
    report: Report,
) -> Dataset:
    """Imports files in a process of its own; result and errors are those of `import_files`.

    Args:
        process: of this module.
        check: what the base says about the shapes of the conversations.
        report: receives the progress; what it raises ends the import, which leaves nothing.
    """
    stored = ""
    last = ReadProgress(0, 0, "")

    def answer(question: Question) -> Any:
        nonlocal stored, last
        if "shapes" in question:
            return dataclasses.asdict(check([Shape(**shape) for shape in question["shapes"]]))
        if "stored" in question:
            stored = question["stored"]
            report(dataclasses.replace(last, text="Comparing with other datasets"))
        else:
            last = ReadProgress(**question["progress"])
            report(last)
        return None

    workspace = Workspace(request.root)
    try:
        return load_dataset(workspace, process.run(request, answer))
    except Cancelled:
        if stored:
            with contextlib.suppress(NotFound):
                workspace.delete("datasets", stored)
        raise
    except StudioError as e:
        if not (stored and process.ended_early):
            raise
        logger.warning("%s is imported, but not compared with other datasets: %s", request.name, e)
        return load_dataset(workspace, stored)
    finally:
        if process.ended_early:
            workspace.remove_partials()


def run() -> None:
    """The entrance of the child."""
    serve(_import)


def _import(request: Request, parent: Parent) -> str:
    def check(reading: Reading) -> Sequence[str]:
        shapes = [dataclasses.asdict(shape) for shape in list_shapes(reading)]
        return write_notes(reading, BaseAnswer(**parent.ask({"shapes": shapes})))

    def commit(dataset: Dataset) -> None:
        parent.ask({"stored": dataset.id})

    return import_files(request, check if request.is_checked else None, parent.report, commit).id
