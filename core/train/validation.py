"""What is asked of the adapter in training at every validation: its loss, and answers beside those of others.

Knows a resident base, encoded sequences and prompts. Knows nothing of Trainer or runs. Every forward lends the
model to whoever waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from core.data.encoding import EncodedSequence, encode_chat, encode_text_prompt
from core.errors import StudioError
from core.model.generate import generate
from core.model.resident import PeftForwardMix, Resident
from core.model.scoring import Score, score
from core.spec.mix import Mix, Sampling
from core.store import adapters

SAMPLE_TOKENS = 48
SAMPLE_ROWS = 24  # prompts times voices in one batch

Voice = tuple[str, Mix]  # who answers, as people see it


def present(resident: Resident) -> Mix:
    """The adapter in training, with the one below it where there is one."""
    return PeftForwardMix(weights={resident.trainee_id: 1.0, **dict.fromkeys(resident.parent_ids, 1.0)})


def voices(resident: Resident) -> list[Voice]:
    """Who answers the sample prompts: the base, the adapter below, and the one in training, which is last."""
    found: list[Voice] = [("Base", Mix())]
    for below in sorted(resident.parent_ids):
        try:
            name = adapters.load(resident.workspace, below).name
        except StudioError:
            name = "Adapter below"
        found.append((name, Mix(weights={below: 1.0})))
    return [*found, ("In training", present(resident))]


def validate(resident: Resident, sequences: Sequence[EncodedSequence], mix: Mix, serve: Callable[[], None]) -> Score:
    """Nats and tokens of at least one validation sequence under a mix."""
    result = Score()
    for _, scores in score(resident, sequences, [mix]):
        result = scores[0]
        serve()
    return result


def answers(
    resident: Resident, kind: str, prompts: Sequence[str], serve: Callable[[], None]
) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Every voice answers every prompt, all in one batch where the adapter in training can be mixed.

    Yields:
        (prompt, [{"who": voice, "text": answer}]), the adapter in training last. A prompt that leaves no room for an answer is left out.
    """
    tokenizer, who = resident.base.tokenizer, voices(resident)
    asked = [
        (p, ids) for p in prompts if (ids := encoded(tokenizer, kind, p)) and len(ids) < resident.base.context
    ]
    step = max(1, SAMPLE_ROWS // len(who))
    for start in range(0, len(asked), step):
        part = asked[start : start + step]
        room = min(SAMPLE_TOKENS, resident.base.context - max(len(ids) for _, ids in part))
        texts: dict[str, list[str]] = {}
        for group in [who[:-1], who[-1:]] if resident.trainee_unmixable_reason else [who]:
            pairs = [(ids, mix) for _, mix in group for _, ids in part]
            states: Any = []
            for states in generate(
                resident,
                [ids for ids, _ in pairs],
                [mix for _, mix in pairs],
                [Sampling(max_new_tokens=room)] * len(pairs),
            ):
                serve()
            said = [w.column(tokenizer).text for w in states]
            texts |= {name: said[i * len(part) : (i + 1) * len(part)] for i, (name, _) in enumerate(group)}
        for i, (prompt, _) in enumerate(part):
            yield prompt, [{"who": name, "text": texts[name][i]} for name, _ in who]


def encoded(tokenizer: Any, kind: str, prompt: str) -> list[int]:
    """A question as a chat turn, or the opening of a text."""
    if kind == "task":
        return encode_chat(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)
    return encode_text_prompt(tokenizer, prompt)
