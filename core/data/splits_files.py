"""A dataset as files of its splits, for tools outside the studio.

    evaluation/datasets/splits/<tag>_train.jsonl   canonical rows, with their document where it is known
                               <tag>_val.jsonl
                               <tag>_test.jsonl
                               <tag>_splits.json   the seed, how the rows were split, the sha256 of each file
                               <tag>.zip           on request: `data add` imports it and keeps these splits

Files of a tag are replaced only on request, because another test split would make earlier figures wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.dataset_records import Dataset, load_dataset, verify_dataset
from core.data.formats.compressed import RECORD
from core.data.formats.read_log import ReadLog
from core.data.formats.readers import RawRow, Source, read_sources
from core.data.reading import read_rows
from core.data.roles.columns import normalize_name
from core.data.split_record import find_record, write_record
from core.data.splits import RATIOS, SPLITS
from core.data.splits_stratified import split_by_stratum
from core.errors import InvalidName, SpecError, StorageError
from core.spec.settings import SEED
from core.store.files import atomic_write
from core.store.workspace import Workspace

FOLDER = Path("evaluation/datasets/splits")
FORMAT = 1
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
# Columns that name the document of a row, best first, as `normalize_name` writes them.
DOCUMENT_COLUMNS = (
    "paperid", "paper", "documentid", "docid", "document", "articleid", "sourceid", "source", "title", "file",
)  # fmt: skip
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # so that equal rows give equal files


@dataclass(frozen=True)
class SplitOptions:
    """How a dataset is split and written.

    Attributes:
        tag: the beginning of the files' names.
        by: "row" spreads every document over the splits, "document" keeps it whole.
        column: column of the imported files that names the document of a row; "" finds it.
        seed: decides which rows go where.
        ratios: shares of train, val and test.
        zipped: write a zip as well.
        replace: replace other files of this tag.
    """

    tag: str
    by: str = "row"
    column: str = ""
    seed: int = SEED
    ratios: tuple[float, float, float] = RATIOS
    zipped: bool = False
    replace: bool = False


@dataclass(frozen=True)
class WrittenSplits:
    """What was written.

    Attributes:
        files: their paths; the record is last.
        rows: rows of each split.
        documents: different documents of the dataset.
        column: where the documents come from, for the user.
    """

    files: tuple[Path, ...]
    rows: dict[str, int]
    documents: int
    column: str


def write_splits(
    workspace: Workspace, dataset_id: str, options: SplitOptions, folder: Path = FOLDER
) -> WrittenSplits:
    """Splits a dataset by document and type, and writes the files; the record of them is written last.

    Raises:
        InvalidName: the tag cannot be used, or its files exist with other rows. SpecError: the column does
            not exist, or a setting is wrong. DataError: there are too few rows or documents. StorageError:
            the dataset is damaged, or the files cannot be written.
    """
    if not TAG.fullmatch(options.tag):
        raise InvalidName(
            f"A tag has 1 to 80 letters, digits, dots, hyphens or underscores, got {options.tag!r}.",
            "For example science_v1.",
        )
    verify_dataset(workspace, dataset_id)
    dataset = load_dataset(workspace, dataset_id)
    if dataset.purpose == "evaluation":
        raise SpecError(
            f"{dataset.name!r} is for evaluation only, so none of its rows may be trained on.",
            "Use all of it as a test, or import the files as training data.",
        )
    rows = _read_all(workspace, dataset)
    documents, column = _find_documents(workspace, dataset, rows, options.column)
    parts = split_by_stratum(rows, documents, options.by, options.seed, options.ratios)
    named = bool(column)
    contents = {
        f"{options.tag}_{name}.jsonl": b"".join(_to_line(rows[i], documents[i], named) for i in part)
        for name, part in parts.items()
    }
    record = _describe(dataset, options, column, parts, contents)
    contents[f"{options.tag}_splits.json"] = record
    _check_files(folder, contents, options)
    folder.mkdir(parents=True, exist_ok=True)
    if options.zipped:
        _write_zip(folder / f"{options.tag}.zip", dataset, options.tag, contents)
    for name, content in contents.items():
        with atomic_write(folder / name) as f:
            f.write(content)
    extra = (folder / f"{options.tag}.zip",) if options.zipped else ()
    return WrittenSplits(
        (*extra, *(folder / name for name in contents)),
        {name: len(part) for name, part in parts.items()},
        len(set(documents)),
        column,
    )


def _describe(
    dataset: Dataset,
    options: SplitOptions,
    column: str,
    parts: Mapping[str, Sequence[int]],
    contents: Mapping[str, bytes],
) -> bytes:
    """The record of the splits."""
    record = {
        "format": FORMAT,
        "tag": options.tag,
        "FINETUNE_SPLIT_SEED": options.seed,
        "ratios": list(options.ratios),
        "by": options.by,
        "documents": column or "none",
        "dataset": {"id": dataset.id, "name": dataset.name, "sha256": dataset.sha256},
        "rows": {name: len(part) for name, part in parts.items()},
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
    }
    return (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode()


def _read_all(workspace: Workspace, dataset: Dataset) -> list[dict[str, Any]]:
    path = workspace.path("datasets", dataset.id, "rows.jsonl")
    try:
        with open(path, "rb") as f:
            return [json.loads(line) for line in f]
    except (OSError, ValueError, RecursionError) as e:
        raise StorageError(f"{path.name} cannot be read: {e}.", "Import the data again.") from e


def _find_documents(
    workspace: Workspace, dataset: Dataset, rows: Sequence[Mapping[str, Any]], column: str
) -> tuple[list[str], str]:
    """The document of each row, and where it comes from; "" where a dataset does not say.

    Sections of texts name their document; whole texts are documents of their own.

    Raises:
        SpecError: the column does not exist.
    """
    if dataset.kind == "domain" and not column:
        return [str(row.get("document") or row["text"]) for row in rows], "the texts"
    if any("document" in row for row in rows) and column in ("", "document"):
        return [str(row.get("document", "")) for row in rows], "document"
    places = _read_places(workspace, dataset, rows)
    columns = list(dict.fromkeys(c for place in places for c in place.values)) if places else []
    if column and column not in columns:
        raise SpecError(
            f"The files of {dataset.name!r} have no column {column!r} that names the document of a row.",
            f"Their columns are: {', '.join(columns) or 'not known'}.",
        )
    if not column:
        unread = {normalize_name(c): c for c in columns if c in dataset.unread}
        column = next((unread[name] for name in DOCUMENT_COLUMNS if name in unread), "")
    if column:
        return [str(place.values.get(column, "")) for place in places], column
    names = [place.file for place in places]
    if len(set(names)) > 1:
        return names, "the files"
    return [""] * len(rows), ""


def _read_places(workspace: Workspace, dataset: Dataset, rows: Sequence[Mapping[str, Any]]) -> list[RawRow]:
    """The row of the imported files that each canonical row was made of; empty where that is not known."""
    folder = workspace.path("datasets", dataset.id, "source")
    sources = [Source(folder / str(f["stored"]), str(f["name"])) for f in dataset.files]
    if not sources:
        return []
    raw = read_sources(sources, dataset.encoding, ReadLog())
    reading = read_rows(raw, dataset.kind, dataset.roles, find_record(sources, ReadLog()))
    return list(reading.places) if list(reading.rows) == list(rows) else []


def _to_line(row: Mapping[str, Any], document: str, is_named: bool) -> bytes:
    named = {"document": document} if is_named and document and "messages" in row else {}
    return (json.dumps({**row, **named}, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def _check_files(folder: Path, contents: Mapping[str, bytes], options: SplitOptions) -> None:
    for name, content in contents.items():
        path = folder / name
        if path.exists() and not options.replace and path.read_bytes() != content:
            raise InvalidName(
                f"{path} exists with other rows or settings.",
                "Choose another tag, or give --replace; figures on the earlier test split no longer count.",
            )


def _write_zip(path: Path, dataset: Dataset, tag: str, contents: Mapping[str, bytes]) -> None:
    """Writes the splits as the download of a dataset, which an import keeps."""
    files = {name: (f"data/{name}.jsonl", contents[f"{tag}_{name}.jsonl"]) for name in SPLITS}
    hashed = {name: (file, hashlib.sha256(content).hexdigest()) for name, (file, content) in files.items()}
    text = write_record(dataset.kind, dataset.purpose, hashed, dataset.cuts)
    with atomic_write(path) as f, zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in ((RECORD, text.encode()), *files.values()):
            archive.writestr(zipfile.ZipInfo(file, ZIP_TIME), content, zipfile.ZIP_DEFLATED)
