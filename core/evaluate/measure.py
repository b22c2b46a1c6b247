"""Measuring mixes: perplexity, exact match, F1, recall, speed.

A Python generator that yields between batches, so that training and chatting go on beside it. Knows a
resident base and plain rows; knows no workspace and no pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.data.encoding import EncodedSequence, encode_chat, encode_text_prompt, encode_cloze, encode_task, encode_text
from core.evaluate.metrics import exact_match, f1, normalise
from core.model.generate import generate
from core.model.resident import Resident
from core.model.scoring import score
from core.progress import Progress as Progress  # those who measure find it here too
from core.spec.mix import Mix, Sampling

BATCH_QUESTIONS = 16


@dataclass(frozen=True)
class EvaluationData:
    """What mixes are measured on.

    Attributes:
        questions: name -> task rows; "" is the main set, whose figures carry no prefix.
        texts: name -> documents, scored for perplexity.
        own: the same for texts of ours, in which special tokens that are written out are meant.
        cloze: (prompt, completion) pairs; recall is the share that greedy writing completes.
    """

    questions: dict[str, Sequence[dict[str, Any]]] = field(default_factory=dict)
    texts: dict[str, Sequence[str]] = field(default_factory=dict)
    trusted_texts: dict[str, Sequence[str]] = field(default_factory=dict)
    cloze: Sequence[tuple[str, str]] = ()


def measure(
    resident: Resident, mixes: Sequence[Mix], material: EvaluationData, max_length: int, max_new_tokens: int = 64
) -> Iterator[Progress | list[dict[str, Any]]]:
    """Measures every mix on everything.

    Yields:
        Progress between batches; at the end one list with a dict of figures a mix. Perplexities are
        exp(sum of nats / sum of tokens). `latency_seconds` is the mean time from a question to its
        whole answer, in batches of up to 16 questions under that mix alone; `tokens_per_second` is
        what such a batch writes in all.
    """
    tokenizer = resident.base.tokenizer
    length = min(max_length, resident.base.context)
    scored = {
        f"{name}_" if name else "": [e for t in texts for e in encode_text(tokenizer, t, length, own)]
        for own, group in ((False, material.texts), (True, material.trusted_texts))
        for name, texts in group.items()
    }
    for name, rows in material.questions.items():
        if not name:  # the completions of the main questions
            scored["answer_" if "" in scored else ""] = [
                encode_task(tokenizer, r["messages"], length, resident.base.eos_ids) for r in rows
            ]
    total = sum(len(s) for s in scored.values()) + len(mixes) * (
        sum(map(len, material.questions.values())) + len(material.cloze)
    )
    figures: list[dict[str, Any]] = [{} for _ in mixes]
    done = 0
    for prefix, sequences in scored.items():
        for part in _perplexities(resident, mixes, sequences, prefix, figures):
            yield Progress(done + part, total, f"Reading {prefix.rstrip('_') or 'the split'}")
        done += len(sequences)
    for i, mix in enumerate(mixes):
        for name, rows in material.questions.items():
            for part in _answers(resident, mix, rows, f"{name}_" if name else "", max_new_tokens, figures[i]):
                yield Progress(done + part, total, f"Asking {mix.name or mix}")
            done += len(rows)
        if material.cloze:
            for part in _recall(resident, mix, material.cloze, figures[i]):
                yield Progress(done + part, total, f"Probing {mix.name or mix}")
            done += len(material.cloze)
    yield figures


def _perplexities(
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


def _answers(
    resident: Resident,
    mix: Mix,
    rows: Sequence[dict[str, Any]],
    prefix: str,
    max_new_tokens: int,
    figure: dict[str, Any],
) -> Iterator[int]:
    matched = shared = waited = written = spent = 0.0
    examples = []
    for start in range(0, len(rows), BATCH_QUESTIONS):
        batch = rows[start : start + BATCH_QUESTIONS]
        prompts = [encode_chat(resident.base.tokenizer, r["messages"][:-1], add_generation_prompt=True) for r in batch]
        states: Any = []
        for states in generate(
            resident, prompts, [mix] * len(batch), [Sampling(max_new_tokens=max_new_tokens)] * len(batch)
        ):
            yield start
        for row, state in zip(batch, states, strict=True):
            answer, reference = state.column(resident.base.tokenizer).text, row["messages"][-1]["content"]
            matched += exact_match(answer, reference)
            shared += f1(answer, reference)
            waited += state.seconds
            written += len(state.ids)
            examples.append(
                {"question": row["messages"][-2]["content"], "answer": answer, "reference": reference}
            )
        spent += max(w.seconds for w in states)
        yield start + len(batch)
    if rows:
        figure |= {
            f"{prefix}exact_match": matched / len(rows),
            f"{prefix}f1": shared / len(rows),
            f"{prefix}questions": len(rows),
        }
        if not prefix:
            figure |= {
                "latency_seconds": waited / len(rows),
                "tokens_per_second": written / max(spent, 1e-9),
                "examples": examples[:20],
            }


def _recall(
    resident: Resident, mix: Mix, cloze: Sequence[tuple[str, str]], figure: dict[str, Any]
) -> Iterator[int]:
    """Does greedy writing after `prompt` begin with `completion`?"""
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
