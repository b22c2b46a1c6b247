"""Lines of one form to canonical rows, column by column.

How the lines of a form are read is found once, by reading one of them with marks in place of its texts:

    {"question": "⟨0⟩", "answer": "⟨1⟩"} ─ columns.to_canonical ─> {"messages": [... "⟨0⟩" ... "⟨1⟩" ...]}

The texts of all other lines of the form are then put in place of the marks, as the file has them. A text
that could be read in another way than the mark, because it is blank or looks like a list, is left to
`columns`, row by row. Blank texts of an example are part of its form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

import numpy as np

from core.data.dataset_writer import to_line
from core.data.formats.readers import RawRow
from core.data.splits import list_question_messages
from core.data.streaming.arrow_arrays import from_integers, from_texts, repeat, to_scalar
from core.data.streaming.json_lines import JsonString, LineForm, Lines, Texts, list_strings
from core.data.streaming.question_hashes import hash_texts

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

Convert = Callable[[RawRow], dict[str, Any] | None]

_OPEN, _CLOSE = "\ue000", "\ue001"  # of a mark; private use
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_FIRST = re.compile(f" ?[^\\s\\[{_OPEN}{_CLOSE}]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_MESSAGE_TEXTS = ("content", "value")  # keys of a message whose texts differ from line to line


@dataclass(frozen=True)
class Template:
    """A text with slots: pieces[0] slots[0] pieces[1] ... Each slot is the index of a text of the line."""

    pieces: tuple[str, ...]
    slots: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Reads a text with marks."""
        parts = _MARK.split(text)
        return cls(tuple(parts[::2]), tuple(map(int, parts[1::2])))

    def map_pieces(self, change: Callable[[str], str]) -> Template:
        """The same slots between other pieces."""
        return Template(tuple(map(change, self.pieces)), self.slots)

    def fill(self, texts: Sequence[pa.StringArray]) -> pa.StringArray:
        """Puts texts into the slots, for many rows at once."""
        import pyarrow.compute as pc

        if self.pieces == ("", "") and len(self.slots) == 1:
            return texts[self.slots[0]]
        if not self.slots:
            return repeat(self.pieces[0], len(texts[0]))
        parts: list[Any] = [to_scalar(self.pieces[0])]
        for slot, piece in zip(self.slots, self.pieces[1:]):
            parts += [texts[slot], to_scalar(piece)] if piece else [texts[slot]]
        return pc.binary_join_element_wise(*parts, to_scalar(""))


@dataclass(frozen=True)
class RowForm:
    """How the lines of one form are read.

    Attributes:
        form: what they have in common; without pieces for the rows of a table.
        read: the texts that have a role.
        line: how rows.jsonl has them.
        roles: the roles of the parts of the question; "" for the text of a domain row.
        questions: the texts of these parts.
        label: the type: a text, the index of a text of the line, or None.
    """

    form: LineForm
    read: tuple[int, ...]
    line: Template
    roles: tuple[str, ...]
    questions: tuple[Template, ...]
    label: str | int | None

    def select(self, lines: Lines, texts: Texts) -> NDArray[np.bool_]:
        """Which lines can be read like the example."""
        can = np.ones(len(texts.lines), np.bool_)
        for slot in self.read:
            can &= _begins_with_text(lines.bytes, texts.begins[:, slot], texts.ends[:, slot])
        return can

    def hash_questions(self, texts: Sequence[pa.StringArray]) -> NDArray[np.uint64]:
        """Hashes what the lines ask."""

        def read(part: int, rows: NDArray[np.int64]) -> list[str]:
            every = from_integers(rows)
            written = self.questions[part].map_pieces(_escape).fill([t.take(every) for t in texts])
            decoded: list[str] = json.loads('["' + '","'.join(written.to_pylist()) + '"]')
            return decoded

        # A blank is a blank: so that a line break between two texts is not a character to escape.
        plain = [q.map_pieces(lambda piece: re.sub(r"\s+", " ", piece)).fill(texts) for q in self.questions]
        return hash_texts(self.roles, plain, read)


def _escape(text: str) -> str:
    """A text as JSON writes it between quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def write_cells(cells: Iterable[str]) -> pa.StringArray:
    """Texts as JSON writes them between quotes."""
    return from_texts(encode_basestring(cell)[1:-1] for cell in cells)


def is_plain_cell(cell: Any) -> bool:
    """Whether a cell of a table is a text that can stand in place of a mark; see `_begins_with_text`."""
    if type(cell) is not str or not _FIRST.match(cell):
        return False
    return "\0" not in cell and (cell.isascii() or not _SURROGATE.search(cell))


def take_texts(lines: Lines, texts: Texts) -> list[pa.StringArray]:
    """The texts of lines, one array for each slot, as they are written in the file."""
    import pyarrow as pa

    count, slots = texts.begins.shape
    offsets = np.empty(2 * count * slots + 1, np.int32)
    offsets[:-1].reshape(count, slots, 2)[:, :, 0] = texts.begins
    offsets[:-1].reshape(count, slots, 2)[:, :, 1] = texts.ends
    offsets[-1] = offsets[-2] if count else 0
    pieces = pa.StringArray.from_buffers(2 * count * slots, pa.py_buffer(offsets), pa.py_buffer(lines.block))
    every = np.arange(0, 2 * count * slots, 2 * slots, dtype=np.int32)
    return [pieces.take(from_integers(every + 2 * slot)) for slot in range(slots)]


def make_form(line: bytes, row: RawRow, roles: Mapping[str, str], convert: Convert) -> RowForm | None:
    """Makes the form of a line.

    Args:
        line: the line, with its line end.
        row: the same line, parsed.
        roles: role to column.
        convert: reads one row; None if it leaves the row out, or has something to say about it.

    Returns:
        None if the lines of this form are read one by one.
    """
    strings = list_strings(line)
    if strings is None or _OPEN.encode() in line or "\\u" in line.decode("utf-8", "replace"):
        return None
    varying = [s for s in strings if _varies(s, roles)]
    ends = [0, *(s.end for s in varying)]
    begins = [*(s.begin for s in varying), len(line)]
    pieces = tuple(line[end:begin] for end, begin in zip(ends, begins))
    if not varying:
        return None
    marked = pieces[0]
    for index, piece in enumerate(pieces[1:]):
        marked += f"{_OPEN}{index}{_CLOSE}".encode() + piece
    canonical = convert(RawRow(json.loads(marked), row.file, row.line))
    if canonical is None:
        return None
    read = tuple(index for index, s in enumerate(varying) if s.path[0] in roles.values())
    return _read_marks(canonical, LineForm(pieces), read)


def make_cell_form(row: RawRow, columns: Sequence[str], convert: Convert) -> RowForm | None:
    """Makes the form of the rows of a table that have texts in the same columns.

    Args:
        row: one of them.
        columns: with texts; the index of a text is that of its column.
        convert: see `make_form`.
    """
    marks = {column: f"{_OPEN}{index}{_CLOSE}" for index, column in enumerate(columns)}
    canonical = convert(RawRow({**row.values, **marks}, row.file, row.line))
    if not columns or canonical is None or len(_MARK.findall(to_line(canonical).decode())) < len(columns):
        return None
    return _read_marks(canonical, LineForm(()), tuple(range(len(columns))))


def _read_marks(canonical: dict[str, Any], form: LineForm, read: tuple[int, ...]) -> RowForm:
    """Finds the marks in a canonical row."""
    if "text" in canonical:
        asking = [("", canonical["text"])]
    else:
        asking = list_question_messages(canonical["messages"])
    label = canonical.get("type")
    if label is not None and (mark := _MARK.fullmatch(label)):
        label = int(mark.group(1))
    return RowForm(
        form,
        read,
        Template.parse(to_line(canonical).decode()),
        tuple(role for role, _ in asking),
        tuple(Template.parse(text) for _, text in asking),
        label,
    )


def _varies(string: JsonString, roles: Mapping[str, str]) -> bool:
    """Whether other lines of the form may have another text here."""
    if not string.path:
        return False
    if string.path[0] not in roles.values():
        return True
    return bool(string.text.strip()) and (len(string.path) == 1 or string.path[-1] in _MESSAGE_TEXTS)


def _begins_with_text(
    data: NDArray[np.uint8], begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether each text certainly is not blank and does not look like a list.

    Its first character, or the one after a space, is not a blank, not an opening bracket, and not an escape
    other than that of a quote or a backslash.
    """
    can = _is_letter(data, begins, ends)
    others = np.flatnonzero(~can & (data[np.minimum(begins, len(data) - 1)] == 0x20))
    if len(others):
        can[others] = _is_letter(data, begins[others] + 1, ends[others])
    return can


def _is_letter(data: NDArray[np.uint8], at: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    last = len(data) - 1
    first, second = data[np.minimum(at, last)], data[np.minimum(at + 1, last)]
    is_ascii = (first > 0x20) & (first < 0x7F) & (first != 0x5B) & (first != 0x5C)
    is_escape = (first == 0x5C) & ((second == 0x22) | (second == 0x5C))
    is_wide = first >= 0x80
    if is_wide.any():
        third = data[np.minimum(at + 2, last)]
        is_blank = (first == 0xC2) & ((second == 0x85) | (second == 0xA0))
        is_blank |= (first == 0xE1) & (second == 0x9A) & (third == 0x80)
        is_blank |= (first == 0xE2) & (second == 0x80) & ((third <= 0x8A) | (third == 0xAF))
        is_blank |= (first == 0xE2) & (second == 0x80) & ((third == 0xA8) | (third == 0xA9))
        is_blank |= (first == 0xE2) & (second == 0x81) & (third == 0x9F)
        is_blank |= (first == 0xE3) & (second == 0x80) & (third == 0x80)
        is_wide &= ~is_blank
    return np.asarray((at < ends) & (is_ascii | is_escape | is_wide), np.bool_)
