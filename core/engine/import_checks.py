"""Checks of rows at import that need the base: what its chat template accepts, and its control tokens.

What needs no base is in `core.data.base_checks`, also of an import in a process of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from core.data.base_checks import BaseAnswer, Shape, list_shapes, write_notes
from core.data.reading import Reading
from core.engine.worker import Worker
from core.errors import BaseModelError, Busy

if TYPE_CHECKING:
    from core.model.resident import Resident

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
        worker, resident, seconds: see `check_shapes`.

    Returns:
        Sentences for the notes of the import.

    Raises:
        DataError: the base's chat template refuses a conversation; names its file and line.
    """
    return write_notes(reading, check_shapes(list_shapes(reading), worker, resident, seconds))


def check_shapes(
    shapes: Sequence[Shape], worker: Worker, resident: Callable[[], Resident], seconds: float
) -> BaseAnswer:
    """Checks one conversation of each shape against the base that is loaded.

    Args:
        shapes: of the rows of an import.
        worker: runs the checks on the model's thread.
        resident: returns the resident base; called on the model's thread only.
        seconds: how long to wait for the model's thread; a longer wait skips the checks.

    Raises:
        DataError: the base's chat template refuses a conversation; names its file and line.
    """

    def check() -> BaseAnswer:
        tokenizer = resident().base.tokenizer  # ends here without a base
        from core.data.tokens.conversations import check_conversations
        from core.data.tokens.special_tokens import control_tokens

        notes: Counter[str] = Counter()
        for shape in shapes:
            row, place = {"messages": shape.messages}, (shape.file, shape.line)
            for note in check_conversations(tokenizer, [row], [place]):
                notes[note.removesuffix(" (1 row)")] += shape.rows
        sentences = [f"{note} ({n:,} {'row' if n == 1 else 'rows'})" for note, n in notes.items()]
        return BaseAnswer(sentences, list(control_tokens(tokenizer)))

    try:
        return worker.call(check, seconds)
    except BaseModelError:
        return BaseAnswer([], [])
    except Busy:
        return BaseAnswer([BUSY], [])
