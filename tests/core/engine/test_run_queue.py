"""The line of runs: moved and cancelled from any thread and any process, never before what they need, and kept over a restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine, runs
from core.errors import Busy, RunError
from core.spec.training import RunStatus, TrainSpec
from core.store import run_order
from core.store.workspace import Claim, Workspace

ROOT = Path(__file__).resolve().parents[3]
FAST: dict[str, Any] = {
    "max_steps": 2,
    "learning_rate": 5e-3,
    "batch_size": 2,
    "accumulation": 1,
    "max_length": 48,
    "rank": 4,
    "alpha": 8,
}


@pytest.fixture
def engine(tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "ws", str(tiny_base), quantization="none", device="cpu") as made:
        yield made


@pytest.fixture
def gate(engine: Engine) -> Iterator[threading.Event]:
    """While it is closed, no run begins."""
    made = threading.Event()
    engine._worker.run(lambda: made.wait(120) and None)
    yield made
    made.set()


def spec(engine: Engine, corpus: Path, name: str, **changes: Any) -> TrainSpec:
    data = next(iter(engine.datasets()), None) or engine.import_dataset([corpus], "Corpus", "domain")
    return TrainSpec(**{"kind": "domain", "name": name, "dataset": data.id, **FAST, **changes})


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def queued(engine: Engine) -> list[str]:
    return [w.run.name for w in engine.queue()]


def began(engine: Engine) -> list[str]:
    """Names of the runs that began, in that order."""
    at = {
        r.name: next((e["time"] for e in engine.run_events(r.id)[0] if e.get("status") == "running"), None)
        for r in engine.runs()
    }
    return sorted((n for n, t in at.items() if t is not None), key=lambda n: at[n] or 0)


def test_runs_begin_in_the_order_they_were_moved_into(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    ids = {n: engine.start_run(spec(engine, corpus, n)) for n in "ABCD"}
    assert queued(engine) == ["A", "B", "C", "D"]
    engine.move_run(ids["D"], "first")
    engine.move_run(ids["A"], "down")
    engine.move_run(ids["C"], "up")
    engine.move_run(ids["D"], "up")  # it is the first already
    assert queued(engine) == ["D", "B", "C", "A"]
    engine.move_run(ids["B"], "last")
    assert queued(engine) == ["D", "C", "A", "B"]
    gate.set()
    for run_id in ids.values():
        assert engine.wait_run(run_id).status is RunStatus.DONE
    assert (
        began(engine) == ["D", "C", "A", "B"]
        and engine.queue() == []
        and run_order.read(engine.workspace).order == ()
    )


def test_a_run_that_begins_or_ended_has_no_place_to_be_moved_from(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    run_id = engine.start_run(spec(engine, corpus, "A"))
    with pytest.raises(RunError, match="sideways.*first, up, down, last"):
        engine.move_run(run_id, "sideways")
    gate.set()
    engine.wait_run(run_id)
    for verb in (lambda: engine.move_run(run_id, "up"), lambda: engine.cancel_run(run_id)):
        with pytest.raises(RunError, match=r"'A' is not waiting \(finished\)"):
            verb()


def test_a_cancelled_run_is_out_at_once_never_begins_and_leaves_the_others_alone(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    ids = {n: engine.start_run(spec(engine, corpus, n)) for n in "ABC"}
    assert engine.cancel_run(ids["B"]) == [ids["B"]]
    run = engine.run(ids["B"])
    assert (
        run.status is RunStatus.STOPPED
        and run.extra["cancelled"]
        and not run.resumable
        and queued(engine) == ["A", "C"]
    )
    gate.set()
    assert [engine.wait_run(ids[n]).status for n in "AC"] == [RunStatus.DONE] * 2
    assert began(engine) == ["A", "C"] and len(engine.adapters()) == 2


def test_a_run_never_stands_before_the_run_that_trains_the_adapter_below_it(
    engine: Engine, corpus: Path, pairs: Path, gate: threading.Event
) -> None:
    lower = engine.start_run(spec(engine, corpus, "Lower"))
    between = engine.start_run(spec(engine, corpus, "Between"))
    data = engine.import_dataset([pairs], "Pairs", "task")
    upper = engine.start_run(
        TrainSpec(
            **{
                "kind": "task",
                "name": "Upper",
                "dataset": data.id,
                "stack_on": engine.run(lower).adapter,
                **FAST,
            }
        )
    )
    for run_id, to in ((upper, "first"), (lower, "last")):
        with pytest.raises(RunError, match="'Upper' is trained on top of 'Lower'"):
            engine.move_run(run_id, to)
    assert queued(engine) == ["Lower", "Between", "Upper"]
    engine.move_run(upper, "up")
    assert queued(engine) == ["Lower", "Upper", "Between"]
    line = {w.run.id: w for w in engine.queue()}
    assert (
        line[upper].after == (lower,)
        and line[lower].before == (upper,)
        and line[between].after == line[between].before == ()
    )
    with pytest.raises(Busy, match="'Upper' would be trained on top of 'Lower'"):
        engine.stop_run(lower)
    assert set(engine.cancel_run(lower, together=True)) == {lower, upper} and queued(engine) == ["Between"]


def test_a_run_is_either_begun_or_cancelled_and_never_both(engine: Engine, corpus: Path) -> None:
    """Cancelling races with beginning; whoever takes the ticket has the run."""
    engine.base(wait=True)
    for i in range(6):
        run_id = engine.start_run(spec(engine, corpus, f"R{i}", max_steps=1))
        try:
            engine.cancel_run(run_id)
            cancelled = True
        except RunError:
            cancelled = False
        run = engine.wait_run(run_id)
        events = [e.get("status") for e in engine.run_events(run_id)[0] if e["kind"] == "status"]
        assert events == (["queued", "stopped"] if cancelled else ["queued", "running", "finished"]), (
            i,
            events,
        )
        assert run.status is (RunStatus.STOPPED if cancelled else RunStatus.DONE)


def test_another_process_moves_and_cancels_what_waits_here(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    ids = {n: engine.start_run(spec(engine, corpus, n)) for n in "ABC"}

    def terminal(*words: str) -> Any:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-m", "core", "runs", *words, "--workspace", str(engine.workspace.root), "--json"],
                              capture_output=True, text=True, env=env, cwd=ROOT, check=True)  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1])

    assert terminal("move", ids["C"], "first") == {"queue": [ids["C"], ids["A"], ids["B"]]}
    assert terminal("cancel", ids["A"]) == {"cancelled": [ids["A"]]}
    assert [(w.run.name, w.leaving) for w in engine.queue()] == [("C", False), ("A", True), ("B", False)]
    gate.set()
    assert engine.wait_run(ids["A"]).status is RunStatus.STOPPED
    assert [engine.wait_run(ids[n]).status for n in "CB"] == [RunStatus.DONE] * 2
    assert began(engine) == ["C", "B"]


def test_a_run_that_trains_hears_what_another_process_takes_out_of_the_line(
    engine: Engine, corpus: Path
) -> None:
    first = engine.start_run(
        spec(engine, corpus, "Long", max_steps=100_000, eval_steps=100_000, save_steps=100_000)
    )
    second = engine.start_run(spec(engine, corpus, "Waits"))
    until(lambda: engine.run(first).step > 2)
    run_order.cancel(engine.workspace, [second])
    until(lambda: engine.run(second).status is RunStatus.STOPPED)
    assert engine.run(first).status is RunStatus.RUNNING
    engine.stop_run(first)
    assert engine.wait_run(first).status is RunStatus.STOPPED and began(engine) == ["Long"]


def test_the_queue_has_a_limit_that_a_grid_cannot_pass_either(
    engine: Engine, corpus: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "WAITING_LIMIT", 2)
    engine.start_run(spec(engine, corpus, "A"))
    with pytest.raises(Busy, match="1 runs are waiting already.*At most 2"):
        engine.plan.start(spec(engine, corpus, "Grid"), {"rank": [1, 2]}, "Grid")
    engine.start_run(spec(engine, corpus, "B"))
    with pytest.raises(Busy):
        engine.start_run(spec(engine, corpus, "C"))
    assert queued(engine) == ["A", "B"] and engine.plan.grids() == []


WAITING = """
import sys, threading
from core.engine import Engine
from core.spec.training import TrainSpec
root, base, corpus = sys.argv[1:]
engine = Engine(root, base, quantization="none", device="cpu")
engine._worker.run(lambda: threading.Event().wait(120) and None)
data = engine.import_dataset([corpus], "Corpus", "domain")
ids = [engine.start_run(TrainSpec(kind="domain", name=n, dataset=data.id, max_steps=2, batch_size=2, accumulation=1, max_length=48, rank=4)) for n in "ABC"]
engine.move_run(ids[2], "first")
engine.cancel_run(ids[0])
print("ready", flush=True)
threading.Event().wait(120)
"""


@pytest.mark.slow
def test_what_waited_when_the_studio_was_killed_is_offered_again_in_its_order(
    tiny_base: Path, tmp_path: Path, corpus: Path
) -> None:
    root = tmp_path / "ws"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(root), str(tiny_base), str(corpus)],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert child.stdout is not None and child.stdout.readline().strip() == "ready"
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    child.stdout.close()
    with Engine(root, str(tiny_base), quantization="none", device="cpu") as engine:
        names = {r.name: r for r in engine.runs()}
        assert [names[n].status for n in "ABC"] == [
            RunStatus.STOPPED,
            RunStatus.INTERRUPTED,
            RunStatus.INTERRUPTED,
        ]
        assert [names[n].waited for n in "ABC"] == [False, True, True] and engine.queue() == [], (
            "nothing begins by itself"
        )
        assert engine.queue_again() == [names["C"].id, names["B"].id]
        assert [engine.wait_run(names[n].id).status for n in "CB"] == [RunStatus.DONE] * 2
        assert began(engine) == ["C", "B"] and engine.queue_again() == []


def test_a_damaged_line_costs_the_order_and_never_a_run(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    ids = [engine.start_run(spec(engine, corpus, n)) for n in "AB"]
    engine.workspace.lineup.write_text("[1, 2")
    assert queued(engine) == ["A", "B"]
    gate.set()
    assert [engine.wait_run(i).status for i in ids] == [RunStatus.DONE] * 2


def test_the_line_is_written_by_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    run_order.enter(workspace, "a")
    monkeypatch.setattr(run_order, "PATIENCE_SECONDS", 0.05)
    held = Claim(workspace.lineup.with_suffix(".lock"))
    with pytest.raises(Busy, match="changed by another process"):
        run_order.enter(workspace, "b")
    held.release()
    run_order.enter(workspace, "b")
    assert run_order.read(workspace).order == ("a", "b") and workspace.ids("runs") == []
