"""Lists and deletes what cannot be read in a workspace. `engine.library.damaged`.

Every kind of item has a loader here, so a new kind is covered by one line; a test compares the table with
`KINDS`. The files of the workspace itself (votes, the order of the queue, the chosen base) are listed under
the kind WORKSPACE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from core.data.datasets import load_dataset
from core.errors import Busy, DamagedRecord, NotFound
from core.store import (
    adapters,
    base_models,
    bundles,
    converted_bases,
    experiments,
    exports,
    grids,
    mixes,
    reports,
    run_order,
    runs,
    votes,
    weight_maps,
)
from core.store.files import delete, storage_error
from core.store.records import Damaged, load_items
from core.store.workspace import KINDS, Workspace

LOADERS: dict[str, Callable[[Workspace, str], Any]] = {
    "datasets": load_dataset,
    "runs": runs.load,
    "adapters": adapters.load,
    "mixes": mixes.load,
    "grids": grids.load,
    "reports": reports.load,
    "maps": weight_maps.load_map,
    "exports": lambda workspace, item_id: (
        exports.find(workspace, item_id) or bundles.find_bundle(workspace, item_id)
    ),
    "bases": converted_bases.load,
    "experiments": experiments.load,
}
WORKSPACE = "workspace"
VOTES, ORDER, BASE = "votes", "queue", "base"  # ids of the files of the workspace
# What is deleted of them.
DELETED_PARTS = {
    VOTES: "the damaged lines of the votes",
    ORDER: "the order of the queue",
    BASE: "the choice of the base",
}


def list_damaged(workspace: Workspace, kinds: Sequence[str] = (*KINDS, WORKSPACE)) -> list[Damaged]:
    """The items and files that cannot be read.

    Args:
        kinds: of `KINDS`, and WORKSPACE for the files that belong to no item.
    """
    damaged = []
    for kind in kinds:
        if kind == WORKSPACE:
            damaged += _check_files(workspace)
        else:
            damaged += load_items(workspace, kind, LOADERS[kind])[1]
    return damaged


def check_deletable(workspace: Workspace, kind: str, item_id: str) -> None:
    """Checks that no living process trains a run whose record cannot be read.

    Raises:
        Busy: one does.
    """
    if kind == "runs" and runs.is_alive(workspace, item_id):
        raise Busy(f"A process trains the run {item_id!r}.", "Wait until it ends, then delete the run.")


def describe_deletion(kind: str, item_id: str) -> str:
    """What `delete_damaged` deletes, as a noun or a phrase."""
    return DELETED_PARTS.get(item_id, item_id) if kind == WORKSPACE else item_id


def delete_file(workspace: Workspace, file_id: str) -> None:
    """Deletes a damaged file of the workspace; of the votes, only the damaged lines. A healthy file stays.

    Raises:
        NotFound: no such file. StorageError
    """
    if file_id not in (VOTES, ORDER, BASE):
        raise NotFound(f"The workspace has no file {file_id!r}.", f"Choose {VOTES}, {ORDER} or {BASE}.")
    if file_id == VOTES:
        votes.remove_damaged_lines(workspace)
        return
    path = workspace.run_order_path if file_id == ORDER else workspace.base_path
    if all(d.id != file_id for d in _check_files(workspace)):
        return  # it was written again since it was listed
    try:
        delete(path)
    except OSError as e:
        raise storage_error(e, path) from e


def _check_files(workspace: Workspace) -> list[Damaged]:
    checks = (
        (VOTES, "Votes of blind tests", workspace.votes_path, _check_votes),
        (ORDER, "Order of the queue", workspace.run_order_path, run_order.read_strictly),
        (BASE, "Base chosen last", workspace.base_path, base_models.read_choice),
    )
    damaged = []
    for file_id, name, path, check in checks:
        try:
            check(workspace)
        except DamagedRecord as e:
            file = path.relative_to(workspace.root).as_posix()
            damaged.append(Damaged(WORKSPACE, file_id, name, file, e.reason))
    return damaged


def _check_votes(workspace: Workspace) -> None:
    if count := votes.count_damaged_lines(workspace):
        lines = "1 line is" if count == 1 else f"{count} lines are"
        raise DamagedRecord(workspace.votes_path.name, f"{lines} not a vote; the other votes count")
