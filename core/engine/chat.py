"""Mixes that answer: side by side on one prompt, and prompt after prompt.

Knows columns and the streams that carry them. Knows no page, and of the model only how it is asked.
`Engine.answers` is the one instance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.engine.worker import Stream, Worker
from core.errors import SpecError
from core.spec.mix import COLUMN_LIMIT, Mix, Sampling

if TYPE_CHECKING:
    from core.model.generate import Column
    from core.model.resident import Resident

FRAME_SECONDS = (
    0.1  # frames come at most so often: the browser that draws them may need the cores that the model runs on
)


@dataclass(frozen=True)
class Frame:
    """All columns at one moment."""

    columns: list[Column]
    done: bool


@dataclass
class Desk:
    """What the columns of an answer are written under; whoever reads the answer may replace it at any time."""

    mixes: tuple[Mix, ...]


class Answers:
    """Verbs over answers; safe to call from any thread, every stream is returned at once.

    Args:
        resident: called on the model's thread only.
    """

    def __init__(self, worker: Worker, resident: Callable[[], Resident]) -> None:
        self._worker, self._resident = worker, resident

    def stream(
        self,
        prompt: str | Sequence[dict[str, str]],
        mixes: Sequence[Mix],
        sampling: Sampling | None = None,
        chat: bool = True,
        same_dice: bool = True,
    ) -> Stream:
        """Every mix answers one prompt, all in one batch; a stream of Frames.

        Args:
            prompt: a text, or chat messages.
            chat: render with the chat template; otherwise the text is simply continued.
            same_dice: all columns draw with the sampling's seed; otherwise column i draws with seed + i.

        Raises:
            SpecError: too many mixes. When read: StudioError for a prompt or an adapter that will not do.
        """
        _check_count(mixes)
        drawn, desk = sampling or Sampling(), Desk(tuple(mixes))
        stream = self._worker.stream(lambda: self._frames(prompt, desk, drawn, chat, same_dice))
        stream.desk = desk
        return stream

    def retune(self, stream: Stream, mixes: Sequence[Mix]) -> None:
        """Lets an answer under way go on under other mixes, from its next token.

        Raises:
            SpecError: another number of mixes than the answer has columns.
        """
        if len(mixes) != len(stream.desk.mixes):
            raise SpecError(
                f"{len(mixes)} mixes were given for {len(stream.desk.mixes)} columns.", "Give one a column."
            )
        stream.desk.mixes = tuple(mixes)

    def _frames(
        self,
        prompt: str | Sequence[dict[str, str]],
        desk: Desk,
        sampling: Sampling,
        chat: bool,
        same_dice: bool,
    ) -> Generator[Frame | None, None, None]:
        from core.model.generate import encode_prompt, generate

        resident = self._resident()
        ids = encode_prompt(resident, prompt, chat, sampling.max_new_tokens)
        shown = 0.0
        mixes = desk.mixes
        samplings = _dice(sampling, len(mixes), same_dice)
        for writers in generate(resident, [ids] * len(mixes), mixes, samplings, lambda: desk.mixes):
            done = all(w.reason for w in writers)
            now = time.monotonic()
            if done or now - shown >= FRAME_SECONDS:
                shown = now
                yield Frame([w.column(resident.base.tokenizer) for w in writers], done)
            else:
                yield None

    def suite(
        self,
        prompts: Sequence[str],
        mixes: Sequence[Mix],
        sampling: Sampling | None = None,
        chat: bool = True,
        same_dice: bool = True,
    ) -> Stream:
        """Every mix answers every prompt, many in a batch; a stream of Sheets that fill up. Takes and raises what `stream` does."""
        _check_count(mixes)
        samplings = _dice(sampling or Sampling(), len(mixes), same_dice)
        return self._worker.stream(lambda: self._suite(list(prompts), list(mixes), samplings, chat))

    def _suite(
        self, prompts: list[str], mixes: list[Mix], samplings: list[Sampling], chat: bool
    ) -> Generator[Any, None, None]:
        from core.evaluate.suite import suite

        yield from suite(self._resident(), prompts, mixes, samplings, chat)


def _check_count(mixes: Sequence[Mix]) -> None:
    if not 1 <= len(mixes) <= COLUMN_LIMIT:
        raise SpecError(f"{len(mixes)} mixes were given.", f"Compare 1 to {COLUMN_LIMIT} at once.")


def _dice(sampling: Sampling, columns: int, same: bool) -> list[Sampling]:
    """One sampling a column: all with the same seed, or each with the next one."""
    return [sampling if same else replace(sampling, seed=sampling.seed + i) for i in range(columns)]
