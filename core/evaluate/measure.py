"""Measures mixes: perplexity, exact match, F1, recall, speed.

`measure` is a generator that yields between batches, so that training and chatting are interleaved with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.data.encoding import (
    EncodedSequence,
    encode_chat,
    encode_cloze,
    encode_task,
    encode_text,
    encode_text_prompt,
)
from core.evaluate.metrics import exact_match, f1, normalise
from core.model.generate import generate
from core.model.resident import Resident
from core.model.scoring import score
from core.progress import Progress
from core.spec.mix import Mix, Sampling

BATCH_QUESTIONS = 16


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


def measure(
    resident: Resident, mixes: Sequence[Mix], data: EvaluationData, max_length: int, max_new_tokens: int = 64
) -> Iterator[Progress | list[dict[str, Any]]]:
    """Measures every mix on all of the data.

    Args:
        max_length: longest sequence scored for perplexity, in tokens.
        max_new_tokens: longest answer to a question, in tokens.

    Yields:
        Progress between batches; last, a list with one dict of figures per mix. Perplexities are
        exp(sum of nats / sum of tokens). `latency_seconds` is the mean time from a question to its
        complete answer, in batches of up to 16 questions under that mix alone; `tokens_per_second` is
        the throughput of such a batch.
    """
    tokenizer = resident.base.tokenizer
    length = min(max_length, resident.base.context)
    scored = {
        f"{name}_" if name else "": [e for t in texts for e in encode_text(tokenizer, t, length, trusted)]
        for trusted, group in ((False, data.texts), (True, data.trusted_texts))
        for name, texts in group.items()
    }
    for name, rows in data.questions.items():
        if not name:  # the completions of the main questions
            scored["answer_" if "" in scored else ""] = [
                encode_task(tokenizer, r["messages"], length, resident.base.eos_ids) for r in rows
            ]
    total = sum(len(s) for s in scored.values()) + len(mixes) * (
        sum(map(len, data.questions.values())) + len(data.cloze)
    )
    figures: list[dict[str, Any]] = [{} for _ in mixes]
    done = 0
    for prefix, sequences in scored.items():
        for part in _measure_perplexity(resident, mixes, sequences, prefix, figures):
            yield Progress(
                done + part, total, f"Measuring the perplexity of {prefix.rstrip('_') or 'the split'}"
            )
        done += len(sequences)
    for i, mix in enumerate(mixes):
        for name, rows in data.questions.items():
            for part in _measure_answers(
                resident, mix, rows, f"{name}_" if name else "", max_new_tokens, figures[i]
            ):
                yield Progress(done + part, total, f"Answering the questions with {mix.name or mix}")
            done += len(rows)
        if data.cloze:
            for part in _measure_recall(resident, mix, data.cloze, figures[i]):
                yield Progress(done + part, total, f"Probing the recall of {mix.name or mix}")
            done += len(data.cloze)
    yield figures


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


def _measure_answers(
    resident: Resident,
    mix: Mix,
    rows: Sequence[dict[str, Any]],
    prefix: str,
    max_new_tokens: int,
    figure: dict[str, Any],
) -> Iterator[int]:
    match_sum = f1_sum = latency_sum = tokens = seconds = 0.0
    examples = []
    for start in range(0, len(rows), BATCH_QUESTIONS):
        batch = rows[start : start + BATCH_QUESTIONS]
        prompts = [
            encode_chat(resident.base.tokenizer, r["messages"][:-1], add_generation_prompt=True)
            for r in batch
        ]
        states: Any = []
        for states in generate(
            resident, prompts, [mix] * len(batch), [Sampling(max_new_tokens=max_new_tokens)] * len(batch)
        ):
            yield start
        for row, state in zip(batch, states, strict=True):
            answer, reference = state.column(resident.base.tokenizer).text, row["messages"][-1]["content"]
            match_sum += exact_match(answer, reference)
            f1_sum += f1(answer, reference)
            latency_sum += state.seconds
            tokens += len(state.ids)
            examples.append(
                {"question": row["messages"][-2]["content"], "answer": answer, "reference": reference}
            )
        seconds += max(s.seconds for s in states)
        yield start + len(batch)
    if rows:
        figure |= {
            f"{prefix}exact_match": match_sum / len(rows),
            f"{prefix}f1": f1_sum / len(rows),
            f"{prefix}questions": len(rows),
        }
        if not prefix:
            figure |= {
                "latency_seconds": latency_sum / len(rows),
                "tokens_per_second": tokens / max(seconds, 1e-9),
                "examples": examples[:20],
            }


def _measure_recall(
    resident: Resident, mix: Mix, cloze: Sequence[tuple[str, str]], figure: dict[str, Any]
) -> Iterator[int]:
    """Counts the prompts that greedy decoding continues with their completion."""
    tokenizer = resident.base.tokenizer
    hits = 0
    for start in range(0, len(cloze), 2 * BATCH_QUESTIONS):
        batch = cloze[start : start + 2 * BATCH_QUESTIONS]
        prompts = [encode_text_prompt(tokenizer, p) for p, _ in batch]
        lengths = [len(encode_cloze(tokenizer, "", c).ids) + 1 for _, c in batch]
        states: Any = []
        for states in generate(
            resident, prompts, [mix] * len(batch), [Sampling(max_new_tokens=n) for n in lengths]
        ):
            yield start
        for (_, completion), state in zip(batch, states, strict=True):
            text = normalise(state.column(tokenizer).text) + " "
            hits += text.startswith(normalise(completion) + " ")
        yield start + len(batch)
    figure["recall"] = hits / len(cloze)
