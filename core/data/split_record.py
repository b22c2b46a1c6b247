"""The record in the zip of a dataset: the split of each row, and the sections of its documents.

    <id>.zip   adapter-studio.json   {"version", "kind", "purpose", "cuts",
                                      "splits": {"train": {"file", "sha256"}, ...}}
               data/train.jsonl      ...

An import of the whole zip keeps splits and sections, if every data file has its recorded sha256 and there is
no other. The record only chooses among the splits: rows are read and checked as those of any other file.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypedDict

from core.data.documents.sections import Cut
from core.data.formats import compressed
from core.data.formats.json_rows import parse_json
from core.data.formats.read_log import ReadLog
from core.data.formats.readers import FORMATS, RawRow, Source, open_source
from core.data.splits import SPLITS, list_questions
from core.errors import DataError
from core.store.record_types import Kind, Mismatch, check_type

VERSION = 1
SIZE_LIMIT = 4 << 20  # bytes of the record
DOCUMENT_LENGTH, HEADING_LENGTH = 1000, 200  # characters
NAMES = {"train": "training", "val": "validation", "test": "test"}
SECTION_COLUMNS = ("document", "part", "heading", "continues")
HOW = ("headings", "paragraphs", "sentences")  # see `sections.Cut`


class FileRecord(TypedDict):
    """The file of a split: its path in the zip, and its sha256."""

    file: str
    sha256: str


@dataclass(frozen=True)
class SplitRecord:
    """What a zip says about its rows.

    Attributes:
        version: VERSION of the studio that wrote it.
        kind: "domain" or "task".
        purpose: "training" or "evaluation".
        splits: the file of each split that has rows.
        cuts: document, sections and how of the documents that were cut; see `sections.Cut`.
        archive: the name of the zip, for the user; not in the file.
    """

    version: int
    kind: Kind
    purpose: str
    splits: dict[str, FileRecord]
    cuts: list[dict[str, Any]] = field(default_factory=list)
    archive: str = ""

    def roles(self, columns: Sequence[str]) -> dict[str, str]:
        """The roles of the columns that a download writes."""
        if self.kind == "domain":
            return {"text": "text"}
        return {"messages": "messages", **({"type": "type"} if "type" in columns else {})}


def write_record(
    kind: str, purpose: str, files: Mapping[str, tuple[str, str]], cuts: Sequence[Mapping[str, Any]]
) -> str:
    """The content of the record.

    Args:
        files: split to the path and the sha256 of its file.
        cuts: of the dataset.
    """
    splits = {split: {"file": file, "sha256": digest} for split, (file, digest) in files.items()}
    record = {"version": VERSION, "kind": kind, "purpose": purpose, "splits": splits, "cuts": [*cuts]}
    return json.dumps(record, ensure_ascii=False, indent=1) + "\n"


def find_record(sources: Sequence[Source], log: ReadLog) -> SplitRecord | None:
    """The record of a zip that is imported alone; None without one, or where it does not fit the files.

    Args:
        log: gets the reason why a record is not used.
    """
    if len(sources) != 1 or sources[0].suffix != ".zip":
        return None
    (source,) = sources
    try:
        with open_source(source) as f:
            text = compressed.read_member(f, source.name, compressed.RECORD, SIZE_LIMIT)
        if text is None:
            return None
        record = _parse(text, source.name)
        _check_files(source, record)
    except (Mismatch, ValueError, DataError) as e:
        reason = e.what if isinstance(e, DataError) else str(e)
        log.say(describe_refusal(source.name, reason))
        return None
    return record


def describe_refusal(archive: str, reason: str) -> str:
    """The sentence about a record that is not used."""
    return f"{archive}: the splits recorded in it are not used ({reason}), so the rows are split again."


def _parse(text: bytes, archive: str) -> SplitRecord:
    value = parse_json(text.decode(), compressed.RECORD, 1)
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise ValueError("another version of the studio wrote it")
    record: SplitRecord = check_type(SplitRecord, {**value, "archive": archive})
    if not record.splits or not set(record.splits) <= set(SPLITS):
        raise ValueError("it names other splits")
    if record.purpose not in ("training", "evaluation"):
        raise ValueError("it names another purpose")
    return record


def _check_files(source: Source, record: SplitRecord) -> None:
    """Compares the files of the zip with the record.

    Raises:
        ValueError: a file is missing, changed, or not recorded.
    """
    recorded = {f"{source.name}/{file['file']}": file["sha256"] for file in record.splits.values()}
    found: dict[str, str] = {}
    with open_source(source) as f:
        for member, name in compressed.inflate_members(f, source.name, FORMATS, ReadLog()):
            sha = hashlib.sha256()
            while block := member.read(1 << 20):
                sha.update(block)
            found[name] = sha.hexdigest()
    if set(found) != set(recorded):
        raise ValueError("the zip has other files than it names")
    if changed := [name for name in found if found[name] != recorded[name]]:
        raise ValueError(f"{PurePosixPath(changed[0]).name} has changed since")


@dataclass(frozen=True)
class Restored:
    """Rows with their recorded splits.

    Attributes:
        rows: canonical rows; those of sections name their document and part.
        splits: of each row its split.
        cuts: the documents that were cut.
        notes: sentences for the user.
    """

    rows: list[dict[str, Any]]
    splits: list[str]
    cuts: list[Cut]
    notes: list[str]


def restore(record: SplitRecord, rows: Sequence[Mapping[str, Any]], places: Sequence[RawRow]) -> Restored:
    """Gives rows the splits and sections that the zip records.

    A question that is in two splits goes to the one that is held out most, as in `derived_datasets`.

    Args:
        rows: canonical rows, whose documents were not cut again.
        places: of each row the raw row.

    Raises:
        ValueError: a split has no rows, though it is for training.
    """
    split_of = {f"{record.archive}/{file['file']}": split for split, file in record.splits.items()}
    codes = [SPLITS.index(split_of[place.file]) for place in places]
    questions = list_questions(rows)
    most: dict[bytes, int] = {}
    for question, code in zip(questions, codes, strict=True):
        most[question] = max(code, most.get(question, 0))
    splits = [SPLITS[most[q]] for q in questions]
    moved = sum(SPLITS[code] != split for code, split in zip(codes, splits, strict=True))
    counts = Counter(splits)
    if record.purpose == "training" and len(counts) < len(SPLITS):
        raise ValueError("one of the splits has no rows")
    restored = [_restore_section(row, place) for row, place in zip(rows, places, strict=True)]
    sizes = ", ".join(f"{counts[s]:,} {NAMES[s]}" for s in SPLITS if counts[s])
    notes = [f"The rows keep the splits that {record.archive} records: {sizes}."]
    if record.purpose == "evaluation":
        notes = [f"{record.archive} says that its rows are for evaluation only, and they stay so."]
    if moved:
        rows_are = "1 row is" if moved == 1 else f"{moved:,} rows are"
        notes.append(f"{rows_are} held out, because a held-out row asks or reads the same.")
    return Restored(restored, splits, _check_cuts(record.cuts, restored), notes)


def _restore_section(row: Mapping[str, Any], place: RawRow) -> dict[str, Any]:
    """A row with what it says about its section, as far as that has the form that `sections` writes."""
    restored = dict(row)
    document, part = place.values.get("document"), place.values.get("part")
    if "text" not in row or not _is_line(document, DOCUMENT_LENGTH) or type(part) is not int or part < 0:
        return restored
    restored |= {"document": document, "part": part}
    if _is_line(heading := place.values.get("heading"), HEADING_LENGTH):
        restored["heading"] = heading
    if place.values.get("continues") is True:
        restored["continues"] = True
    return restored


def _is_line(value: Any, limit: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= limit and value.isprintable()


def _check_cuts(cuts: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[Cut]:
    """The recorded cuts that the rows confirm."""
    sections = Counter(row["document"] for row in rows if "document" in row)
    return [
        {"document": cut["document"], "sections": cut["sections"], "how": cut["how"]}
        for cut in cuts
        if cut.get("how") in HOW
        and isinstance(cut.get("document"), str)
        and cut.get("sections") == sections[cut["document"]] > 0
    ]
