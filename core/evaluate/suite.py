"""Answers a suite of prompts with several mixes, many (prompt, mix) pairs per batch.

`run_suite` is a generator that yields after every token, so that training and chatting are interleaved with
it.

    order      prompts sorted by length, to reduce padding
    batch      p3 x (m1 m2 m3)  p7 x (m1 m2 m3)  ...    at most BATCH_ROWS rows, all mixes of a prompt
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.errors import SpecError
from core.model.generate import SequenceState, encode_prompt, generate
from core.model.resident import Resident
from core.spec.mix import Mix, Sampling
from core.store.csv_tables import format_csv

BATCH_ROWS = 24


@dataclass(frozen=True)
class SuiteResult:
    """Answers of mixes to prompts; partial while the suite runs.

    Attributes:
        names: of the mixes, in the order of the columns.
        answers: one row per prompt, one text per mix; an empty row for a prompt that is not answered yet.
        done: number of complete answers.
    """

    prompts: tuple[str, ...]
    names: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    done: int

    @property
    def total(self) -> int:
        """Number of answers in the complete suite."""
        return len(self.prompts) * len(self.names)

    @property
    def rows(self) -> list[tuple[str, tuple[str, ...]]]:
        """The answered prompts, each with its answers."""
        return [(p, a) for p, a in zip(self.prompts, self.answers, strict=True) if a]

    @property
    def disagreements(self) -> int:
        """Number of answered prompts to which the mixes give different answers."""
        return sum(len(set(a)) > 1 for _, a in self.rows)

    def as_csv(self) -> str:
        """The answered prompts as CSV, with formulas escaped."""
        return format_csv([["prompt", *self.names], *([p, *a] for p, a in self.rows)])


def run_suite(
    resident: Resident,
    prompts: Sequence[str],
    mixes: Sequence[Mix],
    samplings: Sequence[Sampling],
    chat: bool = True,
) -> Iterator[SuiteResult]:
    """Answers every prompt under every mix.

    Args:
        samplings: one per mix.
        chat: render with the chat template; otherwise the prompts are continued as plain text.

    Yields:
        A SuiteResult after every token; rows of answers appear batch by batch.

    Raises:
        SpecError: the suite is empty, or a prompt is empty or too long; the message names its number.
    """
    if not prompts:
        raise SpecError("The suite has no prompts.", "Enter some, one per line, or choose a file.")
    ids = [
        _encode_prompt(resident, p, i, chat, max(s.max_new_tokens for s in samplings))
        for i, p in enumerate(prompts, 1)
    ]
    names = tuple(m.name or str(m) for m in mixes)
    answers: list[tuple[str, ...]] = [()] * len(prompts)
    width = len(mixes)
    order = sorted(range(len(prompts)), key=lambda i: len(ids[i]))
    prompts_per_batch = max(1, BATCH_ROWS // width)
    yield SuiteResult(tuple(prompts), names, tuple(answers), 0)
    for start in range(0, len(order), prompts_per_batch):
        batch = order[start : start + prompts_per_batch]
        rows = [ids[i] for i in batch for _ in mixes]
        states: list[SequenceState] = []
        for states in generate(resident, rows, list(mixes) * len(batch), list(samplings) * len(batch)):
            yield SuiteResult(
                tuple(prompts), names, tuple(answers), start * width + sum(bool(s.reason) for s in states)
            )
        texts = [s.column(resident.base.tokenizer).text for s in states]
        for row, i in enumerate(batch):
            answers[i] = tuple(texts[row * width : (row + 1) * width])
        yield SuiteResult(tuple(prompts), names, tuple(answers), (start + len(batch)) * width)


def _encode_prompt(
    resident: Resident, prompt: str, number: int, chat: bool, max_new_tokens: int
) -> list[int]:
    try:
        return encode_prompt(resident, prompt, chat, max_new_tokens)
    except SpecError as e:
        raise SpecError(f"Prompt {number}: {e.what}", e.fix) from e
