"""Encoding of rows as version 0.1.0 did it, for runs that began under the first rules (`TrainSpec.rules`).

Such a run finds its position by counting the sequences of its rows, so they stay bit-identical. Nothing else
uses this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from core.data.tokens import span_corruption
from core.data.tokens.encoded_sequence import EncodedSequence, is_seq2seq
from core.data.tokens.rendering import OPENING_BOS, render_chat
from core.data.tokens.truncation import Cut

_PLACEHOLDER = "\ue000"  # a private-use character, written before and after the number of a forged token


def encode_task(
    tokenizer: Any, messages: Sequence[dict[str, Any]], max_length: int, ends: Sequence[int]
) -> EncodedSequence:
    """Encodes a conversation; a sequence that is too long first loses tokens at its beginning."""
    messages = [{"role": m["role"], "content": m["content"]} for m in messages]
    if is_seq2seq(tokenizer):
        question = _encode_chat(tokenizer, messages[:-1], add_generation_prompt=True)
        answer = [*_encode_plain(tokenizer, messages[-1]["content"]), tokenizer.eos_token_id]
        written = answer[: max_length - 1]
        decoder_ids = [tokenizer.decoder_start_token_id, *written]
        encoder_ids = question[-max_length:]
        return EncodedSequence(decoder_ids, [0] + [1] * len(written), encoder_ids=encoder_ids)
    ids = _encode_chat(tokenizer, messages, add_generation_prompt=False)
    spans = [
        span
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
        for span in [_find_answer(tokenizer, messages, i, ids, ends)]
        if span
    ]
    if not spans:
        lost = Cut(question=max(0, len(ids) - max_length))
        return EncodedSequence(ids[:max_length], [0] * len(ids[:max_length]), lost)
    start, end = spans[-1]
    ids = ids[:end] if end <= len(ids) else [*ids, tokenizer.eos_token_id]
    loss_mask = [0] * len(ids)
    for first, last in spans:
        loss_mask[first:last] = [1] * (last - first)
    # One token of context at least, then as much of the last answer as fits.
    stop = min(end, start + max_length - 1)
    begin = max(0, stop - max_length)
    for first, last in spans:
        if begin > 0 and first <= begin < last:
            loss_mask[begin:last] = [0] * (last - begin)
    lost = Cut(answer=len(ids) - stop, question=begin)
    return EncodedSequence(ids[begin:stop], loss_mask[begin:stop], lost)


def encode_documents(tokenizer: Any, texts: Iterable[str]) -> Iterator[list[int]]:
    """Encodes documents, each with eos at its end."""
    for text in texts:
        yield [*_encode_plain(tokenizer, text), tokenizer.eos_token_id]


def encode_text(tokenizer: Any, text: str, max_length: int) -> list[EncodedSequence]:
    """Encodes a document for scoring, as windows that open with eos."""
    (ids,) = encode_documents(tokenizer, [text])
    if is_seq2seq(tokenizer):
        sequences = []
        for part in span_corruption.split_for_encoder(tokenizer, ids, max_length):
            ids, loss_mask, encoder_ids = span_corruption.corrupt_spans(
                tokenizer, part, span_corruption.content_generator(part)
            )
            sequences.append(EncodedSequence(ids, loss_mask, encoder_ids=encoder_ids))
        return sequences
    size = max_length - 1
    parts = [ids[i : i + size] for i in range(0, len(ids), size)]
    return [EncodedSequence([tokenizer.eos_token_id, *part], [0] + [1] * len(part)) for part in parts]


def _encode_plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def _encode_chat(
    tokenizer: Any, messages: Sequence[dict[str, str]], add_generation_prompt: bool
) -> list[int]:
    template = tokenizer.get_chat_template().removeprefix(OPENING_BOS)

    def render(conversation: Sequence[dict[str, str]]) -> str:
        return render_chat(
            tokenizer, list(conversation), template, add_generation_prompt=add_generation_prompt
        )

    specials = [t for t in tokenizer.all_special_tokens if t]
    forged = [t for t in specials if any(t in m["content"] for m in messages)]
    if not forged:
        return list(tokenizer(render(messages), add_special_tokens=False)["input_ids"])
    clean = [{**m, "content": m["content"].replace(_PLACEHOLDER, "")} for m in messages]
    for i, token in enumerate(forged):
        for m in clean:
            m["content"] = m["content"].replace(token, f"{_PLACEHOLDER}{i}{_PLACEHOLDER}")
    ids: list[int] = []
    for i, part in enumerate(render(clean).split(_PLACEHOLDER)):
        is_forged = i % 2 == 1  # odd parts are the numbers of forged tokens
        if part:
            part = forged[int(part)] if is_forged else part
            ids += tokenizer(part, add_special_tokens=False, split_special_tokens=is_forged)["input_ids"]
    return ids


def _find_answer(
    tokenizer: Any, messages: Sequence[dict[str, str]], turn: int, ids: Sequence[int], ends: Sequence[int]
) -> tuple[int, int] | None:
    """The tokens of one assistant turn: from where prefix and conversation diverge to its first end token."""
    start = _count_shared_tokens(_encode_chat(tokenizer, messages[:turn], add_generation_prompt=True), ids)
    is_last = turn == len(messages) - 1
    bound = len(ids)
    if not is_last:
        bound = _count_shared_tokens(
            _encode_chat(tokenizer, messages[: turn + 1], add_generation_prompt=False), ids
        )
    if bound <= start:
        bound = len(ids)
    end = next((i for i in range(start, bound) if ids[i] in ends), None)
    if end is not None:
        return start, end + 1
    if is_last:
        return start, bound + 1
    return (start, bound) if start < bound < len(ids) else None


def _count_shared_tokens(prefix: Sequence[int], ids: Sequence[int]) -> int:
    size = min(len(prefix), len(ids))
    return next((i for i in range(size) if prefix[i] != ids[i]), size)
