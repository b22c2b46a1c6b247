"""The checksum of settings, by which a result finds its bundle and a run finds its cell."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest

from core.spec.settings import setting
from core.spec.training import RULES, TrainSpec
from core.store import grids

STORED = Path(__file__).resolve().parents[2] / "data" / "old_workspace"
SENT = json.loads(next(STORED.glob("exports/*/sent.json")).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class LaterSpec(TrainSpec):
    """The settings of a later version, with two more fields."""

    later: int = setting(3, "A number.", low=0, high=9)
    words: tuple[str, ...] = setting((), "Some words.")


def test_a_stored_checksum_still_matches_its_settings() -> None:
    assert grids.spec_checksum(TrainSpec.from_record(SENT["spec"])) == SENT["key"]
    assert grids.spec_checksum(TrainSpec.from_json(SENT["spec"])) == SENT["key"]


def test_a_later_setting_counts_only_where_it_is_not_the_default() -> None:
    later = LaterSpec.from_record(SENT["spec"])
    assert grids.spec_checksum(later) == SENT["key"]
    others = [grids.spec_checksum(replace(later, **c)) for c in ({"later": 4}, {"words": ("a",)})]
    assert len({SENT["key"], *others}) == 3


@pytest.mark.parametrize("name", sorted(grids.FIRST_SETTINGS))
def test_every_first_setting_counts_even_as_a_default(name: str) -> None:
    values = {**dataclasses.asdict(TrainSpec.from_record(SENT["spec"])), "dropout": 0.0}
    field = next(f for f in fields(TrainSpec) if f.name == name)
    spec = TrainSpec(**{**values, name: change(values[name], field.metadata.get("choices"))})
    assert grids.spec_checksum(spec) != grids.spec_checksum(TrainSpec(**values))


def change(value: Any, choices: tuple[str, ...] | None) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 0.125 if value >= 1 else value / 2 + 0.01
    if isinstance(value, (tuple, list)):
        return (*value, "other")
    return next(c for c in choices if c != value) if choices else f"{value}-other"


def test_every_setting_of_a_new_version_is_listed_or_has_a_default() -> None:
    assert set(SENT["spec"]) - {"name"} == grids.FIRST_SETTINGS
    assert {f.name for f in fields(TrainSpec)} >= grids.FIRST_SETTINGS


def test_the_rules_are_stored_with_the_settings_and_do_not_count() -> None:
    old = TrainSpec.from_record(SENT["spec"])
    assert (old.rules, TrainSpec.from_json(SENT["spec"]).rules, TrainSpec().rules) == (1, RULES, RULES)
    new = replace(old, rules=RULES)
    assert TrainSpec.from_record(new.to_json()) == new and new != old
    assert grids.spec_checksum(new) == grids.spec_checksum(old)
