"""Conversations to token ids and loss masks.

    row         {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}
    ids         <user> question <end> <assistant>  answer  <end>
    loss_mask     0       0       0        0          1      1      1: trained and scored

The ids of a prompt (`encode_chat`) are the first ids of the sequence that trains its answer (`encode_turns`).
Templates are rendered in `rendering`, changed conversations are in `conversations`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.tokens import span_corruption
from core.data.tokens.conversations import adapt_turns, has_thought, read_turns
from core.data.tokens.encoded_sequence import EncodedSequence, is_seq2seq
from core.data.tokens.marked_text import MarkedText
from core.data.tokens.rendering import (
    TEMPLATE_ERRORS,
    Turn,
    fill,
    find_content,
    refusal,
    render,
    render_answer,
)
from core.data.tokens.special_tokens import boundary_ids, encoder_of, text_prefix
from core.data.tokens.token_joiner import TokenJoiner
from core.data.tokens.truncation import Cut, Head, choose_tokens, take


def encode_chat(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, thinking: bool = False
) -> list[int]:
    """Renders messages with the tokenizer's chat template into token ids.

    Control tokens that are written out in the content of a message are encoded as plain characters, so that a
    text cannot forge a role.

    Args:
        messages: dicts with "role" and "content".
        add_generation_prompt: end with the opening of an assistant's turn.
        thinking: open the turn for a thought. Otherwise it is opened for an answer without a thought; a
            template that writes an empty thought before such an answer writes it here.

    Raises:
        DataError: the template refuses the conversation; in the template's words.
    """
    turns = read_turns(messages)
    if not add_generation_prompt and (not turns or turns[-1].role != "assistant"):
        return _encode_open_turns(tokenizer, turns, False, False)
    if add_generation_prompt:
        turns.append(Turn("assistant", ("x",), thought="x" if thinking else ""))  # left out below
    turns, _ = adapt_turns(tokenizer, turns)
    if is_seq2seq(tokenizer):
        return _encode_open_turns(tokenizer, turns[:-1], True, thinking)
    joiner = TokenJoiner(encoder_of(tokenizer))
    for i, turn in enumerate(turns):
        if turn.role == "assistant":
            is_open = add_generation_prompt and i == len(turns) - 1
            _join_answer(joiner, tokenizer, turns[: i + 1], is_open)
    if not add_generation_prompt:
        whole = render_answer(tokenizer, turns)
        joiner.extend_to(whole.prompt + whole.completion)
    return joiner.ids or boundary_ids(tokenizer)


def _encode_open_turns(tokenizer: Any, turns: Sequence[Turn], opened: bool, thinking: bool) -> list[int]:
    """Token ids of turns that no answer of ours is appended to, such as the input of an encoder."""
    try:
        rendered = render(tokenizer, turns, opened, thinking)
    except TEMPLATE_ERRORS as e:
        raise refusal(str(e)) from e
    return encoder_of(tokenizer).encode(fill(rendered, turns))


class Prompt(list[int]):
    """The token ids of a conversation that is to be answered.

    Attributes:
        question: index of the first token of the last message.
    """

    def __init__(self, ids: Iterable[int], question: int = 0) -> None:
        super().__init__(ids)
        self.question = question


def encode_conversation(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], thinking: bool = False
) -> Prompt:
    """Encodes a conversation that is to be answered, as `encode_chat`, and finds its last message.

    Raises:
        DataError: the template refuses the conversation; in the template's words.
    """
    ids = encode_chat(tokenizer, messages, True, thinking)
    if len(messages) < 2:
        return Prompt(ids)
    # The same conversation with another last message has the same tokens up to that message.
    content = str(messages[-1].get("content") or "")
    other = {**messages[-1], "content": "1" if content.lstrip()[:1] != "1" else "2"}
    changed = encode_chat(tokenizer, [*messages[:-1], other], True, thinking)
    shared = next((i for i, (a, b) in enumerate(zip(ids, changed, strict=False)) if a != b), 0)
    return Prompt(ids, shared)


def encode_question(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Encodes the prompt of a row as it is trained: all messages but the last one, which is the answer.

    The prompt of an answer with a thought opens a thought.
    """
    return encode_conversation(tokenizer, messages[:-1], thinking=has_thought(messages))


@dataclass(frozen=True)
class _JoinedAnswer:
    """Where an answer stands in the ids of its conversation.

    Attributes:
        parts: (first token, one past the last) of each part of the answer; the last one has its end.
        rest: what the template writes after that.
        continues: whether the prompt continues the conversation so far.
    """

    parts: list[tuple[int, int]]
    rest: MarkedText
    continues: bool


def _join_answer(
    joiner: TokenJoiner, tokenizer: Any, turns: Sequence[Turn], is_open: bool = False
) -> _JoinedAnswer:
    """Adds the prompt and the text of an answer, up to the control token that ends it.

    Args:
        is_open: leave out the last part of the answer, which is still to be written.
    """
    answer = render_answer(tokenizer, turns)
    continues = joiner.extend_to(answer.prompt)
    control = encoder_of(tokenizer).find_control(answer.completion, answer.end)
    end = control[1] if control else len(answer.completion)
    bounds = [0, *answer.cuts] if is_open else [0, *answer.cuts, end]
    parts = []
    for first, last in zip(bounds, bounds[1:], strict=False):
        before = len(joiner.ids)
        joiner.add(answer.completion.cut(first, last))
        parts.append((before, len(joiner.ids)))
    return _JoinedAnswer(parts, answer.completion.cut(end), continues)


def encode_turns(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], max_length: int, ends: Sequence[int]
) -> list[EncodedSequence]:
    """Encodes a conversation; every assistant turn with its end token is a completion, the rest is context.

    One sequence trains all answers, where the template writes the prompt of each of them at the beginning of
    the next. A template that writes earlier turns otherwise (Qwen3 drops their thoughts) gives one sequence
    per answer, and so does an encoder-decoder base. Answers with "weight": 0 are context.

    Args:
        tokenizer: the base's tokenizer, with a chat template.
        messages: the conversation; messages after the last answer are left out.
        max_length: longest sequence in tokens; what is cut, says `core.data.tokens.truncation`.
        ends: ids of the tokens that end an answer; what the template writes after the first one is context.

    Raises:
        DataError: the template refuses the conversation; in the template's words.
    """
    turns = read_turns(messages)
    while turns and turns[-1].role != "assistant":
        turns.pop()
    if not turns:
        return []
    turns, _ = adapt_turns(tokenizer, turns)
    if is_seq2seq(tokenizer):
        return _encode_for_encoder(tokenizer, turns, max_length)
    joiner = TokenJoiner(encoder_of(tokenizer))
    sequences: list[EncodedSequence] = []
    group: list[_Completion] = []
    for i, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        before = joiner.ids
        joined = _join_answer(joiner, tokenizer, turns[: i + 1])
        if not joined.continues:
            sequences += _finish_group(tokenizer, before, group, max_length)
            group = []
        if completion := _complete(tokenizer, turns[: i + 1], joined, joiner.ids, ends):
            group.append(completion)
    return sequences + _finish_group(tokenizer, joiner.ids, group, max_length)


@dataclass(frozen=True)
class _Completion:
    """A trained answer in the ids of its conversation.

    Attributes:
        turns: the conversation up to the answer.
        start: tokens before the first trained one.
        stop: one past the last trained token.
        spans: (first, one past the last) of the trained tokens.
        missing: ids that follow `stop` where the template does not end an answer; eos is the last of them.
    """

    turns: Sequence[Turn]
    start: int
    stop: int
    spans: list[tuple[int, int]]
    missing: list[int]


def _complete(
    tokenizer: Any, turns: Sequence[Turn], joined: _JoinedAnswer, ids: Sequence[int], ends: Sequence[int]
) -> _Completion | None:
    """The trained tokens of an answer, or None where all of it is context."""
    spans = [span for span, trained in zip(joined.parts, turns[-1].trained, strict=True) if trained]
    if not spans:
        return None
    start = spans[0][0]
    if not turns[-1].trained[-1]:
        return _Completion(turns, start, spans[-1][1], spans, [])
    first, last = spans[-1]
    end = next((i for i in range(first, last) if ids[i] in ends), None)
    if end is not None:
        return _Completion(turns, start, end + 1, [*spans[:-1], (first, end + 1)], [])
    rest = encoder_of(tokenizer).encode_continuation(joined.rest) if len(joined.rest) else []
    return _Completion(turns, start, last, spans, [*rest, tokenizer.eos_token_id])


def _finish_group(
    tokenizer: Any, ids: Sequence[int], group: Sequence[_Completion], max_length: int
) -> list[EncodedSequence]:
    """One sequence for all answers; one for each where the template does not end one of them."""
    if any(c.missing for c in group[:-1]):
        return [_to_sequence_of(tokenizer, ids, [c], max_length) for c in group]
    return [_to_sequence_of(tokenizer, ids, group, max_length)] if group else []


def _to_sequence_of(
    tokenizer: Any, ids: Sequence[int], group: Sequence[_Completion], max_length: int
) -> EncodedSequence:
    """The sequence that trains a group of answers; its last one is what a cut leaves longest."""
    last = group[-1]
    tokens = [*ids[: last.stop], *last.missing]
    loss_mask = [0] * len(tokens)
    for completion in group:
        for first, end in completion.spans:
            stop = len(tokens) if completion.missing and end == completion.stop else end
            loss_mask[first:stop] = [1] * (stop - first)
    if last.start == 0:  # at least one token of context
        boundary = boundary_ids(tokenizer)
        tokens, loss_mask = boundary + tokens, [0] * len(boundary) + loss_mask
        cut = Cut(answer=max(0, len(tokens) - max_length))
        return EncodedSequence(tokens[:max_length], loss_mask[:max_length], cut)
    if len(tokens) <= max_length:
        return EncodedSequence(tokens, loss_mask)
    head = _find_head(tokenizer, last.turns, tokens)
    ranges, cut = choose_tokens(last.start, len(tokens) - last.start, max_length, head)
    begin = ranges[-1].start
    for completion in group[:-1]:
        for first, end in completion.spans:
            if first <= begin < end:  # an answer that has lost its beginning is context
                loss_mask[first:end] = [0] * (end - first)
    return EncodedSequence(take(tokens, ranges), take(loss_mask, ranges), cut)


def _find_head(tokenizer: Any, turns: Sequence[Turn], ids: Sequence[int]) -> Head:
    """The tokens at the beginning of a conversation that are cut last: BOS and the system text."""
    prefix = list(text_prefix(tokenizer))
    fixed = len(prefix) if prefix and list(ids[: len(prefix)]) == prefix else 0
    question = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if question is None or (turns[0].role != "system" and not turns[question].system_length):
        return Head(fixed, fixed, fixed)
    rendered = render(tokenizer, turns, thinking=bool(turns[-1].thought))
    text = fill(rendered, turns)
    start = find_content(rendered, turns, question)
    encoder = encoder_of(tokenizer)
    if turns[question].system_length:
        size = len(encoder.encode(text.cut(0, start + turns[question].system_length)))
        return Head(size, size, fixed)
    system_start = find_content(rendered, turns, 0)
    system_end = system_start + len(turns[0].content.strip())
    if system_start < 0 or start < system_end:  # the template writes the system text elsewhere
        return Head(fixed, fixed, fixed)
    system_size, size = (len(encoder.encode(text.cut(0, at))) for at in (system_end, start))
    return Head(system_size, size, fixed)


def _encode_for_encoder(tokenizer: Any, turns: Sequence[Turn], max_length: int) -> list[EncodedSequence]:
    """One sequence per trained answer: the encoder reads the turns before it."""
    sequences = []
    for i, turn in enumerate(turns):
        if turn.role != "assistant" or not all(turn.trained):
            continue
        question = _encode_open_turns(tokenizer, turns[:i], True, bool(turn.thought))
        answer = turn.content
        if turn.thought:
            answer = turn.opening + turn.thought + turn.closing + answer
        sides, cut = span_corruption.encode_task(tokenizer, question, answer, max_length)
        sequences.append(EncodedSequence(sides.decoder_ids, sides.loss_mask, cut, sides.encoder_ids))
    return sequences


def encode_task(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], max_length: int, ends: Sequence[int]
) -> EncodedSequence:
    """Encodes a conversation as the sequence that trains its last answer; see `encode_turns`.

    A conversation without an answer that is trained becomes context as a whole.
    """
    sequences = encode_turns(tokenizer, messages, max_length, ends)
    if sequences:
        return sequences[-1]
    ids = encode_chat(tokenizer, messages, add_generation_prompt=False)
    cut = Cut(question=max(0, len(ids) - max_length))
    return EncodedSequence(ids[:max_length], [0] * len(ids[:max_length]), cut)
