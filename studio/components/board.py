"""The board of columns: which mixes it shows, and what a column says.

Knows the value of the board as Python and `web/board.js` share it. Knows nothing of when it is filled.

    {"picks": [ids], "touched": true, "columns": [trees], "blind": {"heads": [trees], "foot": tree}, "serial": newer is higher}
"""

from __future__ import annotations

from typing import Any

from core.engine import Engine
from core.errors import SpecError
from core.spec.mix import COLUMN_LIMIT, Mix
from studio import answers, formatting, mix_choices
from studio.components import mixer
from studio.tree import Node, node

LEAST = 2


def read_picks(engine: Engine, board: Any) -> list[str]:
    """The ids of the mixes that the columns show; the first of the usual ones while nobody chose.

    Raises:
        SpecError: too few or too many.
    """
    chosen = [p for p in (board or {}).get("picks", []) if isinstance(p, str)] or [
        c["id"] for c in mix_choices.list_choices(engine)
    ][:4]
    if not LEAST <= len(chosen) <= COLUMN_LIMIT:
        raise SpecError(f"There are {len(chosen)} columns.", f"Compare {LEAST} to {COLUMN_LIMIT} mixes.")
    return chosen


def read_mixes(engine: Engine, chosen: list[str], rows: Any) -> list[Mix]:
    """The mixes of `picks`, with their names."""
    return mix_choices.parse_mixes(engine, chosen, mixer.current_mix(engine, rows))


def render_columns(frame: Any, reference: int) -> list[Node]:
    """What each column shows; words that differ from the reference column are marked."""
    base = frame.columns[reference].text
    return [_column(c, base if i != reference else c.text) for i, c in enumerate(frame.columns)]


def find_reference(shown: list[Mix]) -> int:
    """The place of the base among the mixes, or the first."""
    return next((i for i, m in enumerate(shown) if not m.weights), 0)


def _column(column: Any, base: str) -> Node:
    pieces: list[Any] = [
        node("mark", text) if differs else node("span", text)
        for text, differs in formatting.diff_words(base, column.text)
    ]
    return node(
        "div",
        render_answer(column, pieces),
        node("p", answers.format_speed(column), cls="quiet"),
        node("p", answers.format_stamp(column), cls="stamp"),
    )


def render_answer(column: Any, pieces: list[Any]) -> Node:
    """An answer's text, with a cursor while it is written."""
    return node(
        "p",
        *(pieces or [answers.placeholder(column)]),
        cls="answer-text" if column.done else "answer-text writing",
    )
