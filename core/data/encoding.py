"""Rows to token ids to batches: chat encoding, completion masks, padding.

The only room that knows the ignored label. Knows a tokenizer, no model.

    completion   ids    <user> question <assistant>  answer  <eos>
                 mask   0      0        0            1       1                 only 1s are trained and scored
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from core.data import span_corruption

IGNORED = -100  # the label that cross entropy skips


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sequence, which of them are trained on and scored, and how many were cut off.

    Attributes:
        source: what the encoder reads, where the base has one; then `ids` are the decoder's, from its start token on.
    """

    ids: list[int]
    mask: list[int]
    lost: int = 0
    source: list[int] = field(default_factory=list)

    @property
    def row(self) -> dict[str, list[int]]:
        """As `collate` takes it."""
        return {
            "input_ids": self.ids,
            "trained": self.mask,
            **({"source": self.source} if self.source else {}),
        }

    @property
    def length(self) -> int:
        """Tokens that a forward reads."""
        return len(self.ids) + len(self.source)


def reads_apart(tokenizer: Any) -> bool:
    """Does an encoder read and a decoder write? `load_base` tells the tokenizer where a decoder starts."""
    return getattr(tokenizer, "writes_from", None) is not None


def encode_chat(tokenizer: Any, messages: Sequence[dict[str, str]], generate: bool) -> list[int]:
    """Renders messages with the tokenizer's chat template into token ids.

    Special tokens that appear inside someone's text are encoded as plain characters, so that a text
    can never forge a role.

    Args:
        generate: end with the opening of an assistant's turn.
    """
    specials = [t for t in tokenizer.all_special_tokens if t]
    forged = [t for t in specials if any(t in m["content"] for m in messages)]
    if not forged:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generate)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    mark = "\ue000"
    clean = [{**m, "content": m["content"].replace(mark, "")} for m in messages]
    for i, token in enumerate(forged):
        for m in clean:
            m["content"] = m["content"].replace(token, f"{mark}{i}{mark}")
    text = tokenizer.apply_chat_template(clean, tokenize=False, add_generation_prompt=generate)
    ids: list[int] = []
    for i, part in enumerate(text.split(mark)):
        plain = i % 2 == 1  # odd parts are the numbers of forged tokens
        if part:
            part = forged[int(part)] if plain else part
            ids += tokenizer(part, add_special_tokens=False, split_special_tokens=plain)["input_ids"]
    return ids


def count_forged(tokenizer: Any, texts: Iterable[str]) -> int:
    """How many texts contain one of the tokenizer's special tokens."""
    specials = [t for t in tokenizer.all_special_tokens if t]
    return sum(any(t in text for t in specials) for text in texts)


def encode_task(
    tokenizer: Any, messages: Sequence[dict[str, str]], max_length: int, ends: Sequence[int]
) -> Encoded:
    """A conversation: every turn of the assistant with its end is a completion, everything else is context.

    Args:
        ends: tokens that end an answer; what the template writes after the first one is no part of it.

    A sequence that is too long loses its beginning first, then the end of its last completion. An answer
    that has lost its own beginning is context only.
    """
    if reads_apart(tokenizer):
        read = encode_chat(tokenizer, messages[:-1], generate=True)
        return _apart(span_corruption.task(tokenizer, read, messages[-1]["content"], max_length))
    whole = encode_chat(tokenizer, messages, generate=False)
    spans = [
        s
        for i, m in enumerate(messages)
        if m["role"] == "assistant"
        for s in [_answer(tokenizer, messages, i, whole, ends)]
        if s
    ]
    if not spans:
        return Encoded(whole[:max_length], [0] * len(whole[:max_length]), max(0, len(whole) - max_length))
    start, end = spans[-1]
    whole = whole[:end] if end <= len(whole) else [*whole, tokenizer.eos_token_id]
    mask = [0] * len(whole)
    for first, last in spans:
        mask[first:last] = [1] * (last - first)
    size = len(whole)
    kept = min(
        end, start + max_length - 1
    )  # one token of context at least, then as much of the answer as fits
    begin = max(0, kept - max_length)
    for first, last in spans:
        if begin > 0 and first <= begin < last:
            mask[begin:last] = [0] * (last - begin)
    return Encoded(whole[begin:kept], mask[begin:kept], size - (kept - begin))


def _answer(
    tokenizer: Any, messages: Sequence[dict[str, str]], turn: int, whole: Sequence[int], ends: Sequence[int]
) -> tuple[int, int] | None:
    """Where one turn's answer lies in the whole conversation: (first token, after its end), or None where the template leaves it out.

    Templates may write a turn differently once others follow (a thought is dropped), so its place is where
    the rendered beginnings part from the whole, and never counted from their lengths.
    """
    start = _shared(encode_chat(tokenizer, messages[:turn], generate=True), whole)
    last = turn == len(messages) - 1
    bound = (
        len(whole) if last else _shared(encode_chat(tokenizer, messages[: turn + 1], generate=False), whole)
    )
    if bound <= start:
        bound = len(whole)
    end = next((i for i in range(start, bound) if whole[i] in ends), None)
    if end is not None:
        return start, end + 1
    return (start, bound + 1) if last else ((start, bound) if start < bound < len(whole) else None)


def _shared(part: Sequence[int], whole: Sequence[int]) -> int:
    """How many tokens the two have in common from the start."""
    size = min(len(part), len(whole))
    return next((i for i in range(size) if part[i] != whole[i]), size)


def encode_text(tokenizer: Any, text: str, max_length: int, own: bool = False) -> list[Encoded]:
    """A document for scoring: windows of at most max_length tokens, each behind one boundary token.

    Args:
        own: the text is ours, and special tokens that are written out in it are meant.

    A base that reads and writes apart is asked to fill in gaps, the same ones every time.
    """
    eos = tokenizer.eos_token_id
    ids = [*tokenizer(text, add_special_tokens=False, split_special_tokens=not own)["input_ids"], eos]
    if reads_apart(tokenizer):
        return [
            _apart(span_corruption.gapped(tokenizer, part, span_corruption.fixed_dice(part)))
            for part in span_corruption.windows(tokenizer, ids, max_length)
        ]
    size = max_length - 1
    return [
        Encoded([eos, *ids[i : i + size]], [0] + [1] * len(ids[i : i + size]))
        for i in range(0, len(ids), size)
    ]


def encode_prefix(tokenizer: Any, prompt: str, completion: str) -> Encoded:
    """A raw text whose end is scored: a cloze. `completion` starts with its own space where it has one."""
    if reads_apart(tokenizer):
        return _apart(span_corruption.prefix(tokenizer, prompt, completion))
    head = tokenizer(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    tail = tokenizer(completion, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return Encoded([tokenizer.eos_token_id, *head, *tail], [0] * (1 + len(head)) + [1] * len(tail))


def encode_opening(tokenizer: Any, text: str) -> list[int]:
    """The beginning of a text that is to be gone on with."""
    if reads_apart(tokenizer):
        return span_corruption.opening(tokenizer, text)
    return [
        tokenizer.eos_token_id,
        *tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"],
    ]


def encode_gaps(
    tokenizer: Any, documents: Iterable[list[int]], max_length: int, seed: int
) -> list[list[Encoded]]:
    """Documents in parts for a base that reads and writes apart; where their gaps are is drawn from the seed, once for a run."""
    dice = random.Random(seed)
    return [
        [
            _apart(span_corruption.gapped(tokenizer, part, dice))
            for part in span_corruption.windows(tokenizer, doc, max_length)
        ]
        for doc in documents
    ]


def _apart(sides: span_corruption.Sides) -> Encoded:
    ids, mask, source = sides
    return Encoded(ids, mask, source=source)


def encode_documents(tokenizer: Any, texts: Iterable[str], own: bool = False) -> Iterator[list[int]]:
    """Documents as token ids, each ended by eos; `own` as in encode_text."""
    for text in texts:
        yield [
            *tokenizer(text, add_special_tokens=False, split_special_tokens=not own)["input_ids"],
            tokenizer.eos_token_id,
        ]


def replayed(
    documents: list[list[int]], general: list[list[int]], share: float, seed: int
) -> list[list[int]]:
    """Mixes general documents in, so that about `share` of all tokens are general, and shuffles.

    Raises nothing when the general text is short: it is then read more than once.
    """
    dice = random.Random(seed)
    chosen = list(documents)
    if share > 0 and general:
        need = share / (1 - share) * sum(map(len, documents))
        while need > 0:
            for doc in dice.sample(general, len(general)):
                if need <= 0:
                    break
                chosen.append(doc)
                need -= len(doc)
    dice.shuffle(chosen)
    return chosen


def collate(rows: Sequence[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Pads rows of `input_ids` and `trained` (0/1) on the right.

    Returns:
        input_ids, attention_mask, labels: (B, T). Labels are masked where nothing is trained; a pad
        token inside a text (GPT-2 pads with eos) still counts, because the mask decides, not the id.
        Of rows with a `source`, input_ids and attention_mask are the encoder's, (B, S), and decoder_input_ids
        and labels (B, T - 1): a decoder's labels are what comes next, as transformers wants them.
        Rows that are packed (with `lengths` of their sequences) come with position_ids (B, T) instead of
        a mask, which is how transformers knows that they are (`masking_utils`), and with `sizes` (B,),
        the tokens of each row; padding is one more sequence, which nobody sees.
    """
    if "source" in rows[0]:
        written = collate([{k: v for k, v in r.items() if k != "source"} for r in rows], pad)
        read, seen = pad_right([r["source"] for r in rows], pad)
        return {
            "input_ids": read,
            "attention_mask": seen,
            "decoder_input_ids": written["input_ids"][:, :-1],
            "labels": written["labels"][:, 1:].contiguous(),
        }
    longest = max(len(r["input_ids"]) for r in rows)
    packed = "lengths" in rows[0]
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    seen = torch.zeros(len(rows), longest, dtype=torch.long)  # positions, or the attention mask
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[i, :n] = torch.tensor(row["input_ids"])
        trained = torch.tensor(row["trained"], dtype=torch.bool)
        labels[i, :n] = torch.where(trained, ids[i, :n], IGNORED)
        seen[i] = (
            torch.cat([torch.arange(k) for k in (*row["lengths"], longest - n)])
            if packed
            else torch.arange(longest) < n
        )
    if packed:
        return {
            "input_ids": ids,
            "position_ids": seen,
            "labels": labels,
            "sizes": torch.tensor([len(r["input_ids"]) for r in rows]),
        }
    return {"input_ids": ids, "attention_mask": seen, "labels": labels}


def pad_right(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What encoders read: (ids, attention mask), each (B, S), padded on the right."""
    ids, attention = pad_left([row[::-1] for row in rows], pad)
    return ids.flip(1), attention.flip(1)


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts for generation: (ids, attention mask), each (B, T), padded on the left."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    attention = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row)
        attention[i, longest - len(row) :] = 1
    return ids, attention
