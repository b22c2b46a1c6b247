"""Settings that follow from the data."""

from __future__ import annotations

import math

import pytest

from core.spec.presets import PRESETS, resolve
from core.spec.recommendation import (
    CEILING,
    CHOSEN,
    EPOCHS_LIMIT,
    FLOORS,
    STEPS,
    DataSize,
    floor_of,
    recommend,
)

EMBEDDED = 3_540_000


def pairs(rows: int) -> DataSize:
    """Questions of 25 tokens with answers of 9."""
    return DataSize(rows, 34 * rows, 9 * rows)


def texts(rows: int) -> DataSize:
    return DataSize(rows, 150 * rows, 150 * rows)


def steps_of(size: DataSize, settings: dict[str, float]) -> int:
    """Optimizer steps of padded rows."""
    batch = settings["batch_size"] * settings["accumulation"]
    return math.ceil(math.ceil(size.rows / batch) * settings["epochs"])


def test_eighty_questions_get_about_two_hundred_steps_not_twenty_four() -> None:
    preset = resolve("task", "embedded", {})
    assert math.ceil(58 / preset.effective_batch) * preset.epochs == 24
    advice = recommend("task", "embedded", pairs(58), EMBEDDED, 512)
    assert 200 <= advice.steps <= 400 and advice.steps == steps_of(pairs(58), advice.settings)
    assert advice.settings["learning_rate"] == 1e-3 and advice.settings["keep"] == "best"
    assert "24 optimizer steps would be too few" in advice.text
    assert "needs about 200 on a base of this size" in advice.text
    assert set(advice.settings) == set(CHOSEN)


@pytest.mark.parametrize("kind", ["domain", "task"])
@pytest.mark.parametrize("preset", ["standard", "gentle", "embedded"])
def test_every_amount_of_data_reaches_the_floor_and_stays_in_the_limits(kind: str, preset: str) -> None:
    for parameters in (0, EMBEDDED, 135_000_000, 7_000_000_000):
        floor = floor_of(parameters)
        before = 0
        for rows in (1, 2, 5, 14, 20, 58, 80, 280, 400, 1400, 2000, 20_000, 1_000_000):
            size = pairs(rows) if kind == "task" else texts(rows)
            advice = recommend(kind, preset, size, parameters, 512)
            spec = resolve(kind, preset, advice.settings)  # within the limits of the fields
            assert advice.steps >= min(floor.steps, rows), (rows, advice)
            assert advice.steps >= floor.steps or spec.epochs == EPOCHS_LIMIT
            assert spec.epochs <= max(EPOCHS_LIMIT, resolve(kind, preset, {}).epochs)
            assert spec.effective_batch <= resolve(kind, preset, {}).effective_batch
            assert spec.effective_batch >= min(2, resolve(kind, preset, {}).effective_batch)
            assert spec.epochs >= 1 and (advice.steps >= before or spec.epochs <= 2 * CEILING)
            before = min(advice.steps, floor.steps)


def test_enough_data_is_trained_as_the_preset_says() -> None:
    """The sample data: 540 questions, and 85 packed rows of papers."""
    for kind, size in (("task", DataSize(540, 18_000, 5_600)), ("domain", DataSize(336, 15_000, 15_000))):
        advice = recommend(kind, "embedded", size, EMBEDDED, 512)
        spec = resolve(kind, "embedded", {})
        for name in ("epochs", "learning_rate", "batch_size", "accumulation", "keep", "packing"):
            assert advice.settings[name] == getattr(spec, name), (kind, name)


def test_more_data_gets_fewer_passes() -> None:
    epochs = [
        recommend("domain", "embedded", texts(n), EMBEDDED, 512).settings["epochs"]
        for n in (20, 80, 400, 2000, 20_000)
    ]
    assert epochs == sorted(epochs, reverse=True) and epochs[-1] == 1.0


def test_what_the_user_gives_is_never_replaced() -> None:
    advice = recommend("task", "embedded", pairs(58), EMBEDDED, 512)
    assert advice.choose({"learning_rate"}).keys() == set(CHOSEN) - {"learning_rate"}
    assert not STEPS & advice.choose({"max_steps"}).keys(), "the number of steps is one choice"
    assert not STEPS & advice.choose({"epochs", "name"}).keys()


def test_every_preset_and_size_has_a_reason_for_each_change() -> None:
    for preset in PRESETS:
        for rows in (20, 400, 20_000):
            advice = recommend("task", preset, pairs(rows), EMBEDDED, 512)
            spec = resolve("task", preset, {})
            changed = {n for n, v in advice.settings.items() if v != getattr(spec, n)}
            assert bool(changed) == bool(advice.reasons)
            assert advice.text.startswith(f"For {rows:,} rows") and advice.text.endswith(".")


def test_the_floor_of_an_unknown_base_is_that_of_the_largest() -> None:
    assert floor_of(0) is FLOORS[-1] and floor_of(10**12) is FLOORS[-1]
    assert floor_of(EMBEDDED) is FLOORS[0] and FLOORS[0].measured and FLOORS[0].steps == 200
