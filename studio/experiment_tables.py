"""The results of an experiment as the page shows them: its table, the gate, its judges; named for people."""

from __future__ import annotations

from core.engine import Engine
from core.engine.experiment_report import list_changes
from core.engine.experiment_results import ExperimentResults
from core.engine.mix_names import name_mix
from core.errors import StudioError
from core.evaluate.promotion_gate import Decision
from core.spec.experiment import ExperimentRow
from studio.tree import Node
from studio.views.experiments import render_results


def show_results(engine: Engine, experiment_id: str) -> Node:
    """The results of an experiment.

    Raises:
        NotFound, DamagedRecord
    """
    results = engine.judges.results(experiment_id)
    decisions: dict[str, Decision] = {}
    for row in results.rows:
        is_mix = not row.row.address and bool(row.row.mix) and row.row.passages
        if row.cell is not None and is_mix:
            try:
                decisions[row.name] = results.decide(row.name)
            except StudioError:  # without a complete baseline, the gate has nothing to compare with
                continue
    names = {row.name: _name_row(engine, row.row) for row in results.rows}
    return render_results(results, list_changes(results), decisions, names, _name_judges(engine, results))


def _name_row(engine: Engine, row: ExperimentRow) -> str:
    """A row for people: with the names of its adapters, unless it has a name of its own."""
    if row.name not in (row.mix, f"{row.mix} + documents"):
        return str(row.name[:1].upper() + row.name[1:])
    try:
        name = name_mix(engine.experiments.read_mix(row.mix), engine.library.labels())
    except StudioError:  # an adapter was deleted
        return str(row.name)
    return f"{name} + documents" if row.passages else name


def name_judge(engine: Engine, label: str) -> str:
    """A judge for people: with the names of its adapters.

    Args:
        label: its mix, or the model of its address.
    """
    try:
        return name_mix(engine.experiments.read_mix(label), engine.library.labels())
    except StudioError:  # the model of an address, or an adapter that was deleted
        return label


def _name_judges(engine: Engine, results: ExperimentResults) -> dict[str, str]:
    return {judge.key: name_judge(engine, judge.name) for judge in results.judges}
