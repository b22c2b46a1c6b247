"""Which adapter made which word of an answer likelier.

For every token of an answer: how much log-probability it loses when one adapter is taken out of the
mix (leave one out), and what the base alone gives it. One forward, one row a variant of the mix.
Knows a resident base and prompts; knows no pages. Letters: V variants, T tokens of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from core.errors import SpecError
from core.evaluate.measure import Progress
from core.model.decoding import continued
from core.model.generate import encode_prompt, generate, speaking
from core.model.resident import Resident
from core.spec.mix import Mix, Sampling


@dataclass(frozen=True)
class Contribution:
    """Token by token, what each part of a mix did for an answer.

    Attributes:
        tokens: pieces of text; joined they are the answer.
        full, base: log-probability of each token in nats under the mix, and under the base alone.
        without: adapter id to the log-probabilities under the mix without that adapter.
    """

    mix: dict[str, float]
    tokens: tuple[str, ...]
    full: tuple[float, ...]
    base: tuple[float, ...]
    without: dict[str, tuple[float, ...]]

    @property
    def answer(self) -> str:
        return "".join(self.tokens)

    @property
    def by_adapter(self) -> dict[str, tuple[float, ...]]:
        """Adapter id to the nats that it added to each token; negative where it made the token less likely."""
        return {
            a: tuple(f - w for f, w in zip(self.full, without, strict=True))
            for a, without in self.without.items()
        }

    @property
    def together(self) -> tuple[float, ...]:
        """What all adapters together added to each token over the base. No sum of `by_adapter`: adapters act on each other."""
        return tuple(f - b for f, b in zip(self.full, self.base, strict=True))

    def reading(self, names: Mapping[str, str] | None = None) -> str:
        """Who did what, in plain sentences.

        Args:
            names: adapter id to display name; ids are shown where there is none.
        """
        if not self.without:
            return "The base answers alone: no adapter is in this mix."
        said = [
            f"Over the base, the mix adds {sum(self.together):+.2f} nats to the {len(self.tokens)} tokens of this answer."
        ]
        for adapter, nats in self.by_adapter.items():
            top = max(range(len(nats)), key=lambda i: abs(nats[i]))
            said.append(
                f"{(names or {}).get(adapter, adapter)} adds {sum(nats):+.2f}, most at {self.tokens[top].strip()!r} ({nats[top]:+.2f})."
            )
        return " ".join(said)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with what the page paints included."""
        return {
            **asdict(self),
            "by_adapter": self.by_adapter,
            "together": self.together,
            "answer": self.answer,
        }


@dataclass(frozen=True)
class Attributing(Progress):
    """Progress of an attribution; the last one has the result."""

    contribution: Contribution | None = None


def contribute(
    resident: Resident,
    prompt: str | Sequence[dict[str, str]],
    mix: Mix,
    answer: str = "",
    sampling: Sampling | None = None,
    chat: bool = True,
) -> Iterator[Attributing]:
    """Attributes an answer to the adapters of a mix.

    Log-probabilities are the model's own, at temperature 1, however the answer was drawn. An adapter
    that is still in training is heard as it is at that moment.

    Args:
        prompt: a text, or chat messages.
        answer: what is attributed; where it is empty, the mix writes it first.
        sampling: how the mix writes.
        chat: render with the chat template; otherwise the text is simply continued.

    Yields:
        An Attributing after every step of writing, and one after the one forward that attributes.

    Raises:
        SpecError: an empty prompt or answer, or too long for the base. NotFound, AdapterError.
    """
    tokenizer = resident.base.tokenizer
    drawn = sampling or Sampling()
    if answer:
        ids = list(tokenizer(answer, add_special_tokens=False, split_special_tokens=True)["input_ids"])
        prefix = encode_prompt(resident, prompt, chat, len(ids))
    else:
        prefix = encode_prompt(resident, prompt, chat, drawn.max_new_tokens)
        ids = []
        for writers in generate(resident, [prefix], [mix], [drawn]):
            ids = writers[0].ids
            yield Attributing(len(ids), drawn.max_new_tokens + 1, "Writing the answer")
    if not ids:
        raise SpecError("The answer is empty.", "Give an answer, or another prompt.")
    variants = [
        mix,
        Mix(),
        *(replace(mix, weights={a: w for a, w in mix.weights.items() if a != left}) for left in mix.weights),
    ]
    resident.ensure(variants)
    with speaking(resident, resident.rows(variants)):
        nats = _likelihoods(resident, prefix, ids, len(variants)).tolist()
    full, base, *without = (tuple(row) for row in nats)
    found = Contribution(
        dict(mix.weights),
        tuple(pieces(tokenizer, ids)),
        full,
        base,
        dict(zip(mix.weights, without, strict=True)),
    )
    yield Attributing(1, 1, "Done", contribution=found)


def _likelihoods(
    resident: Resident, prefix: Sequence[int], ids: Sequence[int], variants: int
) -> torch.Tensor:
    """Log-probabilities of an answer's tokens after a prompt, in every row of the engaged batch: (V, T)."""
    logits = continued(resident.base, prefix, ids, variants)
    said = torch.tensor(list(ids), device=logits.device).expand(variants, -1)
    return logits.float().log_softmax(-1).gather(-1, said[..., None])[..., 0]


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, such that they join to the text of all.

    A character that several tokens spell belongs to the last of them; the others are empty.
    """
    whole = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    made: list[str] = []
    shown = 0
    for i in range(1, len(ids) + 1):
        text = whole if i == len(ids) else tokenizer.decode(list(ids[:i]), clean_up_tokenization_spaces=False)
        end = len(text)
        while end > shown and text[:end] != whole[:end]:  # the beginning of a character that is not whole yet
            end -= 1
        made.append(whole[shown : max(end, shown)])
        shown = max(end, shown)
    return made
