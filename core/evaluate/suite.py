"""A suite: every mix answers every prompt, many pairs of both in one batch.

A Python generator that yields after every token, so that training and chatting go on beside it. Knows a
resident base and plain prompts; knows no workspace and no pages.

    order      prompts by their length, so that little is padded
    batch      p3 x (m1 m2 m3)  p7 x (m1 m2 m3)  ...       at most BATCH_ROWS rows; all mixes of a prompt together
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
    """Answers of mixes to prompts, as far as they are written.

    Attributes:
        names: of the mixes, in the order of the columns.
        answers: one row a prompt, one text a mix; an empty row where nothing is written yet.
        done: answers written.
    """

    prompts: tuple[str, ...]
    names: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    done: int

    @property
    def total(self) -> int:
        return len(self.prompts) * len(self.names)

    @property
    def rows(self) -> list[tuple[str, tuple[str, ...]]]:
        """The prompts that are answered, each with its answers."""
        return [(p, a) for p, a in zip(self.prompts, self.answers, strict=True) if a]

    @property
    def disagreements(self) -> int:
        """Answered prompts to which not all mixes say the same."""
        return sum(len(set(a)) > 1 for _, a in self.rows)

    def as_csv(self) -> str:
        """The answered prompts as CSV; nothing in it is executed by a spreadsheet."""
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
        samplings: one a mix.
        chat: render with the chat template; otherwise the texts are continued.

    Yields:
        a Sheet after every token; rows of answers appear batch by batch.

    Raises:
        SpecError: no prompts, or one that will not do, named by its number.
    """
    if not prompts:
        raise SpecError("There are no prompts.", "Write some, one a line, or choose a file.")
    ids = [
        _encoded(resident, p, i, chat, max(s.max_new_tokens for s in samplings))
        for i, p in enumerate(prompts, 1)
    ]
    names = tuple(m.name or str(m) for m in mixes)
    answers: list[tuple[str, ...]] = [()] * len(prompts)
    width = len(mixes)
    order = sorted(range(len(prompts)), key=lambda i: len(ids[i]))
    together = max(1, BATCH_ROWS // width)
    yield SuiteResult(tuple(prompts), names, tuple(answers), 0)
    for start in range(0, len(order), together):
        batch = order[start : start + together]
        rows = [ids[i] for i in batch for _ in mixes]
        states: list[SequenceState] = []
        for states in generate(resident, rows, list(mixes) * len(batch), list(samplings) * len(batch)):
            yield SuiteResult(
                tuple(prompts), names, tuple(answers), start * width + sum(bool(w.reason) for w in states)
            )
        texts = [w.column(resident.base.tokenizer).text for w in states]
        for row, i in enumerate(batch):
            answers[i] = tuple(texts[row * width : (row + 1) * width])
        yield SuiteResult(tuple(prompts), names, tuple(answers), (start + len(batch)) * width)


def _encoded(resident: Resident, prompt: str, number: int, chat: bool, room: int) -> list[int]:
    try:
        return encode_prompt(resident, prompt, chat, room)
    except SpecError as e:
        raise SpecError(f"Prompt {number}: {e.what}", e.fix) from e
