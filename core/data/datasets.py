"""Datasets on disk: imported atomically, split once, and verified by sha256 when they are read.

    <id>/source/0001.jsonl ...                 copies of the imported files
         rows.jsonl                            canonical rows, in the order of the files
         splits/<id>_{train,val,test}.jsonl    the same rows, split
         dataset.json                          the record, a `Dataset`

File formats are in `readers`, column roles in `columns`, and the rule of the split in `splits`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypedDict

from core.data.read_log import ReadLog
from core.data.readers import (
    FILE_LIMIT_BYTES,
    Source,
    find_files,
    open_source,
    read_files,
    read_sources,
)
from core.data.reading import Reading, read_rows
from core.data.sections import Cut
from core.data.splits import RATIOS, SPLITS, count_repeats, link_groups, list_questions, split
from core.errors import DataError, NotFound, SpecError, StorageError, StudioError, UnconfirmedRoles
from core.progress import ReadProgress, Report
from core.spec.settings import SEED
from core.store.files import ensure_space, sha256_of, write_json
from core.store.record_types import Count, Kind, Time, check_type
from core.store.records import check_file, load_items, read_record, report_damage, write_record
from core.store.workspace import Workspace, check_name

DAMAGED = "Import the data again. The original files are in the dataset's source folder."

PURPOSES = ("training", "evaluation")
CUT_LIMIT = 1000  # documents whose cuts are recorded
NOTE_LIMIT = 4000  # characters of a user's note
NEAR_LIMIT = 50_000  # sections among which near-duplicates are searched for the split

Check = Callable[[Reading], Sequence[str]]  # raises DataError, or returns sentences for the notes


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


@dataclass(frozen=True)
class Preview:
    """Result of a trial import that writes nothing.

    Attributes:
        kind: "domain" or "task", as given or guessed.
        columns: columns of the files.
        roles: role to column, as given or guessed.
        rows: the first raw rows, column to value.
        total: rows of all files.
        canonical: the first canonical rows.
        problem: why an import would be refused; empty if it would succeed.
        choices: columns that can have a role; those of the files, or those that the layout gives.
        layout: what the page calls the layout that was recognized; "" for plain columns.
        unread: columns of the files that nothing reads.
        notes: sentences about what is left out, changed or chosen.
        read: rows that an import would store.
        left_out: rows that cannot be learned.
        duplicates: rows that ask what an earlier one asks, or read as an earlier one.
        cuts: the documents that an import cuts into sections.
        skipped: name ("file") and "reason" of files that cannot be read, beside others that can.
        split_shares: share of train, val and test in characters.
        question: what the user has to confirm before an import, with the reason; "" if nothing.
    """

    kind: str
    columns: list[str]
    roles: dict[str, str]
    rows: list[dict[str, Any]]
    total: int
    canonical: list[dict[str, Any]]
    problem: str
    choices: list[str] = field(default_factory=list)
    layout: str = ""
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read: int = 0
    left_out: int = 0
    duplicates: int = 0
    cuts: list[Cut] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    split_shares: dict[str, float] = field(default_factory=dict)
    question: str = ""


def preview(
    paths: Sequence[Path | str],
    kind: str | None = None,
    roles: Mapping[str, str] | None = None,
    limit: int = 20,
    encoding: str = "utf-8",
    check: Check | None = None,
    purpose: str = "training",
) -> Preview:
    """Reads the files as an import would, without writing anything.

    Args:
        paths: files or folders.
        kind: "domain" or "task"; None guesses it from the columns.
        roles: role to column; None guesses them from the columns.
        limit: how many raw and canonical rows to return.
        encoding: encoding of the text files.
        check: a further check of the rows, see `import_dataset`.
        purpose: "training" or "evaluation", see `Dataset`.

    Raises:
        DataError: a file cannot be read at all. Problems with roles and cells are in `Preview.problem`.
    """
    log = ReadLog()
    raw = read_files(paths, encoding, log)
    result = read_rows(raw, kind, roles)
    problem, notes, duplicates, shares = "", [*log.list_notes(), *result.notes], 0, dict[str, float]()
    question = ""
    try:
        if result.problem is not None:
            raise result.problem
        parts, duplicates = _assign_splits(result, SEED, purpose)
        shares = _measure_shares(result.rows, parts)
        notes = [*notes, *(check(result) if check else ())]
    except StudioError as e:
        problem = str(e)
        question = e.what if isinstance(e, UnconfirmedRoles) else ""
    return Preview(
        kind=result.kind,
        columns=result.columns,
        roles=result.roles,
        rows=[r.values for r in raw[:limit]],
        total=len(raw),
        canonical=result.rows[:limit],
        problem=problem,
        choices=result.choices,
        layout=result.title,
        unread=result.unread,
        notes=notes,
        read=len(result.rows),
        left_out=result.left_out,
        duplicates=duplicates,
        cuts=result.cuts,
        skipped=log.skipped,
        split_shares=shares,
        question=question,
    )


def import_dataset(
    workspace: Workspace,
    paths: Sequence[Path | str],
    name: str,
    kind: str | None = None,
    roles: Mapping[str, str] | None = None,
    seed: int = SEED,
    encoding: str = "utf-8",
    check: Check | None = None,
    purpose: str = "training",
    report: Report | None = None,
) -> Dataset:
    """Imports files as a dataset: copies them, reads the copies, splits the rows, and publishes the folder.

    The dataset appears complete or not at all.

    Args:
        workspace: workspace that gets the dataset.
        paths: files or folders; links are never followed.
        name: display name.
        kind: "domain" or "task"; None guesses it from the columns.
        roles: role to column; None guesses them from the columns.
        seed: seed of the split.
        encoding: encoding of the text files.
        check: a further check of the rows, such as whether the base's chat template accepts them. It raises
            DataError, or returns sentences for the dataset's notes.
        purpose: "training", or "evaluation" for data that is never trained on.
        report: receives the progress once a block. What it raises, such as Cancelled, ends the import, and
            nothing is left.

    Raises:
        DataError: a file or row cannot be read; names file, line and remedy.
        InvalidName: the name cannot be used.
        StorageError: the disk is full or cannot be written.
    """
    name = check_name(name)
    log = ReadLog()
    sources = find_files(paths, log)
    source_bytes = sum(source.path.lstat().st_size for source in sources)
    ensure_space(workspace.root, 4 * source_bytes)
    with workspace.build("datasets", name) as draft:
        dataset_id, folder = draft.id, draft.path
        copies, files = _copy(sources, folder / "source", source_bytes, report)
        raw = read_sources(copies, encoding, log)
        if report:
            report(ReadProgress(2 * source_bytes, 4 * source_bytes, "Reading the rows", rows=len(raw)))
        result = read_rows(raw, kind, roles)
        del raw
        if result.problem is not None:
            raise result.problem
        rows = result.rows
        parts, duplicates = _assign_splits(result, seed, purpose)
        notes = [*log.list_notes(), *result.notes, *(check(result) if check else ())]
        if report:
            report(ReadProgress(3 * source_bytes, 4 * source_bytes, "Writing the splits", rows=len(rows)))
        lines = [_to_line(row) for row in rows]
        ensure_space(workspace.root, 2 * sum(map(len, lines)))
        _write(folder / "rows.jsonl", lines)
        digests = {
            s: _write(folder / "splits" / f"{dataset_id}_{s}.jsonl", (lines[i] for i in parts[s]))
            for s in SPLITS
        }
        dataset = Dataset(
            id=dataset_id,
            name=name,
            kind=result.kind,
            rows=len(rows),
            splits={s: len(parts[s]) for s in SPLITS},
            seed=seed,
            ratios=RATIOS,
            sha256=_compute_fingerprint(folder / "rows.jsonl", seed, RATIOS),
            roles=result.roles,
            columns=result.columns,
            files=files,
            created=time.time(),
            types=dict(Counter(row["type"] for row in rows if "type" in row).most_common()),
            duplicates=duplicates,
            encoding=encoding,
            split_sha256=digests,
            layout=result.layout,
            unread=result.unread,
            notes=notes,
            left_out=result.left_out,
            purpose=purpose,
            cuts=[dict(cut) for cut in result.cuts[:CUT_LIMIT]],
            skipped=log.skipped,
        )
        write_json(folder / "dataset.json", dataclasses.asdict(dataset))
        draft.expect("dataset.json", "rows.jsonl", *(f"source/{f['stored']}" for f in files))
        draft.expect(*(f"splits/{dataset_id}_{s}.jsonl" for s in SPLITS))
    return dataset


def _assign_splits(result: Reading, seed: int, purpose: str) -> tuple[dict[str, list[int]], int]:
    """Splits the rows of a reading.

    Returns:
        Indices of each split; how many rows ask or read as an earlier one.

    Raises:
        SpecError: the purpose is unknown. DataError: there are too few different rows.
    """
    if purpose not in PURPOSES:
        raise SpecError(
            f"The purpose must be {' or '.join(PURPOSES)}, got {purpose!r}.",
            "Choose evaluation for data that is never trained on.",
        )
    rows = result.rows
    questions = list_questions(rows)
    duplicates = count_repeats(rows, questions)
    if purpose == "evaluation":
        return {"train": [], "val": [], "test": list(range(len(rows)))}, duplicates
    if not result.cuts:
        return split(rows, seed, questions=questions), duplicates
    from core.data.near_duplicates import find_near_duplicates  # slow to import

    near = find_near_duplicates([row["text"] for row in rows]) if len(rows) <= NEAR_LIMIT else []
    lengths = [len(row["text"]) for row in rows]
    return split(rows, seed, questions=link_groups(questions, near), weights=lengths), duplicates


def _measure_shares(
    rows: Sequence[Mapping[str, Any]], parts: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """The share of each split in characters."""
    lengths = [
        len(row["text"]) if "text" in row else sum(len(m["content"]) for m in row["messages"]) for row in rows
    ]
    total = max(1, sum(lengths))
    return {name: sum(lengths[i] for i in indices) / total for name, indices in parts.items()}


def _copy(
    sources: Sequence[Source], folder: Path, total: int, report: Report | None
) -> tuple[list[Source], list[dict[str, Any]]]:
    """Copies the files under numbered names; the copies are hashed here and read afterwards."""
    folder.mkdir()
    copies, files = [], []
    done = 0
    for number, source in enumerate(sources, start=1):
        target = folder / f"{number:04d}{source.suffix}"
        sha, size = hashlib.sha256(), 0
        with open_source(source) as original, open(target, "xb") as copy:
            while block := original.read(1 << 20):
                size += len(block)
                if size > FILE_LIMIT_BYTES:
                    raise DataError(
                        "the file grows while it is read.", "Wait until it is complete.", file=source.name
                    )
                sha.update(block)
                copy.write(block)
                done += len(block)
                if report:
                    report(ReadProgress(done, 4 * total, f"Copying {source.name}"))
        copies.append(Source(target, source.name))
        files.append({"name": source.name, "bytes": size, "sha256": sha.hexdigest(), "stored": target.name})
    return copies, files


def _to_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _write(path: Path, lines: Iterable[bytes]) -> str:
    """Writes lines into the unpublished folder; returns their sha256."""
    path.parent.mkdir(exist_ok=True)
    sha = hashlib.sha256()
    with open(path, "xb") as f:
        for line in lines:
            sha.update(line)
            f.write(line)
    return sha.hexdigest()


def _compute_fingerprint(rows_file: Path, seed: int, ratios: Sequence[float]) -> str:
    """Computes the sha256 of the rows, the seed and the ratios, which together decide every split."""
    sha = hashlib.sha256()
    with open(rows_file, "rb") as f:
        while block := f.read(1 << 20):
            sha.update(block)
    sha.update(json.dumps({"ratios": list(ratios), "seed": seed}, sort_keys=True).encode())
    return sha.hexdigest()


def load_dataset(workspace: Workspace, dataset_id: str) -> Dataset:
    """Loads the record of a dataset.

    Raises:
        NotFound: the dataset does not exist.
        DamagedRecord: its record is damaged, or a split is missing or cut off.
    """
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
    workspace: Workspace, dataset_id: str, split: str, limit: int | None = None
) -> list[dict[str, Any]]:
    """Reads the canonical rows of one split and verifies the sha256 of its file.

    Args:
        workspace: workspace of the dataset.
        dataset_id: id of the dataset.
        split: "train", "val" or "test".
        limit: read only the first rows, at most this many; the file is then not verified.

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
            return [json.loads(line) for line in itertools.islice(f, limit)]
    except (OSError, ValueError, RecursionError) as e:
        raise StorageError(f"{path.name} cannot be read: {e}.", DAMAGED) from e


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
        fingerprint = _compute_fingerprint(rows_file, dataset.seed, dataset.ratios)
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
