"""Layouts with good and bad answers: preference pairs, and answers marked good or bad. Bad answers are not
learned.
"""

from __future__ import annotations

import re
from typing import Any

from core.data.formats.readers import RawRow
from core.data.layouts.layout import Layout, Parts, Table, Values, each_row
from core.data.layouts.messages import is_message_list
from core.data.notes import Notes, RowLeftOut
from core.data.roles.cells import parse_cell, read_cell
from core.data.roles.columns import normalize_name
from core.errors import DataError

_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?")
_TRUTH = {
    **dict.fromkeys(("true", "1", "good", "positive", "up", "thumbsup", "like", "accept", "accepted",
                     "chosen", "desirable", "correct", "yes"), True),
    **dict.fromkeys(("false", "0", "bad", "negative", "down", "thumbsdown", "dislike", "reject",
                     "rejected", "undesirable", "incorrect", "wrong", "no"), False),
}  # fmt: skip
_MARKS = ("ktotag", "label", "desirable", "isdesirable", "thumbsup", "thumbs", "rating", "feedback", "vote",
          "isgood", "good", "iscorrect", "correct", "accepted", "isaccepted", "quality",
          "reward")  # fmt: skip
_MESSAGES = ("messages", "conversations", "conversation")
_COMPLETIONS = ("completion", "response", "output", "answer")
_PROMPTS = ("prompt", "instruction", "question")


def _match_openai(table: Table) -> Parts:
    parts = table.find_parts(input=("input",), good=("preferredoutput",))
    if not parts or not table.every(parts["input"], lambda c: isinstance(parse_or_none(c), dict)):
        return {}
    return parts


def _rewrite_openai(row: RawRow, parts: Parts, notes: Notes) -> Values:
    question = parse_cell(row.values.get(parts["input"]), row)
    messages = question.get("messages") if isinstance(question, dict) else None
    return {"prompt": messages, "completion": parse_cell(row.values.get(parts["good"]), row)}


OPENAI_PREFERENCE = Layout(
    "openai-preference",
    "Preference pairs of OpenAI",
    _match_openai,
    each_row(_rewrite_openai),
    ("Only the preferred answers are learned; non_preferred_output is not read.",),
)


def _match_preference(table: Table) -> Parts:
    parts = table.find_parts(
        good=("chosen", "chosenresponse", "chosenanswer", "preferred", "accepted"),
        bad=("rejected", "rejectedresponse", "rejectedanswer", "dispreferred", "nonpreferred"),
    )
    if not parts:
        return {}
    del parts["bad"]
    for part, names in (("messages", _MESSAGES), ("prompt", _PROMPTS)):
        if column := table.find(*names):
            parts[part] = column
            break
    if "prompt" in parts and (extra := table.find("input", "context")):
        parts["extra"] = extra
    return parts


def _rewrite_preference(row: RawRow, parts: Parts, notes: Notes) -> Values:
    """Rewrites a pair whose chosen side is an answer, a message, or the whole conversation."""
    good = parse_cell(row.values.get(parts["good"]), row)
    if isinstance(good, dict):
        good = [good]
    if isinstance(good, str) and "prompt" not in parts and "messages" not in parts:
        good = _split_turns(good, row, parts["good"])
    prompt = row.values.get(parts.get("prompt", parts.get("messages", "")))
    is_whole = is_message_list(good) and any(_is_user(m) for m in good)
    if is_whole:
        return {"prompt": good[:-1], "completion": good[-1:]}
    prompt = parse_cell(prompt, row)
    if "extra" in parts and isinstance(prompt, str):
        extra = read_cell(row, parts["extra"], required=False)
        prompt = "\n\n".join(text for text in (prompt, extra) if text.strip())
    return {"prompt": prompt, "completion": good}


def _is_user(message: Values) -> bool:
    return str(message.get("role", message.get("from"))).lower() in ("user", "human")


def _split_turns(text: str, row: RawRow, column: str) -> list[Values]:
    r"""Splits a conversation that is written as "\n\nHuman: ...\n\nAssistant: ..."."""
    turns = _TURN.split(text)
    if len(turns) < 3 or turns[0].strip():
        raise DataError(
            f"the column {column!r} has no question: no column of prompts stands beside it, and the text "
            "is not written as Human: and Assistant: turns.",
            "Add a column named prompt.",
            file=row.file,
            line=row.line,
        )
    return [{"role": role.lower(), "content": content} for role, content in zip(turns[1::2], turns[2::2])]


PREFERENCE = Layout(
    "preference",
    "Preference pairs (chosen and rejected)",
    _match_preference,
    each_row(_rewrite_preference),
    ("Only the chosen answers are learned; the rejected ones are not read.",),
)


def _is_mark(cell: Any) -> bool:
    return _read_mark(cell) is not None


def _is_word(cell: Any) -> bool:
    """Whether a cell marks an answer in words; a number such as 1 may also be the worst of five."""
    return _is_mark(cell) and not str(cell).strip("-").isdecimal()


_SCORES = dict.fromkeys(("rating", "feedback", "vote", "quality", "reward"), _is_word)


def _match_kto(table: Table) -> Parts:
    mark = next(
        (c for name in _MARKS if (c := table.find(name)) and table.every(c, _SCORES.get(name, _is_mark))), ""
    )
    if not mark:
        return {}
    has_answers = table.find(*_MESSAGES) or (table.find(*_PROMPTS) and table.find(*_COMPLETIONS))
    return {"mark": mark} if has_answers else {}


def _rewrite_kto(row: RawRow, parts: Parts, notes: Notes) -> Values:
    good = _read_mark(row.values.get(parts["mark"]))
    if good is None:
        raise RowLeftOut(f"the column {parts['mark']!r} does not say whether the answer is good")
    if not good:
        raise RowLeftOut(f"the column {parts['mark']!r} marks the answer as bad")
    return {}


def _read_mark(mark: Any) -> bool | None:
    """Whether an answer is marked as good; None if the cell does not say."""
    if mark == -1 or mark == "-1":
        return False
    return mark if isinstance(mark, bool) else _TRUTH.get(normalize_name(str(mark)))


KTO = Layout("kto", "Answers marked good or bad (KTO)", _match_kto, each_row(_rewrite_kto))


def parse_or_none(cell: Any) -> Any:
    """Parses a cell with JSON text; None if it is not JSON. For recognizing a layout."""
    try:
        return parse_cell(cell, RawRow({}, "", 0))
    except DataError:
        return None
