"""Settings of a fine-tuning on documents, under the names of PEFT scripts; they become a `TrainSpec`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from core.spec.settings import Settings, setting
from core.spec.training import TrainSpec

DEFAULT_MODEL = "microsoft/DialoGPT-medium"
_TRAINING = {f.name: f for f in dataclasses.fields(TrainSpec)}
# Field -> the field of a TrainSpec that it becomes; target_modules becomes the one of its own name.
TRAINING_NAMES = {
    "max_length": "max_length",
    "learning_rate": "learning_rate",
    "num_epochs": "epochs",
    "batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "lora_rank": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
}


def _like(name: str, default: Any) -> Any:
    """A field with the sentence and the limits of a field of `TrainSpec`."""
    return dataclasses.field(default=default, metadata={**_TRAINING[name].metadata, "label": ""})


@dataclass(frozen=True)
class FineTuningConfig(Settings):
    """How documents are learned. `target_modules` None selects the usual layers of the model family.

    Raises:
        SpecError: a value has the wrong type or is outside its limits.
    """

    model_name: str = setting(DEFAULT_MODEL, "Base model: a folder, a Hub id or embedded.", high=300)
    max_length: int = _like("max_length", 512)
    learning_rate: float = _like("learning_rate", 2e-4)
    num_epochs: float = _like("epochs", 3)
    batch_size: int = _like("batch_size", 4)
    gradient_accumulation_steps: int = _like("accumulation", 4)
    lora_rank: int = _like("rank", 16)
    lora_alpha: int = _like("alpha", 32)
    lora_dropout: float = _like("dropout", 0.1)
    target_modules: tuple[str, ...] | None = _like("target_modules", None)

    def to_spec(self, kind: str, name: str, dataset: str, context: int = 0) -> TrainSpec:
        """The settings of the run.

        Args:
            kind: of the dataset, "domain" or "task".
            name: of the adapter.
            dataset: id of the dataset.
            context: of the base, in tokens; a longer `max_length` becomes this. 0 if it is not known.

        Raises:
            SpecError: a value that a run refuses.
        """
        values = {theirs: getattr(self, ours) for ours, theirs in TRAINING_NAMES.items()}
        if context:
            values["max_length"] = min(self.max_length, context)
        modules = self.target_modules or ()
        return TrainSpec(kind=kind, name=name, dataset=dataset, target_modules=modules, **values)
