"""Measures what the adapter of a run is worth, right after the run: held-out rows under base and adapter.

It runs on the model's thread, in the turn of its run, and yields to waiting requests after every forward. It
ends after a share of the run's own time, so that the next queued run does not wait long. An error here never
fails the run: the record then holds a note.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.data.datasets import read_split
from core.errors import StudioError
from core.spec.mix import Mix, Sampling
from core.spec.training import TrainSpec
from core.store import worth
from core.store.runs import Run
from core.store.workspace import Workspace
from core.store.worth import Example, Gain, Worth

if TYPE_CHECKING:
    from core.model.resident import Resident

logger = logging.getLogger(__name__)

ROWS = 48  # held-out rows that are measured
EXAMPLES = 5
BATCH_ROWS = 8  # questions of one batch; each has two answers
TIME_SHARE = 0.1  # of the time of the run
TIME_LIMITS = (10.0, 120.0)  # seconds
YIELD_SECONDS = 0.12  # longest time for which it yields to requests after a forward
OPENING_WORDS = 10  # of a held-out text, which base and adapter continue
CONTINUATION_TOKENS = 32


@dataclass(frozen=True)
class Turn:
    """The time that a measurement has, and how it yields.

    Attributes:
        end: `time.monotonic()` at which it ends.
        after_forward: yields to waiting requests; raises nothing.
        is_closing: whether the studio closes, or the user asked the queue to go on.
    """

    end: float
    after_forward: Callable[[], None]
    is_closing: Callable[[], bool]

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self.end or self.is_closing()


def limit_seconds(run_seconds: float) -> float:
    """The longest time that the measurement of a run takes, in seconds."""
    return min(TIME_LIMITS[1], max(TIME_LIMITS[0], TIME_SHARE * run_seconds))


def measure_worth(workspace: Workspace, resident: Resident, run: Run, turn: Turn) -> Worth:
    """Measures a finished run, and stores the result beside it.

    Args:
        run: its adapter is in the library.
        turn: how long it may take.

    Returns:
        What was stored; with a note, and without figures, where the measurement failed.
    """
    begin = time.monotonic()
    try:
        result = _measure(workspace, resident, run, turn)
    except StudioError as e:
        result = Worth(note=f"Not measured: {e.what}")
    except Exception as e:
        logger.exception("the worth of the run %s could not be measured", run.id)
        result = Worth(note=f"Not measured: {type(e).__name__}.")
    result = Worth(**{**result.__dict__, "seconds": round(time.monotonic() - begin, 2)})
    try:
        worth.save(workspace, run.id, result)
    except (StudioError, OSError):  # a full disk must not fail a run that is complete
        logger.exception("the worth of the run %s could not be stored", run.id)
    return result


def _measure(workspace: Workspace, resident: Resident, run: Run, turn: Turn) -> Worth:
    rows, split = _draw_rows(workspace, run.spec)
    if not rows:
        return Worth(note="Not measured: the dataset has no held-out rows.")
    parent = {run.spec.stack_on: 1.0} if run.spec.stack_on else {}
    mixes = (Mix(name="base"), Mix(name="adapter", weights={**parent, run.adapter: 1.0}))
    measure = _measure_answers if run.kind == "task" else _measure_texts
    gains, examples, count = measure(resident, run.spec, rows, mixes, turn)
    if not gains and turn.is_closing():
        return Worth(split=split, note="Not measured: the studio was closed.")
    if not gains:
        return Worth(split=split, note="Not measured: no held-out row fits into the context of this base.")
    return Worth(gains[0], tuple(gains[1:]), tuple(examples), split, partial=count < len(rows))


def _draw_rows(workspace: Workspace, spec: TrainSpec) -> tuple[list[dict[str, Any]], str]:
    """The same held-out rows for every run on a dataset: of the test split, or of validation without one."""
    for split in ("test", "val"):
        rows = read_split(workspace, spec.dataset, split)
        if rows:
            return random.Random(0).sample(rows, min(len(rows), ROWS)), split
    return [], ""


def _measure_answers(
    resident: Resident, spec: TrainSpec, rows: Sequence[dict[str, Any]], mixes: tuple[Mix, Mix], turn: Turn
) -> tuple[list[Gain], list[Example], int]:
    """F1 and exact match of greedy answers, and the first answers."""
    from core.evaluate.metrics import exact_match, f1
    from core.evaluate.rows import choose_answer_length, encode_questions

    length = choose_answer_length(resident.base, rows)
    questions, _ = encode_questions(resident.base, rows, length)
    answers: list[tuple[str, str, str, str]] = []  # question, answer of the base, of the adapter, reference
    for start in range(0, len(questions), BATCH_ROWS):
        if turn.is_over and answers:
            break
        batch = questions[start : start + BATCH_ROWS]
        limits = [q.limit for q in batch]
        texts = _generate(resident, [q.prompt for q in batch], limits, mixes, turn)
        if texts is None:
            break
        answers += [(q.text, a, b, q.reference) for q, a, b in zip(batch, texts[0], texts[1], strict=True)]
    if not answers:
        return [], [], 0
    gains = []
    for name, metric in (("f1", f1), ("exact_match", exact_match)):
        base = [metric(a, r) for _, a, _, r in answers]
        adapter = [metric(b, r) for _, _, b, r in answers]
        gains.append(_gain(name, base, adapter, [1.0] * len(answers)))
    distinct = list({a[0]: Example(*a) for a in reversed(answers)}.values())[::-1]  # of each question
    return gains, distinct[:EXAMPLES], len(answers)


def _measure_texts(
    resident: Resident, spec: TrainSpec, rows: Sequence[dict[str, Any]], mixes: tuple[Mix, Mix], turn: Turn
) -> tuple[list[Gain], list[Example], int]:
    """Bits per byte of held-out texts, and how base and adapter continue some of them."""
    from core.data.tokens.encoding import encode_text, is_seq2seq
    from core.model.scoring import score

    tokenizer = resident.base.tokenizer
    bits: tuple[list[float], list[float]] = ([], [])
    weights: list[float] = []
    for row in rows:
        if turn.is_closing() or (turn.is_over and weights):
            break
        sequences = encode_text(tokenizer, row["text"], min(spec.max_length, resident.base.context))
        sequences = [s for s in sequences if any(s.loss_mask[1:])]
        if not sequences:
            continue
        scores: list[Any] = []
        for _, scores in score(resident, sequences, mixes):
            turn.after_forward()
        # span corruption scores a part of the tokens only, so that bytes would be the wrong weight
        weights.append(scores[0].tokens if is_seq2seq(tokenizer) else len(row["text"].encode()))
        for values, result in zip(bits, scores, strict=True):
            values.append(result.nats / math.log(2))
    if not weights:
        return [], [], 0
    name = "bits_per_token" if is_seq2seq(tokenizer) else "bits_per_byte"
    examples = _continue_texts(resident, rows[: len(weights)], mixes, turn)
    return [_gain(name, bits[0], bits[1], weights)], examples, len(weights)


def _continue_texts(
    resident: Resident, rows: Sequence[dict[str, Any]], mixes: tuple[Mix, Mix], turn: Turn
) -> list[Example]:
    """The continuations of the openings of held-out texts, beside how the texts go on."""
    from core.data.tokens.encoding import encode_text_prompt

    chosen = []
    for row in rows:
        words = row["text"].split()
        opening = min(OPENING_WORDS, len(words) // 2)
        if opening:
            rest = " ".join(words[opening : opening + CONTINUATION_TOKENS])
            chosen.append((" ".join(words[:opening]), rest))
    chosen = list({opening: (opening, rest) for opening, rest in reversed(chosen)}.values())[::-1][:EXAMPLES]
    prompts = [encode_text_prompt(resident.base.tokenizer, opening) for opening, _ in chosen]
    room = min((resident.base.context - len(p) for p in prompts), default=0)
    if room < 1:
        return []
    texts = _generate(resident, prompts, [min(CONTINUATION_TOKENS, room)] * len(prompts), mixes, turn)
    if texts is None:
        return []
    return [
        Example(opening, a, b, rest) for (opening, rest), a, b in zip(chosen, texts[0], texts[1], strict=True)
    ]


def _generate(
    resident: Resident,
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    mixes: tuple[Mix, Mix],
    turn: Turn,
) -> tuple[list[str], list[str]] | None:
    """Greedy answers under both mixes, in one batch: (of the base, of the adapter); None if it must end."""
    from core.model.generate import generate

    states: Any = []
    for states in generate(
        resident,
        [*prompts, *prompts],
        [mix for mix in mixes for _ in prompts],
        [Sampling(max_new_tokens=n) for n in (*limits, *limits)],
    ):
        turn.after_forward()
        if turn.is_closing():
            return None
    texts = [s.column(resident.base.tokenizer).text for s in states]
    return texts[: len(prompts)], texts[len(prompts) :]


def _gain(name: str, base: list[float], adapter: list[float], weights: list[float]) -> Gain:
    """A figure of both mixes; the gain of a figure that is better when lower has the sign turned."""
    from core.evaluate.paired_gain import bootstrap_gain

    total = sum(weights)
    if worth.FIGURES[name][1]:
        gain, low, high = bootstrap_gain(adapter, base, weights)
    else:
        gain, low, high = bootstrap_gain(base, adapter, weights)
    low, high = max(low, -1e9), min(high, 1e9)  # JSON has no infinity
    return Gain(name, sum(base) / total, sum(adapter) / total, gain, low, high, len(weights))
