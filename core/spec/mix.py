"""Settings of a mix of adapters (`Mix`) and of sampling (`Sampling`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from core.errors import SpecError
from core.spec.settings import Settings, is_number, setting

WEIGHT_LIMIT = 2.0  # weights are between -WEIGHT_LIMIT and WEIGHT_LIMIT
WEIGHT_STEP = 0.05  # of a slider
TILT_LIMIT = 1.0  # tilts are between -TILT_LIMIT and TILT_LIMIT
COLUMN_LIMIT = 6  # mixes that are compared side by side
NEW_TOKENS_LIMIT = 4096  # the longest answer that may be asked for, in tokens


@dataclass(frozen=True)
class Sampling(Settings):
    """How the next token is sampled."""

    max_new_tokens: int = setting(
        96,
        "Maximum length of an answer, in tokens.",
        low=1,
        high=NEW_TOKENS_LIMIT,
        label="Longest answer (tokens)",
    )
    temperature: float = setting(
        0.0, "0 always takes the most likely token; higher values give more varied text.", low=0.0, high=4.0
    )
    top_k: int = setting(
        0,
        "Number of most likely tokens to sample from; 0 samples from all tokens.",
        low=0,
        high=100_000,
        label="Top-k",
    )
    top_p: float = setting(
        1.0,
        "Samples only from the most likely tokens whose probabilities add up to this.",
        low=0.01,
        high=1.0,
        label="Top-p",
    )
    repetition_penalty: float = setting(
        1.0, "Values above 1 make tokens that have already occurred less likely.", low=0.5, high=3.0
    )
    seed: int = setting(0, "The same seed and mix give the same text.", low=0, high=2**31 - 1)
    stop: tuple[str, ...] = setting((), "Strings that end an answer.", label="Stop strings")


@dataclass(frozen=True)
class Mix(Settings):
    """Weights of adapters; an adapter without a weight, or with weight 0, is off.

    The empty mix is the base. A tilt t lets a weight w vary over the layers, linearly from w · (1 - t) in
    the first to w · (1 + t) in the last: 1 is all deep, -1 is all shallow, and the mean stays w.
    """

    name: str = setting("", "Name of the mix.", high=120)
    weights: dict[str, float] = setting({}, "Adapter id to weight, each between -2 and 2.")
    tilt: dict[str, float] = setting(
        {}, "Adapter id to tilt: how its weight varies with depth; 1 is all deep, -1 all shallow, 0 even."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", _check_numbers("weight", self.weights, WEIGHT_LIMIT))
        tilt = _check_numbers("tilt", self.tilt, TILT_LIMIT)
        object.__setattr__(self, "tilt", {a: t for a, t in tilt.items() if a in self.weights})

    @classmethod
    def parse(cls, text: str, name: str = "") -> Mix:
        """Parses a mix from text: `"domain=0.7@1,task=1"`.

        An id without a number has weight 1, `@` adds a tilt, and `""` or `"base"` is the base model.

        Raises:
            SpecError: a part does not have this form, or occurs twice.
        """
        weights: dict[str, float] = {}
        tilt: dict[str, float] = {}
        for part in re.split(r"[,+]", text) if text.strip() not in ("", "base") else []:
            head, at, tilt_text = (p.strip() for p in part.partition("@"))
            adapter, equals, number = (p.strip() for p in head.partition("="))
            is_duplicate = adapter in weights
            try:
                weights[adapter] = float(number) if equals else 1.0
                tilt[adapter] = float(tilt_text) if at else 0.0
            except ValueError:
                adapter = ""
            if not adapter or is_duplicate:
                raise SpecError(
                    f"Each part of a mix must be a different adapter id with a weight, got {part!r}.",
                    'Write a mix as "domain=0.7,task=1", or "domain=0.7@1" with a tilt; "" is the base.',
                )
        return cls(name=name, weights=weights, tilt=tilt)

    def __str__(self) -> str:
        parts = []
        for adapter, weight in self.weights.items():
            weight_text = f"={_format_exact(weight)}" if weight != 1 else ""
            tilt_text = f"@{_format_exact(self.tilt[adapter])}" if adapter in self.tilt else ""
            parts.append(f"{adapter}{weight_text}{tilt_text}")
        return " + ".join(parts) or "base"


def _check_numbers(what: str, numbers: Any, limit: float) -> dict[str, float]:
    """Adapter id -> number, without the zeros. Raises SpecError for a number outside -limit to limit."""
    if not isinstance(numbers, dict) or not all(isinstance(adapter, str) for adapter in numbers):
        raise SpecError(
            f"The {what}s must map adapter ids to numbers, got {numbers!r}.", "Give a number per adapter."
        )
    for adapter, number in numbers.items():
        if not is_number(number) or abs(number) > limit:
            raise SpecError(
                f"The {what} of {adapter!r} must be between {-limit:g} and {limit:g}, got {number!r}."
            )
    return {adapter: float(number) for adapter, number in numbers.items() if number}


def _format_exact(number: float) -> str:
    """A number with as few digits as `Mix.parse` needs to read the same number."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def tilt_by_depth(deep: str, shallow: str, name: str = "Domain deep, task shallow") -> Mix:
    """A mix of two adapters with opposite tilts, one on the deep layers and the other on the shallow ones.

    Args:
        deep, shallow: adapter ids, usually of a domain adapter and of a task adapter.

    Source: TaDA, arXiv 2606.05016.
    """
    return Mix(name=name, weights={deep: 1.0, shallow: 1.0}, tilt={deep: 1.0, shallow: -1.0})
