"""Measures mixes: perplexity, exact match, F1, recall, speed.

`measure` is a generator that yields between batches, so that training and chatting are interleaved with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.data.tokens.encoding import EncodedSequence, encode_cloze, encode_text_prompt
from core.evaluate.metrics import exact_match, f1, squad_exact_match, squad_f1
from core.evaluate.rows import (
    CUT,
    LEFT_OUT,
    Question,
    RowNote,
    choose_answer_length,
    encode_answers,
    encode_documents,
    encode_questions,
    first_words,
    require_rows,
)
from core.evaluate.words import split_words
from core.model.base import Base
from core.model.columns import Column, SequenceState
from core.model.generate import answer_room, generate
from core.model.resident import Resident
from core.model.scoring import score
from core.progress import Progress
from core.spec.mix import Mix, Sampling

BATCH_QUESTIONS = 16
BATCH_TOKENS = 32_768  # of questions and answers together, in one batch
EXAMPLES = 20  # answers that a report shows

METRICS = {"exact_match": exact_match, "f1": f1, "squad_exact_match": squad_exact_match, "squad_f1": squad_f1}


@dataclass(frozen=True)
class EvaluationData:
    """The data that mixes are measured on.

    Attributes:
        questions: name to task rows; "" is the main set, whose figures have no prefix.
        texts: name to documents, scored for perplexity.
        trusted_texts: the same for texts that ship with the studio; special tokens written out in them are
            encoded as special tokens.
        cloze: (prompt, completion) pairs of the recall probe; recall is the share that greedy decoding
            completes.
    """

    questions: dict[str, Sequence[dict[str, Any]]] = field(default_factory=dict)
    texts: dict[str, Sequence[str]] = field(default_factory=dict)
    trusted_texts: dict[str, Sequence[str]] = field(default_factory=dict)
    cloze: Sequence[tuple[str, str]] = ()


class Measurement(list[dict[str, Any]]):
    """One dict of figures per mix, and how they were measured.

    Attributes:
        max_length: longest sequence that was scored, in tokens.
        max_new_tokens: longest answer, in tokens; 0 without questions.
        notes: the rows that were cut or left out.
    """

    max_length: int = 0
    max_new_tokens: int = 0
    notes: tuple[RowNote, ...] = ()


@dataclass(frozen=True)
class _Encoded:
    """The data of a measurement as token ids; keys are the prefixes of the figures."""

    scored: dict[str, list[EncodedSequence]]
    questions: dict[str, list[Question]]
    cloze: list[tuple[list[int], str, int]]  # prompt, completion, longest answer
    notes: tuple[RowNote, ...]


def measure(
    resident: Resident, mixes: Sequence[Mix], data: EvaluationData, max_length: int, max_new_tokens: int = 0
) -> Iterator[Progress | Measurement]:
    """Measures every mix on all of the data.

    A row that does not fit into the context is cut or left out; the notes of the measurement name it.

    Args:
        max_length: longest sequence scored for perplexity, in tokens.
        max_new_tokens: longest answer to a question, in tokens; 0 takes the longest reference answer, within
            the context.

    Yields:
        Progress between batches; last, a Measurement. Perplexities are exp(sum of nats / sum of tokens).
        `latency_seconds` is the mean time from a question to its complete answer, in batches of up to 16
        questions under that mix alone; `tokens_per_second` is the throughput of such a batch.

    Raises:
        SpecError: no row of one of the sets can be measured.
    """
    length = min(max_length, resident.base.context)
    if not max_new_tokens and data.questions:
        rows = [row for of_set in data.questions.values() for row in of_set]
        max_new_tokens = choose_answer_length(resident.base, rows)
    encoded = _encode(resident, data, length, max_new_tokens)
    total = sum(len(s) for s in encoded.scored.values())
    total += len(mixes) * (sum(map(len, encoded.questions.values())) + len(encoded.cloze))
    figures = Measurement({} for _ in mixes)
    figures.max_length, figures.notes = length, encoded.notes
    figures.max_new_tokens = max_new_tokens if data.questions else 0
    done = 0
    for prefix, sequences in encoded.scored.items():
        for part in _measure_perplexity(resident, mixes, sequences, prefix, figures):
            yield Progress(
                done + part, total, f"Measuring the perplexity of {prefix.rstrip('_') or 'the split'}"
            )
        done += len(sequences)
    for i, mix in enumerate(mixes):
        for prefix, questions in encoded.questions.items():
            for part in _measure_answers(resident, mix, questions, prefix, figures[i]):
                yield Progress(done + part, total, f"Answering the questions with {mix.name or mix}")
            done += len(questions)
        if encoded.cloze:
            for part in _measure_recall(resident, mix, encoded.cloze, figures[i]):
                yield Progress(done + part, total, f"Probing the recall of {mix.name or mix}")
            done += len(encoded.cloze)
    for figure in figures:  # a figure that is not a number is not shown as one
        figure.update({k: None for k, v in figure.items() if isinstance(v, float) and not math.isfinite(v)})
    yield figures


def _encode(resident: Resident, data: EvaluationData, length: int, max_new_tokens: int) -> _Encoded:
    """Encodes all data, in the order of `EvaluationData`."""
    base = resident.base
    scored: dict[str, list[EncodedSequence]] = {}
    questions: dict[str, list[Question]] = {}
    notes: list[RowNote] = []

    for trusted, group in ((False, data.texts), (True, data.trusted_texts)):
        for name, texts in group.items():
            rows = [{"text": t} for t in texts]
            sequences, _, own = encode_documents(base, rows, length, name, trusted)
            require_rows(len(sequences), len(rows), name, own)
            scored[f"{name}_" if name else ""] = sequences
            notes += own
    for name, task_rows in data.questions.items():
        prefix = f"{name}_" if name else ""
        questions[prefix], own = encode_questions(base, task_rows, max_new_tokens, name)
        require_rows(len(questions[prefix]), len(task_rows), name, own)
        if not name:  # the completions of the main questions
            own, scored["answer_" if "" in scored else ""] = _encode_main(base, task_rows, length, own)
        notes += own
    cloze = []
    for i, (prompt, completion) in enumerate(data.cloze):
        ids = encode_text_prompt(base.tokenizer, prompt)
        longest = len(encode_cloze(base.tokenizer, "", completion).ids) + 1
        if completion.strip() and answer_room(base, ids) >= longest:
            cloze.append((ids, completion, longest))
            continue
        reason = f"it has {len(ids) + longest} tokens and the context of this base {base.context}"
        reason = reason if completion.strip() else "its completion is empty"
        notes.append(RowNote("recall probe", i + 1, first_words({"text": prompt}), LEFT_OUT, reason))
    return _Encoded(scored, questions, cloze, tuple(notes))


def _encode_main(
    base: Base, rows: Sequence[dict[str, Any]], length: int, notes: Sequence[RowNote]
) -> tuple[list[RowNote], list[EncodedSequence]]:
    """Encodes the answers of the main questions for scoring.

    Args:
        notes: on the questions; a row that is left out of them is not scored either.

    Returns:
        (one note per row that is cut or left out, the sequences)
    """
    left_out = {n.row for n in notes if n.effect == LEFT_OUT}
    encoded, indices, own = encode_answers(base, rows, length)
    by_row = {n.row: n for n in notes}
    for note in own:
        reason = (
            note.reason if note.effect == CUT else f"{note.reason}, so that its perplexity is not measured"
        )
        if note.row not in by_row:
            by_row[note.row] = replace(note, effect=CUT, reason=reason)
        elif note.row not in left_out:
            by_row[note.row] = replace(note, effect=CUT, reason=f"{by_row[note.row].reason}; {reason}")
    sequences = [e for e, i in zip(encoded, indices, strict=True) if i + 1 not in left_out]
    return [by_row[row] for row in sorted(by_row)], sequences


def _measure_perplexity(
    resident: Resident,
    mixes: Sequence[Mix],
    sequences: Sequence[EncodedSequence],
    prefix: str,
    figures: list[dict[str, Any]],
) -> Iterator[int]:
    for done, scores in score(resident, sequences, mixes):
        yield done
    for figure, s in zip(figures, scores if sequences else [], strict=False):
        figure |= {f"{prefix}perplexity": s.perplexity, f"{prefix}nats": s.nats, f"{prefix}tokens": s.tokens}


def batch_by_length(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Splits questions into batches of similar lengths, the shortest first.

    A batch has at most BATCH_QUESTIONS rows and, unless one row alone has more, BATCH_TOKENS tokens.
    """
    batch: list[Question] = []
    longest = 0
    for question in sorted(questions, key=lambda q: len(q.prompt)):
        size = len(question.prompt) + question.limit
        is_full = len(batch) == BATCH_QUESTIONS or max(longest, size) * (len(batch) + 1) > BATCH_TOKENS
        if batch and is_full:
            yield batch
            batch, longest = [], 0
        batch.append(question)
        longest = max(longest, size)
    if batch:
        yield batch


def _measure_answers(
    resident: Resident, mix: Mix, questions: Sequence[Question], prefix: str, figure: dict[str, Any]
) -> Iterator[int]:
    sums: dict[str, float] = dict.fromkeys(METRICS, 0.0)
    latency_sum = tokens = seconds = 0.0
    done = cut = 0
    answers: dict[int, tuple[Question, Column]] = {}
    for batch in batch_by_length(questions):
        states: Sequence[SequenceState] = []
        for states in generate(
            resident,
            [q.prompt for q in batch],
            [mix] * len(batch),
            [Sampling(max_new_tokens=q.limit) for q in batch],
        ):
            yield done
        for question, state in zip(batch, states, strict=True):
            column = state.column(resident.base.tokenizer)
            for name, metric in METRICS.items():
                sums[name] += metric(column.text, question.reference)
            latency_sum += state.seconds
            tokens += len(state.ids)
            cut += state.reason == "length"
            answers[question.index] = question, column
        seconds += max(s.seconds for s in states)
        done += len(batch)
        yield done
    if questions:
        figure |= {f"{prefix}{name}": total / len(questions) for name, total in sums.items()}
        figure |= {f"{prefix}questions": len(questions), f"{prefix}answers_cut": cut}
        if not prefix:
            figure |= {
                "latency_seconds": latency_sum / len(questions),
                "tokens_per_second": tokens / max(seconds, 1e-9),
                "examples": _make_examples(answers[i] for i in sorted(answers)[:EXAMPLES]),
            }


def _make_examples(answers: Iterable[tuple[Question, Column]]) -> list[dict[str, Any]]:
    examples = []
    for question, column in answers:
        example: dict[str, Any] = {
            "question": question.text,
            "answer": column.text,
            "reference": question.reference,
        }
        if column.thought:
            example |= {"thought": column.thought, "thought_tokens": column.thought_tokens}
        if column.reason == "length":
            example["cut"] = column.tokens
        examples.append(example)
    return examples


def _measure_recall(
    resident: Resident,
    mix: Mix,
    cloze: Sequence[tuple[list[int], str, int]],
    figure: dict[str, Any],
) -> Iterator[int]:
    """Counts the prompts that greedy decoding continues with their completion."""
    hits = 0
    for start in range(0, len(cloze), 2 * BATCH_QUESTIONS):
        batch = cloze[start : start + 2 * BATCH_QUESTIONS]
        states: Any = []
        for states in generate(
            resident,
            [ids for ids, _, _ in batch],
            [mix] * len(batch),
            [Sampling(max_new_tokens=longest) for _, _, longest in batch],
        ):
            yield start
        for (_, completion, _), state in zip(batch, states, strict=True):
            expected = split_words(completion)
            hits += split_words(state.column(resident.base.tokenizer).text)[: len(expected)] == expected
        yield start + len(batch)
    figure["recall"] = hits / len(cloze)
