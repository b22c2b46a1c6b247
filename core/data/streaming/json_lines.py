"""Lines of JSON that share a form, found in a block of bytes without parsing them one by one.

A form is what the lines of a file have in common: everything but the texts.

    {"question": "Where is it?", "answer": "On the \\"upper\\" shelf."}\\n
    └── piece 0 ───┘  slot 0   └─ piece 1 ──┘        slot 1        └p2 ┘

`Lines` finds the line ends and the quotes of a block in a few passes of numpy. A line has a form if the bytes
between its quotes are the pieces of the form, and its texts are written as `json.dumps` writes them: valid
UTF-8, no control characters, only the escapes \\" \\\\ \\n \\r \\t \\b \\f. All other lines go to
`jsonrows`. A line of a form needs no check of its nesting: it has the brackets of the form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from core.data.formats.json_rows import LINE_LIMIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Positions = NDArray[np.int64]

CHUNK_BYTES = 128 << 10  # of a block, so that what is made of them stays in the processor's cache
NEWLINE, RETURN, QUOTE, BACKSLASH, SPACE = 10, 13, 34, 92, 32
_CANONICAL_ESCAPES = np.zeros(256, np.bool_)
_CANONICAL_ESCAPES[list(b'"\\nrtbf')] = True
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class LineForm:
    """What lines have in common.

    Attributes:
        pieces: the bytes before the first slot, between slots, and after the last one, with the line end.
    """

    pieces: tuple[bytes, ...]

    @property
    def slots(self) -> int:
        """How many texts a line has."""
        return len(self.pieces) - 1


@dataclass(frozen=True)
class Texts:
    """Where the texts of some lines of one form are.

    Attributes:
        lines: (N,) indices of the lines.
        begins, ends: (N, slots) positions of the first byte of each text, and behind its last one.
    """

    lines: Positions
    begins: Positions
    ends: Positions

    def select(self, chosen: NDArray[np.bool_]) -> Texts:
        """The texts of some of the lines."""
        if chosen.all():
            return self
        return Texts(self.lines[chosen], self.begins[chosen], self.ends[chosen])


@dataclass(frozen=True)
class JsonString:
    """One string of a JSON line: its place in the bytes, and where it stands in the value.

    Attributes:
        begin, end: positions behind the opening quote, and of the closing one.
        path: keys and indices that lead to it; empty for a key.
        text: the string.
    """

    begin: int
    end: int
    path: tuple[str | int, ...]
    text: str


class Lines:
    """The lines of a block.

    Args:
        block: whole lines, each with its line end.
        is_end_added: whether the last line has none in the file.

    Attributes:
        bytes: the block as numbers.
        begins, ends: (N,) where each line begins, and the position behind its line end.
        is_plain: (N,) whether a line is short enough, and has no other escapes or control characters than
            the ones that a form allows.
    """

    def __init__(self, block: bytes | bytearray | memoryview, is_end_added: bool = False) -> None:
        self.block, self._is_end_added = block, is_end_added
        self.bytes = np.frombuffer(block, np.uint8)
        places = _find_special(self.bytes)
        found = self.bytes[places]
        self.ends = places[found == NEWLINE] + 1
        self.begins = np.concatenate((np.zeros(1, np.int64), self.ends[:-1]))
        self.is_plain = self.ends - self.begins <= LINE_LIMIT
        is_quote = found == QUOTE
        self._exclude_escapes(places, np.flatnonzero(found == BACKSLASH), is_quote)
        self._exclude_control_characters(places[(found < SPACE) & (found != NEWLINE)])
        if not _is_utf8(block):
            self.is_plain[:] = False
        self._quotes = places[is_quote]
        self._first_quotes: Positions | None = None

    def __len__(self) -> int:
        return len(self.ends)

    def line(self, index: int) -> bytes:
        """The bytes of one line, with its line end."""
        return bytes(self.bytes[self.begins[index] : self.ends[index]])

    def text(self, index: int) -> str:
        """One line as it stands in the file.

        Raises:
            UnicodeDecodeError: it is not valid UTF-8.
        """
        line = self.line(index)
        if self._is_end_added and index == len(self) - 1:
            line = line[:-1]
        return line.decode("utf-8")

    def find(self, form: LineForm, candidates: NDArray[np.bool_]) -> Texts:
        """Finds the lines that have a form.

        Args:
            candidates: (N,) the lines to look at.
        """
        count = sum(piece.count(b'"') for piece in form.pieces)
        if candidates.all() and len(self._quotes) == count * len(self):
            texts = self._compare(form, np.arange(len(self)), self._quotes.reshape(-1, count))
            if len(texts.lines) == len(self):
                return texts
        if self._first_quotes is None:
            self._first_quotes = np.searchsorted(self._quotes, self.begins)
        first = self._first_quotes
        per_line = np.diff(first, append=len(self._quotes))
        lines = np.flatnonzero(candidates & (per_line == count))
        return self._compare(form, lines, self._quotes[first[lines, None] + np.arange(count)])

    def _compare(self, form: LineForm, lines: Positions, quotes: Positions) -> Texts:
        """Keeps the lines whose bytes between the texts are the pieces of the form.

        Args:
            quotes: (N, quotes of the form) where the quotes of each line are.
        """
        is_equal = self.is_plain[lines]
        before = self.begins[lines]
        begins, ends = [], []
        column = 0
        for number, piece in enumerate(form.pieces):
            is_last = number == form.slots
            column += piece.count(b'"')
            after = self.ends[lines] if is_last else quotes[:, column - 1] + 1
            is_equal &= after - before == len(piece)
            is_equal &= self._has_bytes(before, piece, is_equal)
            if not is_last:
                begins.append(after)
                before = quotes[:, column]
                ends.append(before)
        chosen = np.flatnonzero(is_equal)
        return Texts(lines[chosen], np.stack(begins, 1)[chosen], np.stack(ends, 1)[chosen])

    def _has_bytes(self, at: Positions, piece: bytes, wanted: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether the piece stands at these positions; looked at only where it is wanted."""
        if not wanted.all():
            at = np.where(wanted, at, 0)
        if len(piece) > len(self.bytes):
            return np.zeros(len(at), np.bool_)
        size = min(8, 1 << (len(piece).bit_length() - 1))
        words = np.ndarray((len(self.bytes) - size + 1,), f"<u{size}", self.bytes, 0, (1,))
        is_equal = np.ones(len(at), np.bool_)
        for offset in {*range(0, len(piece) - size + 1, size), len(piece) - size}:
            is_equal &= words[offset:][at] == np.frombuffer(piece, f"<u{size}", 1, offset)[0]
        return is_equal

    def _exclude_escapes(self, places: Positions, found: Positions, is_quote: NDArray[np.bool_]) -> None:
        """Clears the quotes that are part of a text, and excludes the lines with other escapes.

        Args:
            places: (S,) of the special bytes.
            found: which of them are backslashes.
            is_quote: (S,) which of them are quotes.
        """
        if not len(found):
            return
        # In a run of backslashes the first, third, ... begin an escape.
        slashes = places[found]
        is_first = np.diff(slashes, prepend=-2) != 1
        order = np.arange(len(slashes))
        begins_escape = (order - np.maximum.accumulate(np.where(is_first, order, 0))) % 2 == 0
        escapes = slashes[begins_escape]
        following = self.bytes[np.minimum(escapes + 1, len(self.bytes) - 1)]
        is_quote[found[begins_escape][following == QUOTE] + 1] = False
        self._exclude(escapes[~_CANONICAL_ESCAPES[following]])

    def _exclude_control_characters(self, places: Positions) -> None:
        """Excludes the lines with control characters, but for a return before the line end."""
        before_end = self.bytes[np.minimum(places + 1, len(self.bytes) - 1)] == NEWLINE
        self._exclude(places[(self.bytes[places] != RETURN) | ~before_end])

    def _exclude(self, places: Positions) -> None:
        if len(places):
            self.is_plain[np.minimum(np.searchsorted(self.ends, places, "right"), len(self) - 1)] = False


def _find_special(data: NDArray[np.uint8]) -> Positions:
    """Finds quotes, backslashes and control characters."""
    found = []
    for begin in range(0, max(1, len(data)), CHUNK_BYTES):
        chunk = data[begin : begin + CHUNK_BYTES]
        is_special = chunk < SPACE
        is_special |= chunk == QUOTE
        is_special |= chunk == BACKSLASH
        found.append(np.flatnonzero(is_special) + begin)
    return np.concatenate(found)


def _is_utf8(block: bytes | bytearray | memoryview) -> bool:
    import pyarrow as pa

    ends = np.array([0, len(block)], np.int32)
    text = pa.StringArray.from_buffers(1, pa.py_buffer(ends), pa.py_buffer(block))
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def list_strings(line: bytes) -> list[JsonString] | None:
    """Lists the strings of a line of JSON, keys too, in their order; None if they cannot be located."""
    try:
        value = json.loads(line, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        return None
    found = list(_walk(value, ()))
    places = [match.span() for match in _STRING.finditer(line)]
    if len(found) != len(places):
        return None
    return [JsonString(b + 1, e - 1, path, text) for (b, e), (path, text) in zip(places, found)]


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of an object, duplicates too."""


def _walk(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, _Pairs):
        for key, item in value:
            yield (), key
            yield from _walk(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(item, (*path, index))
