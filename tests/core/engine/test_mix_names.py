"""Names of adapters and mixes: every adapter has its own, and no id is shown."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from core.engine.mix_names import NAME_LIMIT, label_adapters, name_mix
from core.spec.mix import Mix


@dataclass(frozen=True)
class Made:
    id: str
    name: str
    created: float = 0.0
    steps: int = 0


def test_a_unique_name_is_its_own_label() -> None:
    adapters = [Made("a-1", "Kitchen", 5.0, 9), Made("b-2", "Harbour", 5.0, 9)]
    assert label_adapters(adapters) == {"a-1": "Kitchen", "b-2": "Harbour"}


def test_two_of_one_name_are_told_apart_by_date_and_steps() -> None:
    day = 1_700_000_000.0
    labels = label_adapters([Made("a", "Notes", day, 20), Made("b", "Notes", day + 7200, 240)])
    assert labels["a"].startswith("Notes (") and "2023" in labels["a"] and "20 steps)" in labels["a"]
    assert "240 steps)" in labels["b"] and labels["a"] != labels["b"]


def test_one_step_is_not_plural_and_a_trainee_says_that_it_trains() -> None:
    labels = label_adapters([Made("a", "N", 0.0, 1), Made("b", "N"), Made("c", "N")])
    assert labels == {"a": "N (1 step)", "b": "N (in training) #1", "c": "N (in training) #2"}


@pytest.mark.parametrize("seed", range(60))
def test_labels_are_always_different(seed: int) -> None:
    rng = random.Random(seed)
    adapters = [
        Made(f"id-{i}", rng.choice("AB"), rng.choice([0.0, 1e9, 1e9 + 30]), rng.choice([0, 1, 20]))
        for i in range(rng.randint(1, 12))
    ]
    labels = label_adapters(adapters)
    assert len(set(labels.values())) == len(adapters)
    assert labels == label_adapters(rng.sample(adapters, len(adapters))), "the order does not matter"
    assert not any(a.id in label for a in adapters for label in labels.values())


def test_a_mix_is_named_by_its_adapters_weights_and_tilts() -> None:
    labels = {"a": "Notes", "b": "Answers"}
    assert name_mix(Mix(weights={}), labels) == "Base"
    assert name_mix(Mix(weights={"a": 1.0}), labels) == "Notes"
    assert name_mix(Mix(weights={"a": 1.0, "b": 0.5}), labels) == "Notes + 0.50 · Answers"
    assert (
        name_mix(Mix(weights={"a": -0.35, "b": 1.0}, tilt={"b": 1.0}), labels)
        == "− 0.35 · Notes + Answers (deep)"
    )
    assert name_mix(Mix(weights={"b": 1.0}, tilt={"b": 0.5}), labels) == "Answers (tilt 0.5)"
    assert name_mix(Mix(weights={"gone-1a2b": 1.0}), labels) == "a deleted adapter"


@pytest.mark.parametrize("seed", range(40))
def test_a_long_mix_keeps_its_limit_and_the_end_of_every_label(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(1, 3)
    labels = {str(i): "Long name " * rng.randint(1, 12) + f"#{i}" for i in range(count)}
    weights = {str(i): rng.choice([1.0, 0.5, -1.35]) for i in range(count)}
    name = name_mix(Mix(weights=weights), labels)
    assert len(name) <= NAME_LIMIT
    assert all(f"#{i}" in name for i in range(count)), "what tells labels apart is kept"
