"""Kills slices of runs at random moments and compares the adapters: `python -m benchmarks.slices`.

    reference   one run without slices, in the process of the engine         ─> adapter
    trial i     the same run in slices; one of them is killed at a moment ─> adapter, the same to the byte
                that is drawn from the whole time of the run

Every slice is a forked process of `benchmarks.gpu_worker`, which does what the processes of ZeroGPU do.
ZeroGPU itself was not run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the model is tiny, and one thread is fastest

from benchmarks.gpu_worker import SimulatedSpaces
from core.data.samples import Samples
from core.engine import Engine
from core.engine.gpu_calls import GpuCalls
from core.engine.sliced_runs import SlicedRuns
from core.space.zero_gpu import ZeroGpu
from core.spec.training import RunStatus, TrainSpec
from core.store import runs
from core.store.adapters import WEIGHTS
from core.store.events import (
    CheckpointEvent,
    DataEvent,
    NoteEvent,
    PlanEvent,
    StepEvent,
    ValidationEvent,
    is_kind,
)

TRIALS, QUICK_TRIALS = 50, 5
SPEC: dict[str, Any] = {
    "kind": "domain",
    "name": "Slices",
    "learning_rate": 5e-3,
    "batch_size": 2,
    "accumulation": 2,
    "max_length": 64,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.1,
    "warmup_ratio": 0.2,
    "save_steps": 7,
    "eval_steps": 5,
}
STEPS = 30
SLICE_SECONDS, RESERVE_SECONDS = 6.0, 0.3
NEVER = 3600.0  # seconds; a slice ends before
LOADING = "while it loaded"
# The last event of a slice before it was killed -> where that is.
PLACES: dict[Any, str] = {
    DataEvent: LOADING,
    PlanEvent: "before its first step",
    StepEvent: "after a step",
    ValidationEvent: "after a validation",
    CheckpointEvent: "after a checkpoint",
}


@dataclass
class Outcome:
    """What the kills left.

    Attributes:
        kills: slices that were killed while they ran; others had ended before.
        identical: runs whose adapter has the bytes of the reference.
        places: the last event before a kill -> number of kills.
        lost_steps: for each kill, the steps after the last whole checkpoint.
    """

    runs: int = 0
    kills: int = 0
    identical: int = 0
    slices: int = 0
    places: Counter[str] = field(default_factory=Counter)
    lost_steps: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        values = {k: v for k, v in vars(self).items() if k != "places"}
        return {**values, "places": dict(self.places), "seconds": round(self.seconds, 1)}

    def describe(self) -> str:
        """One line of figures."""
        places = ", ".join(f"{count} {name}" for name, count in self.places.most_common())
        return (
            f"{self.kills} kills in {self.runs} runs of {self.slices} slices ({places}); at most "
            f"{max(self.lost_steps, default=0)} steps were trained again; {self.identical} of {self.runs} "
            f"adapters identical to that without slices; {self.seconds:.0f} s"
        )


class Trials:
    """Runs in slices on one workspace, and the reference that their adapters are compared with."""

    def __init__(self, folder: Path, seed: int, steps: int = STEPS) -> None:
        self.workspace, self.rng, self.outcome = folder / "ws", random.Random(seed), Outcome()
        with Engine(self.workspace, "embedded", "none", "cpu") as engine:
            dataset = engine.datasets.import_files(Samples().domain[:1], "Sample", "domain")
            self.spec = TrainSpec.from_json({**SPEC, "dataset": dataset.id, "max_steps": steps})
            begun = time.monotonic()
            run = engine.runs.wait(engine.runs.start(self.spec))
            self.reference = self.read(engine, run)
            self.run_seconds = time.monotonic() - begun

    @staticmethod
    def read(engine: Engine, run: runs.Run) -> bytes:
        """The bytes of the adapter of a finished run."""
        if run.status is not RunStatus.DONE:
            raise RuntimeError(f"the run ended as {run.status.value}: {run.error}")
        return engine.workspace.path("adapters", run.adapter, WEIGHTS).read_bytes()

    def run(self, name: str, kills: list[float]) -> SimulatedSpaces:
        """Trains in slices; each of the first slices is killed after the seconds given for it."""
        spaces = SimulatedSpaces(kill_after=lambda number: kills[number] if number < len(kills) else None)
        calls = GpuCalls(ZeroGpu(spaces))
        with Engine(self.workspace, "embedded", "none", "cpu", gpu=calls) as engine:
            slices = SlicedRuns(engine.workspace, calls.train, SLICE_SECONDS, RESERVE_SECONDS)
            engine._executor.slices = slices
            run_id = engine.runs.start(replace(self.spec, name=name))
            run = engine.runs.wait(run_id)
            self._record(engine, run, spaces)
        return spaces

    def _record(self, engine: Engine, run: runs.Run, spaces: SimulatedSpaces) -> None:
        outcome = self.outcome
        outcome.runs += 1
        outcome.slices += len(spaces.calls)
        killed = sum(call.killed for call in spaces.calls)
        outcome.kills += killed
        if run.status is not RunStatus.DONE:
            outcome.problems.append(f"{run.name} ended as {run.status.value}: {run.error}")
            return
        is_same = self.read(engine, run) == self.reference
        outcome.identical += is_same
        if not is_same:
            outcome.problems.append(f"{run.name}: its adapter differs from the reference")
        for place, lost in list_kills(engine.runs.events(run.id)[0]):
            outcome.places[place] += 1
            outcome.lost_steps.append(lost)


def list_kills(events: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """Where the slices of a run were killed, from its log.

    Returns:
        for each kill what the slice did last, and the steps that are trained again.
    """
    kills = []
    place, step, saved = LOADING, 0, 0
    for event in events:
        if is_kind(event, NoteEvent) and event["text"].startswith("A slice ended early"):
            kills.append((place, max(0, step - saved)))
            place, step = LOADING, saved
        elif kind := next((k for k in PLACES if is_kind(event, k)), None):
            place = PLACES[kind]
            step = event["step"] if kind is StepEvent else step
            saved = event["step"] if kind is CheckpointEvent else saved
    return kills


def run(trials: int, seed: int = 1, steps: int = STEPS) -> Outcome:
    """Kills one slice in each of `trials` runs, at a random moment.

    Args:
        steps: optimizer steps of a run.
    """
    begun, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="slices-"))
    try:
        made = Trials(folder, seed, steps)
        whole = made.run("without a kill", [])
        lengths = [call.took for call in whole.calls]
        while made.outcome.kills < trials and not made.outcome.problems:
            index = made.rng.choices(range(len(lengths)), lengths)[0]
            kills = [NEVER] * index + [made.rng.uniform(0.0, lengths[index])]
            made.run(f"kill {made.outcome.kills + 1}", kills)
        made.outcome.seconds = time.monotonic() - begun
        return made.outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill slices of runs; compare the adapters.")
    parser.add_argument("--kills", type=int, default=TRIALS, help=f"Default: {TRIALS}.")
    parser.add_argument("--quick", action="store_true", help=f"The same as --kills {QUICK_TRIALS}.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="Print one JSON value as the last line.")
    args = parser.parse_args()
    if not hasattr(os, "fork"):
        print("This benchmark forks processes, which this system cannot: run it on Linux or macOS.")
        return 1
    logging.basicConfig(level=logging.ERROR)
    warnings.simplefilter("ignore")
    outcome = run(QUICK_TRIALS if args.quick else args.kills, args.seed)
    for problem in outcome.problems:
        print(problem)
    print(outcome.describe())
    if args.json:
        print(json.dumps(outcome.to_json()))
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
