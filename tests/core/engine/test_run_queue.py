"""The queue of runs: moved and cancelled from any thread and process, dependencies first, kept over a
restart.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.cli.common import follow
from core.engine import Engine, queue
from core.engine import runs as run_module
from core.errors import (
    BaseModelError,
    Busy,
    DiskFull,
    NotFound,
    RunError,
    SpecError,
    StorageError,
    StudioError,
)
from core.spec.training import Launch, RunStatus, TrainSpec
from core.store import run_order, runs
from core.store.files import storage_error
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
def gate(engine: Engine, corpus: Path) -> Iterator[threading.Event]:
    """No run begins until this is set."""
    spec(engine, corpus, "Corpus")  # an import waits for the thread that is held here
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


# --- entering the queue completely or not at all


def fail_to_write_the_order(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(*_: object) -> None:
        raise storage_error(error, Path("lineup.json"))

    monkeypatch.setattr(run_order, "_write", refuse)


def refuse_lock(*_: object) -> None:
    raise Busy("The run is already in use.", "Wait.")


@pytest.mark.parametrize("reason", ["full disk", "busy order", "lock taken", "closing"])
def test_a_run_that_cannot_enter_the_queue_leaves_nothing(
    engine: Engine, corpus: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    wanted = spec(engine, corpus, "A")
    held = None
    with monkeypatch.context() as patch:
        if reason == "full disk":
            fail_to_write_the_order(patch, OSError(errno.ENOSPC, "No space left on device"))
        elif reason == "busy order":
            patch.setattr(run_order, "LOCK_TIMEOUT_SECONDS", 0.05)
            held = FileLock(engine.workspace.run_order_path.with_suffix(".lock"))
        elif reason == "lock taken":
            patch.setattr(queue, "FileLock", refuse_lock)
        else:
            patch.setattr(engine.worker, "_closing", True)
        with pytest.raises(StudioError):
            engine.runs.start(wanted)
    assert engine.workspace.ids("runs") == [] and engine.queue.list() == []
    assert (
        engine.queue.locks == {}
        and engine.queue._pending == {}
        and run_order.read(engine.workspace).order == ()
    )
    assert [p.name for p in (engine.workspace.root / "runs").glob(".*")] == []
    if held:
        held.release()
    run_id = engine.runs.start(wanted)  # the same start at once is not the failed one
    gate.set()
    assert engine.runs.wait(run_id).status is RunStatus.DONE


def test_a_folder_that_cannot_be_deleted_says_why_its_run_ended(
    engine: Engine, corpus: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("The folder is in use.", "Close it.")

    fail_to_write_the_order(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(engine.workspace, "delete", refuse)
    with pytest.raises(DiskFull):
        engine.runs.start(spec(engine, corpus, "A"))
    run = engine.runs.list()[0]
    assert run.status is RunStatus.FAILED and "The disk is full" in run.error and not run.was_queued
    assert engine.queue.list() == [] and engine.queue.locks == {}


@pytest.mark.parametrize("before", [RunStatus.PAUSED, RunStatus.INTERRUPTED, RunStatus.QUEUED])
def test_a_resume_that_cannot_enter_the_queue_changes_no_status(
    engine: Engine, corpus: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch, before: RunStatus
) -> None:
    made = runs.create(engine.workspace, spec(engine, corpus, "A"), "base", "")
    runs.update(engine.workspace, made, status=before, error="as it was")
    was = engine.runs.get(made.id)
    with monkeypatch.context() as patch:
        fail_to_write_the_order(patch, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(DiskFull):
            engine.runs.resume(made.id)
    now = engine.runs.get(made.id)
    assert (now.status, now.error, now.was_queued) == (was.status, "as it was", was.was_queued)
    assert engine.queue.locks == {} and engine.queue._pending == {}
    engine.runs.resume(made.id)
    assert queued(engine) == ["A"]


def test_a_full_queue_is_full_for_threads_that_start_at_the_same_moment(
    engine: Engine, corpus: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "QUEUE_LIMIT", 3)
    specs = [spec(engine, corpus, f"R{i}") for i in range(8)]
    refused: list[str] = []

    def start(wanted: TrainSpec) -> None:
        try:
            engine.runs.start(wanted)
        except Busy as e:
            refused.append(str(e))

    run_together([lambda s=s: start(s) for s in specs])
    assert len(refused) == 5 and len(engine.queue.list()) == 3 and len(engine.runs.list()) == 3


def test_a_grid_that_cannot_be_queued_whole_leaves_no_cell(
    engine: Engine, corpus: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, calls = engine.runs.start, []

    def fail_third(*args: Any, **kwargs: Any) -> str:
        calls.append(1)
        if len(calls) == 3:
            raise DiskFull("The disk is full.", "")
        return start(*args, **kwargs)

    monkeypatch.setattr(engine.runs, "start", fail_third)
    with pytest.raises(DiskFull):
        engine.grids.start(spec(engine, corpus, "Grid"), {"rank": [1, 2, 3]}, "Grid")
    assert engine.grids.list() == [] and engine.runs.list() == [] and engine.queue.locks == {}


def test_a_run_that_names_its_own_adapter_as_parent_can_be_cancelled(
    engine: Engine, corpus: Path, pairs: Path, gate: threading.Event
) -> None:
    data = engine.datasets.import_files([pairs], "Pairs", "task")
    first, second, own = (
        engine.runs.start(TrainSpec(kind="task", name=name, dataset=data.id, max_length=128))
        for name in ("A", "B", "Own")
    )
    adapters = {i: engine.runs.get(i).adapter for i in (first, second, own)}
    for run_id, parent in ((first, second), (second, first), (own, own)):
        run = engine.runs.get(run_id)
        changed = replace(run.spec, stack_on=adapters[parent])
        engine.queue._pending[run_id] = runs.update(engine.workspace, run, spec=changed)
    queue = {w.run.id: w for w in engine.queue.list()}
    assert [w.waits for w in queue.values()] == ["", "", ""]
    assert (queue[own].after, queue[own].before) == ((), ())
    assert (queue[first].after, queue[first].before) == ((second,), (second,))
    assert engine.queue.cancel(own) == [own]
    assert engine.queue.cancel(first, together=True) == [second, first] and engine.queue.list() == []


def test_a_disk_that_becomes_read_only_does_not_keep_the_lock_of_a_run(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(runs, "delete", refuse)
    run_id = engine.runs.start(spec(engine, corpus, "A"))
    assert engine.runs.wait(run_id, 60).status is RunStatus.DONE and engine.queue.locks == {}


# --- one click, one run


def run_together(calls: list[Callable[[], Any]]) -> None:
    """Calls everything at the same moment, each on a thread of its own."""
    barrier = threading.Barrier(len(calls))

    def begin(call: Callable[[], Any]) -> None:
        barrier.wait(10)
        call()

    threads = [threading.Thread(target=begin, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(t.is_alive() for t in threads)


def test_two_threads_that_start_the_same_run_start_one(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    for i in range(5):
        same, ids = spec(engine, corpus, f"R{i}"), []
        run_together([lambda s=same, into=ids: into.append(engine.runs.start(s))] * 4)
        assert len(ids) == 4 and len(set(ids)) == 1
    assert len(engine.runs.list()) == 5


def test_a_start_with_another_launch_or_record_is_not_a_double_click(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    same = spec(engine, corpus, "A", accumulation=2)
    first = engine.runs.start(same)
    others = [
        engine.runs.start(same, extra=RunExtra(grid="grid-0001", cell=1)),
        engine.runs.start(same, extra=RunExtra(grid="grid-0001", cell=2)),
        engine.runs.start(same, Launch(launcher="torchrun", nproc=2)),
    ]
    assert len({first, *others}) == 4 and engine.runs.get(others[2]).extra.launch is not None
    assert engine.runs.start(same, Launch(launcher="torchrun", nproc=2)) == others[2]


def test_a_second_start_after_the_window_or_after_a_cancellation_is_meant(
    engine: Engine, corpus: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = spec(engine, corpus, "A")
    first = engine.runs.start(same)
    assert engine.runs.start(same) == first
    engine.queue.cancel(first)
    second = engine.runs.start(same)
    monkeypatch.setattr(run_module, "DOUBLE_CLICK_SECONDS", 0.0)
    third = engine.runs.start(same)
    assert len({first, second, third}) == 3 and queued(engine) == ["A", "A"]


def test_two_threads_that_start_the_same_grid_start_one(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    same, made = spec(engine, corpus, "Grid"), []
    run_together([lambda: made.append(engine.grids.start(same, {"rank": [1, 2]}, "Grid").id)] * 3)
    assert len(made) == 3 and len(set(made)) == 1 and len(engine.runs.list()) == 2


# --- runs that wait for a base


def test_runs_that_start_or_resume_before_the_base_wait_for_it(
    tiny_base: Path, tmp_path: Path, corpus: Path
) -> None:
    with Engine(tmp_path / "ws", str(tiny_base), "none", "cpu", load=False) as engine:
        old = runs.create(engine.workspace, spec(engine, corpus, "Old"), "base", "")
        runs.update(engine.workspace, old, status=RunStatus.PAUSED)
        new = engine.runs.start(spec(engine, corpus, "New"))
        engine.runs.resume(old.id)
        time.sleep(1.2)
        assert queued(engine) == ["New", "Old"]
        assert [w.waits for w in engine.queue.list()] == ["It waits for a base model. None is loaded."] * 2
        engine.queue.move(old.id, "first")
        engine.bases.load()
        assert [engine.runs.wait(i).status for i in (new, old.id)] == [RunStatus.DONE] * 2
        assert began(engine) == ["Old", "New"]


def test_a_base_that_cannot_be_loaded_fails_no_run(tiny_base: Path, tmp_path: Path, corpus: Path) -> None:
    with Engine(tmp_path / "ws", str(tmp_path / "nothing"), "none", "cpu") as engine:
        run_id = engine.runs.start(spec(engine, corpus, "A"))
        engine.bases.current(wait=True)
        with pytest.raises(BaseModelError, match="It waits for a base model"):
            engine.runs.wait(run_id, 30)
        with pytest.raises(BaseModelError, match="It waits for a base model"):
            follow(engine, run_id)
        assert engine.runs.get(run_id).status is RunStatus.QUEUED and queued(engine) == ["A"]
        assert engine.bases.switch(str(tiny_base), "none") == []  # the waiting run does not prevent it
        until(lambda: engine.runs.get(run_id).status is RunStatus.DONE)


def test_a_run_of_another_base_waits_and_others_go_first(
    tiny_base: Path, tmp_path: Path, corpus: Path
) -> None:
    with Engine(tmp_path / "ws", str(tiny_base), "none", "cpu", load=False) as engine:
        foreign = runs.create(engine.workspace, spec(engine, corpus, "Foreign"), "other", "")
        runs.update(engine.workspace, foreign, status=RunStatus.PAUSED, base_fingerprint="0" * 64)
        engine.runs.resume(foreign.id)
        run_id = engine.runs.start(spec(engine, corpus, "Ours"))
        engine.bases.load()
        assert engine.runs.wait(run_id).status is RunStatus.DONE
        waiting = engine.queue.list()[0]
        assert waiting.run.id == foreign.id and "It waits for the base 'other'" in waiting.waits
        with pytest.raises(BaseModelError, match="It waits for the base 'other'"):
            engine.runs.wait(foreign.id, 30)
        engine.queue.cancel(foreign.id)
        assert engine.runs.get(foreign.id).status is RunStatus.STOPPED


def test_requests_of_a_run_that_still_trains_at_close_keep_its_lock(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, held = threading.Event(), threading.Event()
    engine.bases.current(wait=True)
    run = runs.create(engine.workspace, spec(engine, corpus, "A"), "base", "")
    engine.queue.lock(run.id)
    engine.queue.enter(run, lambda: held.set() or gate.wait(30) and None)
    assert held.wait(10)
    waiting = engine.runs.start(spec(engine, corpus, "B"))
    close = engine.worker.close
    monkeypatch.setattr(engine.worker, "close", lambda seconds=30.0: close(0.05))
    engine.close()
    assert list(engine.queue.locks) == [run.id], "it still trains"
    FileLock(runs.lock_path(engine.workspace, waiting)).release()
    gate.set()
    assert close(10)
    engine.close()
    assert engine.queue.locks == {}


def test_a_run_that_cannot_be_queued_again_does_not_keep_others_back(
    engine: Engine, corpus: Path, gate: threading.Event
) -> None:
    wanted = spec(engine, corpus, "A")
    orphan = runs.create(engine.workspace, replace(wanted, name="Orphan", stack_on="gone-0001"), "base", "")
    whole = runs.create(engine.workspace, wanted, "base", "")
    assert engine.runs.requeue() == [whole.id] and queued(engine) == ["A"]
    with pytest.raises(NotFound, match="gone-0001"):
        engine.runs.requeue()
    assert engine.runs.get(orphan.id).was_queued
