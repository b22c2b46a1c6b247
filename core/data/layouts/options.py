"""Multiple choice with a column for each choice: A, B, C, D; option1, option2; opa, opb; ending0, ending1."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from core.data.formats.readers import RawRow
from core.data.layouts.answers import CHOICE_ANSWERS, CHOICE_QUESTIONS, rewrite_choices
from core.data.layouts.layout import Layout, Parts, Table, write_value
from core.data.notes import Notes
from core.data.roles.cells import is_blank, is_missing
from core.data.roles.columns import normalize_name
from core.errors import DataError

_OPTION = re.compile(
    r"(option|choice|answer|ans|opt|op|ending|sol|solution|candidate|alternative|opcion|respuesta|antwort|)"
    r"(?:text)?([a-h]|\d)\Z"
)
_COUNTS_FROM_ZERO = (
    "sol",
    "choice",
    "ending",
)  # PIQA, COPA and SWAG: the label is 0 for sol1, choice1, ending0


def _match_options(table: Table) -> Parts:
    groups: dict[str, dict[str, str]] = {}
    for column in table.columns:
        if found := _OPTION.fullmatch(normalize_name(column)):
            groups.setdefault(found[1], {}).setdefault(found[2], column)
    options = max(groups.values(), key=len, default={})
    letters = "".join(sorted(options))
    if len(options) < 2 or letters not in ("abcdefgh"[: len(letters)], "01234567"[: len(letters)],
                                           "12345678"[: len(letters)]):  # fmt: skip
        return {}
    rest = Table([c for c in table.columns if c not in options.values()], table.rows)
    parts = rest.find_parts(question=CHOICE_QUESTIONS, answer=CHOICE_ANSWERS)
    if not parts or (len(options) == 2 and "" in groups and options is groups[""]):
        return {}
    if premise := rest.find("premise", "sent1"):
        if premise not in parts.values():
            parts["premise"] = premise
    return parts | {f"option {letter}": options[letter] for letter in sorted(options)}


def _rewrite_options(rows: Sequence[RawRow], parts: Parts, notes: Notes) -> list[RawRow]:
    options = {p.removeprefix("option "): c for p, c in parts.items() if p.startswith("option ")}
    names = _find_names(rows, parts["answer"], options)
    used = set(parts.values())
    gathered = []
    for row in rows:
        answer = row.values.get(parts["answer"])
        filled = {x: write_value(v) for x, c in options.items() if not is_blank(v := row.values.get(c))}
        if not isinstance(answer, str) and not is_missing(answer) and names:
            answer = write_value(answer)
        if isinstance(answer, str):
            answer = _strip_prefix(answer.strip(), options)
        labels = [x.upper() for x in filled]
        values: dict[str, Any] = {c: v for c, v in row.values.items() if c not in used}
        if "premise" in parts:
            values["context"] = row.values.get(parts["premise"])
        values |= {
            "question": row.values.get(parts["question"]),
            "choices": {"text": list(filled.values()), "label": labels if names else []},
            "answer": answer,
        }
        gathered.append(RawRow(values, row.file, row.line))
    return rewrite_choices(
        gathered, {"question": "question", "choices": "choices", "answer": "answer"}, notes
    )


def _find_names(rows: Sequence[RawRow], answer: str, options: dict[str, str]) -> bool:
    """Whether the answers name columns by their letters or numbers, and not by position from 0.

    Raises:
        DataError: the answers are numbers that fit both.
    """
    if "a" in options:
        return True
    given = {write_value(v).strip() for row in rows if not is_missing(v := row.values.get(answer))}
    if not given <= set(options) | {"0"} or "0" in given or "0" in options:
        return False
    prefix = normalize_name(next(iter(options.values())))[:-1]
    if max(options) in given:
        return True
    if prefix in _COUNTS_FROM_ZERO:
        return False
    raise DataError(
        f"the column {answer!r} holds numbers that may count the choices from 0 or from 1.",
        "Write the text of the right choice in it.",
        file=rows[0].file,
        line=rows[0].line,
    )


def _strip_prefix(answer: str, options: dict[str, str]) -> str:
    """The letter of an answer that is written as the name of its column, such as "option_b" or "answerB"."""
    for letter, column in options.items():
        if normalize_name(answer) == normalize_name(column):
            return letter.upper()
    return answer


OPTION_COLUMNS = Layout(
    "option-columns",
    "Multiple choice with a column for each choice",
    _match_options,
    _rewrite_options,
    ("The choices are part of the question, and the text of the right choice is learned.",),
)
