"""Texts as terms, the units that the index of words counts: words, their beginnings, and pairs of characters.

    "The AX-4711 ferries"   the  ax  4711  ax4711  ferries  ferri*
    "渡轮时刻"               渡轮  轮时  时刻

A word of letters also counts as its first five, so that "ferry times" finds "ferries"; a part number also
counts as a whole; and scripts without blanks between words count as pairs of neighbouring characters. The
weights that these terms get are in `word_index`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

BEGINNING = 5  # letters
# Han, kana, Hangul, Thai, Lao, Khmer: written without blanks, or with endings that change.
_UNSPACED = (
    "\u0e00-\u0eff\u1100-\u11ff\u1780-\u17ff\u3005\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
# The class \w of `re` lacks the vowel signs of Indian scripts, Arabic and Hebrew.
_LETTER = rf"(?:(?![{_UNSPACED}])[^\W_]|[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff])"
_TOKEN = re.compile(rf"([{_UNSPACED}]+)|({_LETTER}+(?:[-./_'’]{_LETTER}+)*)")
_PIECE = re.compile(rf"{_LETTER}+")
_DIGIT = re.compile(r"\d")


def list_terms(text: str) -> list[str]:
    """The terms of a text, each as often as it occurs."""
    terms: list[str] = []
    for match in _TOKEN.finditer(normalise(text)):
        terms += _list_pairs(match[1]) if match[1] else _list_word_terms(match[2])
    return terms


def normalise(text: str) -> str:
    """A text in lower case and in one form of its characters: full-width letters are ordinary ones."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()


def _list_pairs(run: str) -> list[str]:
    return [run] if len(run) == 1 else [run[i : i + 2] for i in range(len(run) - 1)]


def _list_word_terms(token: str) -> list[str]:
    if token.isalpha():
        return [token, token[:BEGINNING] + "*"] if len(token) >= BEGINNING else [token]
    pieces = _PIECE.findall(token)
    terms = []
    for piece in pieces:
        terms.append(piece)
        if len(piece) >= BEGINNING and piece.isalpha():
            terms.append(piece[:BEGINNING] + "*")
    if len(pieces) > 1 and _DIGIT.search(token):
        terms.append(("-" if all(map(str.isdecimal, pieces)) else "").join(pieces))
    return terms


def find_matches(text: str, terms: Collection[str]) -> list[tuple[int, int]]:
    """Where words of a text count as one of the terms: (first character, character behind the last)."""
    wanted = set(terms)
    found: list[tuple[int, int]] = []
    for match in _TOKEN.finditer(text):
        if match[1]:
            spans = [(i, i + 2) for i in range(match.start(), match.end() - 1)] or [match.span()]
        elif _DIGIT.search(match[2]) and wanted.intersection(list_terms(match[2])[-1:]):
            spans = [match.span()]
        else:
            spans = [m.span() for m in _PIECE.finditer(text, *match.span())]
        for start, end in spans:
            if wanted.intersection(list_terms(text[start:end])):
                if found and found[-1][1] >= start and match[1]:
                    found[-1] = (found[-1][0], end)
                else:
                    found.append((start, end))
    return found
