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
from collections.abc import Collection
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
    Floor(20e6, 200, 5_000, measured=True),
    Floor(300e6, 150, 10_000),
    Floor(1.2e9, 120, 15_000),
    Floor(5e9, 100, 20_000),
    Floor(math.inf, 100, 20_000),
)


def floor_of(parameters: int) -> Floor:
    """The floor for a base of this size; an unknown size (0) counts as the largest."""
    return next(f for f in FLOORS if parameters and parameters <= f.parameters or math.isinf(f.parameters))


@dataclass(frozen=True)
class DataSize:
    """How much a run would train on.

    Attributes:
        rows: of the training split: conversations, or sections of text.
        tokens: of these rows, estimated.
        trained: tokens that the loss covers, estimated: all of a text, and the answers of a conversation.
    """

    rows: int
    tokens: int
    trained: int


@dataclass(frozen=True)
class Recommendation:
    """Settings that follow from the data, on top of a preset.

    Attributes:
        settings: names of TrainSpec and their values; those of the preset where the data asks for no change.
        reasons: name -> why its value differs from the preset, as a clause.
        steps: optimizer steps that a run would take, estimated.
        text: what was chosen and why, in one or two sentences.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    text: str = ""

    def choose(self, given: Collection[str]) -> dict[str, Any]:
        """The settings to use beside those that the user gave.

        The number of steps is one choice: where the user gave a part of it, the rest stays with the preset.
        """
        names = set(self.settings) - set(given)
        if STEPS & set(given):
            names -= STEPS
        return {name: self.settings[name] for name in names}


# The settings that a recommendation chooses; the form shows a recommended value for each of them.
STEPS = frozenset({"epochs", "max_steps", "batch_size", "accumulation"})
CHOSEN = ("epochs", "learning_rate", "batch_size", "accumulation", "early_stopping", "keep", "packing")
BATCHES_PER_EPOCH = 8  # a smaller training split gets smaller batches, down to SMALLEST_BATCH
SMALLEST_BATCH = 2
PATIENCE = 4  # validations without a better loss, of about ten in a run
REPEATS = 8.0  # from this many passes over its rows on, a run keeps its best adapter and may end early
# The most steps, as a multiple of the floor: more data needs fewer passes, and at least one.
CEILING = 5.0
FLOOR_RATE = {"domain": 3e-3, "task": 1e-3}  # of a run at the floor, on a base for which it was measured
PACKED_FILL = 0.95  # of a packed row


def recommend(kind: str, preset: str, size: DataSize, parameters: int, context: int = 0) -> Recommendation:
    """The settings that suit an amount of data.

    Args:
        kind: "domain" or "task".
        preset: a name in PRESETS; its settings are where the recommendation starts.
        size: of the training split.
        parameters: of the base; 0 if it is not known yet.
        context: of the base, in tokens; 0 if it is not known yet.

    Raises:
        SpecError: an unknown kind or preset.
    """
    spec = resolve(kind, preset, {})
    floor = floor_of(parameters)
    length = min(spec.max_length, context) if context else spec.max_length
    packing, rows = spec.packing, count_batch_rows(size, length, spec.packing, spec.replay_share)
    preset_steps = math.ceil(rows / spec.effective_batch) * spec.epochs
    if kind == "task" and packing and rows < BATCHES_PER_EPOCH * spec.effective_batch:
        packing, rows = False, max(rows, size.rows)
    batch = min(spec.effective_batch, max(SMALLEST_BATCH, _power_of_two(rows // BATCHES_PER_EPOCH)))
    steps_per_epoch = max(1, math.ceil(rows / batch))
    needed = floor.steps / steps_per_epoch
    if size.trained:  # answers of a few words: more steps, but at most twice as many
        needed = max(needed, min(floor.tokens / size.trained, 2 * needed))
    most = max(1.0, CEILING * floor.steps / steps_per_epoch) if floor.measured else EPOCHS_LIMIT
    epochs = _round_up(max(spec.epochs, needed))
    epochs = min(epochs, max(spec.epochs, EPOCHS_LIMIT), max(_round_up(most), _round_up(needed), 1.0))
    settings: dict[str, Any] = {
        "epochs": epochs,
        "learning_rate": spec.learning_rate,
        "batch_size": min(spec.batch_size, batch),
        "accumulation": max(1, batch // min(spec.batch_size, batch)),
        "early_stopping": spec.early_stopping,
        "keep": spec.keep,
        "packing": packing,
    }
    reasons: dict[str, str] = {}
    steps = math.ceil(steps_per_epoch * epochs)
    if packing != spec.packing:
        reasons["packing"] = "examples are not packed together, so that a pass has more steps"
    if batch < spec.effective_batch:
        reasons["batch_size"] = f"batches of {batch}, because there are only {rows} rows to train on"
    if epochs > spec.epochs:
        reasons["epochs"] = (
            f"{epochs:g} passes instead of {spec.epochs:g}, because {_count(preset_steps)} "
            f"would be too few: an adapter that starts from nothing needs about {floor.steps} on a base of "
            "this size"
        )
        if floor.measured and FLOOR_RATE[kind] > spec.learning_rate:
            settings["learning_rate"] = FLOOR_RATE[kind]
            rate = FLOOR_RATE[kind]
            reasons["learning_rate"] = f"a learning rate of {rate:g}, which was best in short runs"
    elif epochs < spec.epochs:
        reasons["epochs"] = (
            f"{epochs:g} passes instead of {spec.epochs:g}, because the rows are many enough to learn from"
        )
    if kind == "task" and epochs >= REPEATS:
        settings |= {"early_stopping": PATIENCE, "keep": "best"}
        reasons["early_stopping"] = (
            "the best adapter is kept, and the run ends early where validation gets worse"
        )
    return Recommendation(settings, reasons, steps, _describe(size, steps, epochs, reasons))


def _describe(size: DataSize, steps: int, epochs: float, reasons: dict[str, str]) -> str:
    """What was chosen and why, for the form and the terminal."""
    plural = "" if size.rows == 1 else "s"
    passes = f"{epochs:g} pass{'' if epochs == 1 else 'es'}"
    head = (
        f"For {size.rows:,} row{plural} with about {size.trained:,} trained tokens: "
        f"about {_count(steps)}, in {passes}"
    )
    why = "; ".join(reasons.values())
    return f"{head}. {why[0].upper()}{why[1:]}." if why else f"{head}, as in the preset."


def _count(steps: float) -> str:
    number = math.ceil(steps)
    return f"{number:,} optimizer step{'' if number == 1 else 's'}"


def count_batch_rows(size: DataSize, length: int, packing: bool, replay_share: float) -> int:
    """Rows of a batch that the data fills in one epoch: packed rows, or one for each row of the data."""
    if not packing:
        return max(1, size.rows)
    tokens = size.tokens / (1 - min(replay_share, 0.9))
    return max(1, math.ceil(tokens / (PACKED_FILL * length)))


def _power_of_two(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)


def _round_up(epochs: float) -> float:
    """Passes as people write them: whole numbers from 3 on, halves below."""
    return float(math.ceil(epochs)) if epochs >= 3 else math.ceil(2 * epochs) / 2
