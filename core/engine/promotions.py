"""Promotion: the gate decides, and `production` stands for the mix that passed. `engine.promotions`.

promote ─> row of the experiment ─> rows that its adapters have seen ─> gate ─> promotions.jsonl
        └> metadata["promotion"] of each adapter                         └> `production` in the APIs
"""

from __future__ import annotations

import builtins
import logging

from core.engine.datasets import Datasets
from core.engine.experiment_results import ExperimentResults, RowResult
from core.engine.experiments import Experiments
from core.engine.library import Library
from core.errors import NotFound, SpecError, StudioError
from core.evaluate.promotion_gate import FAIL, NOT_ENOUGH, PASS, VOID, Decision
from core.spec.mix import Mix
from core.spec.promotion import PromotionRule
from core.store import adapters as adapter_store
from core.store import promotions as store
from core.store.experiments import Experiment
from core.store.promotions import Promotion, Rollback
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)
EXIT_CODES = {PASS: 0, FAIL: 3, NOT_ENOUGH: 4, VOID: 5}  # of `promote`; 1 is an error


class Promotions:
    """Decides about, promotes and rolls back mixes. Safe to call from any thread."""

    def __init__(
        self, workspace: Workspace, library: Library, datasets: Datasets, experiments: Experiments
    ) -> None:
        self._workspace, self._library = workspace, library
        self._datasets, self._experiments = datasets, experiments

    def current(self) -> Promotion | None:
        """The promotion in force; None where nothing is promoted."""
        return store.find_current(self._workspace)

    def history(self) -> builtins.list[Promotion | Rollback]:
        """Every promotion and rollback, the oldest first."""
        return store.load_history(self._workspace)

    def decide(self, mix: str, experiment_id: str, rule: PromotionRule | None = None) -> Decision:
        """What the gate says about a mix, by an experiment; nothing is promoted.

        Args:
            mix: an adapter or a saved mix by id or name, a mix as `Mix.parse` reads it, or the name of a row.
            rule: None takes the rule of the experiment.

        Raises:
            NotFound: no row of the experiment has this mix. SpecError: its row, its baseline or the base
                without documents is not complete, or an adapter has seen a row of the questions.
        """
        experiment = self._experiments.get(experiment_id)
        results = self._experiments.results(experiment.id)
        row = self._find_row(results, mix)
        self._check_unseen(experiment, self._experiments.read_mix(row.row.mix))
        return results.decide(row.name, rule)

    def promote(
        self, mix: str, experiment_id: str, rule: PromotionRule | None = None
    ) -> tuple[Decision, Promotion | None]:
        """Promotes a mix if the gate passes it, and records the decision with its adapters.

        Args:
            mix, rule: as for `decide`.

        Returns:
            (the decision, the promotion; None where the gate did not pass it)

        Raises:
            As `decide`; AdapterError: an adapter has changed since it was measured. StorageError
        """
        experiment = self._experiments.get(experiment_id)
        results = self._experiments.results(experiment.id)
        row = self._find_row(results, mix)
        if row.row.address:
            raise SpecError(
                f"The row {row.name!r} is answered by {row.row.address}, and only a mix can be promoted.",
                "Choose a row with a mix.",
            )
        resolved = self._experiments.read_mix(row.row.mix)
        notes = self._check_unseen(experiment, resolved)
        decision = results.decide(row.name, rule)
        used = {a: self._library.adapter(a) for a in resolved.weights}
        self._check_digests(row, [a.sha256 for a in used.values()])
        promotion = None
        if decision.status == PASS:
            promotion = store.promote(
                self._workspace,
                Promotion(
                    "",
                    row.row.mix or "base",
                    resolved.weights,
                    {a: adapter.sha256 for a, adapter in used.items()},
                    experiment.id,
                    row.name,
                    decision.to_json(),
                    experiment.base,
                    experiment.base_fingerprint,
                    resolved.tilt,
                    resolved.auto,
                    tuple(notes),
                ),
            )
        record = {
            "experiment": experiment.id,
            "promotion": promotion.id if promotion else "",
            **decision.to_json(),
        }
        for adapter_id in used:
            adapter_store.add_results(self._workspace, adapter_id, {}, {"promotion": record})
        return decision, promotion

    def roll_back(self) -> tuple[Promotion, Promotion | None]:
        """Takes back the newest promotion in force.

        Returns:
            (what was taken back, what `production` stands for now; None where nothing is promoted)

        Raises:
            NotFound: no mix is promoted. StorageError
        """
        return store.roll_back(self._workspace)

    def _find_row(self, results: ExperimentResults, mix: str) -> RowResult:
        """The row of a mix, or else of a name; of several rows with a mix, the one that reads documents."""
        try:
            wanted = self._experiments.read_mix(mix)
        except StudioError:  # it may be the name of a row
            found = []
        else:
            found = [row for row in results.rows if not row.row.address and self._has_mix(row, wanted)]
        found = found or [row for row in results.rows if row.name == mix]
        if not found:
            raise NotFound(
                f"The experiment {results.experiment.name!r} has no row with the mix {mix!r}.",
                f"Its rows are {', '.join(repr(row.name) for row in results.rows)}.",
            )
        return max(found, key=lambda row: (row.cell is not None, row.row.passages))

    def _has_mix(self, row: RowResult, wanted: Mix) -> bool:
        try:
            mix = self._experiments.read_mix(row.row.mix)
        except StudioError:  # its adapter was deleted
            return False
        return (mix.weights, mix.tilt, mix.auto) == (wanted.weights, wanted.tilt, wanted.auto)

    def _check_unseen(self, experiment: Experiment, mix: Mix) -> builtins.list[str]:
        """Checks that no adapter of a mix has seen a row of the questions; returns what is not known.

        Raises:
            SpecError: one has, with the row.
        """
        from core.evaluate.leakage import find_seen_rows

        spec = experiment.settings
        notes: list[str] = []
        rows = self._datasets.rows(spec.dataset, spec.split, spec.limit)
        for adapter_id in mix.weights:
            adapter = self._library.adapter(adapter_id)
            seen = find_seen_rows(self._workspace, adapter, rows)
            if seen.rows:
                more = f" It has seen {len(seen.rows)} of {len(rows)} rows." if len(seen.rows) > 1 else ""
                raise SpecError(
                    f"{seen.rows[0].describe(adapter)}{more}",
                    "Measure it on rows that it has not seen.",
                )
            notes += seen.unknown
        return notes

    def _check_digests(self, row: RowResult, digests: builtins.list[str]) -> None:
        """Checks that the adapters are still the ones that the cell was measured with.

        Raises:
            SpecError
        """
        measured = sorted(part[0] for part in row.cell.conditions.get("mix", [])) if row.cell else []
        if measured != sorted(digests):
            raise SpecError(
                f"An adapter of {row.name!r} has changed since the experiment measured it.",
                "Run the experiment again.",
            )
