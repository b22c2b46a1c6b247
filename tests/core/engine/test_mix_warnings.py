"""Warnings: a mix that differs from training, truncated data, adapters that are used alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.engine import Engine
from core.spec.training import TrainSpec
from studio.components import live, mixer
from studio.tabs import library, mix, train
from tests.core.importing.test_refusals import factors, put

FAST: dict[str, Any] = {
    "batch_size": 2,
    "accumulation": 1,
    "max_length": 32,
    "rank": 2,
    "alpha": 4,
    "max_steps": 1,
    "sample_prompts": ("The red",),
}


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("departing"), str(tiny_base), device="cpu") as made:
        yield made


def test_the_mix_tab_warns_and_the_train_tab_reports_truncation(
    engine: Engine, corpus: Path, pairs: Path
) -> None:
    text, questions = (
        engine.datasets.import_files([corpus], "Corpus", "domain").id,
        engine.datasets.import_files([pairs], "Pairs", "task").id,
    )
    below = engine.runs.wait(engine.runs.start(TrainSpec(name="Papers", dataset=text, **FAST)))
    above = engine.runs.wait(
        engine.runs.start(
            TrainSpec(
                kind="task",
                name="Asker",
                dataset=questions,
                stack_on=below.adapter,
                domain_dropout=0.0,
                **{**FAST, "max_length": 20},
            )
        )
    )
    rows = [
        {"id": below.adapter, "on": False, "weight": 1.0},
        {"id": above.adapter, "on": True, "weight": 1.0},
    ]
    said = json.dumps(mix.show_warnings(engine, rows))
    assert "Asker was trained with Papers always on, and in this mix it is off" in said
    assert mix.show_warnings(engine, [{**r, "on": True} for r in rows]) is None
    assert mix.show_warnings(engine, None) is None
    head = json.dumps(live.metrics(engine, {"run": above.id, "since": 0})["head"])
    told = next(e for e in engine.runs.events(above.id)[0] if e["kind"] == "data")
    assert (
        f"{told['cut']} examples were too long and lost {told['lost']} tokens" in head
        and told["cut"] == told["sequences"] > 0
    )
    head = json.dumps(live.metrics(engine, {"run": below.id, "since": 0})["head"])
    assert "% full" in head and "too long" not in head


def test_the_library_marks_what_is_used_alone_only(engine: Engine, tmp_path: Path) -> None:
    head = {"base_model.model.lm_head.weight": torch.ones(384, 64)}
    source = put(tmp_path / "made", {**factors(), **head})
    own = engine.adapter_imports.add(str(source), "Tall", ["use-alone"])
    shelf, _, details, *_ = library.refresh(engine, "adapters", own.id)
    assert "alone only" in json.dumps(shelf) and "it replaces weights of the base" in json.dumps(details)
    rows = [{**r, "on": True, "weight": 0.5} for r in mixer.adapter_rows(engine) if r["id"] == own.id]
    assert "cannot answer in this mix" in json.dumps(mix.show_warnings(engine, rows))


def test_the_form_offers_every_setting_of_training_in_a_group() -> None:
    import dataclasses

    elsewhere = {
        "kind",
        "name",
        "dataset",
        "stack_on",
        "replay_dataset",
    }  # chosen above the groups; a list of datasets is the terminal's
    assert set(train.ADVANCED) | elsewhere >= {f.name for f in dataclasses.fields(TrainSpec)}
    assert len(train.ADVANCED) == len(set(train.ADVANCED)) and max(map(len, train.GROUPS.values())) <= 8
