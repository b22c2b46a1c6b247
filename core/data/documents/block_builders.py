"""Building blocks of a document: lists gathered line by line, clean text, and counts of what is left out.

Every reader of a document format (`document_docx`, `document_html`, ...) writes through a `BlockBuilder`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence

from core.data.documents.document import Block, Document

CELL_SEPARATOR = " | "
INDENT = "  "  # of a list item, per level
INDENT_LIMIT = 12  # levels; deeper items are indented like this one

# Controls, surrogates, byte order marks, soft hyphens and characters of no width: none of them is text.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060\ufeff\ud800-\udfff]")
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_BLANKS = re.compile("[\xa0\u202f]")
_BLANK_RUNS = re.compile("[ \xa0\u202f]*[\xa0\u202f][ \xa0\u202f]*")
_AROUND_LINE_END = re.compile(r"[ \t]*\n[ \t]*")


def clean_text(text: str) -> str:
    """Text without invisible characters, no-break spaces and blanks around line ends.

    No-break spaces become plain ones: a model would take "10 km" with either for two different texts.
    """
    text = _BLANK_RUNS.sub(" ", _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text)))
    return _AROUND_LINE_END.sub("\n", text).strip(" \t\n")


def clean_code(text: str) -> str:
    """Code without invisible characters and blank lines around it; its indentation stays."""
    text = _BLANKS.sub(" ", _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text)))
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines)


def flatten_blocks(blocks: Sequence[Block]) -> str:
    """The text of a table cell in one line; rows of a table inside it are separated by semicolons."""
    parts = [b.text.replace("\n", "; " if b.kind == "table" else " ") for b in blocks]
    return " ".join(" ".join(part.split()) for part in parts if part.strip())


def write_row(cells: Sequence[str]) -> str:
    """One row of a table as a line; "" if all its cells are empty."""
    if not any(cell.strip() for cell in cells):
        return ""
    return CELL_SEPARATOR.join(" ".join(cell.split()) for cell in cells).strip()


class Tally:
    """Counts what a reader leaves out, and words it for the user."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._sentences: list[str] = []

    def count(self, singular: str, plural: str = "", number: int = 1) -> None:
        """Counts things that are left out, by their name (the plural has an s by default)."""
        key = (singular, plural or singular + "s")
        if number:
            self._counts[key] = self._counts.get(key, 0) + number

    def say(self, sentence: str) -> None:
        """Adds a sentence, once."""
        if sentence not in self._sentences:
            self._sentences.append(sentence)

    def write_notes(self) -> tuple[str, ...]:
        """The sentences, in the order in which their subjects were found."""
        counted = [
            f"{number:,} {plural} were left out." if number > 1 else f"1 {singular} was left out."
            for (singular, plural), number in self._counts.items()
        ]
        return (*self._sentences, *counted)


class BlockBuilder:
    """Collects blocks; the lines of a list become one block, and so do adjacent lines of code."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._lines: list[str] = []
        self._open = ""  # kind of the block that _lines belong to
        self._widths: dict[
            int, int
        ] = {}  # depth -> width of the last marker, for further paragraphs of its item

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks so far."""
        self.close()
        return tuple(self._blocks)

    @property
    def last(self) -> Block | None:
        """The last block, if it is finished."""
        return self._blocks[-1] if self._blocks and not self._open else None

    def add(self, kind: str, text: str, level: int = 0) -> None:
        """Adds a block; empty text adds nothing."""
        text = clean_code(text) if kind == "code" else clean_text(text)
        if text:
            self.close()
            self._blocks.append(Block(kind, text, level))

    def add_heading(self, text: str, level: int) -> None:
        """Adds a heading in one line."""
        self.add("heading", " ".join(text.split()), max(1, level))

    def add_item(self, text: str, marker: str, depth: int) -> None:
        """Adds a line to the present list, or begins one.

        Args:
            text: of the item, or of a further paragraph of it.
            marker: what stands before the item, such as "-" or "2."; "" for a further paragraph.
            depth: level of nesting, from 0.
        """
        text = clean_text(text)
        if not text:
            return
        self._begin("list")
        first = f"{marker} " if marker else ""
        lines = text.split("\n")
        if marker:
            self._widths[depth] = len(first)
        indent = INDENT * min(depth, INDENT_LIMIT)
        further = indent + " " * self._widths.get(depth, 0)
        self._lines.append((indent + first if marker else further) + lines[0])
        self._lines += [further + line for line in lines[1:]]

    def add_code_line(self, text: str) -> None:
        """Adds lines to the present block of code, or begins one."""
        self._begin("code")
        self._lines += text.split("\n")

    def add_table(self, rows: Sequence[Sequence[str]]) -> None:
        """Adds a table of rows of cells; empty rows are left out."""
        self.add("table", "\n".join(line for row in rows if (line := write_row(row))))

    def extend(self, blocks: Sequence[Block]) -> None:
        """Adds finished blocks."""
        self.close()
        self._blocks += blocks

    def close(self) -> None:
        """Ends the present list or code: the next line begins a new block."""
        lines, kind, self._lines, self._open = self._lines, self._open, [], ""
        self._widths.clear()
        if kind == "code":
            if text := clean_code("\n".join(lines)):
                self._blocks.append(Block("code", text))
        elif lines:
            self._blocks.append(Block("list", "\n".join(lines)))

    def _begin(self, kind: str) -> None:
        if self._open != kind:
            self.close()
            self._open = kind

    def build(self, title: str, tally: Tally) -> Document:
        """The finished document; without a title of its own, its first heading of the highest level."""
        blocks = self.blocks
        if not (title := clean_text(title).replace("\n", " ")):
            headings = [b for b in blocks if b.kind == "heading"]
            title = min(headings, key=lambda b: b.level).text if headings else ""
        return Document(blocks, title, tally.write_notes())


class TableGrid:
    """Lays out the cells of a table. A cell over several rows leaves an empty one in each further row."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self._covered: dict[int, int] = {}  # column -> further rows that a cell of an earlier row covers

    def add_row(self, cells: Iterable[tuple[str, int, int]]) -> None:
        """Adds a row.

        Args:
            cells: text, width in columns and height in rows of each cell.
        """
        row: list[str] = []
        column = 0
        waiting = deque(cells)
        while waiting or self._covered.get(column, 0) > 0:
            if self._covered.get(column, 0) > 0:
                self._covered[column] -= 1
                row.append("")
                column += 1
                continue
            text, width, height = waiting.popleft()
            row.append(text)
            if height > 1:
                self._covered[column] = height - 1
            column += width
        self.rows.append(row)
