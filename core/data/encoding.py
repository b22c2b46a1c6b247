"""Rows to token ids and loss masks: chat template, completion masks, special tokens in user text.

`IGNORE_INDEX`, the label that cross entropy ignores, is defined here only. Batches are in `collation`, packed
rows in `packing`, the inputs of encoder-decoder bases in `span_corruption`.

    row         {"messages": [{"role": "user", ...}, {"role": "assistant", ...}]}
    ids         <user> question <end> <assistant>  answer  <end>
    loss_mask     0       0       0        0          1      1      1: trained and scored
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.data import span_corruption

IGNORE_INDEX = -100  # the label that cross entropy skips
_PLACEHOLDER = "\ue000"  # a private-use character, written before and after the number of a forged token


@dataclass(frozen=True)
class EncodedSequence:
    """Token ids of one sequence and which of them are trained on and scored.

    Attributes:
        ids: T token ids. With an encoder-decoder base these are the decoder's, from its start token on.
        loss_mask: T values, 1 where the token is trained on and scored, else 0.
        truncated: tokens that were cut off to respect the max length.
        encoder_ids: S token ids that the encoder reads; empty for a decoder-only base.
    """

    ids: list[int]
    loss_mask: list[int]
    truncated: int = 0
    encoder_ids: list[int] = field(default_factory=list)

    @property
    def row(self) -> dict[str, list[int]]:
        """The sequence as a row for `core.data.collation.collate`."""
        row = {"input_ids": self.ids, "loss_mask": self.loss_mask}
        if self.encoder_ids:
            row["encoder_ids"] = self.encoder_ids
        return row

    @property
    def length(self) -> int:
        """Tokens that one forward pass reads, T + S."""
        return len(self.ids) + len(self.encoder_ids)


def is_seq2seq(tokenizer: Any) -> bool:
    """Whether the base has an encoder and a decoder; `load_base` marks its tokenizer with the start token."""
    return getattr(tokenizer, "decoder_start_token_id", None) is not None


def encode_chat(tokenizer: Any, messages: Sequence[dict[str, str]], add_generation_prompt: bool) -> list[int]:
    """Renders messages with the tokenizer's chat template into token ids.

    Special tokens that are written out in the content of a message are encoded as plain characters, so that
    a text cannot forge a role. The template runs over placeholders; the text of each placeholder is then
    tokenized on its own with `split_special_tokens=True`.

    Args:
        messages: dicts with "role" and "content".
        add_generation_prompt: end with the opening of an assistant's turn.
    """
    specials = [t for t in tokenizer.all_special_tokens if t]
    forged = [t for t in specials if any(t in m["content"] for m in messages)]
    if not forged:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    clean = [{**m, "content": m["content"].replace(_PLACEHOLDER, "")} for m in messages]
    for i, token in enumerate(forged):
        for m in clean:
            m["content"] = m["content"].replace(token, f"{_PLACEHOLDER}{i}{_PLACEHOLDER}")
    text = tokenizer.apply_chat_template(clean, tokenize=False, add_generation_prompt=add_generation_prompt)
    ids: list[int] = []
    for i, part in enumerate(text.split(_PLACEHOLDER)):
        is_forged = i % 2 == 1  # odd parts are the numbers of forged tokens
        if part:
            part = forged[int(part)] if is_forged else part
            ids += tokenizer(part, add_special_tokens=False, split_special_tokens=is_forged)["input_ids"]
    return ids


def count_with_special_tokens(tokenizer: Any, texts: Iterable[str]) -> int:
    """Counts the texts in which one of the tokenizer's special tokens is written out."""
    specials = [t for t in tokenizer.all_special_tokens if t]
    return sum(any(t in text for t in specials) for text in texts)


def encode_task(
    tokenizer: Any, messages: Sequence[dict[str, str]], max_length: int, ends: Sequence[int]
) -> EncodedSequence:
    """Encodes a conversation; every assistant turn with its end token is a completion, the rest is context.

    A sequence that is too long first loses tokens at its beginning, then at the end of its last completion.
    A completion that has lost its own beginning becomes context.

    Args:
        tokenizer: the base's tokenizer, with a chat template.
        messages: the conversation; the last message is the assistant's.
        max_length: longest sequence in tokens.
        ends: ids of the tokens that end an answer; what the template writes after the first one is context.
    """
    if is_seq2seq(tokenizer):
        question = encode_chat(tokenizer, messages[:-1], add_generation_prompt=True)
        answer = messages[-1]["content"]
        return _to_sequence(span_corruption.encode_task(tokenizer, question, answer, max_length))
    ids = encode_chat(tokenizer, messages, add_generation_prompt=False)
    spans = [
        span
        for i, message in enumerate(messages)
        if message["role"] == "assistant"
        for span in [_find_answer(tokenizer, messages, i, ids, ends)]
        if span
    ]
    if not spans:
        return EncodedSequence(ids[:max_length], [0] * len(ids[:max_length]), max(0, len(ids) - max_length))
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
    return EncodedSequence(ids[begin:stop], loss_mask[begin:stop], len(ids) - (stop - begin))


def _find_answer(
    tokenizer: Any, messages: Sequence[dict[str, str]], turn: int, ids: Sequence[int], ends: Sequence[int]
) -> tuple[int, int] | None:
    """Finds the tokens of one assistant turn in the encoded conversation.

    A template may render a turn differently once other turns follow (Qwen3 drops the thought). The span
    therefore starts where the rendered prefix and the whole conversation diverge; the length of the prefix
    would be wrong.

    Returns:
        (first token, one past its end token), or None where the template leaves the turn out.
    """
    start = _count_shared_tokens(encode_chat(tokenizer, messages[:turn], add_generation_prompt=True), ids)
    is_last = turn == len(messages) - 1
    bound = len(ids)
    if not is_last:
        bound = _count_shared_tokens(
            encode_chat(tokenizer, messages[: turn + 1], add_generation_prompt=False), ids
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
    """Counts the tokens that both sequences share from the start."""
    size = min(len(prefix), len(ids))
    return next((i for i in range(size) if prefix[i] != ids[i]), size)


def encode_text(
    tokenizer: Any, text: str, max_length: int, allow_special_tokens: bool = False
) -> list[EncodedSequence]:
    """Encodes a document for scoring, as windows of at most `max_length` tokens.

    Every window opens with one boundary token (eos), which is not scored. An encoder-decoder base is scored
    by span corruption; the spans depend on the text alone, so that every evaluation hides the same ones.

    Args:
        tokenizer: the base's tokenizer.
        text: the document.
        max_length: tokens of a window.
        allow_special_tokens: encode special tokens that are written out in the text as special tokens. Only
            for texts that ship with the studio; in user text they stay plain characters.
    """
    eos = tokenizer.eos_token_id
    (ids,) = encode_documents(tokenizer, [text], allow_special_tokens)
    if is_seq2seq(tokenizer):
        sequences = []
        for part in span_corruption.split_for_encoder(tokenizer, ids, max_length):
            generator = span_corruption.content_generator(part)
            sequences.append(_to_sequence(span_corruption.corrupt_spans(tokenizer, part, generator)))
        return sequences
    size = max_length - 1
    return [
        EncodedSequence([eos, *ids[i : i + size]], [0] + [1] * len(ids[i : i + size]))
        for i in range(0, len(ids), size)
    ]


def encode_cloze(tokenizer: Any, prompt: str, completion: str) -> EncodedSequence:
    """Encodes a raw text of which only the completion is scored.

    Args:
        tokenizer: the base's tokenizer.
        prompt: beginning of the text.
        completion: end of the text, with its own leading space where it has one.
    """
    if is_seq2seq(tokenizer):
        return _to_sequence(span_corruption.encode_cloze(tokenizer, prompt, completion))
    head = tokenizer(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    tail = tokenizer(completion, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return EncodedSequence([tokenizer.eos_token_id, *head, *tail], [0] * (1 + len(head)) + [1] * len(tail))


def encode_text_prompt(tokenizer: Any, text: str) -> list[int]:
    """Encodes the beginning of a raw text as a prompt that the base continues."""
    if is_seq2seq(tokenizer):
        return span_corruption.encode_text_prompt(tokenizer, text)
    return [
        tokenizer.eos_token_id,
        *tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"],
    ]


def encode_span_corruption(
    tokenizer: Any, documents: Iterable[list[int]], max_length: int, seed: int
) -> list[list[EncodedSequence]]:
    """Encodes documents for an encoder-decoder base; the hidden spans are drawn once for the whole run.

    Returns:
        For each document the sequences of its parts.
    """
    generator = random.Random(seed)
    return [
        [
            _to_sequence(span_corruption.corrupt_spans(tokenizer, part, generator))
            for part in span_corruption.split_for_encoder(tokenizer, document, max_length)
        ]
        for document in documents
    ]


def _to_sequence(sides: span_corruption.Sides) -> EncodedSequence:
    return EncodedSequence(sides.decoder_ids, sides.loss_mask, encoder_ids=sides.encoder_ids)


def encode_documents(
    tokenizer: Any, texts: Iterable[str], allow_special_tokens: bool = False
) -> Iterator[list[int]]:
    """Encodes documents, each with eos at its end; `allow_special_tokens` as in `encode_text`."""
    split = not allow_special_tokens
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=split)["input_ids"]
        yield [*ids, tokenizer.eos_token_id]
