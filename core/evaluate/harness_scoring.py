"""What EleutherAI's lm-evaluation-harness asks of a model, computed for a mix: token ids in, figures out.

The conventions are those of the harness's own `hf` model: a context and its continuation are one sequence
that is cut on the left, greedy means that every token of the continuation is the likeliest one, and a prompt
is cut on the left to leave room for its answer. Nothing here imports the harness (`harness_model` does).
Generators yield after every forward, so that the worker can interleave them with other work.

Letters: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.data.tokens.collation import collate
from core.errors import SpecError
from core.model.activation import inference_mode_for
from core.model.generate import generate
from core.model.resident import Resident
from core.model.scoring import BATCH_TOKENS, BATCH_TOKENS_CPU
from core.progress import Progress
from core.spec.fixed_weights import require_numbers
from core.spec.mix import NEW_TOKENS_LIMIT, Mix, Sampling

BATCH_ANSWERS = 16  # answers that are decoded together
SCORING, ANSWERING = "Scoring continuations", "Writing answers"


@dataclass(frozen=True)
class Continuation:
    """A continuation to score after its context, both as token ids; neither is empty."""

    context: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Likelihood:
    """The log-likelihood of a continuation, in nats, and whether greedy decoding would write it."""

    nats: float
    is_greedy: bool


@dataclass(frozen=True)
class Answer:
    """A prompt to answer.

    Attributes:
        ids: token ids of the prompt.
        sampling: how it is answered; its stop strings end the answer.
    """

    ids: tuple[int, ...]
    sampling: Sampling


def check_mix(resident: Resident, mix: Mix) -> None:
    """Checks that the harness can measure a mix.

    Raises:
        SpecError: a weight is on Auto, or the base is an encoder-decoder model.
    """
    require_numbers(mix, "The harness")
    if resident.base.family.seq2seq:
        raise SpecError(
            f"The harness measures causal bases, and {resident.base.name!r} has an encoder and a decoder.",
            "Measure it on a dataset instead.",
        )


def score_continuations(
    resident: Resident, mix: Mix, requests: Sequence[Continuation], max_length: int = 0
) -> Iterator[Progress | list[Likelihood]]:
    """Scores continuations under a mix, the longest sequences first.

    Requests that differ only in their last token share one forward.

    Args:
        max_length: tokens that the model reads at once; 0 is the base's context. Longer sequences lose their
            beginning.

    Yields:
        Progress after every forward; last, one Likelihood per request.

    Raises:
        SpecError: a continuation is empty, or longer than `max_length`.
    """
    limit = max_length or resident.base.context
    found: list[Likelihood | None] = [None] * len(requests)
    sequences: dict[tuple[int, ...], list[int]] = {}  # what the model reads -> requests
    for index, request in enumerate(requests):
        if not request.ids or not request.context or len(request.ids) > limit:
            raise SpecError(
                f"A continuation must have 1 to {limit} tokens after a context, got {len(request.ids)}.",
                "Choose a base with a longer context, or leave this task out.",
            )
        sequences.setdefault((request.context + request.ids)[-(limit + 1) :][:-1], []).append(index)
    done = 0
    for batch in _batch(sorted(sequences, key=lambda ids: (-len(ids), ids)), resident.base.device.type):
        for ids, (log_likelihoods, is_likeliest) in zip(
            batch,
            _forward(resident, mix, batch, [[requests[i].ids for i in sequences[ids]] for ids in batch]),
            strict=True,
        ):
            for i, nats, greedy in zip(sequences[ids], log_likelihoods, is_likeliest, strict=True):
                found[i] = Likelihood(nats, greedy)
            done += len(sequences[ids])
        yield Progress(done, len(requests), SCORING)
    yield [f for f in found if f is not None]


def _batch(sequences: Sequence[tuple[int, ...]], device: str) -> Iterator[list[tuple[int, ...]]]:
    """Splits sequences, the longest first, into batches of a limited number of padded tokens."""
    limit = BATCH_TOKENS_CPU if device == "cpu" else BATCH_TOKENS
    start = 0
    while start < len(sequences):
        rows = max(1, limit // len(sequences[start]))
        yield list(sequences[start : start + rows])
        start += rows


def _forward(
    resident: Resident,
    mix: Mix,
    batch: Sequence[tuple[int, ...]],
    continuations: Sequence[Sequence[tuple[int, ...]]],
) -> list[tuple[list[float], list[bool]]]:
    """One forward of B sequences without their last token.

    Args:
        continuations: of each sequence, those that end one token after it.

    Returns:
        Of each sequence, the log-likelihood of every continuation, and whether it is greedy.
    """
    base = resident.base
    rows = [{"input_ids": list(ids), "loss_mask": [0] * len(ids)} for ids in batch]
    tensors = {k: v.to(base.device) for k, v in collate(rows, base.tokenizer.pad_token_id).items()}
    del tensors["labels"]
    resident.load_adapters([mix])
    results: list[tuple[list[float], list[bool]]] = []
    with inference_mode_for(resident, resident.rows([mix] * len(batch))):
        logits = base.model(**tensors, use_cache=False).logits  # (B, T, V)
        for row, ids, asked in zip(logits, batch, continuations, strict=True):
            longest = max(map(len, asked))
            scores = row[len(ids) - longest : len(ids)].float().log_softmax(-1)  # (longest, V)
            likeliest = scores.argmax(-1)
            nats, greedy = [], []
            for continuation in asked:
                tokens = torch.tensor(continuation, device=scores.device)
                nats.append(float(scores[-len(tokens) :].gather(1, tokens.unsqueeze(1)).sum()))
                greedy.append(bool((likeliest[-len(tokens) :] == tokens).all()))
            results.append((nats, greedy))
    return results


def write_answers(resident: Resident, mix: Mix, requests: Sequence[Answer]) -> Iterator[Progress | list[str]]:
    """Answers prompts under a mix, the longest first; a prompt that is too long loses its beginning.

    Yields:
        Progress after every step; last, the text of every answer up to its first stop string, with the
        blanks around it and without special tokens.

    Raises:
        SpecError: the longest answer leaves no room for a prompt.
    """
    base = resident.base
    texts = [""] * len(requests)
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].ids))
    for start in range(0, len(order), BATCH_ANSWERS):
        part = order[start : start + BATCH_ANSWERS]
        prompts = [_cut(requests[i], base.context) for i in part]
        samplings = [requests[i].sampling for i in part]
        states: Any = ()
        for states in generate(resident, prompts, [mix] * len(part), samplings):
            yield Progress(start + sum(bool(s.reason) for s in states), len(order), ANSWERING)
        for i, state in zip(part, states, strict=True):
            texts[i] = cut_at_stop(
                base.tokenizer.decode(state.ids, skip_special_tokens=True), requests[i].sampling.stop
            )
    yield texts


def _cut(request: Answer, context: int) -> tuple[int, ...]:
    room = context - request.sampling.max_new_tokens
    if room < 1:
        raise SpecError(
            f"The task asks for answers of {request.sampling.max_new_tokens} tokens, and the base reads "
            f"{context} tokens at once.",
            "Choose a base with a longer context, or a shorter longest answer (--max-new-tokens).",
        )
    return request.ids[-room:]


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    for string in stop:
        text = text.split(string)[0] if string else text
    return text


def make_sampling(settings: dict[str, Any], longest: int) -> Sampling:
    """The sampling of a generation task.

    Args:
        settings: what the task says, with the harness's names; `until` and `max_gen_toks` are given.
        longest: limit of the answers in tokens, instead of the task's; 0 keeps the task's.

    Raises:
        SpecError: the task needs a way of generating that the studio does not have.
    """
    known = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty"}
    if unknown := sorted(set(settings) - known):
        raise SpecError(
            f"The task sets {unknown[0]} for its answers, which the studio does not have.",
            f"It has {', '.join(sorted(known))}.",
        )
    is_sampled = bool(settings.get("do_sample"))
    return Sampling(
        max_new_tokens=min(longest or int(settings["max_gen_toks"]), NEW_TOKENS_LIMIT),
        temperature=float(settings.get("temperature") or 1.0) if is_sampled else 0.0,
        top_k=int(settings.get("top_k") or 0) if is_sampled else 0,
        top_p=float(settings.get("top_p") or 1.0) if is_sampled else 1.0,
        repetition_penalty=float(settings.get("repetition_penalty") or 1.0),
        stop=tuple(s for s in settings["until"] if s),
    )
