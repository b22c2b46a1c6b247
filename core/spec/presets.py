"""Presets: named training settings for base models of one size or family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from core.errors import SpecError
from core.spec.training import TrainSpec


@dataclass(frozen=True)
class Preset:
    """Named training settings.

    Attributes:
        domain, task: the settings of each kind of adapter that differ from the defaults.
        label: what the user sees; by default the name.
        family: label of the model family that it is made for, or "" for any.
        quantization: how the base should be loaded, or "" for any way.
        parameters: of the largest base that it is made for; 0 where it does not go by size.
    """

    name: str
    help: str
    domain: dict[str, Any]
    task: dict[str, Any]
    label: str = ""
    family: str = ""
    quantization: str = ""
    parameters: float = 0.0

    @property
    def title(self) -> str:
        """What the user sees."""
        return self.label or self.name.capitalize()

    def settings(self, kind: str) -> dict[str, Any]:
        """A copy of the settings of a kind of adapter."""
        return dict(self.domain if kind == "domain" else self.task)


_MISTRAL: dict[str, Any] = {
    "rank": 16, "alpha": 32, "dropout": 0.05, "learning_rate": 2e-4,
    "batch_size": 4, "accumulation": 4, "epochs": 3.0, "max_length": 512,
}  # fmt: skip
_DIALOGPT: dict[str, Any] = {
    "rank": 16, "alpha": 32, "dropout": 0.1, "learning_rate": 2e-4,
    "batch_size": 4, "accumulation": 1, "epochs": 3.0, "max_length": 256,
}  # fmt: skip
SMALLEST = 20e6  # parameters; a smaller base is like no other
# By the size of a base. Larger bases know more of the language: they need lower rates and fewer passes. These
# are estimates from the embedded base and from what is usual; `benchmarks/defaults.py --base` measures them.
_BY_SIZE = (
    Preset(
        "100m",
        "For bases of about 100 million parameters, such as SmolLM2 135M; tuned on it, minutes on a laptop.",
        {
            "learning_rate": 1e-3, "epochs": 6.0, "batch_size": 2, "accumulation": 1, "max_length": 256,
            "dropout": 0.0, "replay_share": 0.2, "warmup_ratio": 0.05, "keep": "last",
        },
        # A task adapter that trains faster covers facts of the domain (exact match of the pair
        # 0.30 at 3e-4 and two epochs with a domain dropout of 0.25, and 0.82 with these settings).
        {
            "learning_rate": 1e-4, "epochs": 1.0, "batch_size": 8, "accumulation": 1, "max_length": 256,
            "dropout": 0.0, "domain_dropout": 0.0, "warmup_ratio": 0.05, "packing": False,
        },
        "About 100M parameters",
        parameters=300e6,
    ),
    Preset(
        "0.5b",
        "For bases of about half a billion parameters, such as Qwen2.5 0.5B; estimated.",
        {
            "learning_rate": 5e-4, "epochs": 4.0, "batch_size": 2, "accumulation": 2, "max_length": 512,
            "dropout": 0.0, "replay_share": 0.1, "warmup_ratio": 0.05,
        },
        {
            "learning_rate": 3e-4, "epochs": 3.0, "batch_size": 8, "accumulation": 2, "max_length": 384,
            "dropout": 0.0, "domain_dropout": 0.5, "warmup_ratio": 0.05,
        },
        "About 0.5B parameters",
        parameters=1.2e9,
    ),
    Preset(
        "3b",
        "For bases of about three billion parameters; estimated.",
        {
            "learning_rate": 3e-4, "epochs": 3.0, "batch_size": 2, "accumulation": 4, "max_length": 512,
            "dropout": 0.05, "replay_share": 0.1,
        },
        {
            "learning_rate": 2e-4, "epochs": 3.0, "batch_size": 4, "accumulation": 4, "max_length": 512,
            "dropout": 0.05,
        },
        "About 3B parameters",
        parameters=5e9,
    ),
    Preset(
        "7b",
        "For bases of seven billion parameters and more, in 4 bits on a GPU; estimated.",
        {
            "learning_rate": 2e-4, "epochs": 3.0, "batch_size": 2, "accumulation": 8, "max_length": 1024,
            "dropout": 0.05,
        },
        {
            "learning_rate": 2e-4, "epochs": 2.0, "batch_size": 4, "accumulation": 4, "max_length": 1024,
            "dropout": 0.05,
        },
        "7B parameters and more",
        parameters=math.inf,
    ),
)  # fmt: skip


PRESETS: dict[str, Preset] = {
    p.name: p
    for p in (
        Preset(
            "standard", "The usual QLoRA settings, for bases with at least half a billion parameters.", {}, {}
        ),
        Preset(
            "gentle",
            "Half the learning rate and one epoch, for small datasets or a base that forgets quickly.",
            {"learning_rate": 1e-4, "epochs": 1.0},
            {"learning_rate": 1e-4, "epochs": 1.0},
        ),
        Preset(
            "embedded",
            "Tuned on the tiny base model that comes with the studio; a run takes minutes on a laptop.",
            {
                "learning_rate": 3e-3,
                "epochs": 20.0,
                "batch_size": 2,
                "accumulation": 1,
                "max_length": 256,
                "dropout": 0.0,
                "replay_share": 0.3,
                "warmup_ratio": 0.05,
                # The validation loss is lowest after 60 % of the steps (0.71, and 0.78 at the end), but the
                # recall of facts still rises, from 0.78 to 0.85. So the last adapter is saved.
                "keep": "last",
            },
            {
                "learning_rate": 3e-4,
                "epochs": 6.0,
                "batch_size": 16,
                "accumulation": 1,
                "max_length": 128,
                "dropout": 0.0,
                "domain_dropout": 0.5,
                "warmup_ratio": 0.05,
                "packing": False,
            },
        ),
        *_BY_SIZE,
        Preset(
            "mistral-7b-qlora",
            "For sections of Markdown or JSON files on Mistral 7B: a 4-bit base, LoRA on every linear layer.",
            _MISTRAL,
            _MISTRAL,
            "Mistral 7B, QLoRA",
            "Mistral",
            "nf4",
        ),
        Preset(
            "dialogpt",
            "For dialogues on DialoGPT (medium): short sequences, turns joined by the end-of-text token.",
            _DIALOGPT,
            _DIALOGPT,
            "DialoGPT",
            "GPT-2 / DialoGPT",
        ),
    )
}


def preset_of_size(parameters: int) -> str:
    """The name of the preset for a base of this size; the standard one for an unknown or tiny size."""
    if parameters <= SMALLEST:
        return "standard"
    return next(p.name for p in _BY_SIZE if parameters <= p.parameters)


def suggest_preset(base: str, family: str, parameters: int) -> str:
    """The name of the preset that is made for a base, its family or its size.

    Args:
        base: name of the base.
        family: label of its model family.
        parameters: of the base; 0 if unknown.
    """
    if base == "embedded":
        return "embedded"
    own = (p.name for p in PRESETS.values() if p.family and p.family == family)
    return next(own, "") or preset_of_size(parameters)


def resolve(kind: str, preset: str, changes: dict[str, Any]) -> TrainSpec:
    """The settings of a run: the defaults, then the preset, then the changes of the user.

    Args:
        kind: "domain" or "task".
        preset: a name in PRESETS.
        changes: settings of the user.

    Raises:
        SpecError: an unknown kind, preset or setting, or a value outside its limits.
    """
    if preset not in PRESETS:
        raise SpecError(f"Preset must be one of {', '.join(PRESETS)}, got {preset!r}.", "Choose one of them.")
    return TrainSpec.from_json({"kind": kind, **PRESETS[preset].settings(kind), **changes})
