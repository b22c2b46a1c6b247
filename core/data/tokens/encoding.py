"""Documents, cloze sentences and raw prompts to token ids and loss masks; conversations: `chat_encoding`.

`IGNORE_INDEX`, the label that cross entropy ignores, is defined here only. Batches are in `collation`, packed
rows in `packing`, the inputs of encoder-decoder bases in `span_corruption`. `special_tokens` keeps the texts
of users from becoming control tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

from core.data.tokens import span_corruption
from core.data.tokens.chat_encoding import Prompt as Prompt
from core.data.tokens.chat_encoding import encode_chat as encode_chat
from core.data.tokens.chat_encoding import encode_conversation as encode_conversation
from core.data.tokens.chat_encoding import encode_question as encode_question
from core.data.tokens.chat_encoding import encode_task as encode_task
from core.data.tokens.chat_encoding import encode_turns as encode_turns
from core.data.tokens.encoded_sequence import EncodedSequence as EncodedSequence
from core.data.tokens.encoded_sequence import is_seq2seq as is_seq2seq
from core.data.tokens.marked_text import MarkedText
from core.data.tokens.special_tokens import boundary_ids as boundary_ids
from core.data.tokens.special_tokens import count_with_special_tokens as count_with_special_tokens
from core.data.tokens.special_tokens import encoder_of
from core.data.tokens.special_tokens import text_prefix as text_prefix
from core.data.tokens.token_joiner import TokenJoiner

IGNORE_INDEX = -100  # the label that cross entropy skips


def encode_text(
    tokenizer: Any, text: str, max_length: int, allow_special_tokens: bool = False
) -> list[EncodedSequence]:
    """Encodes a document for scoring, as windows of at most `max_length` tokens.

    Every window opens with the boundary tokens (what the tokenizer puts before a text, else eos), which are
    not scored. An encoder-decoder base is scored by span corruption; the spans depend on the text alone, so
    that every evaluation hides the same ones.

    Args:
        tokenizer: the base's tokenizer.
        text: the document.
        max_length: tokens of a window.
        allow_special_tokens: encode special tokens that are written out in the text as special tokens. Only
            for texts that ship with the studio; in user text they stay plain characters.
    """
    (ids,) = encode_documents(tokenizer, [text], allow_special_tokens)
    if is_seq2seq(tokenizer):
        sequences = []
        for part in span_corruption.split_for_encoder(tokenizer, ids, max_length):
            generator = span_corruption.content_generator(part)
            sequences.append(_to_sequence(span_corruption.corrupt_spans(tokenizer, part, generator)))
        return sequences
    boundary = boundary_ids(tokenizer)
    size = max(1, max_length - len(boundary))
    parts = [ids[i : i + size] for i in range(0, len(ids), size)]
    return [EncodedSequence(boundary + part, [0] * len(boundary) + [1] * len(part)) for part in parts]


def encode_cloze(tokenizer: Any, prompt: str, completion: str) -> EncodedSequence:
    """Encodes a raw text of which only the completion is scored.

    Args:
        tokenizer: the base's tokenizer.
        prompt: beginning of the text.
        completion: end of the text, with its own leading space where it has one.
    """
    if is_seq2seq(tokenizer):
        return _to_sequence(span_corruption.encode_cloze(tokenizer, prompt, completion))
    joiner = TokenJoiner(encoder_of(tokenizer))
    joiner.add(MarkedText.join([(prompt, True)]))
    head = len(boundary_ids(tokenizer)) + len(joiner.ids)
    joiner.add(MarkedText.join([(completion, True)]))
    ids = boundary_ids(tokenizer) + joiner.ids
    return EncodedSequence(ids, [0] * head + [1] * (len(ids) - head))


def encode_text_prompt(tokenizer: Any, text: str) -> list[int]:
    """Encodes the beginning of a raw text as a prompt that the base continues."""
    if is_seq2seq(tokenizer):
        return span_corruption.encode_text_prompt(tokenizer, text)
    return boundary_ids(tokenizer) + encoder_of(tokenizer).encode_user(text)


def encode_answer(tokenizer: Any, text: str) -> list[int]:
    """Encodes a text that is read as an answer, without what the template writes after it."""
    if is_seq2seq(tokenizer):
        return encoder_of(tokenizer).encode_user(text)
    return encoder_of(tokenizer).encode_continuation(MarkedText.join([(text, True)]))


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
    encoder = encoder_of(tokenizer)
    for text in texts:
        if allow_special_tokens:
            ids = list(tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])
        else:
            ids = encoder.encode_user(text)
        yield [*ids, tokenizer.eos_token_id]
