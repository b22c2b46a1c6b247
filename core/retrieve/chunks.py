"""Cuts documents into chunks: slices of the text that overlap, each with the heading that it stands under.

    document  |--------------------------------------------------------------|
    chunks    |------------------|
                            |----------------|        the next one repeats the end of the one before
                                              |------------------------------|   but never across a heading

A chunk ends at a heading, else at a paragraph, a sentence, a line or a blank, whichever is found first in the
second half of its largest size; in a text without any of them, such as Chinese without punctuation, at its
largest size.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_PARAGRAPH = re.compile(r"\n[ \t\r]*\n\s*")
_SENTENCE = re.compile(r"[.!?…][\"'”’»)\]]*\s+|[。！？][”’」』）]*\s*")
_LINE = re.compile(r"\n\s*")
_BLANK = re.compile(r"\s+")


@dataclass(frozen=True)
class Chunk:
    """A slice of a document.

    Attributes:
        start, end: its first character, and the one behind its last.
        section: the nearest heading at or above its beginning, or "".
    """

    start: int
    end: int
    section: str = ""


def cut_chunks(
    text: str, headings: Sequence[tuple[int, str]] = (), size: int = 600, overlap: int = 100
) -> Iterator[Chunk]:
    """Cuts a text into chunks of at most `size` characters.

    Every character that is not blank is in a chunk.

    Args:
        headings: (offset, heading), in order.
        size: largest number of characters of a chunk, at least 2.
        overlap: largest number of characters that a chunk repeats, at most half of `size`.
    """
    places = [at for at, _ in headings]
    start = 0
    while start < len(text):
        end = _find_end(text, start, min(start + size, len(text)), places)
        if text[start:end].strip():
            number = bisect.bisect_right(places, start) - 1
            if number < 0 and places and not text[start : places[0]].strip():
                number = 0  # blanks before the first heading
            yield Chunk(start, end, headings[number][1] if number >= 0 else "")
        if end >= len(text):
            return
        is_section_end = places[bisect.bisect_left(places, end) :][:1] == [end]
        start = end if is_section_end or not overlap else _find_start(text, start, end, overlap)


def _find_end(text: str, start: int, limit: int, places: Sequence[int]) -> int:
    """Where a chunk ends that begins at `start` and may reach `limit`."""
    nearest = start + (limit - start) // 4  # shorter sections stay with the next one
    inside = places[bisect.bisect_right(places, nearest) : bisect.bisect_right(places, limit)]
    if inside:
        return inside[0]
    if limit == len(text):
        return limit
    middle = start + (limit - start + 1) // 2
    for pattern in (_PARAGRAPH, _SENTENCE, _LINE, _BLANK):
        if ends := [m.end() for m in pattern.finditer(text, middle, limit)]:
            return ends[-1]
    return limit


def _find_start(text: str, start: int, end: int, overlap: int) -> int:
    """Where the next chunk begins: at the first sentence or word of the overlap."""
    earliest = max(start + 1, end - overlap)
    for pattern in (_SENTENCE, _LINE, _BLANK):
        match = pattern.search(text, earliest, end)
        if match and match.end() < end:
            return match.end()
    return earliest
