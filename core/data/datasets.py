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
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.data.columns import guess_kind, guess_roles, list_columns, to_canonical
from core.data.readers import (
    FILE_LIMIT_BYTES,
    RawRow,
    Source,
    find_files,
    open_source,
    read_files,
    read_sources,
)
from core.data.splits import RATIOS, SPLITS, content_key, split
from core.errors import DataError, NotFound, StorageError, StudioError
from core.spec.settings import SEED
from core.store.files import ensure_space, read_json, sha256_of, write_json
from core.store.workspace import Workspace, check_name

logger = logging.getLogger(__name__)

DAMAGED = "Import the data again. The original files are in the dataset's source folder."


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
        duplicates: rows that repeat an earlier one. They stay in the dataset, in the same split as the first.
        encoding: encoding of the text files.
        split_sha256: digest of each split's file.
    """

    id: str
    name: str
    kind: str
    rows: int
    splits: dict[str, int]
    seed: int
    ratios: tuple[float, float, float]
    sha256: str
    roles: dict[str, str]
    columns: list[str]
    files: list[dict[str, Any]]
    created: float
    types: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    encoding: str = "utf-8"
    split_sha256: dict[str, str] = field(default_factory=dict)


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
    """

    kind: str
    columns: list[str]
    roles: dict[str, str]
    rows: list[dict[str, Any]]
    total: int
    canonical: list[dict[str, Any]]
    problem: str


def preview(
    paths: Sequence[Path | str],
    kind: str | None = None,
    roles: Mapping[str, str] | None = None,
    limit: int = 20,
    encoding: str = "utf-8",
) -> Preview:
    """Reads the files as an import would, without writing anything.

    Args:
        paths: files or folders.
        kind: "domain" or "task"; None guesses it from the column names.
        roles: role to column; None guesses them from the column names.
        limit: how many raw and canonical rows to return.
        encoding: encoding of the text files.

    Raises:
        DataError: a file cannot be read at all. Problems with roles and cells are in `Preview.problem`.
    """
    raw = read_files(paths, encoding)
    kind, columns, roles = _resolve_layout(raw, kind, roles)
    rows: list[dict[str, Any]] = []
    problem = ""
    try:
        rows = to_canonical(raw, kind, roles)
        split(rows)
    except StudioError as e:
        problem = str(e)
    return Preview(kind, columns, roles, [r.values for r in raw[:limit]], len(raw), rows[:limit], problem)


def _resolve_layout(
    raw: Sequence[RawRow], kind: str | None, roles: Mapping[str, str] | None
) -> tuple[str, list[str], dict[str, str]]:
    """Resolves kind, columns and roles: the given values, and guesses for the others."""
    columns = list_columns(raw)
    assigned = {role: column for role, column in (roles or {}).items() if column}
    if not kind and assigned:
        kind = "domain" if "text" in assigned else "task"
    elif not kind:
        kind = guess_kind(raw)
    return kind, columns, assigned or guess_roles(columns, kind)


def import_dataset(
    workspace: Workspace,
    paths: Sequence[Path | str],
    name: str,
    kind: str | None = None,
    roles: Mapping[str, str] | None = None,
    seed: int = SEED,
    encoding: str = "utf-8",
) -> Dataset:
    """Imports files as a dataset: copies them, reads the copies, splits the rows, and publishes the folder.

    The dataset appears complete or not at all.

    Args:
        workspace: workspace that gets the dataset.
        paths: files or folders; links are never followed.
        name: display name.
        kind: "domain" or "task"; None guesses it from the column names.
        roles: role to column; None guesses them from the column names.
        seed: seed of the split.
        encoding: encoding of the text files.

    Raises:
        DataError: a file or row cannot be read; names file, line and remedy.
        InvalidName: the name cannot be used.
        StorageError: the disk is full or cannot be written.
    """
    name = check_name(name)
    sources = find_files(paths)
    source_bytes = sum(source.path.lstat().st_size for source in sources)
    ensure_space(workspace.root, 4 * source_bytes)
    with workspace.build("datasets", name) as draft:
        dataset_id, folder = draft.id, draft.path
        copies, files = _copy(sources, folder / "source")
        raw = read_sources(copies, encoding)
        kind, columns, roles = _resolve_layout(raw, kind, roles)
        rows = to_canonical(raw, kind, roles)
        del raw
        parts = split(rows, seed)
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
            kind=kind,
            rows=len(rows),
            splits={s: len(parts[s]) for s in SPLITS},
            seed=seed,
            ratios=RATIOS,
            sha256=_compute_fingerprint(folder / "rows.jsonl", seed, RATIOS),
            roles=roles,
            columns=columns,
            files=files,
            created=time.time(),
            types=dict(Counter(row["type"] for row in rows if "type" in row).most_common()),
            duplicates=len(rows) - len({content_key(row) for row in rows}),
            encoding=encoding,
            split_sha256=digests,
        )
        write_json(folder / "dataset.json", dataclasses.asdict(dataset))
        draft.expect("dataset.json", "rows.jsonl", *(f"source/{f['stored']}" for f in files))
        draft.expect(*(f"splits/{dataset_id}_{s}.jsonl" for s in SPLITS))
    return dataset


def _copy(sources: Sequence[Source], folder: Path) -> tuple[list[Source], list[dict[str, Any]]]:
    """Copies the files under numbered names; the copies are hashed here and read afterwards."""
    folder.mkdir()
    copies, files = [], []
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
        StorageError: its record is damaged.
    """
    workspace.find("datasets", dataset_id)
    record = read_json(workspace.path("datasets", dataset_id, "dataset.json"))
    try:
        dataset = Dataset(**{**record, "ratios": tuple(record["ratios"])})
        if dataset.id != dataset_id or set(dataset.splits) != set(SPLITS):
            raise ValueError("it belongs to another dataset")
        return dataset
    except (TypeError, KeyError, ValueError) as e:
        raise StorageError(f"The record of the dataset {dataset_id!r} is damaged: {e}.", DAMAGED) from e


def list_datasets(workspace: Workspace) -> list[Dataset]:
    """Lists all datasets, oldest first; a dataset with a damaged record is logged and left out."""
    datasets = []
    for dataset_id in workspace.ids("datasets"):
        try:
            datasets.append(load_dataset(workspace, dataset_id))
        except (StorageError, NotFound) as e:
            logger.warning("dataset left out: %s", e)
    return sorted(datasets, key=lambda d: (d.created, d.id))


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
    except (OSError, ValueError) as e:
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
    dataset = dataclasses.replace(load_dataset(workspace, dataset_id), name=check_name(name))
    write_json(workspace.path("datasets", dataset_id, "dataset.json"), dataclasses.asdict(dataset))
    return dataset
