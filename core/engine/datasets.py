"""Datasets: previewing files, importing them, and reading what was imported. `engine.datasets`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data import datasets, import_job
from core.data.base_checks import BaseAnswer, Shape
from core.data.child_process import ChildProcess
from core.data.datasets import Dataset, Preview
from core.data.derivation import derivation_job
from core.data.derivation.data_card import write_card, write_download
from core.data.formats import hub_datasets, hub_heads
from core.data.import_job import Request
from core.data.inspection.personal_data import KINDS
from core.data.reading import Reading
from core.engine.import_checks import check_rows, check_shapes
from core.engine.tokenizer_copies import TokenizerCopies
from core.engine.worker import Worker
from core.errors import SpecError
from core.progress import ReadProgress, Report
from core.spec.settings import SEED
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.data.inspection.split_tokens import SplitTokens
    from core.model.resident import Resident

PREVIEW_WAIT, IMPORT_WAIT = 2.0, 10.0  # seconds to wait for the model's thread with the checks of rows
COPY_WAIT = 0.5  # seconds to wait for it with the copy of a tokenizer


@dataclass(frozen=True)
class ExampleToken:
    """One token of a training example: its text, its id, and whether the loss includes it."""

    text: str
    token: int
    trained: bool


class Datasets:
    """Imports and reads datasets. Safe to call from any thread.

    Args:
        resident: returns the resident base; called on the model's thread only.
    """

    def __init__(self, workspace: Workspace, worker: Worker, resident: Callable[[], Resident]) -> None:
        self._workspace, self._worker, self._resident = workspace, worker, resident
        self._copies = TokenizerCopies(worker, resident)

    def preview(
        self,
        paths: Sequence[str | Path],
        kind: str | None = None,
        roles: dict[str, str] | None = None,
        encoding: str = "utf-8",
        purpose: str = "training",
    ) -> Preview:
        """Shows the content of files and how they would be imported; nothing is stored.

        Args and errors are those of `import_files`.
        """
        files = [Path(p) for p in paths]
        check = self._make_check(PREVIEW_WAIT)
        return datasets.preview(
            files,
            kind,
            roles,
            encoding=encoding,
            check=check,
            purpose=purpose,
            count_tokens=self._count_tokens,
        )

    def import_files(
        self,
        paths: Sequence[str | Path],
        name: str,
        kind: str | None = None,
        roles: dict[str, str] | None = None,
        seed: int = SEED,
        encoding: str = "utf-8",
        purpose: str = "training",
        report: Report | None = None,
        process: ChildProcess | None = None,
    ) -> Dataset:
        """Copies files into the workspace as a dataset with its splits.

        Args:
            name: display name of the dataset.
            kind: "domain" (text) or "task" (labelled pairs); None guesses it.
            roles: maps a role to a column; None guesses it.
            seed: seed of the random splits.
            purpose: "training", or "evaluation" for data that is never trained on.
            report: receives the progress; what it raises, such as Cancelled, ends the import.
            process: of `core.data.import_job`, which does the import; None imports in this process.

        Raises:
            DataError: a file or a row cannot be read, or the chat template of the base that is loaded refuses
                a conversation; names file and line.
        """
        files = [Path(p) for p in paths]
        request = Request(self._workspace.root, files, name, kind, roles, seed, encoding, purpose)
        if process is None:
            return import_job.import_files(request, self._make_check(IMPORT_WAIT), report)
        return import_job.import_in_child(
            process, request, self._check_shapes, report or (lambda progress: None)
        )

    def import_hub(
        self,
        hub_id: str,
        name: str = "",
        config: str = "",
        split: str = "",
        revision: str = "",
        kind: str | None = None,
        roles: dict[str, str] | None = None,
        seed: int = SEED,
        purpose: str = "training",
        report: Report | None = None,
        process: ChildProcess | None = None,
    ) -> Dataset:
        """Downloads a dataset of the Hub at a commit and imports it; its notes name the commit.

        Args:
            hub_id: "owner/name".
            name: display name; "" takes that of the Hub.
            config, split, revision: see `core.data.hub_datasets.resolve`.

        Raises:
            DataError: unknown, no network, no readable file, or as in `import_files`.
        """
        found = hub_datasets.resolve(hub_id, config, split, revision)
        with tempfile.TemporaryDirectory(prefix="hub-") as folder:

            def tell(done: int, total: int) -> None:
                if report is not None:
                    report(ReadProgress(done, total, f"Downloading {found.id}"))

            paths = hub_datasets.download(found, Path(folder), tell)
            dataset = self.import_files(
                paths,
                name or hub_id.partition("/")[2],
                kind,
                roles,
                seed,
                purpose=purpose,
                report=report,
                process=process,
            )
        return datasets.add_notes(self._workspace, dataset.id, [found.describe()])

    def list_hub(self, hub_id: str, revision: str = "") -> hub_datasets.HubListing:
        """The configurations and splits of a dataset of the Hub.

        Raises:
            DataError: see `core.data.formats.hub_datasets.list_splits`.
        """
        return hub_datasets.list_splits(hub_id, revision)

    def read_hub_head(self, found: hub_datasets.HubFiles, folder: str | Path) -> Path:
        """Writes the first rows of a dataset of the Hub as a file, for `preview`.

        Raises:
            DataError: see `core.data.formats.hub_heads.read_head`.
        """
        return hub_heads.read_head(found, Path(folder))

    def derive(
        self,
        dataset_ids: str | Sequence[str],
        operation: str,
        name: str,
        near: bool = False,
        kinds: Sequence[str] = KINDS,
        rows: dict[str, list[int]] | None = None,
        empty: bool = False,
    ) -> Dataset:
        """Makes a new dataset from one or several, which stay as they are.

        Args:
            dataset_ids: the dataset, or those that are merged.
            operation: "dedup", "redact", "leave_out" or "merge"; see `core.data.derivation.operations`.
            name: display name of the new dataset.
            near: for "dedup": also of nearly equal rows.
            kinds: for "redact": which kinds of personal data.
            rows: for "leave_out": split to the numbers of its rows, from 0.
            empty: for "leave_out": the rows that an inspection counts as empty, instead.

        Raises:
            SpecError, NotFound, InvalidName, DataError, StorageError: see `derivation.derive_dataset`.
        """
        ids = [dataset_ids] if isinstance(dataset_ids, str) else [*dataset_ids]
        return derivation_job.derive(self._workspace, ids, operation, name, near, kinds, rows, empty)

    def annotate(self, dataset_id: str, note: str) -> Dataset:
        """Changes the user's own note of a dataset.

        Raises:
            SpecError: the note is too long. NotFound, StorageError
        """
        return datasets.annotate_dataset(self._workspace, dataset_id, note)

    def card(self, dataset_id: str) -> str:
        """The data card of a dataset: Markdown with the front matter of the Hub.

        Raises:
            NotFound, StorageError
        """
        return write_card(self._workspace, self.get(dataset_id))

    def download(self, dataset_id: str, path: str | Path) -> Path:
        """Writes a zip with the data card and the splits, which `datasets.load_dataset` reads once unpacked.

        Raises:
            NotFound, StorageError
        """
        return write_download(self._workspace, self.get(dataset_id), Path(path))

    def _count_tokens(self, reading: Reading, parts: Mapping[str, Sequence[int]]) -> SplitTokens | None:
        """The tokens of splits with the base that is loaded; None without one, or while it is busy."""
        from core.data.inspection.split_tokens import count_split_tokens

        copy = self._copies.get(COPY_WAIT)
        return count_split_tokens(reading.rows, parts, copy.base) if copy and copy.base else None

    def _make_check(self, seconds: float) -> Callable[[Reading], Sequence[str]]:
        """The check of an import that needs the base; it waits so long for the model's thread."""
        return lambda reading: check_rows(reading, self._worker, self._resident, seconds)

    def _check_shapes(self, shapes: Sequence[Shape]) -> BaseAnswer:
        """What the base says about the conversations of an import in another process."""
        return check_shapes(shapes, self._worker, self._resident, IMPORT_WAIT)

    def list(self) -> Sequence[Dataset]:
        """All datasets, newest first."""
        return datasets.list_datasets(self._workspace)

    def get(self, dataset_id: str) -> Dataset:
        """One dataset.

        Raises:
            NotFound, StorageError
        """
        return datasets.load_dataset(self._workspace, dataset_id)

    def rows(self, dataset_id: str, split: str, limit: int = 0, offset: int = 0) -> Sequence[dict[str, Any]]:
        """Rows of a split.

        Args:
            split: "train", "val", "test", or "all" for the three of them.
            limit: at most this many; 0 reads all.
            offset: rows to skip.

        Raises:
            SpecError: unknown split. NotFound, StorageError
        """
        names = ("train", "val", "test")
        if split not in (*names, "all"):
            raise SpecError(
                f"The split must be train, val, test or all, got {split!r}.", "Choose one of them."
            )
        splits = names if split == "all" else (split,)
        sizes = self.get(dataset_id).splits
        rows: list[dict[str, Any]] = []
        for name in splits:
            if offset < sizes[name] and (not limit or len(rows) < limit):
                left = limit - len(rows) if limit else None
                rows += datasets.read_split(self._workspace, dataset_id, name, left, offset)
            offset = max(0, offset - sizes[name])
        return rows

    def example_tokens(
        self, dataset_id: str, index: int = 0, max_length: int = 512
    ) -> Sequence[ExampleToken]:
        """One training example as the model reads it, token by token.

        Args:
            index: of the example in the training split; counting starts again after the last one.
            max_length: in tokens; at most the base's context is used.

        Raises:
            NotFound: unknown dataset. BaseModelError: no base is loaded.
        """
        dataset = self.get(dataset_id)
        split = "train" if dataset.splits["train"] else "test"
        (row,) = datasets.read_split(self._workspace, dataset_id, split, 1, index % dataset.splits[split])

        def encode() -> Sequence[ExampleToken]:
            from core.data.tokens.encoding import encode_task, encode_text

            base = self._resident().base
            length = min(max_length, base.context)
            if dataset.kind == "task":
                encoded = encode_task(base.tokenizer, row["messages"], length, base.eos_ids)
            else:
                encoded = encode_text(base.tokenizer, row["text"], length)[0]
            return [
                ExampleToken(base.tokenizer.decode([token]), token, bool(trained))
                for token, trained in zip(encoded.ids, encoded.loss_mask, strict=True)
            ]

        return self._worker.call(encode)
