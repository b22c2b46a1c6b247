"""Rows of data as a base can read them: questions, sequences to score, and notes on rows that do not fit.

A row that does not fit is cut or left out, and a `RowNote` names it; the other rows are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.data.tokens.encoding import EncodedSequence, encode_question, encode_text, encode_turns
from core.data.tokens.rendering import TEMPLATE_ERRORS
from core.data.tokens.thoughts import split_thoughts
from core.errors import SpecError, StudioError
from core.model.base import Base
from core.model.generate import answer_room
from core.spec.mix import NEW_TOKENS_LIMIT

CUT, LEFT_OUT = "cut", "left out"
NAMED_ROWS = 5  # in one text
FIRST_WORDS = 60  # characters of a row that a note shows
_REFUSALS = (StudioError, *TEMPLATE_ERRORS)  # what encoding a conversation can raise
THOUGHT_MARKERS = 8  # tokens around a thought, at most


@dataclass(frozen=True)
class RowNote:
    """A row that was cut or left out.

    Attributes:
        data: the name of its data; "" is the main data.
        row: its number in the data, from 1.
        text: its first words.
        effect: "cut" or "left out".
        reason: why, as a clause with numbers.
    """

    data: str
    row: int
    text: str
    effect: str
    reason: str

    def __str__(self) -> str:
        place = f" of {self.data}" if self.data else ""
        return f"Row {self.row}{place} ({self.text!r}) was {self.effect}: {self.reason}."


@dataclass(frozen=True)
class Question:
    """A task row that mixes answer.

    Attributes:
        index: of its row.
        prompt: token ids.
        text: the last message before the answer.
        reference: the answer of the row, without its thought.
        limit: the longest answer, in tokens.
    """

    index: int
    prompt: list[int]
    text: str
    reference: str
    limit: int


def first_words(row: dict[str, Any]) -> str:
    """The beginning of a row: of its document, or of its question."""
    text = " ".join((row["text"] if "text" in row else question_text(row)).split())
    return text if len(text) <= FIRST_WORDS else f"{text[:FIRST_WORDS].rsplit(' ', 1)[0]} …"


def question_text(row: dict[str, Any]) -> str:
    """The message before the answer."""
    messages = row["messages"]
    return str(messages[-2]["content"]) if len(messages) > 1 else ""


def reference_text(row: dict[str, Any]) -> str:
    """The answer of a task row, without its thought."""
    return split_thoughts(str(row["messages"][-1]["content"]))[1]


def count_reference_tokens(base: Base, row: dict[str, Any]) -> int:
    """Tokens that an answer needs to equal a row's answer: its thought, its text and its end token."""
    message = row["messages"][-1]
    texts = [str(message["content"]), str(message.get("thought") or "")]
    sizes = [len(base.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts if t]
    return sum(sizes) + 1 + (THOUGHT_MARKERS if texts[1] else 0)


def choose_answer_length(base: Base, rows: Sequence[dict[str, Any]]) -> int:
    """The longest answer to allow, in tokens: the longest reference, within the context of the base."""
    longest = max((count_reference_tokens(base, row) for row in rows), default=1)
    return max(1, min(longest, base.context - 1, NEW_TOKENS_LIMIT))


def encode_questions(
    base: Base, rows: Sequence[dict[str, Any]], max_new_tokens: int, data: str = ""
) -> tuple[list[Question], list[RowNote]]:
    """Encodes the questions of task rows.

    Args:
        max_new_tokens: the longest answer, in tokens.
        data: the name of the data, for the notes.

    Returns:
        (the questions that leave room for an answer, notes on others and on answers with too little room)
    """
    questions, notes = [], []
    for index, row in enumerate(rows):
        reference = reference_text(row)
        prompt: list[int] = []
        effect = reason = refusal = ""
        try:
            prompt = encode_question(base.tokenizer, row["messages"])
        except _REFUSALS as e:
            refusal = f"it cannot be rendered ({_describe(e)})"
        room, needed = answer_room(base, prompt), count_reference_tokens(base, row)
        if refusal:
            effect, reason = LEFT_OUT, refusal
        elif not reference.strip():
            effect, reason = LEFT_OUT, "its answer is empty"
        elif room < 1:
            effect = LEFT_OUT
            reason = f"its question has {len(prompt)} tokens and the context of this base {base.context}"
        elif room < min(needed, max_new_tokens):
            effect = CUT
            reason = f"its answer has {needed} tokens and the context leaves room for {room}"
        if effect:
            notes.append(RowNote(data, index + 1, first_words(row), effect, reason))
        if effect != LEFT_OUT:
            limit = min(max_new_tokens, room)
            questions.append(Question(index, prompt, question_text(row), reference, limit))
    return questions, notes


def encode_answers(
    base: Base, rows: Sequence[dict[str, Any]], max_length: int, data: str = ""
) -> tuple[list[EncodedSequence], list[int], list[RowNote]]:
    """Encodes the answers of task rows for scoring.

    Args:
        max_length: longest sequence in tokens.
        data: the name of the data, for the notes.

    Returns:
        (the sequences with a token to score, the index of the row of each, notes on rows that do not fit)
    """
    sequences: list[EncodedSequence] = []
    indices: list[int] = []
    notes: list[RowNote] = []
    for index, row in enumerate(rows):
        found: list[EncodedSequence] = []
        effect = reason = refusal = ""
        try:
            found = encode_turns(base.tokenizer, row["messages"], max_length, base.eos_ids)
        except _REFUSALS as e:
            refusal = f"it cannot be rendered ({_describe(e)})"
        scored = [e for e in found if any(e.loss_mask[1:])]
        cut = sum(e.truncated for e in found)
        if refusal:
            effect, reason = LEFT_OUT, refusal
        elif not reference_text(row).strip():
            effect, reason, scored = LEFT_OUT, "its answer is empty", []
        elif not scored:
            effect = LEFT_OUT
            reason = f"no token of its answer fits into sequences of {max_length} tokens"
        elif cut:
            effect, reason = CUT, f"{cut} of its tokens do not fit into a sequence of {max_length}"
        if effect:
            notes.append(RowNote(data, index + 1, first_words(row), effect, reason))
        sequences += scored
        indices += [index] * len(scored)
    return sequences, indices, notes


def encode_documents(
    base: Base, rows: Sequence[dict[str, Any]], max_length: int, data: str = "", trusted: bool = False
) -> tuple[list[EncodedSequence], list[int], list[RowNote]]:
    """Encodes documents for scoring, a long one as several windows; nothing is cut.

    Args:
        trusted: encode special tokens that are written out in the texts as special tokens.

    Returns:
        as `encode_answers`.
    """
    sequences: list[EncodedSequence] = []
    indices: list[int] = []
    notes: list[RowNote] = []
    for index, row in enumerate(rows):
        encoded = encode_text(base.tokenizer, row["text"], max_length, trusted) if row["text"].strip() else []
        scored = [e for e in encoded if any(e.loss_mask[1:])]
        if not scored:
            notes.append(RowNote(data, index + 1, first_words(row), LEFT_OUT, "it has no text to score"))
        sequences += scored
        indices += [index] * len(scored)
    return sequences, indices, notes


def describe_notes(notes: Sequence[RowNote]) -> str:
    """What was cut and left out, in a few sentences that name the first rows; "" without notes."""
    counts = [(sum(n.effect == effect for n in notes), effect) for effect in (LEFT_OUT, CUT)]
    parts = [f"{count} row{'s were' if count > 1 else ' was'} {effect}" for count, effect in counts if count]
    if not parts:
        return ""
    more = f" And {len(notes) - NAMED_ROWS} more." if len(notes) > NAMED_ROWS else ""
    return f"{' and '.join(parts)}. {' '.join(map(str, notes[:NAMED_ROWS]))}{more}"


def require_rows(count: int, rows: int, data: str, notes: Sequence[RowNote]) -> None:
    """Checks that something is left to measure.

    Args:
        count: what is left of `rows` rows.

    Raises:
        SpecError: nothing; the message has the reason of the first row.
    """
    if count or not rows:
        return
    first = f" {notes[0]}" if notes else ""
    raise SpecError(
        f"None of the {rows} rows{f' of {data}' if data else ''} can be measured with this base.{first}",
        "Shorten the rows, or choose other data or a base with a longer context.",
    )


def _describe(error: Exception) -> str:
    text = error.what if isinstance(error, StudioError) else str(error)
    return text.rstrip(".")
