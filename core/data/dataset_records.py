"""The datasets of a workspace: their records, and reading their rows, verified by sha256.

    <id>/source/0001.jsonl ...                 copies of the imported files
         rows.jsonl                            canonical rows, in the order of the files
         splits/<id>_{train,val,test}.jsonl    the same rows, split
         splits/<id>_{train,val,test}.offsets  where the rows of a large split begin, see `dataset_writer`
         dataset.json                          the record, a `Dataset`

Datasets are written in `datasets` and `derived_datasets`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypedDict

from core.data.splits import SPLITS
from core.errors import NotFound, SpecError, StorageError
from core.store.files import sha256_of
from core.store.record_types import Count, Kind, Time, check_type
from core.store.records import check_file, load_items, read_record, report_damage, write_record
from core.store.workspace import Workspace, check_name

DAMAGED = "Import the data again. The original files are in the dataset's source folder."
INDEX_STEP = 1000  # rows of a split between two places that its index names
NOTE_LIMIT = 4000  # characters of a user's note


class SourceFile(TypedDict):
    """An imported file. `stored` is its name in the source folder."""

    name: str
    bytes: Count
    sha256: str
    stored: str


@dataclass(frozen=True)
class Dataset:
    """The record of a dataset; its fields are the keys of dataset.json.

    Attributes:
        id: name of its folder.
        name: display name.
        kind: "domain" or "task".
        rows: rows of all splits together.
        splits: rows in train, val and test.
        seed: seed of the split.
        ratios: shares of train, val and test.
        sha256: digest of rows.jsonl, the seed and the ratios.
        roles: role to column.
        columns: columns of the imported files.
        files: name, bytes, sha256 and stored (the name in source/) of each imported file.
        created: unix time in seconds.
        types: rows of each type, the most frequent first.
        duplicates: rows that ask what an earlier one asks, or read as an earlier one. They stay in the
            dataset, in the same split as the first.
        encoding: encoding of the text files.
        split_sha256: digest of each split's file.
        layout: name of the layout that was recognized (see `layouts`), or "".
        unread: columns of the files that nothing reads.
        notes: sentences about what was left out, changed or chosen.
        left_out: rows of the files that cannot be learned and were left out.
        purpose: "training", or "evaluation": all rows are in test, and nothing trains on them.
        parents: ids of the datasets that it was made from.
        operation: how it was made from them: "dedup", "redact", "merge", "leave_out" or "".
        note: the user's own note.
        cuts: the documents that were cut into sections.
        skipped: name ("file") and "reason" of files that could not be read, beside others that could.
    """

    id: str
    name: str
    kind: Kind
    rows: Count
    splits: dict[str, Count]
    seed: int
    ratios: tuple[float, float, float]
    sha256: str
    roles: dict[str, str]
    columns: list[str]
    files: list[dict[str, Any]]
    created: Time
    types: dict[str, Count] = field(default_factory=dict)
    duplicates: Count = 0
    encoding: str = "utf-8"
    split_sha256: dict[str, str] = field(default_factory=dict)
    layout: str = ""
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: Count = 0
    purpose: str = "training"
    parents: list[str] = field(default_factory=list)
    operation: str = ""
    note: str = ""
    cuts: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)


def load_dataset(workspace: Workspace, dataset_id: str) -> Dataset:
    """Loads the record of a dataset.

    Raises:
        NotFound: the dataset does not exist.
        DamagedRecord: its record is damaged, or a split is missing or cut off.
    """
    splits = [f"splits/{dataset_id}_{name}.jsonl" for name in SPLITS]
    return workspace.records.read(
        ("datasets", dataset_id), ("dataset.json", *splits), lambda: _read_dataset(workspace, dataset_id)
    )


def _read_dataset(workspace: Workspace, dataset_id: str) -> Dataset:
    path = workspace.find("datasets", dataset_id) / "dataset.json"
    dataset = read_record(path, Dataset, dataset_id)
    with report_damage(path):
        check_type(list[SourceFile], dataset.files)
        if set(dataset.splits) != set(SPLITS):
            raise ValueError(f"its splits must be {', '.join(SPLITS)}, got {', '.join(dataset.splits)}")
        if set(dataset.split_sha256) != set(SPLITS):
            raise ValueError("split_sha256 must have a digest for each split")
    for name in SPLITS:
        path = workspace.path("datasets", dataset_id, "splits", f"{dataset_id}_{name}.jsonl")
        with report_damage(path):
            check_file(path)
            with open(path, "rb") as f:
                _check_end(f, dataset.splits[name])
    return dataset


def _check_end(file: IO[bytes], rows: int) -> None:
    """Checks that a split ends where a row ends; reading it checks its sha256."""
    size = file.seek(0, os.SEEK_END)
    if not rows:
        return
    file.seek(max(0, size - 1))
    if file.read(1) != b"\n":
        raise ValueError("it is cut off")


def list_datasets(workspace: Workspace) -> list[Dataset]:
    """Every dataset that can be read, oldest first."""
    return sorted(load_items(workspace, "datasets", load_dataset)[0], key=lambda d: (d.created, d.id))


def read_split(
    workspace: Workspace, dataset_id: str, split: str, limit: int | None = None, offset: int = 0
) -> list[dict[str, Any]]:
    """Reads canonical rows of one split; if all are read, the sha256 of its file is verified.

    Args:
        workspace: workspace of the dataset.
        dataset_id: id of the dataset.
        split: "train", "val" or "test".
        limit: read at most this many rows; the file is then not verified.
        offset: rows to skip. In a large split they are skipped by its index.

    Raises:
        NotFound: the dataset or split does not exist.
        StorageError: the file is missing or has changed.
    """
    if split not in SPLITS:
        raise NotFound(
            f"Split must be one of {', '.join(SPLITS)}, got {split!r}.", "Choose one of these splits."
        )
    dataset = load_dataset(workspace, dataset_id)
    path = workspace.path("datasets", dataset_id, "splits", f"{dataset_id}_{split}.jsonl")
    if limit is None:
        _check_file(path, dataset.split_sha256.get(split, ""))
    try:
        with open(path, "rb") as f:
            skipped = _seek_row(f, path.with_suffix(".offsets"), offset)
            end = None if limit is None else offset - skipped + limit
            return [json.loads(line) for line in itertools.islice(f, offset - skipped, end)]
    except (OSError, ValueError, RecursionError) as e:
        raise StorageError(f"{path.name} cannot be read: {e}.", DAMAGED) from e


def iterate_split(workspace: Workspace, dataset_id: str, split: str) -> Iterator[dict[str, Any]]:
    """The canonical rows of one split, one at a time; the sha256 of its file is verified first.

    Raises:
        NotFound, StorageError: as `read_split`.
    """
    dataset = load_dataset(workspace, dataset_id)
    path = workspace.path("datasets", dataset_id, "splits", f"{dataset_id}_{split}.jsonl")
    _check_file(path, dataset.split_sha256.get(split, ""))
    try:
        with open(path, "rb") as f:
            for line in f:
                yield json.loads(line)
    except (OSError, ValueError, RecursionError) as e:
        raise StorageError(f"{path.name} cannot be read: {e}.", DAMAGED) from e


def _seek_row(file: IO[bytes], index: Path, row: int) -> int:
    """Goes to the last row up to `row` whose place the index knows; returns the number of that row."""
    entry = row // INDEX_STEP
    if not entry or not index.is_file():
        return 0
    with open(index, "rb") as f:
        f.seek(8 * entry)
        place = int.from_bytes(f.read(8), "little")
    if 0 < place <= os.fstat(file.fileno()).st_size:
        file.seek(place - 1)
        if file.read(1) == b"\n":
            return entry * INDEX_STEP
    file.seek(0)  # the index is damaged or too short
    return 0


def _check_file(path: Path, claimed_digest: str) -> None:
    try:
        digest = sha256_of(path)
    except OSError as e:
        raise StorageError(f"{path.name} cannot be read: {e.strerror}.", DAMAGED) from e
    if digest != claimed_digest:
        raise StorageError(f"{path.name} has changed since the import: its sha256 differs.", DAMAGED)


def verify_dataset(workspace: Workspace, dataset_id: str) -> None:
    """Verifies the rows, the seed and ratios, the three splits and the copied files against the record.

    Raises:
        StorageError: a file has changed; names the first one.
    """
    dataset = load_dataset(workspace, dataset_id)
    rows_file = workspace.path("datasets", dataset_id, "rows.jsonl")
    try:
        fingerprint = compute_fingerprint(rows_file, dataset.seed, dataset.ratios)
    except OSError as e:
        raise StorageError(
            f"rows.jsonl of the dataset {dataset_id!r} cannot be read: {e.strerror}.", DAMAGED
        ) from e
    if fingerprint != dataset.sha256:
        raise StorageError(
            f"rows.jsonl of the dataset {dataset_id!r} has changed since the import: its sha256 differs.",
            DAMAGED,
        )
    for name in SPLITS:
        _check_file(
            workspace.path("datasets", dataset_id, "splits", f"{dataset_id}_{name}.jsonl"),
            dataset.split_sha256.get(name, ""),
        )
    for file in dataset.files:
        _check_file(
            workspace.path("datasets", dataset_id, "source", str(file.get("stored"))), str(file.get("sha256"))
        )


def compute_fingerprint(rows_file: Path, seed: int, ratios: Sequence[float]) -> str:
    """Computes the sha256 of the rows, the seed and the ratios, which together decide every split."""
    sha = hashlib.sha256()
    with open(rows_file, "rb") as f:
        while block := f.read(1 << 20):
            sha.update(block)
    sha.update(json.dumps({"ratios": list(ratios), "seed": seed}, sort_keys=True).encode())
    return sha.hexdigest()


def rename_dataset(workspace: Workspace, dataset_id: str, name: str) -> Dataset:
    """Changes the display name of a dataset; its id and its files stay.

    Raises:
        InvalidName: the name cannot be used.
    """
    clean = check_name(name)
    with workspace.lock("datasets", dataset_id):
        dataset = dataclasses.replace(load_dataset(workspace, dataset_id), name=clean)
        write_record(workspace.path("datasets", dataset_id, "dataset.json"), dataclasses.asdict(dataset))
    return dataset


def annotate_dataset(workspace: Workspace, dataset_id: str, note: str) -> Dataset:
    """Changes the user's own note of a dataset; its rows stay.

    Raises:
        SpecError: the note is longer than NOTE_LIMIT, or has control characters.
    """
    clean = note.strip().replace("\r\n", "\n")
    if len(clean) > NOTE_LIMIT or any(c < " " and c not in "\n\t" for c in clean):
        raise SpecError(
            f"A note must have at most {NOTE_LIMIT:,} characters and no control characters, "
            f"got {len(clean):,} characters.",
            "Shorten it, or paste it as plain text.",
        )
    return _change_record(workspace, dataset_id, note=clean)


def add_notes(workspace: Workspace, dataset_id: str, notes: Sequence[str]) -> Dataset:
    """Adds sentences to what a dataset says about its rows."""
    return _change_record(workspace, dataset_id, added=notes)


def _change_record(
    workspace: Workspace, dataset_id: str, added: Sequence[str] = (), **changes: Any
) -> Dataset:
    with workspace.lock("datasets", dataset_id):
        dataset = load_dataset(workspace, dataset_id)
        dataset = dataclasses.replace(dataset, notes=[*dataset.notes, *added], **changes)
        write_record(workspace.path("datasets", dataset_id, "dataset.json"), dataclasses.asdict(dataset))
    return dataset
