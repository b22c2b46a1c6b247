"""Checks of rows at import that need the base: what its chat template accepts, and forged control tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from core.data.reading import Reading
from core.engine.worker import Worker
from core.errors import BaseModelError, Busy

if TYPE_CHECKING:
    from core.model.resident import Resident

PORTION = 2000  # rows that are searched in one step, so that answers and runs do not wait long
BUSY = (
    "The model was busy or still loading, so that the rows were not checked against its chat template. "
    "Training checks them."
)


def check_rows(
    reading: Reading, worker: Worker, resident: Callable[[], Resident], seconds: float
) -> Sequence[str]:
    """Checks canonical rows against the base that is loaded; without a base there is nothing to check.

    Args:
        reading: the rows, with the place of each.
        worker: runs the checks on the model's thread.
        resident: returns the resident base; called on the model's thread only.
        seconds: how long to wait for the model's thread; a longer wait skips the checks.

    Returns:
        Sentences for the notes of the import.

    Raises:
        DataError: the base's chat template refuses a conversation; names its file and line.
    """
    forged = 0
    try:
        worker.call(lambda: resident().base, seconds)  # ends here without a base
        notes = _check_template(reading, worker, resident, seconds)
        for start in range(0, len(reading.rows), PORTION):
            rows = reading.rows[start : start + PORTION]
            forged += worker.call(lambda rows=rows: _count_forged_texts(resident(), rows), seconds)  # type: ignore[misc]
    except BaseModelError:
        return []
    except Busy:
        return [BUSY]
    if forged:
        texts = "1 text has" if forged == 1 else f"{forged:,} texts have"
        notes.append(f"{texts} control tokens of the base written out; they are read as plain characters.")
    return notes


def _check_template(
    reading: Reading, worker: Worker, resident: Callable[[], Resident], seconds: float
) -> list[str]:
    """Checks one conversation of each shape, because no template reads the texts; see `shape_of`."""
    from core.data.conversations import check_conversations, read_turns, shape_of

    firsts: dict[Any, int] = {}
    counts: Counter[Any] = Counter()
    for i, row in enumerate(reading.rows):
        if "messages" in row:
            shape = shape_of(read_turns(row["messages"]))
            firsts.setdefault(shape, i)
            counts[shape] += 1

    def check() -> Counter[str]:
        tokenizer = resident().base.tokenizer
        notes: Counter[str] = Counter()
        for shape, i in firsts.items():
            place = (reading.places[i].file, reading.places[i].line)
            for note in check_conversations(tokenizer, [reading.rows[i]], [place]):
                notes[note.removesuffix(" (1 row)")] += counts[shape]
        return notes

    found = worker.call(check, seconds) if firsts else {}
    return [f"{note} ({n:,} {'row' if n == 1 else 'rows'})" for note, n in found.items()]


def _count_forged_texts(resident: Resident, rows: Sequence[dict[str, Any]]) -> int:
    """Counts the texts of the rows in which a control token of the base is written out."""
    from core.data.encoding import count_with_special_tokens

    texts = [text for row in rows for text in list_texts(row)]
    return count_with_special_tokens(resident.base.tokenizer, texts)


def list_texts(row: dict[str, Any]) -> list[str]:
    """The texts of a canonical row: its text, or the contents and thoughts of its messages."""
    if "text" in row:
        return [row["text"]]
    return [m[key] for m in row["messages"] for key in ("content", "thought") if key in m]
