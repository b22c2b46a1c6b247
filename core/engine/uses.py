"""What in the workspace uses an item, in words, so that a deletion can name it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from core.data import datasets
from core.engine.mix_warnings import parent_weights
from core.store import adapters, grids, mixes, reports
from core.store.runs import Run
from core.store.workspace import Workspace


def list_uses(workspace: Workspace, runs: Sequence[Run], kind: str, item_id: str) -> list[str]:
    """What uses an item, one phrase each: "the saved mix 'Tone'".

    Args:
        runs: all runs.
        kind: one of `core.store.workspace.KINDS`. Adapters are used by saved mixes, runs, reports and the
            adapters that were trained on top of them; datasets by adapters, runs, grids, reports and the
            datasets that were made from them; runs by grids and the runs that continue them.
    """
    finders: dict[str, Callable[[Workspace, Sequence[Run], str], Iterator[str]]] = {
        "adapters": _users_of_adapter,
        "datasets": _users_of_dataset,
        "runs": _users_of_run,
    }
    return list(finders[kind](workspace, runs, item_id)) if kind in finders else []


def is_used_by(run: Run, kind: str, item_id: str) -> bool:
    """Whether a run reads, writes or is an item."""
    items = {
        "datasets": (run.spec.dataset, run.spec.replay_dataset),
        "adapters": (run.spec.stack_on, run.adapter),
        "runs": (run.id, run.spec.continue_from),
    }
    return item_id in items.get(kind, ())


def _users_of_adapter(workspace: Workspace, runs: Sequence[Run], item_id: str) -> Iterator[str]:
    yield from _find_open_runs(runs, "adapters", item_id)
    for mix in mixes.load_all(workspace):
        if item_id in mix.weights:
            yield f"the saved mix {mix.name!r}"
    for adapter in adapters.load_all(workspace):
        if item_id in parent_weights(adapter):
            yield f"the adapter {adapter.name!r}, which was trained on top of it"
    for report in reports.load_all(workspace):
        if any(item_id in row.get("weights", {}) for row in report.rows):
            yield f"the report on {report.dataset_name!r}"


def _users_of_dataset(workspace: Workspace, runs: Sequence[Run], item_id: str) -> Iterator[str]:
    yield from _find_open_runs(runs, "datasets", item_id)
    for adapter in adapters.load_all(workspace):
        if item_id in adapter.training_data:
            yield f"the adapter {adapter.name!r}, which was trained on it"
    for dataset in datasets.list_datasets(workspace):
        if item_id in dataset.parents:
            yield f"the dataset {dataset.name!r}, which was made from it"
    for grid in grids.load_all(workspace):
        if item_id in (grid.base.get("dataset"), grid.base.get("replay_dataset")):
            yield f"the grid {grid.name!r}"
    for report in reports.load_all(workspace):
        if report.dataset == item_id:
            yield f"the report on its {report.split} split" if report.split != "all" else "the report on it"


def _users_of_run(workspace: Workspace, runs: Sequence[Run], item_id: str) -> Iterator[str]:
    for run in runs:
        if run.spec.continue_from == item_id and run.id != item_id:
            yield f"the run {run.name!r}, which continues it"
    for grid in grids.load_all(workspace):
        if item_id in grid.runs:
            yield f"the grid {grid.name!r}"


def _find_open_runs(runs: Sequence[Run], kind: str, item_id: str) -> Iterator[str]:
    """The runs that need an item to train or to be resumed."""
    for run in runs:
        if is_used_by(run, kind, item_id) and run.id != item_id and (run.status.is_alive or run.resumable):
            yield f"the run {run.name!r}"
