"""Evaluates mixes on datasets and stores the reports. `engine.evaluation`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data.samples import Samples
from core.engine.datasets import Datasets
from core.engine.resident_base import ResidentBase
from core.engine.worker import Stream, Worker
from core.errors import SpecError
from core.progress import Progress
from core.spec.metric_rules import RULE
from core.spec.mix import NEW_TOKENS_LIMIT, Mix
from core.store import reports
from core.store.reports import NOTE_LIMIT, Conditions, Report, RowRecord
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.evaluate.measure import EvaluationData, Measurement


class Evaluation:
    """Evaluates mixes and reads reports. Safe to call from any thread.

    Args:
        samples: returns the sample data; perplexity on its general text shows how much a mix has forgotten.
    """

    def __init__(
        self,
        workspace: Workspace,
        worker: Worker,
        resident_base: ResidentBase,
        datasets: Datasets,
        samples: Callable[[], Samples],
    ) -> None:
        self._workspace, self._worker, self._resident_base = workspace, worker, resident_base
        self._datasets, self._samples = datasets, samples

    def measure(
        self,
        mixes: Sequence[Mix],
        dataset: str,
        split: str = "test",
        limit: int = 0,
        general: bool = True,
        max_length: int = 512,
        max_new_tokens: int = 0,
    ) -> Stream:
        """Measures mixes on a split of a dataset and stores a report.

        Rows that do not fit into the base's context are cut or left out, and the report names them.

        Args:
            dataset: id of the dataset.
            split: "train", "val", "test" or "all".
            limit: at most this many rows; 0 means all.
            general: also measure perplexity on the general text that ships with the studio.
            max_length: of a sequence, in tokens.
            max_new_tokens: longest answer, in tokens; 0 takes the longest reference, within the context.

        Returns:
            a stream of Progress; the last one holds the id of the report.

        Raises:
            SpecError: no mixes, an empty split, or an answer length outside its limits. When the stream is
                read: no row can be measured with this base.
        """
        if not 0 <= max_new_tokens <= NEW_TOKENS_LIMIT:
            raise SpecError(
                f"The longest answer must be between 1 and {NEW_TOKENS_LIMIT} tokens, got {max_new_tokens}.",
                "0 takes the longest answer of the data.",
            )
        if not mixes:
            raise SpecError("No mix is chosen.", "Choose at least one; the base is the empty mix.")
        source = self._datasets.get(dataset)
        rows = self._datasets.rows(dataset, split, limit)
        if not rows:
            raise SpecError(f"The split {split!r} of {source.name!r} is empty.", "Choose another split.")

        def data() -> EvaluationData:
            from core.evaluate.measure import EvaluationData

            return EvaluationData(
                questions={"": list(rows)} if source.kind == "task" else {},
                texts={"": [r["text"] for r in rows]} if source.kind == "domain" else {},
                trusted_texts={"general": self._general_texts()} if general else {},
            )

        return self.measure_data(mixes, data, source.id, source.name, split, max_length, max_new_tokens)

    def _general_texts(self) -> list[str]:
        """Held-out general text in the language of the resident base."""
        return self._samples().general_for(self._resident_base.info.name).texts("general_heldout")

    def measure_data(
        self,
        mixes: Sequence[Mix],
        data: Callable[[], EvaluationData],
        dataset: str,
        dataset_name: str,
        split: str,
        max_length: int = 512,
        max_new_tokens: int = 0,
    ) -> Stream:
        """Measures mixes on any data and stores a report; see `measure`.

        Args:
            data: returns the data; called on the model's thread.
            dataset, dataset_name, split: the source that the report records.
        """
        listed = list(mixes)
        return self._worker.stream(
            lambda: self._measure(listed, data, (dataset, dataset_name, split), max_length, max_new_tokens)
        )

    def _measure(
        self,
        mixes: list[Mix],
        data: Callable[[], EvaluationData],
        source: tuple[str, str, str],
        max_length: int,
        max_new_tokens: int,
    ) -> Generator[Any, None, None]:
        from core.evaluate.measure import measure

        begin = time.monotonic()
        part: Any = None
        for part in measure(self._resident_base.get(), mixes, data(), max_length, max_new_tokens):
            if isinstance(part, Progress):
                yield part
        rows = [
            {"name": m.name or str(m), "mix": str(m), "weights": m.weights, **figures}
            for m, figures in zip(mixes, part, strict=True)
        ]
        seconds = round(time.monotonic() - begin, 2)
        base = self._resident_base.info.name
        report = reports.save(self._workspace, *source, base, seconds, rows, _describe_conditions(part))
        yield Progress(1, 1, "Done", report.id)

    def reports(self) -> list[Report]:
        """All reports, newest first."""
        return reports.load_all(self._workspace)

    def report(self, report_id: str) -> Report:
        """One report.

        Raises:
            NotFound, StorageError
        """
        return reports.load(self._workspace, report_id)

    def report_csv(self, report_id: str) -> Path:
        """The path of a report's CSV file."""
        return reports.csv_path(self._workspace, report_id)


def _describe_conditions(measurement: Measurement) -> Conditions:
    """What a report records about a measurement."""
    notes = measurement.notes
    left_out = sum(n.effect == "left out" for n in notes)
    return Conditions(
        rule=RULE,
        max_length=measurement.max_length,
        max_new_tokens=measurement.max_new_tokens,
        rows_left_out=left_out,
        rows_cut=len(notes) - left_out,
        notes=tuple(RowRecord(n.data, n.row, n.text, n.effect, n.reason) for n in notes[:NOTE_LIMIT]),
    )
