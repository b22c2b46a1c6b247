"""Attributes an answer to the adapters of a mix, token by token.

For every token of the answer: the log-probability that it loses when one adapter is left out of the mix, and
its log-probability under the base alone. All variants of the mix are rows of one forward. (Leave-one-out
attribution, as in Li, Monroe and Jurafsky 2016, arXiv 1612.08220.)

Letters: N variants of the mix, T tokens of the answer.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from core.data.tokens.encoding import encode_answer
from core.errors import SpecError
from core.model.decoding import answer_logits
from core.model.detokenizer import REPLACEMENT, Detokenizer
from core.model.gating import resolve_mixes
from core.model.generate import encode_prompt, generate, inference_mode_for
from core.model.resident import Resident
from core.progress import Progress
from core.spec.mix import Mix, Sampling


@dataclass(frozen=True)
class Attribution:
    """The effect of each adapter of a mix on each token of an answer.

    Attributes:
        tokens: texts that join to the answer.
        full: log-probability of each token under the mix, in nats. base: under the base alone.
        without: adapter id to the log-probabilities under the mix without that adapter.
        auto: adapter id to the weight that its gate chose for the prompt, for weights on Auto.
    """

    mix: dict[str, float]
    tokens: tuple[str, ...]
    full: tuple[float, ...]
    base: tuple[float, ...]
    without: dict[str, tuple[float, ...]]
    auto: dict[str, float] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """The answer's text."""
        return "".join(self.tokens)

    @property
    def by_adapter(self) -> dict[str, tuple[float, ...]]:
        """Adapter id to the nats that it adds to each token; negative if the token becomes less likely."""
        return {
            a: tuple(f - w for f, w in zip(self.full, without, strict=True))
            for a, without in self.without.items()
        }

    @property
    def joint(self) -> tuple[float, ...]:
        """Nats that all adapters jointly add to each token.

        Not the sum of `by_adapter`, since adapters interact.
        """
        return tuple(f - b for f, b in zip(self.full, self.base, strict=True))

    def summary(self, names: Mapping[str, str] | None = None) -> str:
        """The effect of the mix, and of each adapter with the token that it changes most.

        Args:
            names: adapter id to display name; ids are shown for missing names.
        """
        known = names or {}
        chosen = ", ".join(f"{known.get(a, a)} {weight:.2f}" for a, weight in self.auto.items())
        gates = [f"Weights on Auto, for this prompt: {chosen}."] if chosen else []
        if not self.without:
            alone = "The base answers alone: " + (
                "every gate is off." if gates else "this mix has no adapters."
            )
            return " ".join([*gates, alone])
        sentences = [
            *gates,
            f"The mix adds {sum(self.joint):+.2f} nats to the {len(self.tokens)} tokens of this answer, "
            "compared with the base.",
        ]
        for adapter, nats in self.by_adapter.items():
            name = known.get(adapter, adapter)
            top = max(range(len(nats)), key=lambda i: abs(nats[i]))
            token = self.tokens[top].strip()
            sentences.append(f"{name} adds {sum(nats):+.2f}, most of it at {token!r} ({nats[top]:+.2f}).")
        return " ".join(sentences)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, including the derived ones."""
        return {
            **asdict(self),
            "by_adapter": self.by_adapter,
            "joint": self.joint,
            "answer": self.answer,
        }


@dataclass(frozen=True)
class AttributionProgress(Progress):
    """Progress of an attribution; the last one holds the result."""

    attribution: Attribution | None = None


def attribute_answer(
    resident: Resident,
    prompt: str | Sequence[dict[str, str]],
    mix: Mix,
    answer: str = "",
    sampling: Sampling | None = None,
    chat: bool = True,
) -> Iterator[AttributionProgress]:
    """Attributes an answer to the adapters of a mix.

    Log-probabilities are the model's own, at temperature 1, however the answer was sampled. An adapter in
    training is used in its current state. Weights on Auto are those of the prompt, for the whole answer.

    Args:
        prompt: a text, or chat messages.
        answer: the text to attribute; "" lets the mix generate it first.
        sampling: how the mix generates the answer.
        chat: render the prompt with the chat template; otherwise it is continued as plain text.

    Yields:
        An AttributionProgress after every generated token, and a last one with the result.

    Raises:
        SpecError: the prompt or the answer is empty, or too long for the base.
        NotFound, AdapterError: an adapter cannot be loaded.
    """
    tokenizer = resident.base.tokenizer
    sampling = sampling or Sampling()
    if answer:
        ids = encode_answer(tokenizer, answer)
        prefix = encode_prompt(resident, prompt, chat, len(ids))
    else:
        prefix = encode_prompt(resident, prompt, chat, sampling.max_new_tokens)
        ids = []
    mix, gates = yield from _resolve(resident, mix, prefix)
    if not answer:
        for states in generate(resident, [prefix], [mix], [sampling]):
            ids = states[0].ids
            yield AttributionProgress(len(ids), sampling.max_new_tokens + 1, "Generating the answer")
    if not ids:
        raise SpecError("The answer is empty.", "Enter an answer, or change the prompt.")
    variants = [mix, Mix(), *(_remove_adapter(mix, a) for a in mix.weights)]
    resident.load_adapters(variants)
    with inference_mode_for(resident, resident.rows(variants)):
        nats = _compute_log_probabilities(resident, prefix, ids, len(variants)).tolist()
    full, base, *without = (tuple(row) for row in nats)
    attribution = Attribution(
        mix=dict(mix.weights),
        tokens=tuple(decode_tokens(tokenizer, ids)),
        full=full,
        base=base,
        without=dict(zip(mix.weights, without, strict=True)),
        auto=gates,
    )
    yield AttributionProgress(1, 1, "Done", attribution=attribution)


def _resolve(
    resident: Resident, mix: Mix, prompt: Sequence[int]
) -> Generator[AttributionProgress, None, tuple[Mix, dict[str, float]]]:
    """Lets the gates of a mix choose for a prompt.

    Returns:
        the mix with a number for every weight, and the numbers that the gates chose.
    """
    if not mix.auto:
        return mix, {}
    choices: Any = None
    for choices in resolve_mixes(resident, [prompt], [mix]):
        yield AttributionProgress(0, 1, "Reading the prompt")
    chosen = choices[0][0].mix
    return chosen, {a: chosen.weights.get(a, 0.0) for a in mix.auto}


def _remove_adapter(mix: Mix, adapter_id: str) -> Mix:
    return replace(mix, weights={a: w for a, w in mix.weights.items() if a != adapter_id})


def _compute_log_probabilities(
    resident: Resident, prefix: Sequence[int], ids: Sequence[int], variants: int
) -> torch.Tensor:
    """(N, T) log-probabilities of an answer's tokens after a prompt, in every row of the active batch."""
    logits = answer_logits(resident.base, prefix, ids, variants)
    targets = torch.tensor(list(ids), device=logits.device).expand(variants, -1)
    return logits.float().log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def decode_tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token; joined, the texts equal the text of all tokens.

    A character that several tokens encode belongs to the last of them; the texts of the others are empty.
    """
    whole = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    if REPLACEMENT in whole:  # half a character at the end is dropped
        whole = tokenizer.decode(Detokenizer(tokenizer).complete(ids), clean_up_tokenization_spaces=False)
    texts: list[str] = []
    start = 0
    for i in range(1, len(ids) + 1):
        text = whole if i == len(ids) else tokenizer.decode(list(ids[:i]), clean_up_tokenization_spaces=False)
        end = len(text)
        while end > start and text[:end] != whole[:end]:  # the last character is incomplete
            end -= 1
        texts.append(whole[start : max(end, start)])
        start = max(end, start)
    return texts
