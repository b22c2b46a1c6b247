"""The board: two to six columns of answers side by side. Its value is shared with `board.js`:

{
    "picks": the ids of the columns' mixes,
    "names": their names, by id, to name a mix that is gone,
    "touched": whether the user has changed them,
    "plain": for each column, whether it answers without the documents that are chosen,
    "columns": a tree for each column,
    "blind": in a blind test, {"heads": a tree above each column, "foot": a tree below them},
    "serial": number of the answer; a higher one is newer,
}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.engine import Engine
from core.errors import SpecError, StudioError
from core.retrieve.prompt import PassagePrompt
from core.spec.mix import COLUMN_LIMIT, Mix
from studio import answers, formatting, mix_choices
from studio.components import mixer
from studio.tree import Node, node
from studio.views.passages import link_citations, render_passages

COLUMN_MINIMUM = 2


def read_picks(engine: Engine, board: Any) -> list[str]:
    """Reads the ids of the columns' mixes from the board; the first four choices until the user picks some.

    Raises:
        SpecError: too few or too many columns.
    """
    picks = [p for p in (board or {}).get("picks", []) if isinstance(p, str)] or [
        c["id"] for c in mix_choices.list_choices(engine)
    ][:4]
    if not COLUMN_MINIMUM <= len(picks) <= COLUMN_LIMIT:
        raise SpecError(
            f"A comparison needs {COLUMN_MINIMUM} to {COLUMN_LIMIT} columns, got {len(picks)}.",
            "Add or remove columns.",
        ).at("columns")
    return picks


def read_plain(board: Any, count: int) -> list[bool]:
    """Reads for each column whether it answers without documents; False where the board says nothing.

    Args:
        count: of the columns.
    """
    plain = (board or {}).get("plain")
    given = [value is True for value in plain] if isinstance(plain, list) else []
    return [*given, *[False] * count][:count]


def read_mixes(engine: Engine, picks: list[str], rows: Any) -> list[Mix]:
    """Parses the mixes of the columns, with their names.

    Args:
        picks: from `read_picks`.
        rows: the mixer's value.

    Raises:
        SpecError: a pick cannot be parsed. NotFound: an adapter of one was deleted.
    """
    try:
        return mix_choices.parse_mixes(engine, picks, mixer.current_mix(engine, rows))
    except StudioError as e:
        raise e.at("columns") from None


def render_columns(frame: Any, reference: int, labels: Mapping[str, str] | None = None) -> list[Node]:
    """Renders every column. Words that differ from the reference column are marked.

    Args:
        reference: the index of that column.
        labels: the names of the adapters, by id.
    """
    base = frame.columns[reference].text
    prompts = frame.prompts or (None,) * len(frame.columns)
    return [
        _column(c, base if i != reference else c.text, labels, prompt)
        for i, (c, prompt) in enumerate(zip(frame.columns, prompts, strict=True))
    ]


def render_placeholders(count: int, note: str = "") -> list[Node]:
    """Columns whose answers have not begun, and what they wait for."""
    if not note:
        return [answers.skeleton() for _ in range(count)]
    return [node("div", node("p", note, cls="quiet"), answers.skeleton()) for _ in range(count)]


def find_reference(mixes: list[Mix]) -> int:
    """Finds the index of the base among the mixes, or 0 when the base is not there."""
    return next((i for i, m in enumerate(mixes) if not m.weights), 0)


def _column(
    column: Any, base: str, labels: Mapping[str, str] | None, prompt: PassagePrompt | None = None
) -> Node:
    pieces: list[Any] = [
        node("mark", text) if differs else node("span", text)
        for text, differs in formatting.diff_words(base, column.text)
    ]
    return node(
        "div",
        link_citations(render_answer(column, pieces), len(prompt.used) if prompt else 0),
        render_passages(prompt),
        node("p", answers.format_speed(column), cls="quiet"),
        answers.render_stamp(column, labels),
    )


def render_answer(column: Any, pieces: list[Any]) -> Node:
    """Renders an answer below its folded thought, with a cursor while it is being generated."""
    text = node(
        "p",
        *(pieces or [answers.placeholder(column)]),
        cls="answer-text" if column.done else "answer-text writing",
    )
    thought = answers.render_column_fold(column)
    return node("div", thought, text, cls="answered") if thought else text
