"""Inspects a dataset in a process of its own, so that the model's thread shares neither time nor memory.

The parent is `core.engine.inspection`, which kills the child to cancel it; see `child_process`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.data.child_process import Parent, serve
from core.data.datasets import DAMAGED, Dataset, load_dataset
from core.data.formats.readers import read_files
from core.data.inspection.leakage import OtherDataset, find_leaks
from core.data.inspection.records import ROW_LIMIT, Inspection
from core.data.inspection.row_checks import Rows, Step, from_splits, inspect_rows
from core.data.inspection.token_checks import TokenizerOfBase, inspect_tokens
from core.data.reading import read_rows
from core.data.splits import SPLITS, split
from core.errors import DataError, StorageError, StudioError
from core.progress import ReadProgress
from core.store.workspace import Workspace

TEXT_LIMIT = 300_000_000  # characters of all rows that are read
OTHER_ROWS = 50_000  # rows of another dataset that leaks are searched in


@dataclass(frozen=True)
class Request:
    """What to inspect.

    Attributes:
        root: of the workspace.
        dataset_id: the dataset; "" for files.
        paths, kind, roles, encoding, purpose: the files and how they are read, as in `datasets.preview`.
        others: ids of the datasets that leaks are searched in.
        max_length: tokens of a training sequence.
        base: of the tokens; None without one.
        tokens_problem: why `base` is None.
        row_limit: rows that are read.
    """

    root: Path
    dataset_id: str = ""
    paths: Sequence[Path] = ()
    kind: str | None = None
    roles: Mapping[str, str] | None = None
    encoding: str = "utf-8"
    purpose: str = "training"
    others: Sequence[str] = ()
    max_length: int = 512
    base: TokenizerOfBase | None = field(default=None, repr=False)
    tokens_problem: str = ""
    row_limit: int = ROW_LIMIT


def inspect(request: Request, step: Step = lambda text, done, total: None) -> Inspection:
    """Inspects a dataset or files.

    Args:
        step: receives the progress; what it raises ends the inspection.

    Raises:
        NotFound: unknown dataset. StorageError, DataError: its files, or the files, cannot be read.
    """
    workspace = Workspace(request.root)
    step("Reading the rows", 0, 1)
    if request.dataset_id:
        rows = read_dataset(workspace, load_dataset(workspace, request.dataset_id), request.row_limit)
    else:
        rows = read_import(request)
    others = []
    for other_id in request.others:
        with contextlib.suppress(StudioError):  # deleted or damaged since it was listed
            other = load_dataset(workspace, other_id)
            if other.kind == rows.kind:
                others.append(OtherDataset(other.id, other.name, read_dataset(workspace, other, OTHER_ROWS)))
    found = inspect_rows(rows, step)
    found = dataclasses.replace(found, leaks=find_leaks(rows, others, step), compared=len(others))
    if request.base is None:
        return dataclasses.replace(found, tokens_problem=request.tokens_problem)
    tokens, sizes = inspect_tokens(rows, found.splits, request.base, request.max_length, step)
    return dataclasses.replace(found, tokens=tokens, splits=sizes)


def read_dataset(workspace: Workspace, dataset: Dataset, limit: int) -> Rows:
    """Reads the rows of a dataset; of a large one the first ones of each split, in the shares of the splits.

    Raises:
        StorageError: a split cannot be read.
    """
    splits: dict[str, list[Any]] = {}
    share = min(1.0, limit / max(1, dataset.rows))
    characters = 0
    for name in SPLITS:
        count = math.ceil(dataset.splits[name] * share)
        path = workspace.path("datasets", dataset.id, "splits", f"{dataset.id}_{name}.jsonl")
        try:
            with open(path, "rb") as f:
                splits[name] = []
                for line in itertools.islice(f, count):
                    characters += len(line)
                    if characters > TEXT_LIMIT:
                        break
                    splits[name].append(json.loads(line))
        except (OSError, ValueError, RecursionError) as e:
            raise StorageError(f"{path.name} cannot be read: {e}.", DAMAGED) from e
    return from_splits(dataset.kind, splits, dataset.rows)


def read_import(request: Request) -> Rows:
    """Reads files as an import would, and splits their rows.

    Raises:
        DataError: they cannot be read.
    """
    result = read_rows(read_files(list(request.paths), request.encoding), request.kind, request.roles)
    if result.problem is not None:
        raise result.problem
    rows = result.rows[: request.row_limit]
    is_evaluation = request.purpose == "evaluation"
    parts: Mapping[str, Sequence[int]] = {"test" if is_evaluation else "train": range(len(rows))}
    if not is_evaluation:
        with contextlib.suppress(DataError):  # too few rows, which the import says
            weights = [len(row["text"]) for row in rows] if result.cuts else None
            parts = split(rows, weights=weights)
    splits = {name: [rows[i] for i in indices] for name, indices in parts.items()}
    return from_splits(result.kind, splits, len(result.rows))


# --- the child


def run() -> None:
    """The entrance of the child."""
    serve(_inspect)


def _inspect(request: Request, parent: Parent) -> dict[str, Any]:
    def step(text: str, done: int, total: int) -> None:
        parent.report(ReadProgress(done, total, text))

    return inspect(request, step).to_json()
