"""Settings of a mix of adapters (`Mix`) and of sampling (`Sampling`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import SpecError
from core.spec.settings import Settings, is_number, setting

WEIGHT_LIMIT = 2.0  # weights are between -WEIGHT_LIMIT and WEIGHT_LIMIT
WEIGHT_STEP = 0.05  # of a slider
TILT_LIMIT = 1.0  # tilts are between -TILT_LIMIT and TILT_LIMIT
COLUMN_LIMIT = 6  # mixes that are compared side by side
NEW_TOKENS_LIMIT = 4096  # the longest answer that may be asked for, in tokens
# How a gate sets a weight on Auto: on or off by the prompt, a part of the weight by the prompt, or on or off
# by the newest tokens while the answer is written.
AUTO_MODES = ("hard", "soft", "token")
_AUTO = re.compile(r"auto(?:-(soft|token))?(?::(.+))?")


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

    A weight on Auto is set by a gate (`core.model.gating`) for each prompt, between 0 and the weight that is
    given here. `resolve` puts the gate's weights in; only mixes without Auto are computed.
    """

    name: str = setting("", "Name of the mix.", high=120)
    weights: dict[str, float] = setting({}, "Adapter id to weight, each between -2 and 2.")
    tilt: dict[str, float] = setting(
        {}, "Adapter id to tilt: how its weight varies with depth; 1 is all deep, -1 all shallow, 0 even."
    )
    auto: dict[str, str] = setting(
        {}, "Adapter id to gate, for weights that follow the prompt: hard, soft, or token."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = check_numbers("weight", self.weights, WEIGHT_LIMIT)
        tilt = check_numbers("tilt", self.tilt, TILT_LIMIT)
        auto = _check_auto(self.auto)
        object.__setattr__(self, "weights", {a: w for a, w in weights.items() if w})
        object.__setattr__(self, "tilt", {a: t for a, t in tilt.items() if t and a in self.weights})
        object.__setattr__(self, "auto", {a: m for a, m in auto.items() if a in self.weights})

    @property
    def without_auto(self) -> Mix:
        """The mix without its adapters on Auto."""
        return self.resolve(dict.fromkeys(self.auto, 0.0)) if self.auto else self

    def resolve(self, weights: Mapping[str, float]) -> Mix:
        """The mix with a number for every weight on Auto.

        Args:
            weights: adapter id -> weight, for each adapter on Auto.
        """
        chosen = {a: weights[a] if a in self.auto else w for a, w in self.weights.items()}
        return type(self)(name=self.name, weights=chosen, tilt=self.tilt)

    @classmethod
    def parse(cls, text: str, name: str = "") -> Mix:
        """Parses a mix from text: `"domain=0.7@1,task=1"`, or `"domain=auto,task=1"`.

        An id without a number has weight 1, `@` adds a tilt, and `""` or `"base"` is the base model. `auto`,
        `auto-soft` and `auto-token` set the weight by a gate, and `auto:0.7` limits it.

        Raises:
            SpecError: a part does not have this form, or occurs twice.
        """
        weights: dict[str, float] = {}
        tilt: dict[str, float] = {}
        auto: dict[str, str] = {}
        for part in re.split(r"[,+]", text) if text.strip() not in ("", "base") else []:
            head, at, tilt_text = (p.strip() for p in part.partition("@"))
            adapter, equals, number = (p.strip() for p in head.partition("="))
            is_duplicate = adapter in weights
            try:
                if gate := _AUTO.fullmatch(number):
                    auto[adapter], number = gate[1] or "hard", gate[2] or "1"
                weights[adapter] = float(number) if equals else 1.0
                tilt[adapter] = float(tilt_text) if at else 0.0
            except ValueError:
                adapter = ""
            if not adapter or is_duplicate:
                raise SpecError(
                    f"Each part of a mix must be a different adapter id with a weight, got {part!r}.",
                    'Write a mix as "domain=0.7,task=1", "domain=0.7@1" with a tilt, or "domain=auto,task=1"'
                    '; "" is the base.',
                )
        return cls(name=name, weights=weights, tilt=tilt, auto=auto)

    def __str__(self) -> str:
        parts = []
        for adapter, weight in self.weights.items():
            number = _format_exact(weight) if weight != 1 else ""
            if adapter in self.auto:
                number = format_auto(self.auto[adapter]) + (f":{number}" if number else "")
            weight_text = f"={number}" if number else ""
            tilt_text = f"@{_format_exact(self.tilt[adapter])}" if adapter in self.tilt else ""
            parts.append(f"{adapter}{weight_text}{tilt_text}")
        return " + ".join(parts) or "base"


def format_auto(mode: str) -> str:
    """A gate as `Mix.parse` reads it: "auto", "auto-soft" or "auto-token"."""
    return "auto" if mode == "hard" else f"auto-{mode}"


def _check_auto(auto: Any) -> dict[str, str]:
    """Adapter id -> gate. Raises SpecError."""
    if not isinstance(auto, dict) or not all(isinstance(a, str) for a in auto):
        raise SpecError(
            f"The gates must map adapter ids to names, got {auto!r}.", "Give a gate per adapter on Auto."
        )
    for adapter, mode in auto.items():
        if mode not in AUTO_MODES:
            raise SpecError(
                f"The gate of {adapter!r} must be one of {', '.join(AUTO_MODES)}, got {mode!r}.",
                "Choose one of them.",
            )
    if {"soft", "token"} <= set(auto.values()):
        raise SpecError(
            "A mix may have soft gates or gates that follow each token, got both.",
            "Set them to the same, or to hard.",
        )
    return dict(auto)


def check_numbers(what: str, numbers: Any, limit: float) -> dict[str, float]:
    """Adapter id -> number, zeros included.

    Args:
        what: a number, such as "weight".

    Raises:
        SpecError: it is not a mapping of ids to numbers, or a number is outside -limit to limit.
    """
    if not isinstance(numbers, dict) or not all(isinstance(adapter, str) for adapter in numbers):
        raise SpecError(
            f"The {what}s must map adapter ids to numbers, got {numbers!r}.", "Give a number per adapter."
        )
    for adapter, number in numbers.items():
        if not is_number(number) or abs(number) > limit:
            raise SpecError(
                f"The {what} of {adapter!r} must be between {-limit:g} and {limit:g}, got {number!r}."
            )
    return {adapter: float(number) for adapter, number in numbers.items()}


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
