"""What the cells of a column look like: texts, labels, numbers, dates, ids. `proposals` uses it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.data.formats.readers import RawRow
from core.data.roles.cells import is_blank

SAMPLE_ROWS = 1000
LABEL_WORDS = 4  # words of a label at most
_NUMBER = re.compile(r"[-+]?[\d.,]*\d[\d.,]*(e[-+]?\d+)?\s?[%€$£]?\Z", re.I)
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ,]+\d{1,2}:\d{2}.*)?\Z|\d{1,2}:\d{2}(:\d{2})?\Z")
_ID = re.compile(
    r"[0-9a-f]{8}-?[0-9a-f-]{8,}\Z|[0-9a-f]{12,}\Z|https?://\S+\Z|\S+@\S+\.\w+\Z"
    r"|(?=\S*\d)[\w.:/#-]{2,64}\Z|[\w.-]*/[\w./-]+\Z",
    re.I,
)
_HASH = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}\Z|[0-9a-f]{24,64}\Z", re.I)
_ASKS = ("?", "？", "؟", ";?")


@dataclass(frozen=True)
class ColumnShape:
    """The shape of a column.

    Attributes:
        column: its name.
        kind: "text"; "label" (few different short values); "number", "date", "id" (also addresses and paths);
            "constant" (one value in every row); "empty"; "other" (lists, objects and other types).
        filled: cells that have a value.
        distinct: different values.
        words: mean words of a cell.
        questions: share of the cells that end with a question mark.
        counts_up: whether the values are whole numbers that go up by the same step from row to row.
        is_hash: whether all values are UUIDs or digests, which are not texts.
    """

    column: str
    kind: str
    filled: int = 0
    distinct: int = 0
    words: float = 0.0
    questions: float = 0.0
    counts_up: bool = False
    is_hash: bool = False

    def describe(self) -> str:
        """The shape in words, for example "answer: 3 different values"."""
        words = {
            "text": f"texts of about {max(1, round(self.words))} words",
            "label": f"{self.distinct} different values",
            "number": "numbers that count the rows" if self.counts_up else "numbers",
            "date": "dates or times",
            "id": "ids or addresses",
            "constant": "the same value in every row",
            "empty": "empty",
            "other": "lists, objects or data that is not text",
        }
        return f"{self.column!r}: {words[self.kind]}"


def measure_column(rows: Sequence[RawRow], column: str) -> ColumnShape:
    """Measures the shape of a column over at most SAMPLE_ROWS rows, spread over all of them."""
    step = max(1, len(rows) // SAMPLE_ROWS)
    cells = [cell for row in rows[::step] if not is_blank(cell := row.values.get(column))]
    if not cells:
        return ColumnShape(column, "empty")
    if not all(isinstance(cell, (str, int, float)) for cell in cells):
        return ColumnShape(column, "other", len(cells))
    texts = [str(cell).strip() for cell in cells]
    distinct = len(set(texts))
    words = sum(_count_words(t) for t in texts) / len(texts)
    questions = sum(t.endswith(_ASKS) for t in texts) / len(texts)
    kind = _find_kind(cells, texts, distinct, words)
    is_hash = all(_HASH.match(t) for t in texts)
    return ColumnShape(column, kind, len(cells), distinct, words, questions, _counts_up(texts), is_hash)


def _find_kind(cells: Sequence[Any], texts: Sequence[str], distinct: int, words: float) -> str:
    if distinct == 1 and len(texts) > 1:
        return "constant"
    is_short = max(map(_count_words, texts)) <= LABEL_WORDS
    is_label = is_short and len(texts) >= 4 and distinct <= len(texts) // 2
    if all(isinstance(c, bool) for c in cells):
        return "label"
    if all(_NUMBER.match(t) for t in texts):
        return "label" if is_label and distinct <= 10 else "number"
    if all(_DATE.match(t) or _NUMBER.match(t) for t in texts):
        return "date"
    if sum(bool(_ID.match(t)) for t in texts) >= 0.9 * len(texts):
        return "label" if is_label else "id"
    return "label" if is_label else "text"


def _count_words(text: str) -> int:
    """Counts words; of scripts without blanks, two characters count as one."""
    return max(len(text.split()), sum(c > "\u2e7f" for c in text) // 2)


def _counts_up(texts: Sequence[str]) -> bool:
    if not all(t.isdecimal() for t in texts) or len(texts) < 2:
        return False
    numbers = [int(t) for t in texts]
    steps = {b - a for a, b in zip(numbers, numbers[1:])}
    return len(steps) == 1 and steps.pop() > 0
