"""Answers of mixes: side by side on one prompt, or over a suite of prompts. `engine.chat`.

An answer follows its mixes while it is generated:

    slider ─ studio.session ─ Chat.retune ─> LiveMixes.mixes            any thread; one assignment, no lock
                                                   │
    worker thread: generate ─ before every token ──┴─ the same: decode on
                                                      another: new stamp, prefill again, decode on

The keys and values in a KV cache were computed under one mix, so the cache is valid for that mix only. When
a column changes its mix, one prefill reads the prompt and the answer so far again under the new mixes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.engine.worker import Stream, Worker
from core.errors import SpecError
from core.spec.mix import COLUMN_LIMIT, Mix, Sampling

if TYPE_CHECKING:
    from core.engine.gpu_answers import GpuAnswers
    from core.model.generate import Column
    from core.model.resident import Resident
    from core.retrieve.passages import Passage
    from core.retrieve.prompt import PassagePrompt

# Shortest time between two frames. The browser that draws them may run on the cores that the model uses.
FRAME_SECONDS = 0.1


@dataclass(frozen=True)
class Frame:
    """All columns at one moment.

    Attributes:
        left_out: how many of the oldest questions of the conversation, each with its answer, did not fit into
            the base's context beside the prompt and the longest answer.
        prompts: for each column its prompt with passages, or None where it answers without documents; empty
            where no column has any.
    """

    columns: list[Column]
    done: bool
    left_out: int = 0
    prompts: tuple[PassagePrompt | None, ...] = ()


@dataclass
class LiveMixes:
    """The mixes of an answer's columns; the reader of the stream may replace them at any time.

    Attributes:
        used: those that the newest token was generated under; empty before the first one.
    """

    mixes: tuple[Mix, ...]
    used: tuple[Mix, ...] = ()

    def take(self) -> tuple[Mix, ...]:
        """The mixes for the next token."""
        self.used = self.mixes
        return self.used

    @property
    def late(self) -> tuple[Mix, ...]:
        """Mixes that came after the last token was generated; empty without any, or with other names only."""
        is_late = self.used and [replace(m, name="") for m in self.mixes] != [
            replace(m, name="") for m in self.used
        ]
        return self.mixes if is_late else ()


class Chat:
    """Generates answers. Safe to call from any thread; every method returns its stream immediately.

    Args:
        resident: returns the resident base; called on the model's thread only.
        calls: answers in a process with a GPU instead, one call for each answer; None answers here.
        record: as in `core.engine.serving.Serving`; answers in another process are not recorded.
    """

    def __init__(
        self,
        worker: Worker,
        resident: Callable[[], Resident],
        calls: GpuAnswers | None = None,
        record: Callable[[str, Sequence[Mix], Sequence[Column], str], None] = lambda *_: None,
    ) -> None:
        self._worker, self._resident, self._calls, self._record = worker, resident, calls, record

    def stream(
        self,
        prompt: str | Sequence[dict[str, str]],
        mixes: Sequence[Mix],
        sampling: Sampling | None = None,
        chat: bool = True,
        same_noise: bool = True,
        thinking: bool = False,
        exact: bool = False,
        passages: Sequence[Sequence[Passage] | None] | None = None,
    ) -> Stream:
        """Answers one prompt under every mix, all in one batch; a stream of Frames.

        Args:
            prompt: a text, or chat messages: an optional system message, earlier questions with their
                answers, and the question. They are encoded as a row of training data is. Where they do not
                fit into the context, the oldest questions are left out (`Frame.left_out`).
            chat: render the prompt with the chat template; otherwise the text is continued as it is.
            same_noise: sample all columns with the same seed, so that differences come from the mix only;
                otherwise column i samples with seed + i.
            thinking: answer with a thought, on bases that think; otherwise the prompt has none, as for rows
                without thoughts in training.
            passages: for each column the passages that it answers from (`engine.retrieval.search`), or None
                for an answer without documents. `Frame.prompts` says which fit in the context. They stand
                before the last question; earlier questions are left out before a passage is.

        Raises:
            SpecError: no mix, or more than COLUMN_LIMIT; passages for a text that is continued. When the
                stream is read: StudioError for a prompt or an adapter that cannot be used.
        """
        _check_count(mixes)
        spec, live = sampling or Sampling(), LiveMixes(tuple(mixes))
        check_passages(passages, len(mixes), chat)
        if self._calls:
            return self._calls.stream(prompt, live, spec, chat, same_noise, thinking, passages)
        answer = secrets.token_hex(8)
        stream = self._worker.stream(
            lambda: self._frames(answer, prompt, live, spec, chat, same_noise, thinking, exact, passages)
        )
        stream.live_mixes, stream.answer = live, answer
        return stream

    def retune(self, stream: Stream, mixes: Sequence[Mix]) -> None:
        """Changes the mixes of an answer that is being generated; they apply from its next token on.

        An answer of `core.engine.gpu_answers` has its mixes by value. Mixes that come too late for an answer
        are `LiveMixes.late` of its stream, for its reader to answer again.

        Raises:
            SpecError: the number of mixes differs from the number of columns.
        """
        if len(mixes) != len(stream.live_mixes.mixes):
            raise SpecError(
                f"The number of mixes must be {len(stream.live_mixes.mixes)}, got {len(mixes)}.",
                "Give one mix per column.",
            )
        stream.live_mixes.mixes = tuple(mixes)

    def _frames(
        self,
        answer: str,
        prompt: str | Sequence[dict[str, str]],
        live: LiveMixes,
        sampling: Sampling,
        chat: bool,
        same_noise: bool,
        thinking: bool = False,
        exact: bool = False,
        passages: Sequence[Sequence[Passage] | None] | None = None,
    ) -> Generator[Frame | None, None, None]:
        resident = self._resident()
        for frame in generate_frames(
            resident, prompt, live, sampling, chat, same_noise, thinking, exact, passages
        ):
            if frame is not None and frame.done:
                self._record(answer, live.used, frame.columns, resident.base.name)
            yield frame

    def stream_suite(
        self,
        prompts: Sequence[str],
        mixes: Sequence[Mix],
        sampling: Sampling | None = None,
        chat: bool = True,
        same_noise: bool = True,
        system: str = "",
    ) -> Stream:
        """Answers every prompt under every mix, with many pairs of prompt and mix in a batch.

        Args and errors are those of `stream`; `system` is the system prompt of every conversation.

        Returns:
            a stream of SuiteResults, each with more answers than the one before.
        """
        _check_count(mixes)
        samplings = _column_samplings(sampling or Sampling(), len(mixes), same_noise)
        return self._worker.stream(lambda: self._suite(list(prompts), list(mixes), samplings, chat, system))

    def _suite(
        self, prompts: list[str], mixes: list[Mix], samplings: list[Sampling], chat: bool, system: str = ""
    ) -> Generator[Any, None, None]:
        from core.evaluate.suite import run_suite

        yield from run_suite(self._resident(), prompts, mixes, samplings, chat, system)


def generate_frames(
    resident: Resident,
    prompt: str | Sequence[dict[str, str]],
    live: LiveMixes,
    sampling: Sampling,
    chat: bool = True,
    same_noise: bool = True,
    thinking: bool = False,
    exact: bool = False,
    passages: Sequence[Sequence[Passage] | None] | None = None,
) -> Generator[Frame | None, None, None]:
    """Answers one prompt under every mix on a resident base; see `Chat.stream`.

    Yields:
        a Frame at most every FRAME_SECONDS and at the end, and None after every other token.
    """
    from core.model.generate import generate

    mixes = live.take()
    length = sampling.max_new_tokens
    encoded = [
        encode_with_passages(resident, prompt, chat, length, thinking, one)
        for one in passages or [None] * len(mixes)
    ]
    prompts = tuple(p for _, _, p in encoded) if passages else ()
    left_out = max(count for _, count, _ in encoded)
    sent = 0.0
    samplings = _column_samplings(sampling, len(mixes), same_noise)
    for states in generate(
        resident, [ids for ids, _, _ in encoded], mixes, samplings, live.take, fast=not exact
    ):
        done = all(s.reason for s in states)
        now = time.monotonic()
        if done or now - sent >= FRAME_SECONDS:
            sent = now
            yield Frame([s.column(resident.base.tokenizer) for s in states], done, left_out, prompts)
        else:
            yield None


def check_passages(passages: Sequence[Sequence[Passage] | None] | None, columns: int, chat: bool) -> None:
    """Checks that passages can be answered from.

    Raises:
        SpecError: not one entry per column, or a text is continued.
    """
    if passages is None:
        return
    if len(passages) != columns:
        raise SpecError(
            f"Passages must have one entry per column ({columns}), got {len(passages)}.",
            "Give None for a column without documents.",
        )
    if not chat and any(one is not None for one in passages):
        raise SpecError(
            "Documents answer questions. A text that is continued has no place for their passages.",
            "Switch Documents off, or ask a question instead of continuing a text.",
        ).at("documents")


def encode_with_passages(
    resident: Resident,
    prompt: str | Sequence[dict[str, str]],
    chat: bool,
    max_new_tokens: int,
    thinking: bool,
    passages: Sequence[Passage] | None,
) -> tuple[list[int], int, PassagePrompt | None]:
    """Encodes a prompt with as many passages as the context has room for, then with earlier questions.

    Args:
        passages: the best first; None for a prompt without documents.

    Returns:
        The token ids, the number of earlier questions that were left out, and the prompt with its passages.

    Raises:
        SpecError, DataError: as `_encode_conversation`.
    """
    if passages is None:
        return (*_encode_conversation(resident, prompt, chat, max_new_tokens, thinking), None)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    head = [m for m in messages[:1] if m["role"] == "system"]
    built = place_passages(resident, [*head, messages[-1]], passages, max_new_tokens, thinking)
    whole = [*messages[:-1], {**messages[-1], "content": built.text}]
    ids, left_out = _encode_conversation(resident, whole, True, max_new_tokens, thinking)
    return ids, left_out, built


def place_passages(
    resident: Resident,
    messages: Sequence[dict[str, str]],
    passages: Sequence[Passage],
    max_new_tokens: int,
    thinking: bool,
) -> PassagePrompt:
    """The last message of a conversation with as many passages before it as the context has room for.

    Args:
        messages: what stands in the context beside the passages; the last one is the question.
        passages: the best first.
        max_new_tokens: tokens to reserve for the answer.
    """
    from core.model.generate import encode_prompt
    from core.retrieve.prompt import build_prompt

    *earlier, question = messages

    def fits(text: str) -> bool:
        try:
            encode_prompt(resident, [*earlier, {**question, "content": text}], True, max_new_tokens, thinking)
        except SpecError:
            return False
        return True

    built = build_prompt(question["content"], passages, fits)
    if not built.used and not fits(built.text):  # the question alone is reported if it is too long
        built = replace(built, text=question["content"])
    return built


def _encode_conversation(
    resident: Resident,
    prompt: str | Sequence[dict[str, str]],
    chat: bool,
    max_new_tokens: int,
    thinking: bool,
) -> tuple[list[int], int]:
    """Encodes a prompt with as many of its earlier questions as the context has room for.

    Returns:
        The token ids, and the number of questions that were left out, oldest first.

    Raises:
        SpecError: the last question alone is too long, or empty. DataError: the template refuses it.
    """
    from core.model.generate import encode_prompt

    messages: Sequence[dict[str, str]] = [] if isinstance(prompt, str) else prompt
    questions = [i for i, m in enumerate(messages) if m["role"] == "user"]
    if not chat or len(questions) < 2:
        return encode_prompt(resident, prompt, chat, max_new_tokens, thinking), 0
    head = list(messages[: questions[0]])
    for left_out, start in enumerate(questions[:-1]):
        try:
            whole = [*head, *messages[start:]]
            return encode_prompt(resident, whole, chat, max_new_tokens, thinking), left_out
        except SpecError:
            continue
    last = [*head, *messages[questions[-1] :]]
    return encode_prompt(resident, last, chat, max_new_tokens, thinking), len(questions) - 1


def _check_count(mixes: Sequence[Mix]) -> None:
    if not 1 <= len(mixes) <= COLUMN_LIMIT:
        raise SpecError(
            f"The number of mixes must be between 1 and {COLUMN_LIMIT}, got {len(mixes)}.",
            f"Choose 1 to {COLUMN_LIMIT} mixes.",
        )


def _column_samplings(sampling: Sampling, columns: int, same_noise: bool) -> list[Sampling]:
    """One sampling per column: all with the same seed, or with consecutive seeds."""
    if same_noise:
        return [sampling] * columns
    return [replace(sampling, seed=sampling.seed + i) for i in range(columns)]
