"""Right-to-left text of PDF pages: characters at their places to text in the order in which it is read.

A PDF file holds Hebrew and Arabic in the order in which they stand on the page, or in that of the letters, as
its writer liked. Here the places alone count: the characters of a row are read from the left, then every
stretch of right-to-left letters is turned round, and numbers and Latin words inside it stay.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

SPACE = 0.17  # heights of a line: a wider gap between letters is a space
WIDE_SPACE = 0.26  # the same, where the file has spaces
NARROW_SPACE = 0.2  # the same, beside a space of the file
_MIRRORED = str.maketrans("()[]{}<>«»", ")(][}{><»«")


@dataclass(frozen=True)
class Glyph:
    """A character with its box in points, and its number in the file."""

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    number: int = 0

    @property
    def height(self) -> float:
        return self.y1 - self.y0


def is_right_to_left(text: str) -> bool:
    """Whether a text has a letter of a right-to-left script."""
    return not text.isascii() and any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)


def read_glyphs(glyphs: Sequence[Glyph], size: float) -> str:
    """The text of characters that stand side by side in one row, in a paragraph from right to left.

    Args:
        glyphs: in any order.
        size: of their font in points.
    """
    return " ".join(_turn_round(_list_texts(glyphs, size)).split())


def read_left_to_right(glyphs: Sequence[Glyph], size: float) -> str:
    """The text of characters that stand side by side in one row, from left to right."""
    return " ".join("".join(_list_texts(glyphs, size)).split())


def _list_texts(glyphs: Sequence[Glyph], size: float) -> list[str]:
    """The characters from the left, with spaces where they have gaps."""
    bases = [g for g in glyphs if not unicodedata.combining(g.text[0])]
    clusters = {g: [g] for g in bases}
    for mark in glyphs:  # a vowel sign follows the letter that it stands over
        if bases and unicodedata.combining(mark.text[0]):
            middle = (mark.x0 + mark.x1) / 2
            clusters[min(bases, key=lambda g: abs((g.x0 + g.x1) / 2 - middle))].append(mark)
    blanks = [(g.x0 + g.x1) / 2 for g in bases if g.text == " "]
    texts: list[str] = []
    end = math.inf
    # Two letters that are drawn as one have one box, and are turned round later: the first stands right.
    for glyph in sorted((g for g in bases if g.text != " "), key=lambda g: (round(g.x0, 1), -g.number)):
        gap = glyph.x0 - end
        # A space of the file may have no width, and stand beside its gap.
        is_near = any(end - 0.5 * size < x < glyph.x0 + 0.5 * size for x in blanks)
        if gap > (WIDE_SPACE if blanks else SPACE) * size or (gap > NARROW_SPACE * size and is_near):
            texts.append(" ")
        texts.append("".join(unicodedata.normalize("NFKC", g.text) for g in clusters[glyph]))
        end = glyph.x1 if end == math.inf else max(end, glyph.x1)
    return texts


def _turn_round(texts: Sequence[str]) -> str:
    """Visual order to the order of reading, in a paragraph from right to left."""
    kinds = [_find_kind(text) for text in texts]
    start = 0
    while start < len(texts):
        end = start
        while end < len(texts) and kinds[end] == kinds[start]:
            end += 1
        if not kinds[start]:
            sides = (kinds[start - 1] if start else "R", kinds[end] if end < len(texts) else "R")
            kinds[start:end] = [_resolve(texts[start:end], *sides)] * (end - start)
        start = end
    kinds = ["L" if kind == "N" else kind for kind in kinds]
    parts: list[str] = []
    start = 0
    while start < len(texts):
        end = start
        while end < len(texts) and kinds[end] == kinds[start]:
            end += 1
        part = texts[start:end]
        if kinds[start] == "R":
            part = [t.translate(_MIRRORED) if len(t) == 1 else t for t in reversed(part)]
        parts.append("".join(part))
        start = end
    return "".join(reversed(parts))


def _resolve(texts: Sequence[str], before: str, after: str) -> str:
    """The direction of signs and spaces between two stretches."""
    is_blank = all(text.isspace() for text in texts)
    is_separator = len(texts) == 1 and unicodedata.bidirectional(texts[0]) in ("CS", "ES")
    joins = (
        before == after == "L"
        or (before == "L" and after == "N" and is_blank)
        or (before == after == "N" and is_separator)
    )
    return "L" if joins else "R"


def _find_kind(text: str) -> str:
    """ "R" for letters from right to left, "L" for others, "N" for digits, "" for signs and spaces."""
    kind = unicodedata.bidirectional(text[0])
    if kind in ("R", "AL"):
        return "R"
    if kind in ("EN", "AN"):
        return "N"
    return "L" if kind == "L" else ""
