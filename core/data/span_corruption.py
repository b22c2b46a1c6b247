"""What an encoder reads and a decoder writes, where a base has both (T5).

    task      source  <question> </s>                       ids  <start> <answer> </s>
    gaps      source  Thank you <0> me to your <1> week </s>  ids  <start> <0> for inviting <1> party last <2> </s>
    opening   source  The lamp is <0> </s>                  ids  <start> <0> in the room

Text is learned by span corruption: 15 % of its tokens are hidden in gaps of 3 on average, each behind a
sentinel, and the decoder fills them in (Raffel et al. 2020, arXiv 1910.10683, section 3.3). A tokenizer without
sentinels reads the beginning of a text and writes the rest. Knows a tokenizer, no model.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

NOISE = 0.15  # share of a text's tokens that are hidden
MEAN_GAP = 3.0  # tokens
Sides = tuple[
    list[int], list[int], list[int]
]  # (ids the decoder reads and writes, which of them count, ids the encoder reads)


@lru_cache(maxsize=8)
def _sentinels(tokenizer: Any) -> tuple[int, ...]:
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    while (token := f"<extra_id_{len(found)}>") in vocabulary:
        found.append(int(vocabulary[token]))
    return tuple(found)


def sentinels(tokenizer: Any) -> tuple[int, ...]:
    """Ids of <extra_id_0>, <extra_id_1>, …, as many as the tokenizer has."""
    return _sentinels(tokenizer)


def task(tokenizer: Any, read: Sequence[int], answer: str, max_length: int) -> Sides:
    """A question for the encoder, whose beginning goes first if it is too long, and its answer for the decoder."""
    written = [*_plain(tokenizer, answer), tokenizer.eos_token_id][: max_length - 1]
    return [tokenizer.writes_from, *written], [0] + [1] * len(written), list(read)[-max_length:]


def windows(tokenizer: Any, ids: Sequence[int], max_length: int) -> Iterator[list[int]]:
    """A document in parts that an encoder reads at once, with its eos; parts of a single token say nothing and are left out."""
    body = [i for i in ids if i != tokenizer.eos_token_id]
    size = max_length - 1
    for start in range(0, len(body), size):
        if len(part := body[start : start + size]) > 1:
            yield part


def gapped(tokenizer: Any, ids: Sequence[int], dice: random.Random) -> Sides:
    """Hides spans of a text and asks for them; without sentinels, asks for the rest after a cut.

    Args:
        ids: two tokens or more, without eos.
    """
    marks, eos, start = sentinels(tokenizer), tokenizer.eos_token_id, tokenizer.writes_from
    if len(marks) < 2:
        cut = dice.randint(1, len(ids) - 1)
        written = [*ids[cut:], eos]
        return [start, *written], [0] + [1] * len(written), [*ids[:cut], eos]
    hidden = min(max(round(len(ids) * NOISE), 1), len(ids) - 1)
    count = min(max(round(hidden / MEAN_GAP), 1), hidden, len(ids) - hidden, len(marks) - 1)
    gaps, kept = _parts(hidden, count, dice), _parts(len(ids) - hidden, count, dice)
    source: list[int] = []
    target: list[int] = []
    at = 0
    for mark, keep, gap in zip(marks, kept, gaps, strict=False):
        source += [*ids[at : at + keep], mark]
        target += [mark, *ids[at + keep : at + keep + gap]]
        at += keep + gap
    target += [marks[count], eos]
    return [start, *target], [0] + [1] * len(target), [*source, eos]


def _parts(total: int, count: int, dice: random.Random) -> list[int]:
    """`total` as a sum of `count` whole numbers above zero, every such sum equally likely."""
    cuts = [0, *sorted(dice.sample(range(1, total), count - 1)), total]
    return [b - a for a, b in zip(cuts, cuts[1:], strict=False)]


def fixed_dice(ids: Sequence[int]) -> random.Random:
    """Dice that fall alike for a text wherever and whenever it is scored."""
    return random.Random(zlib.crc32(" ".join(map(str, ids)).encode()))


def opening(tokenizer: Any, text: str) -> list[int]:
    """What the encoder reads of a text that is to be gone on with: a gap stands where it ends."""
    return [*_plain(tokenizer, text), *sentinels(tokenizer)[:1], tokenizer.eos_token_id]


def prefix(tokenizer: Any, prompt: str, completion: str) -> Sides:
    """A text whose end is scored; the sentinel before it is given, not scored."""
    given = [tokenizer.writes_from, *sentinels(tokenizer)[:1]]
    tail = _plain(tokenizer, completion)
    return [*given, *tail], [0] * len(given) + [1] * len(tail), opening(tokenizer, prompt)


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])
