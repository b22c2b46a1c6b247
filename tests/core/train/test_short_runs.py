"""Runs of a few steps learn something, or the run says that its adapter equals the base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.spec.training import EQUALS_BASE, RULES, SCHEDULES, RunStatus
from core.store import runs
from core.store.runs import Run
from core.train import schedule
from studio.components import live
from studio.views import runs as views
from tests.core.train.test_training import domain_spec, losses, wait_for


@pytest.fixture
def engine(tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as made:
        yield made


def read_rates(engine: Engine, run_id: str) -> list[float]:
    by_step = {e["step"]: e["learning_rate"] for e in engine.runs.events(run_id)[0] if e["kind"] == "step"}
    return [by_step[s] for s in sorted(by_step)]


def has_effect(engine: Engine, run: Run) -> bool:
    from safetensors.torch import load_file

    tensors = load_file(engine.workspace.path("adapters", run.adapter, "adapter_model.safetensors"))
    return all(bool(t.any()) for name, t in tensors.items() if "lora_B" in name)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_run_of_a_few_steps_changes_every_weight(engine: Engine, corpus: Path, steps: int) -> None:
    for name in SCHEDULES:
        spec = domain_spec(engine, corpus, max_steps=steps, schedule=name, warmup_ratio=0.03, name=name)
        run = engine.runs.wait(engine.runs.start(spec))
        rates = read_rates(engine, run.id)
        assert run.status is RunStatus.DONE and len(rates) == steps, run.error
        assert min(rates) > 0 and max(rates) == spec.learning_rate
        assert has_effect(engine, run) and not run.has_learned_nothing
        assert run.was_still_learning or run.explanation == RunStatus.DONE.explanation


def test_a_run_under_the_first_rules_keeps_its_first_rate_of_zero(engine: Engine, corpus: Path) -> None:
    spec = domain_spec(engine, corpus, max_steps=10, warmup_ratio=0.2, schedule="linear", rules=1)
    run = engine.runs.wait(engine.runs.start(spec))
    shares = [0.0, 0.5, *[s / 8 for s in range(8, 0, -1)]]
    assert read_rates(engine, run.id) == pytest.approx([spec.learning_rate * s for s in shares])
    other = engine.runs.wait(engine.runs.start(replace(spec, rules=RULES)))
    assert read_rates(engine, other.id)[2:] == read_rates(engine, run.id)[2:]


def test_a_stored_run_that_names_no_rules_has_the_first(engine: Engine, corpus: Path) -> None:
    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=1)))
    path = runs.folder(engine.workspace, run.id) / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["spec"]["rules"] == run.spec.rules == RULES
    del record["spec"]["rules"]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert engine.runs.get(run.id).spec.rules == 1


@pytest.mark.parametrize("name", ["linear", "cosine_with_min_lr"])
def test_a_paused_run_of_the_new_rules_ends_like_a_straight_one(
    engine: Engine, corpus: Path, name: str
) -> None:
    spec = domain_spec(engine, corpus, max_steps=30, warmup_ratio=0.4, schedule=name, save_steps=50)
    whole = engine.runs.wait(engine.runs.start(spec))
    parted = engine.runs.start(replace(spec, name="Parted"))
    wait_for(lambda: engine.runs.get(parted).step >= 3)
    engine.runs.pause(parted)
    assert engine.runs.wait(parted).status is RunStatus.PAUSED
    engine.runs.resume(parted)
    ended = engine.runs.wait(parted)
    assert losses(engine, parted) == losses(engine, whole.id)
    assert read_rates(engine, parted) == read_rates(engine, whole.id)
    assert engine.library.adapter(ended.adapter).sha256 == engine.library.adapter(whole.adapter).sha256


# ------------------------------------------------------------ an adapter that equals its base


def texts(tree: Any) -> str:
    """All text of a tree of nodes."""
    return json.dumps(tree, ensure_ascii=False)


@pytest.mark.parametrize("initialisation", ["default", "olora"])
def test_a_run_says_that_its_adapter_equals_the_base(
    engine: Engine, corpus: Path, initialisation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "rate_factor", lambda step, **shape: 0.0)
    spec = domain_spec(engine, corpus, max_steps=2, initialisation=initialisation)
    run = engine.runs.wait(engine.runs.start(spec))
    assert run.status is RunStatus.DONE and run.has_learned_nothing, run.error
    assert (run.explanation, run.next_step) == EQUALS_BASE
    assert engine.library.adapter(run.adapter).results["equals_base"] is True
    notes = [e["text"] for e in engine.runs.events(run.id)[0] if e["kind"] == "note"]
    assert notes[-1] == (
        "The adapter equals the base: 2 steps at a learning rate of 0.005 had no effect on it. "
        "Start a new run with more steps or a higher learning rate."
    )
    head = texts(live.metrics(engine, {"run": run.id})["head"])
    assert EQUALS_BASE[0] in head and EQUALS_BASE[1] in head and "chip warn" in head
    assert "chip good" not in head
    other = engine.runs.wait(engine.runs.start(replace(spec, name="Other", seed=1)))
    table = views.render_comparison(engine.runs.compare([run.id, other.id]), False, {})
    assert texts(table).count("finished, equals the base") == 2


def test_a_run_that_learned_is_shown_as_finished(engine: Engine, corpus: Path) -> None:
    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=1)))
    head = texts(live.metrics(engine, {"run": run.id})["head"])
    assert "chip good" in head and "equals the base" not in head
    assert "equals_base" not in engine.library.adapter(run.adapter).results
    assert run.extra.to_json().get("equals_base") is None
