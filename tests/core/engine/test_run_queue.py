"""The queue of runs: moved and cancelled from any thread and process, dependencies first, kept over a
restart.
"""

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

from core.engine import Engine, queue
from core.errors import Busy, RunError, SpecError
from core.spec.training import Launch, RunStatus, TrainSpec
from core.store import run_order, runs
from core.store.locks import FileLock
from core.store.runs import RunExtra
from core.store.workspace import Workspace

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
    """No run begins until this is set."""
    made = threading.Event()
    engine.worker.run(lambda: made.wait(120) and None)
    yield made
    made.set()


def spec(engine: Engine, corpus: Path, name: str, **changes: Any) -> TrainSpec:
    data = next(iter(engine.datasets.list()), None) or engine.datasets.import_files(
        [corpus], "Corpus", "domain"
    )
    return TrainSpec(**{"kind": "domain", "name": name, "dataset": data.id, **FAST, **changes})


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.01)


def queued(engine: Engine) -> list[str]:
    return [w.run.name for w in engine.queue.list()]


def began(engine: Engine) -> list[str]:
    """The names of the runs that began, in order."""
    at = {
        r.name: next((e["time"] for e in engine.runs.events(r.id)[0] if e.get("status") == "running"), None)
        for r in engine.runs.list()
    }
    return sorted((n for n, t in at.items() if t is not None), key=lambda n: at[n] or 0)


def test_runs_begin_in_the_order_they_were_moved_into(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    ids = {n: engine.runs.start(spec(engine, corpus, n)) for n in "ABCD"}
    assert queued(engine) == ["A", "B", "C", "D"]
    engine.queue.move(ids["D"], "first")
    engine.queue.move(ids["A"], "down")
    engine.queue.move(ids["C"], "up")
    engine.queue.move(ids["D"], "up")  # it is the first already
    assert queued(engine) == ["D", "B", "C", "A"]
    engine.queue.move(ids["B"], "last")
    assert queued(engine) == ["D", "C", "A", "B"]
    gate.set()
    for run_id in ids.values():
        assert engine.runs.wait(run_id).status is RunStatus.DONE
    assert (
        began(engine) == ["D", "C", "A", "B"]
        and engine.queue.list() == []
        and run_order.read(engine.workspace).order == ()
    )


def test_only_a_waiting_run_can_be_moved(engine: Engine, corpus: Path, gate: threading.Event) -> None:
    run_id = engine.runs.start(spec(engine, corpus, "A"))
    with pytest.raises(RunError, match="first, up, down, last, got .sideways."):
        engine.queue.move(run_id, "sideways")
    gate.set()
    engine.runs.wait(run_id)
    for verb in (lambda: engine.queue.move(run_id, "up"), lambda: engine.queue.cancel(run_id)):
        with pytest.raises(RunError, match=r"'A' is not waiting \(finished\)"):
            verb()


def test_a_cancelled_run_never_begins_and_others_are_unaffected(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    ids = {n: engine.runs.start(spec(engine, corpus, n)) for n in "ABC"}
    assert engine.queue.cancel(ids["B"]) == [ids["B"]]
    run = engine.runs.get(ids["B"])
    assert (
        run.status is RunStatus.STOPPED
        and run.extra.cancelled
        and not run.resumable
        and queued(engine) == ["A", "C"]
    )
    gate.set()
    assert [engine.runs.wait(ids[n]).status for n in "AC"] == [RunStatus.DONE] * 2
    assert began(engine) == ["A", "C"] and len(engine.library.adapters()) == 2


def test_a_run_is_never_placed_before_the_run_of_its_parent_adapter(
    engine: Engine, corpus: Path, pairs: Path, gate: threading.Event
) -> None:
    lower = engine.runs.start(spec(engine, corpus, "Lower"))
    between = engine.runs.start(spec(engine, corpus, "Between"))
    data = engine.datasets.import_files([pairs], "Pairs", "task")
    upper = engine.runs.start(
        TrainSpec(
            **{
                "kind": "task",
                "name": "Upper",
                "dataset": data.id,
                "stack_on": engine.runs.get(lower).adapter,
                **FAST,
            }
        )
    )
    for run_id, to in ((upper, "first"), (lower, "last")):
        with pytest.raises(RunError, match="'Upper' is trained on top of 'Lower'"):
            engine.queue.move(run_id, to)
    assert queued(engine) == ["Lower", "Between", "Upper"]
    engine.queue.move(upper, "up")
    assert queued(engine) == ["Lower", "Upper", "Between"]
    line = {w.run.id: w for w in engine.queue.list()}
    assert (
        line[upper].after == (lower,)
        and line[lower].before == (upper,)
        and line[between].after == line[between].before == ()
    )
    with pytest.raises(Busy, match="'Upper' would be trained on top of 'Lower'"):
        engine.runs.stop(lower)
    assert set(engine.queue.cancel(lower, together=True)) == {lower, upper} and queued(engine) == ["Between"]


def test_a_run_is_either_begun_or_cancelled_never_both(engine: Engine, corpus: Path) -> None:
    """Cancelling races with beginning; the one that removes the run from the pending runs has it."""
    engine.bases.current(wait=True)
    for i in range(6):
        run_id = engine.runs.start(spec(engine, corpus, f"R{i}", max_steps=1))
        try:
            engine.queue.cancel(run_id)
            cancelled = True
        except RunError:
            cancelled = False
        run = engine.runs.wait(run_id)
        events = [e.get("status") for e in engine.runs.events(run_id)[0] if e["kind"] == "status"]
        assert events == (["queued", "stopped"] if cancelled else ["queued", "running", "finished"]), (
            i,
            events,
        )
        assert run.status is (RunStatus.STOPPED if cancelled else RunStatus.DONE)


def test_another_process_can_move_and_cancel_waiting_runs(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    ids = {n: engine.runs.start(spec(engine, corpus, n)) for n in "ABC"}

    def terminal(*words: str) -> Any:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "core",
                "runs",
                *words,
                "--workspace",
                str(engine.workspace.root),
                "--json",
            ],
            capture_output=True,
            text=True,
            env=env,
            cwd=ROOT,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    assert terminal("move", ids["C"], "first") == {"queue": [ids["C"], ids["A"], ids["B"]]}
    assert terminal("cancel", ids["A"]) == {"cancelled": [ids["A"]]}
    assert [(w.run.name, w.leaving) for w in engine.queue.list()] == [("C", False), ("A", True), ("B", False)]
    gate.set()
    assert engine.runs.wait(ids["A"]).status is RunStatus.STOPPED
    assert [engine.runs.wait(ids[n]).status for n in "CB"] == [RunStatus.DONE] * 2
    assert began(engine) == ["C", "B"]


def test_a_training_run_polls_cancellations_of_other_processes(engine: Engine, corpus: Path) -> None:
    first = engine.runs.start(
        spec(engine, corpus, "Long", max_steps=100_000, eval_steps=100_000, save_steps=100_000)
    )
    second = engine.runs.start(spec(engine, corpus, "Waits"))
    until(lambda: engine.runs.get(first).step > 2)
    run_order.cancel(engine.workspace, [second])
    until(lambda: engine.runs.get(second).status is RunStatus.STOPPED)
    assert engine.runs.get(first).status is RunStatus.RUNNING
    engine.runs.stop(first)
    assert engine.runs.wait(first).status is RunStatus.STOPPED and began(engine) == ["Long"]


def test_the_queue_has_a_limit_for_runs_and_grids(
    engine: Engine, corpus: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "QUEUE_LIMIT", 2)
    engine.runs.start(spec(engine, corpus, "A"))
    with pytest.raises(Busy, match="The queue holds 1 runs and can hold 2"):
        engine.grids.start(spec(engine, corpus, "Grid"), {"rank": [1, 2]}, "Grid")
    engine.runs.start(spec(engine, corpus, "B"))
    with pytest.raises(Busy):
        engine.runs.start(spec(engine, corpus, "C"))
    assert queued(engine) == ["A", "B"] and engine.grids.list() == []


def test_a_refused_resume_keeps_the_stop_request_of_the_run(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    run_id = engine.runs.start(spec(engine, corpus, "A", max_steps=50))
    engine._executor.request_close()
    # The processes of a launch write their last status while their launcher still holds the lock.
    runs.update(engine.workspace, engine.runs.get(run_id), status=RunStatus.INTERRUPTED)
    with pytest.raises(Busy, match="already in use"):
        engine.runs.resume(run_id)
    gate.set()
    run = engine.runs.wait(run_id)
    assert run.status is RunStatus.INTERRUPTED and run.step == 1


def test_a_launch_is_checked_although_the_same_spec_was_just_started(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    same = spec(engine, corpus, "A")
    run_id = engine.runs.start(same)
    with pytest.raises(SpecError, match="multiple of the number of processes, 2, got 1"):
        engine.runs.start(same, Launch(launcher="torchrun", nproc=2))
    assert engine.runs.start(same) == run_id and queued(engine) == ["A"]


def test_a_launch_of_another_version_can_be_stopped_from_here(engine: Engine, corpus: Path) -> None:
    launches: dict[str, RunExtra] = {
        "Ours": RunExtra(),
        "Newer": RunExtra(unknown={"launch": {"launcher": "from another version"}}),
    }
    ids = {}
    for name, extra in launches.items():
        run = runs.create(engine.workspace, spec(engine, corpus, name), "base", "", extra)
        ids[name] = runs.update(engine.workspace, run, status=RunStatus.RUNNING).id
    locks = [FileLock(runs.lock_path(engine.workspace, i)) for i in ids.values()]
    with pytest.raises(RunError, match="is not running here"):
        engine.runs.stop(ids["Ours"])
    engine.runs.stop(ids["Newer"])
    assert [runs.read_stop_request(engine.workspace, i) for i in ids.values()] == ["", "keep"]
    for lock in locks:
        lock.release()


def test_closing_releases_the_locks_of_waiting_runs(tiny_base: Path, tmp_path: Path, corpus: Path) -> None:
    opened = threading.Event()
    with Engine(tmp_path / "ws", str(tiny_base), quantization="none", device="cpu") as engine:
        engine.worker.run(lambda: opened.wait(120) and None)
        run_id = engine.runs.start(spec(engine, corpus, "A"))
        path = runs.lock_path(engine.workspace, run_id)
        with pytest.raises(Busy):
            FileLock(path)
        threading.Timer(0.2, opened.set).start()  # the engine closes before, so the run does not start
    FileLock(path).release()
    assert engine.queue.locks == {} and engine.runs.get(run_id).resumable


WAITING = """
import sys, threading
from core.engine import Engine
from core.spec.training import TrainSpec
root, base, corpus = sys.argv[1:]
engine = Engine(root, base, quantization="none", device="cpu")
engine.worker.run(lambda: threading.Event().wait(120) and None)
data = engine.datasets.import_files([corpus], "Corpus", "domain")
spec = dict(kind="domain", dataset=data.id, max_steps=2, batch_size=2, accumulation=1, max_length=48, rank=4)
ids = [engine.runs.start(TrainSpec(name=n, **spec)) for n in "ABC"]
engine.queue.move(ids[2], "first")
engine.queue.cancel(ids[0])
print("ready", flush=True)
threading.Event().wait(120)
"""


@pytest.mark.slow
def test_runs_queued_when_the_studio_was_killed_are_requeued_in_order(
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
        names = {r.name: r for r in engine.runs.list()}
        assert [names[n].status for n in "ABC"] == [
            RunStatus.STOPPED,
            RunStatus.INTERRUPTED,
            RunStatus.INTERRUPTED,
        ]
        assert [names[n].was_queued for n in "ABC"] == [False, True, True] and engine.queue.list() == [], (
            "nothing begins by itself"
        )
        assert engine.runs.requeue() == [names["C"].id, names["B"].id]
        assert [engine.runs.wait(names[n].id).status for n in "CB"] == [RunStatus.DONE] * 2
        assert began(engine) == ["C", "B"] and engine.runs.requeue() == []


def test_a_damaged_order_file_costs_the_order_but_no_run(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    ids = [engine.runs.start(spec(engine, corpus, n)) for n in "AB"]
    engine.workspace.run_order_path.write_text("[1, 2")
    assert queued(engine) == ["A", "B"]
    gate.set()
    assert [engine.runs.wait(i).status for i in ids] == [RunStatus.DONE] * 2


def test_only_one_process_at_a_time_writes_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    run_order.enqueue(workspace, "a")
    monkeypatch.setattr(run_order, "LOCK_TIMEOUT_SECONDS", 0.05)
    held = FileLock(workspace.run_order_path.with_suffix(".lock"))
    with pytest.raises(Busy, match="Another process is changing the order of the queue"):
        run_order.enqueue(workspace, "b")
    held.release()
    run_order.enqueue(workspace, "b")
    assert run_order.read(workspace).order == ("a", "b") and workspace.ids("runs") == []
