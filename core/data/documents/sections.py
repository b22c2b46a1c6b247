"""Cuts long documents into sections, so that one book or a few notes give train, validation and test.

A document is cut at its headings, then between paragraphs, and inside a paragraph that is much longer than a
section between its sentences; never in mid-sentence. A list item, a table row and a code block stay whole.

    "# Ferries" "Two boats run ..." "They leave ..." "# Tickets" "Dogs travel free. ..."
    └──────────────── section 0 ──────────────────┘ └────────── section 1 ──────────┘

A section becomes the row `{"text", "document", "part"}`, with "heading" where it has one. `join_parts` puts
neighbouring sections of one document together again for training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from core.data.documents.document import Block, Document
from core.data.documents.text_blocks import read_blocks

PARTS = 40  # sections that a whole import is cut into, if it is small
SMALLEST, LARGEST = 300, 2000  # characters of a section
LINE = 2 * LARGEST  # characters of a line without a sentence end; a longer one is cut at a space
SHARE = 0.02  # a document that holds less of all text stays whole: there are enough others
_SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？][”’」』）]*\s*")
_ASIAN_END = re.compile(r"[。！？][”’」』）]*$")
_UNMARKED = re.compile("[\u0e00-\u0eff\u1780-\u17ff]")
# What ends with a full stop and is not the end of a sentence.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'“‘])(?:[^\W\d_]|\d{1,3}|(?:[^\W\d_]\.)+[^\W\d_]|Mrs?|Ms|Drs?|Profs?|Sr|Jr|St|Nos?|Nr|"
    r"Figs?|Vol|Chap|Sec|Art|Eq|Inc|Ltd|Corp|Co|Gen|Col|Capt|Lt|Sgt|Rev|Hon|Mme|Mlle|Hr|Fr|etc|cf|vs|"
    r"approx|pp|bzw|ca|evtl|inkl|resp|vgl|usw)\.\s+$"
)


class Cut(TypedDict):
    """How one document was cut; `how` is "headings", "paragraphs" or "sentences", the finest place."""

    document: str
    sections: int
    how: str


@dataclass(frozen=True)
class Section:
    """A part of a document.

    Attributes:
        text: its text.
        heading: the heading that it stands under, or "".
        starts: what it begins with: "headings", "paragraphs" or "sentences"; see `Cut`.
        glue: what stands between the text before and this one.
    """

    text: str
    heading: str
    starts: str
    glue: str


def section_size(lengths: Sequence[int]) -> int:
    """The length of a section, in characters, for documents of these lengths."""
    return max(SMALLEST, min(LARGEST, sum(lengths) // PARTS))


def cut_documents(
    documents: Sequence[tuple[str, str, Document | None]],
) -> tuple[list[dict[str, Any]], list[int], list[Cut]]:
    """Cuts the documents that are long beside the others into sections.

    Args:
        documents: for each document its name, its text and, if a reader knows them, its blocks.

    Returns:
        The canonical rows; for each row the index of its document; how each document was cut.
    """
    lengths = [len(text) for _, text, _ in documents]
    size = section_size(lengths)
    for smaller in (size, size // 3, size // 8, 1):
        rows, places, cuts = _cut_all(documents, max(smaller, 1), lengths)
        if len({row["text"] for row in rows}) >= 3:  # one each for train, val and test
            break
    return rows, places, cuts


def _cut_all(
    documents: Sequence[tuple[str, str, Document | None]], size: int, lengths: Sequence[int]
) -> tuple[list[dict[str, Any]], list[int], list[Cut]]:
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    cuts: list[Cut] = []
    largest = max(1.5 * size, SHARE * sum(lengths))
    for index, (name, text, document) in enumerate(documents):
        sections: list[Section] = []
        if len(text) > largest:
            sections = cut(document.blocks if document else read_blocks(text, name), size)
        if len(sections) < 2:
            rows.append({"text": text})
            places.append(index)
            continue
        for part, section in enumerate(sections):
            row: dict[str, Any] = {"text": section.text, "document": name, "part": part}
            if section.heading:
                row["heading"] = section.heading
            if section.glue in (" ", ""):
                row["continues"] = True
            rows.append(row)
            places.append(index)
        finest = ("headings", "paragraphs", "sentences")
        how = max((s.starts for s in sections[1:]), key=finest.index)
        cuts.append({"document": name, "sections": len(sections), "how": how})
    return rows, places, cuts


def cut(blocks: Iterable[Block], size: int) -> list[Section]:
    """Cuts one document into sections of about `size` characters.

    A section ends at a heading once it has half of that length, or between two paragraphs once it has all of
    it. A heading stays with the text below it, and a footnote with the text above.
    """
    pieces = [piece for block in blocks for piece in _divide(block, size)]
    groups: list[list[_Piece]] = []
    length = 0
    for piece in pieces:
        is_heading = piece.block.kind == "heading"
        ends = length >= (size / 2 if is_heading else size)
        follows_heading = bool(groups) and groups[-1][-1].block.kind == "heading"
        if not groups or (ends and not follows_heading and piece.block.kind != "footnote"):
            groups.append([])
            length = 0
        groups[-1].append(piece)
        length += len(piece.text) + 2
    if len(groups) > 1 and (
        sum(len(p.text) for p in groups[-1]) < size / 3 or _has_headings_only(groups[-1])
    ):
        last = groups.pop()
        groups[-1] += last
    return list(_to_sections(groups))


@dataclass(frozen=True)
class _Piece:
    """A block, or a part of a long one. `glue` joins it to the piece before."""

    block: Block
    text: str
    glue: str = "\n\n"


def _has_headings_only(group: Sequence[_Piece]) -> bool:
    return all(piece.block.kind == "heading" for piece in group)


def _to_sections(groups: Iterable[list[_Piece]]) -> Iterable[Section]:
    heading = ""
    for group in groups:
        first = group[0]
        text = first.text
        for piece in group[1:]:
            text += piece.glue + piece.text
        starts = "paragraphs"
        if first.block.kind == "heading":
            starts = "headings"
            heading = first.text.strip().lstrip("#").strip()
        elif first.glue != "\n\n":
            starts = "sentences"
        yield Section(text, heading[:200], starts, first.glue)
        for piece in group[1:]:
            if piece.block.kind == "heading":
                heading = piece.text.strip().lstrip("#").strip()


def _divide(block: Block, size: int) -> list[_Piece]:
    """A block as it is, or the parts of a block that is longer than two sections."""
    if len(block.text) <= 2 * size or block.kind in ("code", "heading", "footnote"):
        return [_Piece(block, block.text)]
    if block.kind == "table":
        units = [("\n", row) for row in block.text.split("\n")]
    elif block.kind == "list":
        units = [("\n", item) for item in re.split(r"\n(?=\S)", block.text)]
    else:
        units = _list_units(block.text, size)
    pieces: list[_Piece] = []
    text, start = "", "\n\n"
    for glue, unit in units:
        if text and len(text) + len(unit) > size:
            pieces.append(_Piece(block, text, start))
            text, start = unit, glue
        else:
            text = f"{text}{glue}{unit}" if text else unit
    return [*pieces, _Piece(block, text, start)]


def _list_units(text: str, size: int) -> list[tuple[str, str]]:
    """The sentences of a paragraph, each behind what separates it from the one before.

    What has no sentence ends, such as a log or a glossary, gives its lines; Thai, Lao and Khmer, which write
    no full stops, and very long lines give passages that end at a space.
    """
    units: list[tuple[str, str]] = []
    for sentence in split_sentences(text):
        glue = "" if units and _ASIAN_END.search(units[-1][1]) else " "
        if len(sentence) <= 2 * size:
            units.append((glue, sentence))
            continue
        for number, line in enumerate(filter(str.strip, sentence.split("\n"))):
            before = glue if number == 0 else "\n"
            is_unmarked = _UNMARKED.search(line) is not None
            if len(line) <= (2 * size if is_unmarked else LINE):
                units.append((before, line))
                continue
            for passage in re.findall(rf"\S.{{{min(size, LINE) - 1},}}?(?=\s|$)|\S.*$", line):
                units.append((before, passage))
                before = " "
    return units


def split_sentences(text: str) -> list[str]:
    """Splits a paragraph after its sentences; a full stop of an abbreviation does not end one."""
    sentences, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        is_stop = match.group().startswith(".")
        following = text[match.end() : match.end() + 1]
        if is_stop and (
            following.islower() or _ABBREVIATION.search(text[max(0, match.start() - 12) : match.end()])
        ):
            continue
        sentences.append(text[start : match.end()].strip())
        start = match.end()
    if rest := text[start:].strip():
        sentences.append(rest)
    return [s for s in sentences if s]


def join_parts(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The texts of domain rows; sections that follow each other in one document are one text again.

    Args:
        rows: canonical rows of one split, in their order.
    """
    return list(iterate_texts(rows))


def iterate_texts(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The texts of `join_parts`, one at a time."""
    text: str | None = None
    last: tuple[Any, Any] | None = None
    for row in rows:
        place = (row.get("document"), row.get("part"))
        if text is not None and last is not None and place[1] is not None and place == (last[0], last[1] + 1):
            glue = "" if _ASIAN_END.search(text) else " "
            text += (glue if row.get("continues") else "\n\n") + row["text"]
        else:
            if text is not None:
                yield text
            text = row["text"]
        last = place if place[1] is not None else None
    if text is not None:
        yield text
