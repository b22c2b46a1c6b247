"""Fine-tuning on documents: import them, train an adapter on the resident base, answer with the newest one.

What it made is found again by the names of its runs, so that a restart loses nothing. The REST routes
(`core.server.fine_tuning`) and `core.facade` are thin layers over this module.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data.datasets import Dataset
from core.errors import Busy, DataError, NotFound, SpecError
from core.spec.fine_tuning import FineTuningConfig
from core.spec.mix import Mix
from core.spec.training import RunStatus
from core.store.runs import Run

if TYPE_CHECKING:
    from core.engine.engine import Engine

NAME = "Fine-tuning"  # of runs, adapters and datasets, followed by their number
DOCUMENT_LIMIT = 10_000
TEXT_KEYS = ("page_content", "text", "content")  # of a document, the first that it has
SEPARATOR = "\n\n---\n\n"  # between the documents of a text file, see `core.data.formats.readers`


@dataclass(frozen=True)
class FineTuningStatus:
    """Where the fine-tuning is.

    Attributes:
        state: the status of the newest run, or "not set up".
        explanation, next_step: a sentence each, for the user.
        trained: an adapter can answer on the resident base.
        available: a question can be answered now, by the adapter or by the base.
        progress: finished share of the newest run, from 0 to 1.
        loss, validation_loss: newest of that run, in nats per token; None before the first one.
        run, adapter: ids; "" for none.
        version: the number of the adapter that answers, counted from 1; 0 for the base.
        base: name of the resident base.
        error: why the newest run or the loading of the base failed; "" without an error.
    """

    state: str
    explanation: str
    next_step: str
    trained: bool
    available: bool
    progress: float
    step: int
    total_steps: int
    loss: float | None
    validation_loss: float | None
    run: str
    adapter: str
    version: int
    base: str
    error: str


class FineTuning:
    """Fine-tunes the resident base of an engine. Safe to call from any thread; holds no state."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def import_documents(self, documents: Iterable[Any]) -> Dataset:
        """Imports documents as a text dataset.

        Args:
            documents: strings, mappings with "text", "content" or "page_content", or objects with one of
                these attributes, as the splitters of RAG systems return them.

        Raises:
            DataError: a document without text, or an import that fails. SpecError: none, or too many.
        """
        texts = [read_document(document, number) for number, document in enumerate(documents, 1)]
        if not 1 <= len(texts) <= DOCUMENT_LIMIT:
            raise SpecError(
                f"The number of documents must be between 1 and {DOCUMENT_LIMIT}, got {len(texts)}.",
                "Join short documents, or import files as a dataset.",
            ).at("documents")
        with tempfile.TemporaryDirectory(prefix="documents-") as folder:
            path = Path(folder) / "documents.txt"
            path.write_text(SEPARATOR.join(texts), encoding="utf-8", newline="\n")
            return self._engine.datasets.import_files([path], f"{NAME} documents", kind="domain")

    def find_dataset(self, dataset_id: str = "") -> Dataset:
        """A dataset to train on: the given one, or the newest of the workspace.

        Raises:
            NotFound: it does not exist, or the workspace has none.
        """
        if dataset_id:
            return self._engine.datasets.get(dataset_id)
        for dataset in self._engine.datasets.list():
            if dataset.purpose == "training":
                return dataset
        raise NotFound(
            "No documents are uploaded yet.",
            "Send them as `documents`, or upload files to /api/datasets, then set up again.",
        )

    def check_base(self, config: FineTuningConfig) -> None:
        """Checks that a configuration names the resident base.

        Raises:
            SpecError: it names another one.
        """
        base = self._engine.bases.current().name
        if config.model_name != base:
            raise SpecError(
                f"The resident base is {base!r}, got the model_name {config.model_name!r}.",
                f"Leave model_name out, or start the studio with --base {config.model_name}.",
            ).at("model_name")

    def check_idle(self) -> None:
        """Checks that no version is being trained.

        Raises:
            Busy: one is.
        """
        for run in self._list_runs()[:1]:
            if run.status.is_alive:
                raise Busy(f"{run.spec.name} is {run.status.value}.", "Wait until it ends, or stop the run.")

    def start(self, config: FineTuningConfig, dataset: Dataset) -> str:
        """Queues the training of a new version, and returns the id of its run.

        Raises:
            Busy: a version is being trained. Also the errors of `Runs.start`.
        """
        self.check_idle()
        self._engine.bases.load()  # where no page has done so
        runs = self._list_runs()
        number = 1 + max((_read_version(run) for run in runs), default=0)
        context = self._engine.bases.current().context
        return self._engine.runs.start(config.to_spec(dataset.kind, f"{NAME} {number}", dataset.id, context))

    def find_mix(self) -> tuple[Mix, int]:
        """The mix that answers, and its version: the newest adapter that fits, else the base and 0."""
        fitting = {a.id for a in self._engine.library.mixable_adapters() if a.fits and not a.training}
        for run in self._list_runs():
            if run.adapter in fitting:
                return Mix(name=run.spec.name, weights={run.adapter: 1.0}), _read_version(run)
        return Mix(name="base"), 0

    def status(self) -> FineTuningStatus:
        """Where the newest run is, and what answers."""
        info = self._engine.bases.current()
        mix, version = self.find_mix()
        runs = self._list_runs()
        run = runs[0] if runs else None
        history = self._engine.runs.history(run.id) if run else None
        return FineTuningStatus(
            state=run.status.value if run else "not set up",
            explanation=run.explanation if run else "No fine-tuning was started; the base answers.",
            next_step=run.next_step if run else "Upload documents, then set up.",
            trained=version > 0,
            available=not info.loading and not info.error,
            progress=_measure_progress(run) if run else 0.0,
            step=run.step if run else 0,
            total_steps=run.total_steps if run else 0,
            loss=history.train[-1][1] if history and history.train else None,
            validation_loss=history.validation[-1][1] if history and history.validation else None,
            run=run.id if run else "",
            adapter=next(iter(mix.weights), ""),
            version=version,
            base=info.name,
            error=(run.error if run else "") or info.error,
        )

    def _list_runs(self) -> list[Run]:
        """The runs of all versions, the newest first."""
        return [run for run in self._engine.runs.list() if _read_version(run)]


def read_document(document: Any, number: int) -> str:
    """The text of a document.

    Args:
        number: of the document, from 1, for errors.

    Raises:
        DataError: it has no text.
    """
    text: Any = document if isinstance(document, str) else None
    for key in () if isinstance(document, str) else TEXT_KEYS:
        text = document.get(key) if isinstance(document, Mapping) else getattr(document, key, None)
        if text is not None:
            break
    if not isinstance(text, str) or not text.strip():
        raise DataError(
            f"Document {number} must be a text, or have a text in {', '.join(TEXT_KEYS)}; "
            f"got {type(document).__name__}.",
            "Give every document some text.",
        )
    return text


def _read_version(run: Run) -> int:
    """The number of a run of this module; 0 for other runs. The name in its settings is never changed."""
    match = re.fullmatch(rf"{NAME} ([1-9]\d{{0,8}})", run.spec.name)
    return int(match[1]) if match else 0


def _measure_progress(run: Run) -> float:
    if run.status is RunStatus.DONE:
        return 1.0
    return min(1.0, run.step / run.total_steps) if run.total_steps else 0.0
