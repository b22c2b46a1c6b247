"""Encoder and decoder token ids for encoder-decoder bases (T5).

                encoder                                  decoder
    task        <question> </s>                          <start> <answer> </s>
    document    Thank you <0> me to your <1> week </s>   <start> <0> for inviting <1> party last <2> </s>
    prompt      The lamp is <0> </s>                     <start> <0> in the room

Documents are learned by span corruption: 15 % of the tokens are hidden in spans of 3 tokens on average, a
sentinel token stands in each span's place, and the decoder writes the spans (Raffel et al. 2020, arXiv
1910.10683, section 3.3). If the tokenizer has no sentinels, the encoder reads the first part of a document,
and the decoder writes the rest (prefix language modelling).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from core.data.tokens.special_tokens import encoder_of
from core.data.tokens.truncation import Cut

NOISE_DENSITY = 0.15  # share of a document's tokens that are hidden
MEAN_SPAN_LENGTH = 3.0  # tokens


class Sides(NamedTuple):
    """Token ids of the decoder, which of them are trained on and scored, and token ids of the encoder."""

    decoder_ids: list[int]
    loss_mask: list[int]
    encoder_ids: list[int]


@lru_cache(maxsize=8)
def sentinel_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids of <extra_id_0>, <extra_id_1>, …, as many as the tokenizer has."""
    vocabulary = tokenizer.get_vocab()
    ids: list[int] = []
    while (token := f"<extra_id_{len(ids)}>") in vocabulary:
        ids.append(int(vocabulary[token]))
    return tuple(ids)


def encode_task(tokenizer: Any, question: Sequence[int], answer: str, max_length: int) -> tuple[Sides, Cut]:
    """Encodes a question for the encoder and its answer for the decoder.

    Args:
        tokenizer: the base's tokenizer.
        question: token ids of the rendered conversation; a question that is too long loses its beginning.
        answer: text of the last message; an answer that is too long loses its end.
        max_length: most tokens of each side.

    Returns:
        (both sides, the tokens that were cut off)
    """
    whole = [*_encode_plain(tokenizer, answer), tokenizer.eos_token_id]
    written = whole[: max_length - 1]
    decoder_ids = [tokenizer.decoder_start_token_id, *written]
    cut = Cut(len(whole) - len(written), max(0, len(question) - max_length))
    return Sides(decoder_ids, [0] + [1] * len(written), list(question)[-max_length:]), cut


def split_for_encoder(tokenizer: Any, ids: Sequence[int], max_length: int) -> Iterator[list[int]]:
    """Splits a document into parts that fit the encoder together with one eos.

    Yields:
        Token ids of a part, without eos. A part of a single token has nothing to predict and is left out.
    """
    body = [i for i in ids if i != tokenizer.eos_token_id]
    size = max_length - 1
    for start in range(0, len(body), size):
        if len(part := body[start : start + size]) > 1:
            yield part


def corrupt_spans(tokenizer: Any, ids: Sequence[int], generator: random.Random) -> Sides:
    """Hides spans of a text for the decoder to write; without sentinels, cuts the text in two.

    Args:
        tokenizer: the base's tokenizer.
        ids: at least two token ids, without eos.
        generator: source of the spans' places and lengths.
    """
    sentinels, eos, start = sentinel_ids(tokenizer), tokenizer.eos_token_id, tokenizer.decoder_start_token_id
    if len(sentinels) < 2:
        cut = generator.randint(1, len(ids) - 1)
        rest = [*ids[cut:], eos]
        return Sides([start, *rest], [0] + [1] * len(rest), [*ids[:cut], eos])
    hidden = min(max(round(len(ids) * NOISE_DENSITY), 1), len(ids) - 1)
    count = min(max(round(hidden / MEAN_SPAN_LENGTH), 1), hidden, len(ids) - hidden, len(sentinels) - 1)
    hidden_lengths = _partition(hidden, count, generator)
    visible_lengths = _partition(len(ids) - hidden, count, generator)
    source: list[int] = []
    target: list[int] = []
    at = 0
    for sentinel, visible, span in zip(sentinels, visible_lengths, hidden_lengths, strict=False):
        source += [*ids[at : at + visible], sentinel]
        target += [sentinel, *ids[at + visible : at + visible + span]]
        at += visible + span
    target += [sentinels[count], eos]
    return Sides([start, *target], [0] + [1] * len(target), [*source, eos])


def _partition(total: int, count: int, generator: random.Random) -> list[int]:
    """Draws `total` as a sum of `count` positive integers, every such sum with equal probability."""
    cuts = [0, *sorted(generator.sample(range(1, total), count - 1)), total]
    return [b - a for a, b in zip(cuts, cuts[1:], strict=False)]


def content_generator(ids: Sequence[int]) -> random.Random:
    """A generator seeded by the text itself, so that every evaluation of a text hides the same spans."""
    return random.Random(zlib.crc32(" ".join(map(str, ids)).encode()))


def encode_text_prompt(tokenizer: Any, text: str) -> list[int]:
    """Encodes a raw text for the encoder; the decoder continues at the sentinel that ends it."""
    return [*_encode_plain(tokenizer, text), *sentinel_ids(tokenizer)[:1], tokenizer.eos_token_id]


def encode_cloze(tokenizer: Any, prompt: str, completion: str) -> Sides:
    """Encodes a text of which only the completion is scored, not the sentinel before it."""
    head = [tokenizer.decoder_start_token_id, *sentinel_ids(tokenizer)[:1]]
    tail = _encode_plain(tokenizer, completion)
    loss_mask = [0] * len(head) + [1] * len(tail)
    return Sides([*head, *tail], loss_mask, encode_text_prompt(tokenizer, prompt))


def _encode_plain(tokenizer: Any, text: str) -> list[int]:
    return encoder_of(tokenizer).encode_user(text)
