"""Settings of an export (`ExportSpec`): what leaves the studio, in which form and precision."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import SpecError
from core.spec.fixed_weights import require_numbers
from core.spec.mix import TILT_LIMIT, WEIGHT_LIMIT, Mix, check_numbers
from core.spec.settings import Settings, setting

FORMS = ("peft", "merged", "gguf", "bundle")
FORM_LABELS = {
    "peft": "PEFT adapter",
    "merged": "Merged model",
    "gguf": "Merged model as GGUF",
    "bundle": "Base and adapters as GGUF, with their weights",
}
PRECISIONS = ("base", "bf16", "f16", "f32")  # of the weights of a merged model
GGUF_QUANTIZATIONS = ("f16", "f32", "bf16", "q8_0", "q4_0", "q4_k_m")
NAME_LIMIT = 80  # characters; a name of a file has at most 255 bytes
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class ExportSpec(Settings):
    """What is exported, and how.

    An adapter alone is `weights={adapter_id: 1}`. A weight of 0 matters to a bundle only: the adapter is in
    it, switched off. The other forms leave such an adapter out.
    """

    name: str = setting("", "Name of the exported files and of the folder they are in.", high=NAME_LIMIT)
    weights: dict[str, float] = setting({}, "Adapter id to weight, each between -2 and 2.")
    tilt: dict[str, float] = setting(
        {}, "Adapter id to tilt: how its weight varies with depth; 1 is all deep, -1 all shallow, 0 even."
    )
    form: str = setting(
        "peft",
        "A PEFT adapter, a merged model for transformers, a merged GGUF file, or base and adapters as GGUF.",
        choices=FORMS,
    )
    precision: str = setting(
        "base",
        'Precision of a merged model\'s weights; "base" is the one that the files of the base have.',
        choices=PRECISIONS,
    )
    quantization: str = setting(
        "q8_0",
        "Quantization of a GGUF file: fewer bits make it smaller and its answers less exact.",
        choices=GGUF_QUANTIZATIONS,
        label="GGUF quantization",
    )
    shard_gb: float = setting(
        4.0,
        "Largest size of a weight file of a merged model, in GB.",
        low=0.05,
        high=100.0,
        label="Largest weight file (GB)",
    )
    plain_copy: bool = setting(
        False,
        "Adds a copy of the PEFT weights called adapter.safetensors, for tools that expect this name.",
        label="Copy as adapter.safetensors",
    )
    include_base: bool = setting(
        True, "Whether a bundle holds the base itself; without it, only the adapters are written."
    )
    prompts: int = setting(
        20, "Held-out prompts that the exported file is checked with; 0 skips the check.", low=0, high=200
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = _check_at("weights", "weight", self.weights, WEIGHT_LIMIT)
        tilt = _check_at("tilt", "tilt", self.tilt, TILT_LIMIT)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "tilt", {a: t for a, t in tilt.items() if t and a in weights})

    @classmethod
    def of_mix(cls, mix: Mix, names: Mapping[str, str] | None = None, **settings: Any) -> ExportSpec:
        """The export of a mix.

        Args:
            names: adapter id -> display name, for errors.
            settings: the other fields, `name` among them.

        Raises:
            SpecError: a weight is on Auto, or a setting is outside its limits.
        """
        require_numbers(mix, "An export", names)
        return cls.from_json({**settings, "weights": mix.weights, "tilt": mix.tilt})

    @property
    def mix(self) -> Mix:
        """The mix that the export answers like."""
        return Mix(name=self.name, weights=self.weights, tilt=self.tilt)

    @property
    def file_name(self) -> str:
        """The name in the letters that every file system, shell and runtime takes; "export" without any."""
        return _UNSAFE.sub("-", self.name).strip("-.") or "export"


def _check_at(field: str, what: str, numbers: Any, limit: float) -> dict[str, float]:
    """As `check_numbers`; its error stands at a field."""
    try:
        return check_numbers(what, numbers, limit)
    except SpecError as e:
        raise e.at(field) from None
