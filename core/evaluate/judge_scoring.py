"""Verdicts of a mix on answers: the likelihoods of "Good" and "Poor" as its reply, compared.

A small base hardly ever writes a clean verdict, but its likelihoods of the two words can be compared. Each
answer is read with the words in both orders (Wang et al., Large Language Models are not Fair Evaluators,
2023), and its log-odds are measured from those of anchors (`core.evaluate.judging.choose_anchors`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from core.data.tokens.encoding import encode_answer, encode_chat
from core.data.tokens.rendering import TEMPLATE_ERRORS
from core.errors import StudioError
from core.evaluate.harness_scoring import Continuation, Likelihood, check_mix, score_continuations
from core.evaluate.judging import ORDERS, WORDS, ShownAnswer, choose_anchors, write_prompt
from core.model.base import Base
from core.model.resident import Resident
from core.spec.judge import GOOD, POOR, UNREADABLE
from core.spec.mix import Mix
from core.store.judgements import Verdict

BATCH_ANSWERS = 4  # whose verdicts come together


def judge_answers(
    resident: Resident, mix: Mix, answers: Sequence[ShownAnswer], criteria: str, references: Sequence[str]
) -> Iterator[list[Verdict] | None]:
    """Judges answers with a mix.

    Args:
        references: reference answers of all questions, sorted.

    Yields:
        the verdicts of a few answers, in the order of the answers, and None after every forward. An answer
        that does not fit in the context is unreadable, with the reason as its reply.

    Raises:
        SpecError: the mix has a weight on Auto, or the base is an encoder-decoder model.
    """
    check_mix(resident, mix)
    known: dict[str, float | str] = {}  # key of an anchor -> its log-odds, or why it has none
    for start in range(0, len(answers), BATCH_ANSWERS):
        batch = answers[start : start + BATCH_ANSWERS]
        anchors = {a.key: choose_anchors(a, criteria, references) for a in batch}
        new = {n.key: n for chosen in anchors.values() for n in chosen if n.key not in known}
        found = yield from _measure(resident, mix, [*batch, *new.values()], criteria)
        known.update((key, found[len(batch) + i]) for i, key in enumerate(new))
        verdicts = []
        for answer, odds in zip(batch, found, strict=False):
            zeros = [known[anchor.key] for anchor in anchors[answer.key]]
            problem = next((v for v in (odds, *zeros) if isinstance(v, str)), "")
            if problem:
                verdicts.append(Verdict(answer.key, UNREADABLE, 0.0, problem))
                continue
            nats = float(odds) - sum(float(z) for z in zeros) / len(zeros)
            verdicts.append(Verdict(answer.key, GOOD if nats > 0 else POOR, nats))
        yield verdicts


def _measure(
    resident: Resident, mix: Mix, answers: Sequence[ShownAnswer], criteria: str
) -> Generator[None, None, list[float | str]]:
    """A generator of None that returns the log-odds of Good of each answer, in nats, or why it has none."""
    words = [tuple(encode_answer(resident.base.tokenizer, WORDS[verdict])) for verdict in (GOOD, POOR)]
    results: list[float | str] = []
    requests: list[Continuation] = []
    scored: list[int] = []
    for i, answer in enumerate(answers):
        try:
            prompts = [_encode(resident.base, answer, criteria, order, words) for order in ORDERS]
        except (StudioError, *TEMPLATE_ERRORS) as e:
            results.append(e.what if isinstance(e, StudioError) else str(e))
            continue
        results.append(0.0)
        scored.append(i)
        requests += [Continuation(prompt, word) for prompt in prompts for word in words]
    likelihoods: list[Likelihood] = []
    for part in score_continuations(resident, mix, requests):
        if isinstance(part, list):
            likelihoods = part
        else:
            yield None
    size = len(ORDERS) * len(words)
    for place, i in enumerate(scored):
        own = likelihoods[place * size : (place + 1) * size]
        odds = [good.nats - poor.nats for good, poor in zip(own[::2], own[1::2], strict=True)]
        results[i] = sum(odds) / len(odds)
    return results


def _encode(
    base: Base,
    answer: ShownAnswer,
    criteria: str,
    order: tuple[str, str],
    words: Sequence[tuple[int, ...]],
) -> tuple[int, ...]:
    """The prompt of a verdict as token ids.

    Raises:
        StudioError: it does not fit in the context, or the chat template refuses it.
    """
    text = write_prompt(answer, criteria, order)
    ids = encode_chat(base.tokenizer, [{"role": "user", "content": text}], True)
    if len(ids) + max(map(len, words)) > base.context:
        raise StudioError(
            f"Its prompt has {len(ids)} tokens and the context of this base {base.context}.",
            "Choose a judge with a longer context.",
        )
    return tuple(ids)
