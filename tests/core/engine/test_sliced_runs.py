"""Runs in slices, in forked processes that are killed or refused: the adapter is as without slices."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_worker import SimulatedError, SimulatedSpaces
from core.engine import Engine
from core.engine.gpu_calls import GpuCalls
from core.engine.sliced_runs import SlicedRuns
from core.errors import SpecError
from core.space.zero_gpu import ZeroGpu
from core.spec.training import RunStatus, TrainSpec
from core.store import runs
from core.store.adapters import WEIGHTS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ZeroGPU forks, and so does its simulation")
SPEC: dict[str, Any] = {
    "max_steps": 12,
    "save_steps": 3,
    "eval_steps": 4,
    "learning_rate": 5e-3,
    "batch_size": 2,
    "accumulation": 1,
    "max_length": 48,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.1,
}


@dataclass(frozen=True)
class Reference:
    """A workspace with a run without slices."""

    workspace: Path
    base: Path
    spec: TrainSpec
    weights: bytes
    losses: dict[int, float]


def losses_of(engine: Engine, run_id: str) -> dict[int, float]:
    """Step -> loss; of repeated steps the later."""
    return {e["step"]: e["loss"] for e in engine.runs.events(run_id)[0] if e["kind"] == "step"}


def weights_of(engine: Engine, run: runs.Run) -> bytes:
    return engine.workspace.path("adapters", run.adapter, WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def reference(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    from tests.conftest import SENTENCES

    folder = tmp_path_factory.mktemp("slices")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n\n---\n\n".join(SENTENCES), encoding="utf-8")
    with Engine(folder / "ws", str(tiny_base), "none", "cpu") as engine:
        dataset = engine.datasets.import_files([corpus], "Corpus", "domain")
        spec = TrainSpec.from_json({"kind": "domain", "name": "Whole", "dataset": dataset.id, **SPEC})
        run = engine.runs.wait(engine.runs.start(spec))
        assert run.status is RunStatus.DONE
        return Reference(folder / "ws", tiny_base, spec, weights_of(engine, run), losses_of(engine, run.id))


@dataclass
class Sliced:
    """An engine that trains in slices of the simulation."""

    engine: Engine
    spaces: SimulatedSpaces

    def start(self, spec: TrainSpec, name: str, seconds: float, reserve: float = 0.2) -> str:
        slices = self.engine._executor.slices
        assert slices is not None
        self.engine._executor.slices = SlicedRuns(self.engine.workspace, slices._task, seconds, reserve)
        return self.engine.runs.start(replace(spec, name=name))

    def notes(self, run_id: str) -> list[str]:
        return [e["text"] for e in self.engine.runs.events(run_id)[0] if e["kind"] == "note"]


@pytest.fixture
def sliced(reference: Reference) -> Iterator[Sliced]:
    spaces = SimulatedSpaces()
    calls = GpuCalls(ZeroGpu(spaces))
    with Engine(reference.workspace, str(reference.base), "none", "cpu", gpu=calls) as engine:
        yield Sliced(engine, spaces)
    spaces.close()


def test_killed_slices_change_no_byte_of_the_adapter(sliced: Sliced, reference: Reference) -> None:
    moments = random.Random(7)
    kills = [moments.uniform(0.3, 1.2) for _ in range(2)]
    sliced.spaces.kill_after = lambda number: kills[number] if number < len(kills) else None
    run_id = sliced.start(reference.spec, "Killed", 1.5)
    run = sliced.engine.runs.wait(run_id)
    assert run.status is RunStatus.DONE, run.error
    assert [c.killed for c in sliced.spaces.calls[:3]] == [True, True, False]
    ended = [
        n for n in sliced.notes(run_id) if n.startswith("A slice ended early: ZeroGPU: GPU task aborted.")
    ]
    assert len(ended) == 2
    assert weights_of(sliced.engine, run) == reference.weights
    assert losses_of(sliced.engine, run_id) == reference.losses, "one log, as of one run"


def test_a_used_up_quota_shortens_a_slice_then_pauses(sliced: Sliced, reference: Reference) -> None:
    left = {1: 25, 3: 3}  # call -> seconds that are left of the quota

    def refuse(number: int) -> Exception | None:
        if number not in left:
            return None
        text = f"You have exceeded your free ZeroGPU quota (60s requested vs. {left[number]}s left)."
        return SimulatedError(text, "ZeroGPU quota exceeded")

    sliced.spaces.refuse = refuse
    # a slice of one step: the reserve is nearly all of it
    run_id = sliced.start(reference.spec, "Quota", 60, reserve=59.9)
    run = sliced.engine.runs.wait(run_id)
    assert run.status is RunStatus.PAUSED and run.resumable
    assert "60s requested vs. 3s left" in run.error and "Sign in to Hugging Face" in run.error
    assert [c.seconds for c in sliced.spaces.calls] == [60, 25], "the two refused calls started no process"
    left.clear()
    assert sliced.engine._executor.slices is not None
    sliced.engine._executor.slices._reserve = 0.2
    sliced.engine.runs.resume(run_id)
    run = sliced.engine.runs.wait(run_id)
    assert run.status is RunStatus.DONE and run.error == ""
    assert weights_of(sliced.engine, run) == reference.weights


def test_slices_that_never_save_leave_the_run_interrupted(sliced: Sliced, reference: Reference) -> None:
    sliced.spaces.kill_after = lambda number: 0.01
    run_id = sliced.start(reference.spec, "Stalled", 60)
    run = sliced.engine.runs.wait(run_id)
    assert run.status is RunStatus.INTERRUPTED and run.resumable and len(sliced.spaces.calls) == 3
    assert run.error.startswith("3 slices of 60 s in a row saved no checkpoint.")
    assert not sliced.engine.runs.get(run_id).status.is_alive, "its lock is free"


def test_the_error_of_a_slice_is_that_of_the_run(sliced: Sliced, reference: Reference) -> None:
    engine = sliced.engine
    run_id = runs.create(engine.workspace, reference.spec, str(reference.base), "of another dataset").id
    engine.runs.resume(run_id)
    run = engine.runs.wait(run_id)
    assert run.status is RunStatus.FAILED and len(sliced.spaces.calls) == 1
    assert run.error == "The dataset 'Corpus' changed since this run began. Start a new run on it."


def test_a_stopped_run_adds_the_adapter_of_its_slice(sliced: Sliced, reference: Reference) -> None:
    run_id = sliced.start(replace(reference.spec, max_steps=2000), "Stopped", 60)
    while sliced.engine.runs.get(run_id).step < 2:
        time.sleep(0.02)
    sliced.engine.runs.stop(run_id)
    run = sliced.engine.runs.wait(run_id)
    assert run.status is RunStatus.STOPPED and len(sliced.spaces.calls) == 1
    assert sliced.engine.library.adapter(run.adapter).results["kept_step"] == run.step


@pytest.mark.parametrize("seconds", [0, 19, 601])
def test_a_slice_has_limits(seconds: int) -> None:
    with pytest.raises(SpecError, match=f"between 20 and 600 seconds, got {seconds}"):
        GpuCalls(ZeroGpu(SimulatedSpaces()), seconds)


def test_the_plan_of_a_run_counts_slices_at_the_rate_of_earlier_runs(
    sliced: Sliced, reference: Reference
) -> None:
    sliced.engine.resident_base.wait()
    plan = sliced.engine.runs.plan_slices(reference.spec)
    assert plan is not None and plan.is_measured and (plan.slices, plan.slice_seconds) == (1, 60)
    assert plan.seconds >= 14, "a slice loads the base and saves a checkpoint"
    sliced.engine._executor.slices = None
    assert sliced.engine.runs.plan_slices(reference.spec) is None, "an ordinary studio has no slices"
