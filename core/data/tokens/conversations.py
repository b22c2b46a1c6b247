"""Canonical messages to the turns that a chat template accepts, and the check of a whole dataset.

A template may refuse a system turn, or insist that user and assistant alternate. What helps is then applied,
as little as possible, and named in a note:

    tool      results of tools become user turns
    system    the system text stands before the first question
    merge     consecutive turns of one role become one, with a blank line between them
    open      an empty question stands before a conversation that the assistant opens

What a template refuses even so is a DataError in the template's own words.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from core.data.tokens.rendering import (
    PART_SEPARATOR,
    TEMPLATE_ERRORS,
    Turn,
    has_content,
    refusal,
    render,
    render_answer,
    template_of,
)
from core.data.tokens.thoughts import THOUGHT_KEYS, find_written_thoughts
from core.errors import DataError

_ROLES = {"developer": "system", "model": "assistant", "function": "tool", "ipython": "tool"}
Shape = tuple[tuple[str, bool, bool], ...]  # per turn: role, has a thought, is blank
PLAN_LIMIT = 4096  # shapes of conversations that are remembered
NOTES = {
    "tool": "The base's chat template has no turn for tools: their results stand as user turns.",
    "system": "The base's chat template has no system turn: its text stands before the first question.",
    "merge": "The base's chat template wants alternating turns: consecutive turns of one role are joined.",
    "open": "The base's chat template begins with a question: where the assistant opens, it is empty.",
    "left out": "The base's chat template leaves out some turns, such as those of the system or of tools.",
}


def read_turns(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """The turns of canonical messages.

    Args:
        messages: dicts with "role" and "content". An assistant's message may have "weight": 0, and is then
            context; it may have a thought, under one of `THOUGHT_KEYS` or at the beginning of its content.
    """
    return [_read_turn(message) for message in messages]


def _read_turn(message: Mapping[str, Any]) -> Turn:
    role = _ROLES.get(message["role"], message["role"])
    turn = Turn(role, (message["content"] or "",), (message.get("weight", 1) != 0,))
    if role != "assistant":
        return turn
    written = find_written_thoughts(turn.content)
    if written is not None:
        opening, thought, closing, answer = written
        turn = replace(turn, parts=(answer,), thought=thought, opening=opening, closing=closing)
    given = next((message[key] for key in THOUGHT_KEYS if message.get(key)), "")
    return replace(turn, thought=str(given).strip()) if str(given).strip() else turn


def list_texts(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The texts of a conversation: contents and thoughts, without the markers of thoughts."""
    return [text for turn in read_turns(messages) for text in (turn.thought, *turn.parts) if text]


def has_thought(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last message has a thought, so that it is trained, and its prompt opens one."""
    return bool(messages) and bool(_read_turn(messages[-1]).thought)


def adapt_turns(tokenizer: Any, turns: Sequence[Turn]) -> tuple[list[Turn], tuple[str, ...]]:
    """Changes a conversation into one that the chat template accepts.

    Args:
        turns: the conversation; its last turn is the assistant's.

    Returns:
        The turns, and the names of what was applied, keys of `NOTES`.

    Raises:
        DataError: the template refuses the conversation; in the template's words.
    """
    plans, shape = _plans_of(tokenizer, template_of(tokenizer)), shape_of(turns)
    plan = plans.get(shape) or _make_plan(tokenizer, shape)
    if len(plans) < PLAN_LIMIT:
        plans[shape] = plan
    if plan.error:
        raise refusal(plan.error)
    return _apply(plan.steps, list(turns)), plan.notes


def _apply(steps: Sequence[str], turns: list[Turn]) -> list[Turn]:
    for name in steps:
        turns = _STEPS[name](turns)
    return turns


def shape_of(turns: Sequence[Turn]) -> Shape:
    """What decides whether a template accepts a conversation; no template reads its texts.

    Whether the last answer is blank does not count, so that a question and its answer have one shape.
    """
    last = len(turns) - 1
    return tuple((t.role, bool(t.thought), i < last and not t.content.strip()) for i, t in enumerate(turns))


@dataclass(frozen=True)
class _Plan:
    """What is applied to conversations of one shape; or the template's words, where it refuses them."""

    steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""


@lru_cache(maxsize=4)
def _plans_of(tokenizer: Any, template: str) -> dict[Shape, _Plan]:
    """The plans of a tokenizer and template that are known so far."""
    return {}


def _make_plan(tokenizer: Any, shape: Shape) -> _Plan:
    turns = [Turn(role, ("x",), thought="x" if thought else "") for role, thought, _ in shape]
    blanks = [i for i, (_, _, is_blank) in enumerate(shape) if is_blank]
    incomplete, error = None, ""
    for steps, changed in _list_candidates(turns):
        try:
            if blanks:
                emptied = [replace(t, parts=("",)) if i in blanks else t for i, t in enumerate(turns)]
                render_answer(tokenizer, _apply(steps, emptied))
            if _renders_all(tokenizer, changed):
                return _Plan(steps, steps)
            incomplete = incomplete or _Plan(steps, (*steps, "left out"))
        except TEMPLATE_ERRORS as e:
            error = str(e) or type(e).__name__
        except DataError as e:
            error = e.what
    return incomplete or _Plan(error=error)


def _list_candidates(turns: list[Turn]) -> Iterator[tuple[tuple[str, ...], list[Turn]]]:
    """The conversation as it is, then with more and more steps, each of which changes it."""
    for size in range(len(_STEPS) + 1):
        for steps in itertools.combinations(_STEPS, size):
            changed = turns
            for name in steps:
                before, changed = changed, _STEPS[name](changed)
                if changed == before:
                    break
            else:
                yield steps, changed


def _renders_all(tokenizer: Any, turns: Sequence[Turn]) -> bool:
    """Whether the template writes every text, and something before the first and the last answer."""
    answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
    for last in {answers[0], answers[-1]}:
        part = turns[: last + 1]
        if not render_answer(tokenizer, part).prompt.text:
            return False
        rendered = render(tokenizer, part, thinking=bool(part[-1].thought))
        if not all(has_content(rendered, i) for i, turn in enumerate(part) if turn.content.strip()):
            return False
    return True


def _turn_tools_into_users(turns: list[Turn]) -> list[Turn]:
    return [replace(turn, role="user") if turn.role == "tool" else turn for turn in turns]


def _fold_system(turns: list[Turn]) -> list[Turn]:
    """Moves a system text to the beginning of the question after it, or makes it a question of its own."""
    changed: list[Turn] = []
    system: list[str] = []
    for turn in turns:
        if turn.role == "system":
            system += turn.parts
            continue
        if system:
            text = PART_SEPARATOR.join(system)
            is_question = turn.role == "user"
            parts = (text, *turn.parts) if is_question else (text,)
            length = len(text) + (len(PART_SEPARATOR) if is_question else 0)
            changed.append(Turn("user", parts, (True,) * len(parts), system_length=length))
            system = []
            if is_question:
                continue
        changed.append(turn)
    return changed


def _merge_turns(turns: list[Turn]) -> list[Turn]:
    changed: list[Turn] = []
    for turn in turns:
        if not changed or changed[-1].role != turn.role:
            changed.append(turn)
            continue
        before = changed[-1]
        parts = turn.parts
        if turn.thought:
            parts = (turn.opening + turn.thought + turn.closing + parts[0], *parts[1:])
        changed[-1] = replace(before, parts=before.parts + parts, trained=before.trained + turn.trained)
    return changed


def _open_with_question(turns: list[Turn]) -> list[Turn]:
    at = next((i for i, turn in enumerate(turns) if turn.role != "system"), 0)
    if turns and turns[at].role == "assistant":
        return [*turns[:at], Turn("user", ("",)), *turns[at:]]
    return turns


_STEPS: dict[str, Callable[[list[Turn]], list[Turn]]] = {
    "tool": _turn_tools_into_users,
    "system": _fold_system,
    "merge": _merge_turns,
    "open": _open_with_question,
}


def check_conversation(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Checks that the base's chat template accepts a conversation up to its last answer.

    Returns:
        What is changed so that it does, as keys of `NOTES`.

    Raises:
        DataError: it refuses the conversation; in the template's words.
    """
    turns = read_turns(messages)
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        turns = [*read_turns(messages), Turn("assistant", ("x",))]
    return adapt_turns(tokenizer, turns)[1]


def check_conversations(
    tokenizer: Any, rows: Iterable[Mapping[str, Any]], places: Sequence[tuple[str, int | None]] = ()
) -> list[str]:
    """Checks that the base's chat template accepts every row of a task dataset.

    Rows of one shape (roles, thoughts, blank contents) are checked once, so a large dataset takes a moment.

    Args:
        rows: canonical rows with "messages"; rows without are skipped.
        places: file and line of each row, or a phrase that names it and None, where they are known.

    Returns:
        Notes on what is changed so that the template accepts the rows, each with its number of rows.

    Raises:
        DataError: names the first row that the template refuses, in the template's words.
    """
    counts: Counter[str] = Counter()
    for i, row in enumerate(rows):
        if not row.get("messages"):
            continue
        try:
            counts.update(check_conversation(tokenizer, row["messages"]))
        except DataError as e:
            what = e.what[:1].lower() + e.what[1:]
            if i < len(places):
                file, line = places[i]
                raise DataError(what, e.fix, file=file, line=line) from e
            raise DataError(f"Row {i + 1}: {what}", e.fix) from e
    return [f"{NOTES[name]} ({count:,} {'row' if count == 1 else 'rows'})" for name, count in counts.items()]
