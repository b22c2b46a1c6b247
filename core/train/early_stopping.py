"""What a run's validations say so far: the best step, how long nothing was better, and whether it overfits.

Plain numbers, written into every checkpoint, so that a resumed run goes on counting where it was.
Knows nothing of models.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

FELL = 0.02  # share by which the training loss falls on while validation does not, before we speak of overfitting
WAITED = 2  # validations without a better one, before we speak of it


@dataclass(frozen=True)
class Track:
    """Validations so far. Losses are nats a token; 0 steps and infinite losses mean none yet.

    Attributes:
        step, loss: of the newest validation.
        training: mean training loss of the steps since the validation before; NaN at the start.
        best_step, best_loss, best_training: the same of the best one after the first step.
        start_loss: before the first step.
        waited: validations on the run's own schedule since the best one.
    """

    step: int = 0
    loss: float = math.inf
    training: float = math.nan
    best_step: int = 0
    best_loss: float = math.inf
    best_training: float = math.nan
    start_loss: float = math.inf
    waited: int = 0

    def seen(self, step: int, loss: float, training: float, scheduled: bool = True) -> Track:
        """After one more validation.

        Args:
            scheduled: it came at its time; one that someone's stop brought about does not count as waiting.
        """
        if step == 0:
            return replace(self, step=0, loss=loss, start_loss=loss)
        now = replace(self, step=step, loss=loss, training=training)
        if loss < self.best_loss:  # false of a loss that is no number
            return replace(now, best_step=step, best_loss=loss, best_training=training, waited=0)
        return replace(now, waited=self.waited + scheduled)

    @property
    def gap(self) -> float:
        """Validation loss above training loss, in nats a token; NaN while one of them is not known."""
        return self.loss - self.training if math.isfinite(self.loss) else math.nan

    def patience_over(self, patience: int) -> bool:
        """Have so many validations in a row brought nothing better? Never with a patience of 0."""
        return bool(patience) and self.waited >= patience

    def overfitting(self, keep: str) -> str:
        """A sentence when validation has stopped improving while training goes on to fall; else "".

        Args:
            keep: which adapter the run will keep, "best" or "last".
        """
        fell = self.best_training - self.training
        if self.waited < WAITED or not fell > FELL * abs(self.best_training):
            return ""
        kept = (
            f"the run keeps the adapter of step {self.best_step}"
            if keep == "best"
            else "keep the best one instead of the last, or train for fewer steps"
        )
        return f"Validation has not improved since step {self.best_step} while training loss fell by {fell:.2f}: likely overfitting; {kept}."

    def to_json(self) -> dict[str, Any]:
        return {k: v if math.isfinite(v) else str(v) for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Track:
        whole = ("step", "best_step", "waited")
        numbers: dict[str, Any] = {k: int(v) if k in whole else float(v) for k, v in value.items()}
        return cls(**numbers)
