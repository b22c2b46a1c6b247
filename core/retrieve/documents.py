"""The documents of a dataset, put together again from its rows, with the places of their headings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from core.data.dataset_records import DAMAGED, Dataset, compute_fingerprint
from core.data.documents.sections import iterate_texts
from core.data.documents.text_blocks import read_plain_blocks
from core.errors import SpecError, StorageError
from core.store.workspace import Workspace

HEADING_LIMIT = 200  # characters of a heading


@dataclass
class TextDocument:
    """A document as one text.

    Attributes:
        name: of its file where the rows tell it; else its number, such as "Text 12".
        headings: (offset in the text, heading), in order.
    """

    name: str
    text: str
    headings: list[tuple[int, str]] = field(default_factory=list)


def check_has_texts(dataset: Dataset) -> None:
    """Checks that a dataset holds documents.

    Raises:
        SpecError: it holds questions with answers.
    """
    if dataset.kind != "domain":
        raise SpecError(
            f"Documents must be a dataset of texts, got {dataset.name!r}, "
            "which holds questions with answers.",
            "Choose a dataset of texts, or import the documents as texts.",
        ).at("documents")


def iterate_documents(workspace: Workspace, dataset: Dataset) -> Iterator[TextDocument]:
    """The documents of a dataset, from the rows of all its splits, in the order of the files.

    Sections of one document that follow each other are one document again, as in training.

    Raises:
        SpecError: the dataset holds no texts. StorageError: its rows cannot be read, or have changed.
    """
    check_has_texts(dataset)
    path = workspace.path("datasets", dataset.id, "rows.jsonl")
    try:
        if compute_fingerprint(path, dataset.seed, dataset.ratios) != dataset.sha256:
            raise StorageError(f"{path.name} has changed since the import: its sha256 differs.", DAMAGED)
        names = _name_files(dataset)
        with open(path, "rb") as f:
            for number, rows in enumerate(_group(json.loads(line) for line in f)):
                yield _join(rows, names[number] if number < len(names) else f"Text {number + 1}")
    except (OSError, ValueError, RecursionError) as e:
        raise StorageError(f"{path.name} cannot be read: {e}.", DAMAGED) from e


def _name_files(dataset: Dataset) -> list[str]:
    """The names of the files, if each of them is one document; else an empty list."""
    cut_rows = sum(cut["sections"] - 1 for cut in dataset.cuts)
    if dataset.parents or len(dataset.files) != dataset.rows - cut_rows:
        return []
    return [PurePath(file["name"]).name for file in dataset.files]


def _group(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of one document at a time: a section follows the one before it."""
    group: list[dict[str, Any]] = []
    for row in rows:
        part = row.get("part")
        if group and (
            part is None or (row.get("document"), part) != (group[-1].get("document"), _next_part(group[-1]))
        ):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _next_part(row: dict[str, Any]) -> int | None:
    part = row.get("part")
    return None if part is None else int(part) + 1


def _join(rows: Sequence[dict[str, Any]], name: str) -> TextDocument:
    (text,) = iterate_texts(rows)
    document = TextDocument(str(rows[0].get("document") or name), text)
    cursor = 0
    for row in rows:
        start = text.find(row["text"], cursor)
        if heading := row.get("heading"):
            document.headings.append((start, _clean(heading)))
        document.headings += find_headings(row["text"], start)
        cursor = start + len(row["text"])
    document.headings.sort(key=lambda item: item[0])
    return document


def find_headings(text: str, start: int = 0) -> list[tuple[int, str]]:
    """The headings of a text and their offsets.

    Args:
        start: is added to every offset.
    """
    found, cursor = [], 0
    for block in read_plain_blocks(text):
        at = text.find(block.text, cursor)
        if at < 0:
            continue
        cursor = at + len(block.text)
        if block.kind == "heading" and _clean(block.text):
            found.append((start + at, _clean(block.text)))
    return found


def _clean(heading: str) -> str:
    return " ".join(heading.strip().lstrip("#").split())[:HEADING_LIMIT]
