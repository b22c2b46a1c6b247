"""Datasets on disk: imported whole, split once, fingerprinted, and read back only as they were written.

Knows the folder of a dataset and its record. Knows nothing of file formats (`readers`), of columns
(`columns`) or of how rows are divided (`splits`).

    <id>/source/0001.jsonl ...       the bytes that were given, copied
         rows.jsonl                  canonical rows, in the order of the files
         splits/<id>_{train,val,test}.jsonl
         dataset.json                the record below
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import shutil
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
from core.store.workspace import (
    Workspace,
    check_name,
    ensure_space,
    read_json,
    sha256_of,
    storage_error,
    write_json,
)

logger = logging.getLogger(__name__)

DAMAGED = "Import the data again; the bytes that were given are in the dataset's source folder."


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset. `sha256` covers its rows, the seed and the ratios."""

    id: str
    name: str
    kind: str  # "domain" or "task"
    rows: int
    splits: dict[str, int]  # rows in train, val and test
    seed: int
    ratios: tuple[float, float, float]
    sha256: str
    roles: dict[str, str]  # role to column
    columns: list[str]
    files: list[dict[str, Any]]  # name, bytes, sha256, stored (its name in source/)
    created: float  # unix seconds
    types: dict[str, int] = field(default_factory=dict)  # rows of each type, the commonest first
    duplicates: int = 0  # rows that repeat an earlier one; kept, and always in the same split
    encoding: str = "utf-8"
    split_sha256: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Preview:
    """What an import would make of some files; `problem` says why it would be refused, or is empty."""

    kind: str
    columns: list[str]
    roles: dict[str, str]
    rows: list[dict[str, Any]]  # the first raw rows, column to value
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
    """Reads the files and shows what they hold, with kind and roles guessed where they are not given.

    Args:
        limit: raw and canonical rows to show.

    Raises:
        DataError: a file that cannot be read at all; doubts about roles and cells are in `problem`.
    """
    raw = read_files(paths, encoding)
    chosen, columns, mapping = _settle(raw, kind, roles)
    rows: list[dict[str, Any]] = []
    problem = ""
    try:
        rows = to_canonical(raw, chosen, mapping)
        split(rows)
    except StudioError as e:
        problem = str(e)
    return Preview(chosen, columns, mapping, [r.values for r in raw[:limit]], len(raw), rows[:limit], problem)


def _settle(
    raw: Sequence[RawRow], kind: str | None, roles: Mapping[str, str] | None
) -> tuple[str, list[str], dict[str, str]]:
    """Kind, columns and roles: as given, else guessed."""
    columns = list_columns(raw)
    given = {role: column for role, column in (roles or {}).items() if column}
    chosen = kind or (("domain" if "text" in given else "task") if given else guess_kind(raw))
    return chosen, columns, given or guess_roles(columns, chosen)


def import_dataset(
    workspace: Workspace,
    paths: Sequence[Path | str],
    name: str,
    kind: str | None = None,
    roles: Mapping[str, str] | None = None,
    seed: int = SEED,
    encoding: str = "utf-8",
) -> Dataset:
    """Copies the files, reads the copies, splits the rows and makes the dataset appear, whole or not at all.

    Args:
        workspace: where it goes.
        paths: files or folders; links are never followed.
        name: what people will call it.
        kind: "domain" or "task"; None guesses.
        roles: role to column; None guesses.
        seed: decides the split.
        encoding: of the text formats.

    Raises:
        DataError: what cannot be read, with file, line and remedy.
        InvalidName: the name.
        StorageError: the disk is full or refuses.
    """
    name = check_name(name)
    sources = find_files(paths)
    given_bytes = sum(source.path.lstat().st_size for source in sources)
    ensure_space(workspace.root, 4 * given_bytes)
    dataset_id, place = workspace.new_dir("datasets", name)
    try:
        copies, files = _copy(sources, place / "source")
        raw = read_sources(copies, encoding)
        chosen, columns, mapping = _settle(raw, kind, roles)
        rows = to_canonical(raw, chosen, mapping)
        del raw
        parts = split(rows, seed)
        lines = [_line(row) for row in rows]
        ensure_space(workspace.root, 2 * sum(map(len, lines)))
        _write(place / "rows.jsonl", lines)
        digests = {
            s: _write(place / "splits" / f"{dataset_id}_{s}.jsonl", (lines[i] for i in parts[s]))
            for s in SPLITS
        }
        dataset = Dataset(
            id=dataset_id,
            name=name,
            kind=chosen,
            rows=len(rows),
            splits={s: len(parts[s]) for s in SPLITS},
            seed=seed,
            ratios=RATIOS,
            sha256=_fingerprint(place / "rows.jsonl", seed, RATIOS),
            roles=mapping,
            columns=columns,
            files=files,
            created=time.time(),
            types=dict(Counter(row["type"] for row in rows if "type" in row).most_common()),
            duplicates=len(rows) - len({content_key(row) for row in rows}),
            encoding=encoding,
            split_sha256=digests,
        )
        write_json(place / "dataset.json", dataclasses.asdict(dataset))
        workspace.commit_dir("datasets", dataset_id, place)
    except BaseException as e:
        shutil.rmtree(place, ignore_errors=True)
        if isinstance(e, OSError):
            raise storage_error(e, place) from e
        raise
    return dataset


def _copy(sources: Sequence[Source], folder: Path) -> tuple[list[Source], list[dict[str, Any]]]:
    """Copies the bytes under names of ours; what is hashed here is what is read afterwards."""
    folder.mkdir()
    copies, files = [], []
    for number, source in enumerate(sources, start=1):
        target = folder / f"{number:04d}{source.suffix}"
        sha, size = hashlib.sha256(), 0
        with open_source(source) as given, open(target, "xb") as copy:
            while block := given.read(1 << 20):
                size += len(block)
                if size > FILE_LIMIT_BYTES:
                    raise DataError(
                        "it grows while it is read.", "Wait until it is complete.", file=source.name
                    )
                sha.update(block)
                copy.write(block)
        copies.append(Source(target, source.name))
        files.append({"name": source.name, "bytes": size, "sha256": sha.hexdigest(), "stored": target.name})
    return copies, files


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _write(path: Path, lines: Iterable[bytes]) -> str:
    """Writes lines into a building place; returns their sha256."""
    path.parent.mkdir(exist_ok=True)
    sha = hashlib.sha256()
    with open(path, "xb") as f:
        for line in lines:
            sha.update(line)
            f.write(line)
    return sha.hexdigest()


def _fingerprint(rows_file: Path, seed: int, ratios: Sequence[float]) -> str:
    sha = hashlib.sha256()
    with open(rows_file, "rb") as f:
        while block := f.read(1 << 20):
            sha.update(block)
    sha.update(json.dumps({"ratios": list(ratios), "seed": seed}, sort_keys=True).encode())
    return sha.hexdigest()


def load_dataset(workspace: Workspace, dataset_id: str) -> Dataset:
    """The record of a dataset.

    Raises:
        NotFound: there is none.
        StorageError: its record is damaged.
    """
    workspace.find("datasets", dataset_id)
    record = read_json(workspace.path("datasets", dataset_id, "dataset.json"))
    try:
        dataset = Dataset(**{**record, "ratios": tuple(record["ratios"])})
        if dataset.id != dataset_id or set(dataset.splits) != set(SPLITS):
            raise ValueError("it describes another dataset")
        return dataset
    except (TypeError, KeyError, ValueError) as e:
        raise StorageError(f"The record of the dataset {dataset_id!r} is damaged: {e}.", DAMAGED) from e


def list_datasets(workspace: Workspace) -> list[Dataset]:
    """All datasets, oldest first; one whose record is damaged is logged and left out."""
    found = []
    for dataset_id in workspace.ids("datasets"):
        try:
            found.append(load_dataset(workspace, dataset_id))
        except (StorageError, NotFound) as e:
            logger.warning("dataset left out: %s", e)
    return sorted(found, key=lambda d: (d.created, d.id))


def read_split(
    workspace: Workspace, dataset_id: str, split: str, limit: int | None = None
) -> list[dict[str, Any]]:
    """The canonical rows of one split, after checking that its file is the one that was written.

    Args:
        split: "train", "val" or "test".
        limit: read only this many rows, for a look; the file is then not checked.

    Raises:
        NotFound: no such dataset or split.
        StorageError: the file is missing or differs.
    """
    if split not in SPLITS:
        raise NotFound(f"There is no split {split!r}.", f"Choose one of: {', '.join(SPLITS)}.")
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
        found = sha256_of(path)
    except OSError as e:
        raise StorageError(f"{path.name} cannot be read: {e.strerror}.", DAMAGED) from e
    if found != claimed_digest:
        raise StorageError(f"{path.name} is not what was written: its sha256 differs.", DAMAGED)


def verify_dataset(workspace: Workspace, dataset_id: str) -> None:
    """Checks the rows, the seed and ratios, the three splits and the copied files against the record.

    Raises:
        StorageError: names the first file that differs.
    """
    dataset = load_dataset(workspace, dataset_id)
    rows_file = workspace.path("datasets", dataset_id, "rows.jsonl")
    try:
        found = _fingerprint(rows_file, dataset.seed, dataset.ratios)
    except OSError as e:
        raise StorageError(
            f"rows.jsonl of the dataset {dataset_id!r} cannot be read: {e.strerror}.", DAMAGED
        ) from e
    if found != dataset.sha256:
        raise StorageError(
            f"rows.jsonl of the dataset {dataset_id!r} is not what was written: its sha256 differs.", DAMAGED
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
    """Gives a dataset another display name; its id and its bytes stay.

    Raises:
        InvalidName: the name.
    """
    dataset = dataclasses.replace(load_dataset(workspace, dataset_id), name=check_name(name))
    write_json(workspace.path("datasets", dataset_id, "dataset.json"), dataclasses.asdict(dataset))
    return dataset
