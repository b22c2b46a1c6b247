"""Mixes of adapters, and how text is sampled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from core.errors import SpecError
from core.spec.settings import Settings, is_number, setting

WEIGHT_LIMIT = 2.0  # a mix's weights lie in [-WEIGHT_LIMIT, WEIGHT_LIMIT]
WEIGHT_STEP = 0.05
TILT_LIMIT = 1.0  # a mix's tilts lie in [-TILT_LIMIT, TILT_LIMIT]
COLUMN_LIMIT = 6  # mixes side by side


@dataclass(frozen=True)
class Sampling(Settings):
    """How text is drawn from the model."""

    max_new_tokens: int = setting(
        96, "Longest answer in tokens.", low=1, high=4096, label="Longest answer (tokens)"
    )
    temperature: float = setting(
        0.0, "0 always takes the likeliest token; higher is more varied.", low=0.0, high=4.0
    )
    top_k: int = setting(
        0, "Draw from this many likeliest tokens only; 0 means all.", low=0, high=100_000, label="Top-k"
    )
    top_p: float = setting(
        1.0,
        "Draw from the likeliest tokens that hold this share of probability.",
        low=0.01,
        high=1.0,
        label="Top-p",
    )
    repetition_penalty: float = setting(
        1.0, "Above 1 makes tokens that were already written less likely.", low=0.5, high=3.0
    )
    seed: int = setting(0, "The same seed and mix draw the same text.", low=0, high=2**31 - 1)
    stop: tuple[str, ...] = setting((), "Texts at which an answer ends.", label="Stop texts")


@dataclass(frozen=True)
class Mix(Settings):
    """Weights for adapters; one that is missing or zero is really off. The empty mix is the base model.

    A tilt t makes a weight w vary over the layers, w · (1 - t) in the first and w · (1 + t) in the last,
    evenly between: 1 is deep, -1 is shallow, and the mean stays w.
    """

    name: str = setting("", "What the mix is called.", high=120)
    weights: dict[str, float] = setting({}, "Adapter id to weight, each from -2 to 2.")
    tilt: dict[str, float] = setting(
        {}, "Adapter id to how its weight leans with depth: 1 is all deep, -1 all shallow, 0 even."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", _numbers("weight", self.weights, WEIGHT_LIMIT))
        tilt = _numbers("tilt", self.tilt, TILT_LIMIT)
        object.__setattr__(self, "tilt", {a: t for a, t in tilt.items() if a in self.weights})

    @classmethod
    def parse(cls, text: str, name: str = "") -> Mix:
        """Reads `"dom=0.7@1,task=1"`; a bare id weighs 1, `@` gives a tilt, and `""` or `"base"` is the base model.

        Raises:
            SpecError: a part that has no such form.
        """
        weights: dict[str, float] = {}
        tilt: dict[str, float] = {}
        for part in re.split(r"[,+]", text) if text.strip() not in ("", "base") else []:
            head, at, lean = (p.strip() for p in part.partition("@"))
            adapter, equals, number = (p.strip() for p in head.partition("="))
            twice = adapter in weights
            try:
                weights[adapter] = float(number) if equals else 1.0
                tilt[adapter] = float(lean) if at else 0.0
            except ValueError:
                adapter = ""
            if not adapter or twice:
                raise SpecError(
                    f"{part!r} is not a part of a mix.",
                    'Write a mix as "domain=0.7,task=1", or "domain=0.7@1" for deep layers; "" is the base model.',
                )
        return cls(name=name, weights=weights, tilt=tilt)

    def __str__(self) -> str:
        return (
            " + ".join(
                a
                + (f"={_exact(w)}" if w != 1 else "")
                + (f"@{_exact(self.tilt[a])}" if a in self.tilt else "")
                for a, w in self.weights.items()
            )
            or "base"
        )


def _numbers(what: str, given: Any, limit: float) -> dict[str, float]:
    """Adapter ids and their numbers from -limit to limit, without the zeros."""
    if not isinstance(given, dict) or not all(isinstance(adapter, str) for adapter in given):
        raise SpecError(f"The {what}s are {given!r}.", f"Give adapter ids and their {what}s.")
    for adapter, number in given.items():
        if not is_number(number) or abs(number) > limit:
            raise SpecError(
                f"The {what} of {adapter!r} is {number!r}.",
                f"{what.capitalize()}s lie between {-limit:g} and {limit:g}.",
            )
    return {adapter: float(number) for adapter, number in given.items() if number}


def _exact(number: float) -> str:
    """A number as people write it, or in full where that would not read back the same."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def tilt_by_depth(deep: str, shallow: str, name: str = "Domain deep, task shallow") -> Mix:
    """Two adapters that share the layers: one grows towards the last, the other towards the first.

    Args:
        deep, shallow: adapter ids, usually of a domain and of a task.

    Source: TaDA, arXiv 2606.05016.
    """
    return Mix(name=name, weights={deep: 1.0, shallow: 1.0}, tilt={deep: 1.0, shallow: -1.0})
