"""Derives a dataset in a process of its own: of many rows it takes long, and the model's thread would wait.

The messages are those of `child_process`. A child that is killed leaves a draft, which its parent or the next
start removes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.data.child_process import ChildProcess, Parent, serve
from core.data.datasets import Dataset, load_dataset
from core.data.derivation.operations import derive_dataset
from core.data.inspection.personal_data import KINDS
from core.store.workspace import Workspace

PROCESS_ROWS = 5_000  # rows of the parents from which a process of its own is worth its start


def derive(
    workspace: Workspace,
    dataset_ids: Sequence[str],
    operation: str,
    name: str,
    near: bool = False,
    kinds: Sequence[str] = KINDS,
    rows: Mapping[str, Sequence[int]] | None = None,
    empty: bool = False,
) -> Dataset:
    """Makes a new dataset from others; args, result and errors are those of `derivation.derive_dataset`."""
    total = sum(load_dataset(workspace, dataset_id).rows for dataset_id in dataset_ids)
    if total < PROCESS_ROWS:
        return derive_dataset(workspace, dataset_ids, operation, name, near, kinds, rows, empty)
    arguments = {
        "root": str(workspace.root),
        "dataset_ids": [*dataset_ids],
        "operation": operation,
        "name": name,
        "near": near,
        "kinds": [*kinds],
        "rows": rows,
        "empty": empty,
    }
    process = ChildProcess("core.data.derivation.derivation_job", "new dataset")
    try:
        return load_dataset(workspace, process.run(arguments))
    finally:
        if process.ended_early:
            workspace.remove_partials()


def run() -> None:
    """The entrance of the child."""
    serve(_derive)


def _derive(arguments: dict[str, Any], parent: Parent) -> str:
    workspace = Workspace(arguments.pop("root"))
    return derive_dataset(workspace, **arguments).id
