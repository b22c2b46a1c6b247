"""Early stopping: the best validation so far, how many validations did not improve on it, and overfitting.

Every checkpoint holds these numbers, so that a resumed run stops at the same step, and keeps the same best
checkpoint, as a run without interruption.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

# Overfitting is reported when the training loss fell by this share while this many validations did not
# improve.
OVERFITTING_DROP = 0.02
OVERFITTING_VALIDATIONS = 2


@dataclass(frozen=True)
class EarlyStopping:
    """The validations of a run so far. The field names are keys of studio_state.json.

    Attributes:
        step: of the newest validation; 0 before the first one.
        loss: of the newest validation, in nats per token; infinite before the first one.
        training: mean training loss of the steps since the previous validation; NaN at the start.
        best_step, best_loss, best_training: the same of the best validation after step 0.
        start_loss: validation loss before the first step.
        waited: scheduled validations since the best one.
    """

    step: int = 0
    loss: float = math.inf
    training: float = math.nan
    best_step: int = 0
    best_loss: float = math.inf
    best_training: float = math.nan
    start_loss: float = math.inf
    waited: int = 0

    def update(self, step: int, loss: float, training: float, scheduled: bool = True) -> EarlyStopping:
        """Returns the state after one more validation.

        Args:
            scheduled: the validation was due at this step. A validation that a stop request caused does not
                count towards the patience.
        """
        if step == 0:
            return replace(self, step=0, loss=loss, start_loss=loss)
        now = replace(self, step=step, loss=loss, training=training)
        if loss < self.best_loss:  # False for NaN
            return replace(now, best_step=step, best_loss=loss, best_training=training, waited=0)
        return replace(now, waited=self.waited + scheduled)

    @property
    def gap(self) -> float:
        """Validation loss minus training loss, in nats per token; NaN while one of them is unknown."""
        return self.loss - self.training if math.isfinite(self.loss) else math.nan

    def is_exhausted(self, patience: int) -> bool:
        """Whether `patience` validations in a row did not improve; never with a patience of 0."""
        return bool(patience) and self.waited >= patience

    def overfit_warning(self, keep: str) -> str:
        """A sentence when validation has stopped improving while the training loss still falls; otherwise "".

        Args:
            keep: which adapter the run will keep, "best" or "last".
        """
        drop = self.best_training - self.training
        if self.waited < OVERFITTING_VALIDATIONS or not drop > OVERFITTING_DROP * abs(self.best_training):
            return ""
        if keep == "best":
            advice = f"the run keeps the adapter of step {self.best_step}"
        else:
            advice = "keep the best one instead of the last, or train for fewer steps"
        return (
            f"Validation has not improved since step {self.best_step} while training loss fell by "
            f"{drop:.2f}: likely overfitting; {advice}."
        )

    def to_json(self) -> dict[str, Any]:
        return {k: v if math.isfinite(v) else str(v) for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> EarlyStopping:
        integers = ("step", "best_step", "waited")
        numbers: dict[str, Any] = {k: int(v) if k in integers else float(v) for k, v in value.items()}
        return cls(**numbers)
