"""Which tokens a sequence loses that is longer than the max length, counted by kind.

    system   BOS, the system text and what the template writes up to the first question
    question everything between it and the answer: older turns first, then the beginning of the question
    answer   its end

An answer loses its end before its question loses anything, down to an eighth of the max length. Where the
question has to lose something even so, the answer gets up to half of the max length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SHORT_ANSWER = 8  # 1 / 8 of the max length stays of an answer whose question is whole


class Cut(NamedTuple):
    """Tokens that a sequence has lost, by kind."""

    answer: int = 0
    question: int = 0
    system: int = 0

    @property
    def total(self) -> int:
        return sum(self)


class Head(NamedTuple):
    """The tokens at the beginning of a prompt that are cut last.

    Attributes:
        system_end: one past the last token of the system text; what is after it is the template's.
        size: tokens before the first question.
        fixed: tokens at the beginning that are never cut, such as BOS.
    """

    system_end: int = 0
    size: int = 0
    fixed: int = 0


def choose_tokens(prompt: int, answer: int, max_length: int, head: Head) -> tuple[list[range], Cut]:
    """Chooses the tokens that stay.

    Args:
        prompt, answer: tokens of each.
        max_length: most tokens that stay.

    Returns:
        The ranges of tokens that stay, in order, and how many tokens of each kind are lost.
    """
    short = min(answer, max(1, max_length // SHORT_ANSWER))
    if prompt + short <= max_length:
        kept_answer = min(answer, max_length - prompt)
    else:  # the question is cut anyway
        kept_answer = min(answer, max(1, max_length // 2))
    space = max(max_length - kept_answer, 0)
    if prompt <= space:
        return [range(prompt + kept_answer)], Cut(answer=answer - kept_answer)
    question = prompt - head.size
    kept_question = min(question, max(space - head.size, min(question, space // 2)))
    lost_system = max(0, head.size - (space - kept_question))
    first = max(min(head.fixed, head.size - lost_system), head.system_end - lost_system)
    ranges = [
        range(first),
        range(first + lost_system, head.size),
        range(prompt - kept_question, prompt + kept_answer),
    ]
    return ranges, Cut(answer - kept_answer, question - kept_question, lost_system)


def take(values: Sequence[int], ranges: Sequence[range]) -> list[int]:
    """The values at these positions."""
    return [values[i] for part in ranges for i in part]
