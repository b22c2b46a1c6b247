"""Answers a suite of prompts with several mixes, many (prompt, mix) pairs per batch.

`run_suite` is a generator that yields after every token, so that training and chatting are interleaved with
it.

    order      prompts sorted by length, to reduce padding
    batch      p3 x (m1 m2 m3)  p7 x (m1 m2 m3)  ...    at most BATCH_ROWS rows, all mixes of a prompt
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from core.errors import SpecError, StudioError
from core.model.columns import Column, SequenceState
from core.model.generate import encode_prompt, generate
from core.model.resident import Resident
from core.spec.mix import Mix, Sampling
from core.store.csv_tables import format_csv

BATCH_ROWS = 24


@dataclass(frozen=True)
class SuiteResult:
    """Answers of mixes to prompts; partial while the suite runs.

    Attributes:
        names: of the mixes, in the order of the columns.
        answers: one row per prompt, one text per mix; an empty row for a prompt that is not answered yet. A
            thought is not part of an answer.
        done: number of complete answers.
        columns: the same answers with their thoughts and reasons.
        left_out: number of a prompt, from 1 -> why it cannot be answered.
    """

    prompts: tuple[str, ...]
    names: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    done: int
    columns: tuple[tuple[Column, ...], ...] = ()
    left_out: dict[int, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of answers in the complete suite."""
        return (len(self.prompts) - len(self.left_out)) * len(self.names)

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
    system: str = "",
) -> Iterator[SuiteResult]:
    """Answers every prompt under every mix.

    A prompt that does not fit into the context is left out, and the results name it. Where only a part of the
    longest answer fits, answers end at the context.

    Args:
        samplings: one per mix.
        chat: render with the chat template; otherwise the prompts are continued as plain text.
        system: the system prompt of every conversation, or "".

    Yields:
        A SuiteResult after every token; rows of answers appear batch by batch.

    Raises:
        SpecError: the suite has no prompts, or none that can be answered; the message has the first reason.
    """
    if not prompts:
        raise SpecError("The suite has no prompts.", "Enter some, one per line, or choose a file.")
    ids: dict[int, list[int]] = {}
    left_out: dict[int, str] = {}
    for i, prompt in enumerate(prompts):
        try:
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": prompt})
            ids[i] = encode_prompt(resident, messages, chat, 1)
        except StudioError as e:
            left_out[i + 1] = e.what
    if not ids:
        number, reason = next(iter(left_out.items()))
        raise SpecError(f"No prompt of the suite can be answered. Prompt {number}: {reason}", "Shorten them.")
    names = tuple(m.name or str(m) for m in mixes)
    columns: list[tuple[Column, ...]] = [()] * len(prompts)
    width = len(mixes)

    def result(done: int) -> SuiteResult:
        answers = tuple(tuple(c.text for c in row) for row in columns)
        return SuiteResult(tuple(prompts), names, answers, done, tuple(columns), left_out)

    order = sorted(ids, key=lambda i: len(ids[i]))
    prompts_per_batch = max(1, BATCH_ROWS // width)
    yield result(0)
    for start in range(0, len(order), prompts_per_batch):
        batch = order[start : start + prompts_per_batch]
        rows = [ids[i] for i in batch for _ in mixes]
        states: list[SequenceState] = []
        for states in generate(resident, rows, list(mixes) * len(batch), list(samplings) * len(batch)):
            yield result(start * width + sum(bool(s.reason) for s in states))
        written = [s.column(resident.base.tokenizer) for s in states]
        for row, i in enumerate(batch):
            columns[i] = tuple(written[row * width : (row + 1) * width])
        yield result((start + len(batch)) * width)
