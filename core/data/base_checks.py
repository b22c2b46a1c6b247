"""What an import checks against a base, without it: shapes of conversations, and forged control tokens.

The base is in another process. It gets one conversation of each shape, and names its control tokens; see
`core.engine.import_checks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.reading import Reading


@dataclass(frozen=True)
class Shape:
    """Conversations of one shape, which a chat template accepts or refuses together.

    Attributes:
        messages: of the first of them.
        file, line: where it is.
        rows: how many there are.
    """

    messages: list[dict[str, Any]]
    file: str
    line: int
    rows: int


@dataclass(frozen=True)
class BaseAnswer:
    """What a base says about the shapes of an import.

    Attributes:
        notes: sentences for the notes of the import.
        controls: its control tokens; empty without a base.
    """

    notes: list[str]
    controls: list[str]


def list_shapes(reading: Reading) -> list[Shape]:
    """Lists one conversation of each shape, because no template reads the texts; see `shape_of`."""
    from core.data.tokens.conversations import read_turns, shape_of

    firsts: dict[Any, int] = {}
    counts: Counter[Any] = Counter()
    for i, row in enumerate(reading.rows):
        if "messages" in row:
            shape = shape_of(read_turns(row["messages"]))
            firsts.setdefault(shape, i)
            counts[shape] += 1
    places = reading.places
    return [
        Shape(reading.rows[i]["messages"], places[i].file, places[i].line, counts[shape])
        for shape, i in firsts.items()
    ]


def write_notes(reading: Reading, answer: BaseAnswer) -> list[str]:
    """The notes of a base about the rows of an import, with the number of texts with control tokens."""
    if not answer.controls:
        return answer.notes
    forged = _count_texts_with(answer.controls, reading.rows)
    if not forged:
        return answer.notes
    texts = "1 text has" if forged == 1 else f"{forged:,} texts have"
    note = f"{texts} control tokens of the base written out; they are read as plain characters."
    return [*answer.notes, note]


def _count_texts_with(controls: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> int:
    from core.data.tokens.special_tokens import count_with_words

    return count_with_words(tuple(controls), (text for row in rows for text in list_texts(row)))


def list_texts(row: Mapping[str, Any]) -> list[str]:
    """The texts of a canonical row: its text, or the contents and thoughts of its messages."""
    if "text" in row:
        return [row["text"]]
    return [m[key] for m in row["messages"] for key in ("content", "thought") if key in m]
