"""Answers to questions under mixes, for experiments: in batches, or one at a time for latency.

    question + passages ─ build_prompt, as many as fit ─> messages ─ generate ─> answer
                                                             └ score ─> nats of the reference

The generators yield None after every token, so that training and chatting are interleaved with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.data.tokens.chat_encoding import encode_conversation, encode_turns
from core.data.tokens.rendering import TEMPLATE_ERRORS
from core.errors import StudioError
from core.model.base import Base
from core.model.columns import Column
from core.model.generate import answer_room, generate
from core.model.resident import Resident
from core.model.scoring import score
from core.spec.mix import Mix, Sampling

BATCH_ROWS = 16
BATCH_TOKENS = 16_384  # of prompts and answers together, in one batch

Message = dict[str, Any]
WritePrompt = Callable[[Callable[[str], bool]], tuple[str, Any]]


@dataclass(frozen=True)
class AnswerTask:
    """A question for a mix.

    Attributes:
        key: identifies it for the caller.
        history: the messages before the question.
        write: from a test whether a prompt fits in the context, the text of the question and what the caller
            wants back, such as the passages in it.
        reference: the gold answer, to score; "" without one.
        limit: the longest answer, in tokens.
    """

    key: Any
    mix: Mix
    history: tuple[Message, ...]
    write: WritePrompt
    reference: str = ""
    limit: int = 128


@dataclass(frozen=True)
class TaskAnswer:
    """The answer to a task.

    Attributes:
        used: what `AnswerTask.write` returned beside the text.
        nats, scored_tokens: of the reference; 0 tokens without one.
        problem: why it was not answered, as a clause; "" otherwise.
    """

    key: Any
    column: Column = field(default_factory=Column)
    used: Any = None
    nats: float = 0.0
    scored_tokens: int = 0
    problem: str = ""


@dataclass(frozen=True)
class _Encoded:
    task: AnswerTask
    messages: list[Message]
    ids: list[int]
    used: Any
    limit: int


def answer_tasks(resident: Resident, tasks: Sequence[AnswerTask]) -> Iterator[list[TaskAnswer] | None]:
    """Answers tasks greedily, several mixes in one batch.

    Yields:
        the answers of a batch in the order of the tasks, and None after every token.
    """
    batch: list[_Encoded] = []
    for task in tasks:
        encoded = _encode(resident.base, task)
        if isinstance(encoded, TaskAnswer):
            yield [encoded]
            continue
        sizes = [len(e.ids) + e.limit for e in (*batch, encoded)]
        if batch and (len(batch) == BATCH_ROWS or max(sizes) * len(sizes) > BATCH_TOKENS):
            yield from _answer_batch(resident, batch)
            batch = []
        batch.append(encoded)
    if batch:
        yield from _answer_batch(resident, batch)


def answer_alone(resident: Resident, tasks: Sequence[AnswerTask]) -> Iterator[list[TaskAnswer] | None]:
    """Answers tasks one at a time; `Column.seconds` is then what a single user waits.

    Yields:
        as `answer_tasks`; nothing is scored.
    """
    for task in tasks:
        encoded = _encode(resident.base, task)
        if isinstance(encoded, TaskAnswer):
            yield [encoded]
            continue
        states = yield from _decode(resident, [encoded])
        yield [TaskAnswer(task.key, states[0].column(resident.base.tokenizer), encoded.used)]


def _encode(base: Base, task: AnswerTask) -> _Encoded | TaskAnswer:
    def encode(text: str) -> list[int]:
        return encode_conversation(base.tokenizer, [*task.history, {"role": "user", "content": text}])

    def fits(text: str) -> bool:
        return answer_room(base, encode(text)) >= task.limit

    try:
        text, used = task.write(fits)
        ids = encode(text)
    except (StudioError, *TEMPLATE_ERRORS) as e:
        return TaskAnswer(task.key, problem=e.what if isinstance(e, StudioError) else str(e))
    room = answer_room(base, ids)
    if room < 1:
        return TaskAnswer(
            task.key, problem=f"its prompt has {len(ids)} tokens and the context of this base {base.context}"
        )
    messages = [*task.history, {"role": "user", "content": text}]
    return _Encoded(task, messages, ids, used, min(task.limit, room))


def _decode(resident: Resident, batch: Sequence[_Encoded]) -> Any:
    """A generator of None that returns the states of the answers."""
    states: Sequence[Any] = []
    for states in generate(
        resident,
        [e.ids for e in batch],
        [e.task.mix for e in batch],
        [Sampling(max_new_tokens=e.limit) for e in batch],
    ):
        yield None
    return states


def _answer_batch(resident: Resident, batch: Sequence[_Encoded]) -> Iterator[list[TaskAnswer] | None]:
    states = yield from _decode(resident, batch)
    answers = []
    for encoded, state in zip(batch, states, strict=True):
        nats, tokens = yield from _score(resident, encoded)
        column = state.column(resident.base.tokenizer)
        answers.append(TaskAnswer(encoded.task.key, column, encoded.used, nats, tokens))
    yield answers


def _score(resident: Resident, encoded: _Encoded) -> Any:
    """A generator of None that returns (nats, tokens) of the reference after the prompt."""
    if not encoded.task.reference:
        return 0.0, 0
    base = resident.base
    messages = [*encoded.messages, {"role": "assistant", "content": encoded.task.reference}]
    try:
        sequences = encode_turns(base.tokenizer, messages, base.context, base.eos_ids)[-1:]
    except (StudioError, *TEMPLATE_ERRORS):
        return 0.0, 0
    sequences = [s for s in sequences if any(s.loss_mask[1:])]
    if not sequences:
        return 0.0, 0
    scores: list[Any] = []
    for _, scores in score(resident, sequences, [encoded.task.mix]):
        yield None
    return scores[0].nats, scores[0].tokens
