"""Validation of the adapter in training: its loss, and its answers to the sample prompts beside other mixes.

The resident base scores and generates, as it does for evaluation and chat. After every forward the caller can
yield to waiting requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from core.data.tokens.encoding import EncodedSequence, encode_chat, encode_text_prompt
from core.errors import StudioError
from core.model.generate import generate
from core.model.resident import PeftForwardMix, Resident
from core.model.scoring import Score, score
from core.spec.mix import Mix, Sampling
from core.store import adapters

SAMPLE_TOKENS = 48
SAMPLE_ROWS = 24  # prompts times mixes in one batch

NamedMix = tuple[str, Mix]  # a mix and the name that the page shows for it
PromptIds = tuple[str, list[int]]


def trainee_mix(resident: Resident) -> Mix:
    """The adapter in training, with its parent adapter if it has one."""
    return PeftForwardMix(weights={resident.trainee_id: 1.0, **dict.fromkeys(resident.parent_ids, 1.0)})


def sample_mixes(resident: Resident) -> list[NamedMix]:
    """The mixes that answer the sample prompts: base, parent adapter, and last the adapter in training."""
    mixes: list[NamedMix] = [("Base", Mix())]
    for parent in sorted(resident.parent_ids):
        try:
            name = adapters.load(resident.workspace, parent).name
        except StudioError:
            name = "Parent adapter"
        mixes.append((name, Mix(weights={parent: 1.0})))
    return [*mixes, ("In training", trainee_mix(resident))]


def validate(
    resident: Resident, sequences: Sequence[EncodedSequence], mix: Mix, after_forward: Callable[[], None]
) -> Score:
    """Scores at least one sequence under a mix, in nats and tokens.

    Args:
        after_forward: called after every forward; yields to requests.
    """
    result = Score()
    for _, scores in score(resident, sequences, [mix]):
        result = scores[0]
        after_forward()
    return result


def answer_prompts(
    resident: Resident, kind: str, prompts: Sequence[str], after_forward: Callable[[], None]
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Answers every prompt under every sample mix.

    All mixes share a batch, unless the adapter in training cannot be mixed (DoRA).

    Args:
        after_forward: called after every forward; yields to requests.

    Yields:
        (prompt, [{"who": name of the mix, "text": answer}]), the adapter in training last. A prompt that
        fills the base's context is left out.
    """
    tokenizer, context = resident.base.tokenizer, resident.base.context
    mixes = sample_mixes(resident)
    encoded = [(p, encode_prompt(tokenizer, kind, p)) for p in prompts]
    encoded = [(p, ids) for p, ids in encoded if ids and len(ids) < context]
    step = max(1, SAMPLE_ROWS // len(mixes))
    for start in range(0, len(encoded), step):
        part = encoded[start : start + step]
        texts: dict[str, list[str]] = {}
        for batch in [mixes[:-1], mixes[-1:]] if resident.trainee_unmixable_reason else [mixes]:
            texts |= _answer_batch(resident, batch, part, after_forward)
        for i, (prompt, _) in enumerate(part):
            yield prompt, [{"who": name, "text": texts[name][i]} for name, _ in mixes]


def _answer_batch(
    resident: Resident,
    mixes: Sequence[NamedMix],
    prompts: Sequence[PromptIds],
    after_forward: Callable[[], None],
) -> dict[str, list[str]]:
    """Answers prompts under mixes in one batch, greedily.

    Returns:
        name of a mix -> one answer per prompt.
    """
    count = len(prompts)
    longest = max(len(ids) for _, ids in prompts)
    sampling = Sampling(max_new_tokens=min(SAMPLE_TOKENS, resident.base.context - longest))
    rows = [(ids, mix) for _, mix in mixes for _, ids in prompts]
    states: Any = []
    for states in generate(
        resident, [ids for ids, _ in rows], [mix for _, mix in rows], [sampling] * len(rows)
    ):
        after_forward()
    answers = [state.column(resident.base.tokenizer).text for state in states]
    return {name: answers[i * count : (i + 1) * count] for i, (name, _) in enumerate(mixes)}


def encode_prompt(tokenizer: Any, kind: str, prompt: str) -> list[int]:
    """Token ids of a sample prompt: a question as a chat turn, or the opening of a text."""
    if kind == "task":
        return encode_chat(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)
    return encode_text_prompt(tokenizer, prompt)
