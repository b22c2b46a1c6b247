"""Prompts that the gate of an adapter is calibrated on, from rows of datasets.

    a row with messages   the conversation up to its last question
    a document            its sentences and lines, each in place of a question

A gate reads questions in the chat template, so every prompt is rendered with it. Which rows give prompts
follows from the seed alone: they are spread evenly over the rows, and the sources take turns.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.data.documents.sections import split_sentences
from core.data.tokens.chat_encoding import Prompt, encode_conversation
from core.data.tokens.rendering import TEMPLATE_ERRORS
from core.data.tokens.special_tokens import encoder_of
from core.errors import StudioError
from core.evaluate.words import split_words
from core.spec.gate import MINIMUM_TOKENS
from core.spec.settings import SEED

if TYPE_CHECKING:
    from core.model.base import Base

PROMPTS = 64  # at most, on each side of a calibration
WORDS = (5, 40)  # of a sentence that becomes a prompt, at least and at most
BATCH = 16  # prompts that are encoded before requests get their turn
_MARK = re.compile(r"^(?:[#>*•–-]+\s+|\d{1,3}[.)]\s+)+")  # of a heading, a quotation or a list
_TABLE = re.compile(r"^\s*\||\S\t\S")

Message = dict[str, Any]


@dataclass(frozen=True)
class PromptSource:
    """Where prompts come from.

    Attributes:
        name: how it is called in a sentence.
        rows: canonical rows.
    """

    name: str
    rows: Sequence[dict[str, Any]]


def list_prompts(row: dict[str, Any]) -> list[list[Message]]:
    """The conversations that a row can give as prompts, each with a question at its end."""
    if "messages" in row:
        messages = list(row["messages"])
        while messages and messages[-1].get("role") != "user":
            messages.pop()
        return [messages] if messages and str(messages[-1].get("content", "")).strip() else []
    return [[{"role": "user", "content": text}] for text in list_passages(str(row.get("text", "")))]


def list_passages(text: str) -> list[str]:
    """The sentences of a document with a usual number of words.

    A document without any, such as a form with two words a line, gives passages of neighbouring lines.
    """
    low, high = WORDS
    pieces = [s for line in _list_lines(text) for s in split_sentences(line)]
    sizes = [_count_words(piece) for piece in pieces]
    usual = [p for p, size in zip(pieces, sizes, strict=True) if low <= size <= high]
    return usual or [p for p in _join_pieces(pieces) if _count_words(p) >= low]


def _count_words(text: str) -> int:
    """Words between blanks, or characters of a script without blanks."""
    return max(len(text.split()), len(split_words(text)))


def _list_lines(text: str) -> list[str]:
    """The lines of a document without the marks of lists, where a line that was wrapped is whole again."""
    lines: list[str] = []
    is_open = False
    for raw in text.splitlines():
        line = _MARK.sub("", raw.strip())
        if not line or _TABLE.search(raw):
            is_open = False
        elif is_open and line[0].islower():
            lines[-1] += f" {line}"
        else:
            lines.append(line)
            is_open = True
    return lines


def _join_pieces(pieces: Sequence[str]) -> Iterator[str]:
    """Passages of at most WORDS[1] words, from neighbouring pieces; a longer piece is cut."""
    passage: list[str] = []
    for piece in pieces:
        words = piece.split()
        if len(words) * 3 < len(split_words(piece)):  # a script without blanks
            words = [piece[i : i + WORDS[1]] for i in range(0, len(piece), WORDS[1])]
            yield from words
            continue
        if passage and len(passage) + len(words) > WORDS[1]:
            yield " ".join(passage)
            passage = []
        passage += words
        while len(passage) > WORDS[1]:
            yield " ".join(passage[: WORDS[1]])
            passage = passage[WORDS[1] :]
    if passage:
        yield " ".join(passage)


def list_questions(rows: Sequence[dict[str, Any]]) -> set[str]:
    """The last messages of everything that the rows can give as prompts."""
    return {str(prompt[-1]["content"]).strip() for row in rows for prompt in list_prompts(row)}


def draw_prompts(
    base: Base,
    sources: Sequence[PromptSource],
    count: int = PROMPTS,
    seed: int = SEED,
    without: Collection[str] = (),
) -> Generator[None, None, list[list[Prompt]]]:
    """Draws prompts; the sources give equally many, as far as they can.

    Args:
        count: at most so many, of all sources together.
        without: last messages that are passed over.

    Yields:
        None from time to time, so that requests get their turn.

    Returns:
        Per source, the token ids of its prompts.
    """
    seen = set(without)
    pools = [_encode_rows(base, source.rows, seed, seen) for source in sources]
    drawn: list[list[Prompt]] = [[] for _ in sources]
    active, total = list(range(len(sources))), 0
    while active and total < count:
        for i in list(active):
            prompt = next(pools[i], None)
            if prompt is None:
                active.remove(i)
                continue
            drawn[i].append(prompt)
            total += 1
            if total % BATCH == 0:
                yield
            if total == count:
                break
    return drawn


def _encode_rows(base: Base, rows: Sequence[dict[str, Any]], seed: int, seen: set[str]) -> Iterator[Prompt]:
    """The prompts of rows: one of each, in an order whose beginnings are spread evenly; then a second one."""
    generator = random.Random(seed)
    left: dict[int, list[list[Message]]] = {}
    order = spread_evenly(len(rows), generator.randrange(max(1, len(rows))))
    while order:
        for i in order:
            if i not in left:
                left[i] = list_prompts(rows[i])
                generator.shuffle(left[i])
            while left[i]:
                prompt = left[i].pop()
                text = str(prompt[-1]["content"]).strip()
                if text in seen:
                    continue
                seen.add(text)
                if ids := _encode(base, prompt):
                    yield ids
                    break
        order = [i for i in order if left[i]]


def spread_evenly(count: int, first: int = 0) -> list[int]:
    """The numbers below `count`, in an order of which every beginning is spread evenly (bit reversal).

    Example:
        >>> spread_evenly(8)
        [0, 4, 2, 6, 1, 5, 3, 7]
    """
    bits = max(1, (count - 1).bit_length())
    order = sorted(range(count), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
    return [(i + first) % count for i in order]


def _encode(base: Base, prompt: Sequence[Message]) -> Prompt:
    """The token ids of a prompt; none for one that is too short or too long, or that the template refuses."""
    content = str(prompt[-1]["content"])
    if len(encoder_of(base.tokenizer).encode_user(content)) < MINIMUM_TOKENS:
        return Prompt([])
    try:
        ids = encode_conversation(base.tokenizer, prompt)
    except (StudioError, *TEMPLATE_ERRORS):
        return Prompt([])
    return ids if MINIMUM_TOKENS < len(ids) <= base.context else Prompt([])
