"""SIGKILL at any moment: a run resumes from its newest verified checkpoint and ends the same, to the bit."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.data import datasets
from core.spec.settings import SEED
from core.spec.training import RunStatus, TrainSpec
from core.store import adapters, runs
from core.store.event_log import read_since
from core.store.workspace import Workspace
from core.train import checkpoints

ROOT = Path(__file__).resolve().parents[3]
KILLS = 20
SETTINGS: dict[str, Any] = {
    "learning_rate": 5e-3,
    "batch_size": 2,
    "accumulation": 2,
    "max_length": 48,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.1,
    "warmup_ratio": 0.2,
    "max_steps": 40,
    "save_steps": 1,
    "eval_steps": 3,
    "sample_prompts": ("The red lamp",),
}


class Driver:
    """Starts attempts at runs in children that may be killed, and reads what they leave behind."""

    def __init__(self, folder: Path, base: Path, corpus: Path) -> None:
        self.workspace = Workspace(folder / "ws")
        self.dataset = datasets.import_dataset(self.workspace, [corpus], "Corpus", "domain", None, seed=SEED)
        self.marks = folder / "marks"
        self.marks.write_bytes(b"o" * 16)
        command = [
            sys.executable,
            str(ROOT / "tests" / "core" / "train" / "zygote.py"),
            str(self.workspace.root),
            str(base),
            str(self.marks),
        ]
        self.errors = open(folder / "stderr", "wb")  # noqa: SIM115 (open as long as the process writes into it)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, bufsize=1
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        self.errors.close()

    def new_run(self, name: str, **changes: Any) -> str:
        spec = TrainSpec(kind="domain", name=name, dataset=self.dataset.id, **{**SETTINGS, **changes})
        return runs.create(self.workspace, spec, "tiny", self.dataset.sha256).id

    def begin(self, run_id: str, where: str = "", times: int = 1) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{run_id} {where} {times}\n" if where else f"{run_id}\n")
        return int(self.line())

    def ended(self) -> int:
        """The exit code of the attempt; negative for the signal that ended it."""
        return int(self.line())

    def doing(self) -> str:
        return self.marks.read_bytes()[:1].decode()

    def newest(self, run_id: str) -> int:
        """The step of the newest checkpoint that verifies, 0 if there is none."""
        newest = checkpoints.find_newest(runs.checkpoints_folder(self.workspace, run_id), run_id)
        return checkpoints.step_of(newest) if newest else 0

    def events(self, run_id: str) -> list[dict[str, Any]]:
        return read_since(runs.events_path(self.workspace, run_id))[0]

    def resumed_from(self, run_id: str) -> list[int]:
        """The steps that the attempts at a run resumed from; 0 is the start."""
        notes = [e["text"] for e in self.events(run_id) if e["kind"] == "note"]
        return [
            int(n.removeprefix("Resumed from step ").rstrip(".")) for n in notes if n.startswith("Resumed")
        ]

    def outcome(
        self, run_id: str
    ) -> tuple[list[tuple[int, float, float]], list[tuple[int, float]], int, str]:
        """What a run leaves, of repeated steps the later.

        Returns:
            (step, loss, learning rate) of every step, (step, loss) of every validation, the step of the
            adapter that was kept, its sha256.
        """
        events = self.events(run_id)
        steps = {e["step"]: (e["step"], e["loss"], e["learning_rate"]) for e in events if e["kind"] == "step"}
        validations = {e["step"]: (e["step"], e["loss"]) for e in events if e["kind"] == "validation"}
        adapter = adapters.load(self.workspace, runs.load(self.workspace, run_id).adapter)
        adapters.verify(self.workspace, adapter.id)
        return (
            [steps[s] for s in sorted(steps)],
            [validations[s] for s in sorted(validations)],
            adapter.results["kept_step"],
            adapter.sha256,
        )


@pytest.fixture
def driver(tiny_base: Path, tmp_path: Path, corpus: Path) -> Iterator[Driver]:
    driver = Driver(tmp_path, tiny_base, corpus)
    yield driver
    driver.close()


def finish(driver: Driver, run_id: str) -> None:
    driver.begin(run_id)
    assert driver.ended() == 0, driver.errors.name
    assert runs.load(driver.workspace, run_id).status is RunStatus.DONE


@pytest.mark.slow
def test_kills_at_random_moments_change_no_loss_rate_or_weight(
    driver: Driver,
) -> None:
    whole = driver.new_run("Whole")
    finish(driver, whole)
    expected = driver.outcome(whole)
    assert len(expected[0]) == SETTINGS["max_steps"] and len({rate for _, _, rate in expected[0]}) > 30
    delays, seen = random.Random(50), Counter[str]()
    run_id = driver.new_run("Killed")
    while sum(seen.values()) < KILLS:
        if runs.load(driver.workspace, run_id).status is RunStatus.DONE:
            assert driver.outcome(run_id) == expected
            run_id = driver.new_run("Killed")
        before, newest = driver.resumed_from(run_id), driver.newest(run_id)
        pid = driver.begin(run_id)
        began = time.monotonic()
        while driver.doing() == "o" and time.monotonic() - began < 20:
            time.sleep(0.002)
        time.sleep(delays.uniform(0.0, 0.7))
        doing = driver.doing()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        code = driver.ended()
        assert code in (0, -signal.SIGKILL), f"{code}: see {driver.errors.name}"
        if code:
            seen[doing] += 1
        assert driver.resumed_from(run_id)[len(before) :] in ([], [newest])
    finish(driver, run_id)
    assert driver.outcome(run_id) == expected
    assert sum(seen.values()) == KILLS and len(seen) > 1, seen


@pytest.mark.slow
def test_a_kill_in_every_place_of_a_run_changes_nothing(
    driver: Driver,
) -> None:
    from tests.core.train.zygote import HALFWAY, PLACES

    shorter = {"max_steps": 8}
    whole = driver.new_run("Whole", **shorter)
    finish(driver, whole)
    expected = driver.outcome(whole)
    assert len(expected[0]) == 8
    run_id = driver.new_run("Killed", **shorter)
    late = [p for p in PLACES if "library" in p or "finished" in p]
    early = [p for p in PLACES if p not in late]
    for i, place in enumerate([*early, HALFWAY, *late]):
        newest, before = driver.newest(run_id), driver.resumed_from(run_id)
        times = 3 if "finished" in place else 2 if i % 2 and place in early[:2] else 1
        driver.begin(run_id, place, times)
        assert driver.ended() == -signal.SIGKILL, f"{place} was not reached: {driver.errors.name}"
        assert driver.resumed_from(run_id)[len(before) :] == ([newest] if newest else []), place
        if place in ("after the adapter is written", "after the optimizer is written", "before the manifest"):
            assert driver.newest(run_id) == newest, "an uncommitted checkpoint does not count"
    assert driver.newest(run_id), "the last kill left the checkpoints of a finished run"
    assert runs.load(driver.workspace, run_id).status is RunStatus.DONE
    assert driver.outcome(run_id) == expected
    finish(driver, driver.new_run("Another", **shorter))
    assert not driver.newest(run_id), "the next run removes them"
