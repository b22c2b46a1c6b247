"""Training settings that follow from the data: steps, epochs, batch and rate, each with its reason.

A preset names settings that suit a base. They were tuned on one amount of data: with fewer rows the same
number of epochs gives so few optimizer steps that an adapter that starts from nothing learns little. So a
recommendation starts from the preset, and changes what the amount of data asks for:

    batch    a small training split gets a smaller effective batch, so that an epoch has more steps
    epochs   as many as reach a floor of optimizer steps and of trained tokens, at most EPOCHS_LIMIT
    rate     a run that stays at the floor trains at the rate that was best there
    stop     a run whose rows repeat often keeps its best adapter, and ends when validation gets worse

The floors were measured on the embedded base (`benchmarks/defaults.py`, `benchmarks/RESULTS.md`). Those of
larger bases are estimates: such a base knows more of the language, and needs fewer steps to learn a form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from core.spec.presets import resolve

EPOCHS_LIMIT = 60.0  # more passes over the same rows do not help, however few the rows are


@dataclass(frozen=True)
class Floor:
    """What an adapter that starts from nothing needs at least.

    Attributes:
        parameters: of the largest base that the floor is for.
        steps: optimizer steps.
        tokens: trained tokens, counted once for each pass over them.
        measured: the numbers come from `benchmarks/defaults.py`.
    """

    parameters: float
    steps: int
    tokens: int
    measured: bool = False


FLOORS = (
    Floor(20e6, 200, 20_000, measured=True),
    Floor(600e6, 150, 40_000),
    Floor(math.inf, 100, 60_000),
)


def floor_of(parameters: int) -> Floor:
    """The floor for a base of this size; an unknown size (0) counts as the largest."""
    return next(f for f in FLOORS if parameters and parameters <= f.parameters or math.isinf(f.parameters))
