"""Threads of a run on the CPU: what is chosen under which load, that it is exact, and what the user reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.engine import Engine
from core.engine.worker import BackgroundTask
from core.spec.training import RunStatus
from core.store.events import MachineEvent, latest
from core.train import train as training
from core.train.machine import CpuMeter, Load, LoadReport, describe_load, read_cpu_seconds
from core.train.thread_choice import Policy, ThreadChoice, Window, list_counts
from core.train.threads import PassiveWait, ThreadControl
from studio.components import live
from tests.core.train.test_training import domain_spec, losses, wait_for

SPIN, WAIT, ONE = Policy(2), Policy(2, True), Policy(1)
# Steps a second of the embedded base on two cores, by the number of busy processes beside it.
SPEEDS = {
    0: {SPIN: 10.4, WAIT: 7.8, ONE: 6.3},
    1: {SPIN: 3.1, WAIT: 5.0, ONE: 6.2},
    2: {SPIN: 1.0, WAIT: 4.3, ONE: 4.4},
    4: {SPIN: 0.2, WAIT: 2.9, ONE: 2.2},
}
# Cores that the busy processes get, and the share of its time for which the training thread computes.
OTHERS = {
    0: {SPIN: 0.02, WAIT: 0.02, ONE: 0.02},
    1: {SPIN: 0.67, WAIT: 0.8, ONE: 0.99},
    2: {SPIN: 1.0, WAIT: 1.15, ONE: 1.33},
    4: {SPIN: 1.33, WAIT: 1.4, ONE: 1.6},
}
SHARES = {
    0: {SPIN: 1.0, WAIT: 0.9, ONE: 1.0},
    1: {SPIN: 0.7, WAIT: 0.6, ONE: 1.0},
    2: {SPIN: 0.5, WAIT: 0.5, ONE: 0.67},
    4: {SPIN: 0.33, WAIT: 0.3, ONE: 0.4},
}


def simulate(choice: ThreadChoice, busy: int, seconds: float, start: float, is_known: bool = True) -> float:
    """Lets the choice train on the measured machine; returns its mean steps a second."""
    now, steps = start, 0
    while now < start + seconds:
        policy = choice.policy
        step_seconds = 1 / SPEEDS[busy][policy]
        count = max(1, round(0.4 / step_seconds))
        now, steps = now + count * step_seconds, steps + count
        others = OTHERS[busy][policy] if is_known else None
        choice.update(Window(count * step_seconds, count, SHARES[busy][policy], others), now)
    return steps / (now - start)


@pytest.mark.parametrize(("is_known", "target"), [(True, 0.95), (False, 0.85)])
@pytest.mark.parametrize("can_wait", [True, False])
def test_the_choice_is_near_the_best_under_every_load(is_known: bool, target: float, can_wait: bool) -> None:
    choice, start = ThreadChoice(2, 2, can_wait), 0.0
    for busy in (0, 1, 2, 4, 0, 4, 1, 2, 1, 0):
        speed = simulate(choice, busy, 120.0, start, is_known)
        best = max(v for p, v in SPEEDS[busy].items() if can_wait or not p.is_passive)
        assert speed >= target * best, f"beside {busy}: {speed:.2f} of {best} steps a second"
        start += 120.0 if is_known else 1000.0


def test_the_first_step_already_has_the_number_that_fits() -> None:
    for others, threads in ((0.0, 2), (0.35, 2), (0.7, 1), (1.0, 1), (2.0, 1)):
        choice = ThreadChoice(2, 2, True)
        choice.choose_first(others)
        assert choice.policy == Policy(threads), others


def test_a_load_between_the_limits_changes_nothing() -> None:
    for policy in (SPIN, WAIT, ONE):
        choice = ThreadChoice(2, 2, True)
        choice.policy = policy
        assert choice.update(Window(1.0, 10.0, 1.0, 0.3), 0.0) == policy


def test_a_comparison_without_a_change_is_repeated_ever_later() -> None:
    choice, tries, now, before = ThreadChoice(2, 2), [], 0.0, SPIN
    while now < 200.0:  # the counters show a load, but one thread is slower all the same
        now += 1.0
        policy = choice.update(Window(1.0, 10.0 if choice.policy == SPIN else 6.0, 1.0, 0.8), now)
        if (before, policy) == (SPIN, ONE):
            tries.append(now)
        before = policy
    assert tries == [2.0, 17.0, 44.0, 95.0, 178.0]
    choice.update(Window(1.0, 2.0, 1.0, 1.5), 200.5)
    assert choice.update(Window(1.0, 2.0, 1.0, 1.5), 201.5) == ONE, "another load needs another comparison"


def test_one_thread_leaves_nothing_to_choose() -> None:
    choice = ThreadChoice(1, 2, True)
    assert all(choice.update(Window(1.0, 1.0, 0.3, o), 1.0) == ONE for o in (None, 0.0, 1.0, 2.0))


def test_more_cores_allow_more_threads() -> None:
    assert {n: list_counts(n) for n in (1, 2, 3, 8)} == {1: [1], 2: [2, 1], 3: [3, 2, 1], 8: [8, 7, 4, 1]}
    for others, threads in ((0.2, 8), (1.0, 7), (2.0, 4), (4.1, 4), (6.0, 1)):
        choice = ThreadChoice(8, 8)
        choice.choose_first(others)
        assert choice.policy.threads == threads, others
    choice = ThreadChoice(4, 8)  # four threads on eight cores lose nothing to three busy processes
    choice.choose_first(3.0)
    assert choice.policy.threads == 4 and choice.update(Window(1.0, 1.0, 1.0, 3.0), 1.0) == Policy(4)


def test_a_forbidden_number_is_never_chosen_again() -> None:
    choice = ThreadChoice(2, 2, True)
    choice.update(Window(1.0, 3.0, 0.7, 1.0), 0.0)
    assert choice.update(Window(1.0, 3.0, 0.7, 1.0), 1.0) == ONE
    choice.forbid(1)
    assert choice.policy == SPIN
    chosen = {choice.update(Window(1.0, 3.0, 0.7, 1.0), 100.0 + i) for i in range(50)}
    assert chosen == {SPIN, WAIT}


# ------------------------------------------------------------ what is measured


def write_stat(path: Path, *cpus: tuple[int, int]) -> None:
    """A /proc/stat with (busy, idle) ticks of every CPU."""
    lines = [f"cpu{n} {busy} 0 0 {idle} 0 0 0 0 0 0" for n, (busy, idle) in enumerate(cpus)]
    path.write_text("\n".join(["cpu  1 2 3 4 5 6 7 8 0 0", *lines, "intr 1 2"]), encoding="ascii")


def test_the_load_of_others_is_all_time_but_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.train.machine.available_cpus", lambda: (0, 1))
    monkeypatch.setattr("core.train.machine.ticks_per_second", lambda: 100)
    stat, clock, own = tmp_path / "stat", iter((0.0, 10.0, 20.0)), iter((5.0, 13.0, 13.0))
    write_stat(stat, (100, 100), (100, 100), (7, 7))
    meter = CpuMeter(stat, lambda: next(clock), lambda: next(own))
    write_stat(stat, (1000, 200), (700, 500), (9999, 7))
    assert meter.read() == Load(10.0, pytest.approx(0.7), pytest.approx(0.5)) and meter.cores == 2
    assert meter.read() is None, "counters that stand still are not counters of this machine"


def test_without_counters_the_load_is_unknown(tmp_path: Path) -> None:
    assert CpuMeter(tmp_path / "missing").read() is None
    assert read_cpu_seconds(tmp_path / "missing", (0, 1)) == (0.0, 0.0)
    (tmp_path / "stat").write_text("cpu0 a b\ncpu1\n", encoding="ascii")
    assert read_cpu_seconds(tmp_path / "stat", (0, 1)) == (0.0, 0.0)


# ------------------------------------------------------------ what is reported


def test_a_slow_machine_is_reported_after_three_seconds_and_once() -> None:
    report, changes = LoadReport(2, 2), []
    for i in range(60):
        others = 1.0 if 5 <= i < 30 else 0.0
        if report.update(Window(0.5, 1.0, 1.0, others), 2, i * 0.5):
            changes.append((i * 0.5, report.is_slowed))
    assert [state for _, state in changes] == [True, False]
    assert 5.5 <= changes[0][0] <= 7.5 and changes[1][0] >= 18.0


def test_a_short_load_and_a_load_on_spare_cores_are_not_reported() -> None:
    report = LoadReport(2, 2)
    assert not any(report.update(Window(0.5, 1.0, 1.0, float(i in (5, 6))), 2, i * 0.5) for i in range(40))
    for report, others in ((LoadReport(4, 8), 3.0), (LoadReport(4, 2), 0.1)):
        assert not any(report.update(Window(0.5, 1.0, 1.0, others), 4, i * 0.5) for i in range(40))


def test_the_sentence_names_the_load_the_threads_and_what_to_do() -> None:
    assert describe_load(1.04, 2, 1, 2) == (
        "The machine is busy: other processes use about 1.0 of 2 CPU cores, so this run is slower; it trains "
        "on 1 thread instead of 2. Close other programs to speed it up; its losses stay the same."
    )
    assert "compete for the CPU, so this run is slower; it trains on 2 threads. " in describe_load(
        None, 4, 2, 2
    )


# ------------------------------------------------------------ in a run


class FakeMeter:
    """A machine of two cores whose load the test sets."""

    cores = 2

    def __init__(self) -> None:
        self.others: float | None = 0.0

    def read(self) -> Load | None:
        return None if self.others is None else Load(1.0, self.others, 0.0)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def count_calls(digest: Callable[[], str]) -> tuple[Callable[[], str], list[int]]:
    calls: list[int] = []

    def call() -> str:
        calls.append(torch.get_num_threads())
        return digest()

    return call, calls


@pytest.mark.usefixtures("two_threads")
def test_a_number_is_used_only_if_it_gives_the_same_bits() -> None:
    meter = FakeMeter()
    for is_exact in (True, False):
        control = ThreadControl(lambda fields: None, meter=meter)  # type: ignore[arg-type]
        digest, calls = count_calls(lambda: "same" if is_exact else str(torch.get_num_threads()))  # noqa: B023
        meter.others = 1.0
        control.choose_first(digest)
        assert calls == [2, 1] and torch.get_num_threads() == (1 if is_exact else 2)
        for _ in range(3):
            control.apply(digest)
        assert calls == [2, 1], "every number is checked once"
        control.restore()
        assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_pass_during_which_the_machine_slept_decides_nothing() -> None:
    meter, cpu_seconds = FakeMeter(), 0.1
    control = ThreadControl(lambda fields: None, False, None, meter, lambda: 30.0, lambda: cpu_seconds)  # type: ignore[arg-type]
    meter.others = 1.0
    control.end_pass((0.0, 0.0), 100, 1)
    assert control.choice.policy == SPIN and not control.choice._has_candidates
    cpu_seconds = 20.0
    control.end_pass((0.0, 0.0), 100, 1)
    assert control.choice.policy == ONE


class Task:
    """A job that the test runs itself, as `core.engine.worker.BackgroundTask` does on its thread."""

    def __init__(self, job: Callable[[Any], None]) -> None:
        self.stopping, self.is_joined = True, False
        job(self)
        self.stopping = False

    def stop(self) -> None:
        self.stopping = True

    def join(self, seconds: float) -> None:
        self.is_joined = self.stopping


@pytest.mark.usefixtures("two_threads")
def test_passive_waiting_lasts_as_long_as_the_second_team() -> None:
    tasks: list[Task] = []

    def start(job: Callable[[Any], None]) -> Task:
        tasks.append(Task(job))
        return tasks[-1]

    wait = PassiveWait(start, 2)
    for on in (False, True, True, False, False, True, False):
        wait.switch(on)
    assert len(tasks) == 2 and all(t.is_joined for t in tasks)


@pytest.mark.usefixtures("two_threads")
def test_a_run_that_ends_leaves_no_second_team() -> None:
    meter = FakeMeter()
    control = ThreadControl(lambda fields: None, background=BackgroundTask, meter=meter)  # type: ignore[arg-type]
    before = {t.name for t in threading.enumerate()}
    control.choice.policy = WAIT
    control.apply(lambda: "same")
    assert {t.name for t in threading.enumerate()} - before == {"background"}
    assert control.policy == WAIT and torch.get_num_threads() == 2
    control.restore()
    assert {t.name for t in threading.enumerate()} == before


@pytest.fixture
def engine(tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as made:
        yield made


def test_a_run_that_changes_threads_has_the_losses_of_a_straight_one(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=20)))
    meter, used = FakeMeter(), []
    ticks = iter(range(10**9))

    def control(report: Any, background: Any) -> ThreadControl:
        torch.set_num_threads(2)
        tick: Any = lambda: float(next(ticks))  # noqa: E731
        made = ThreadControl(report, False, background, meter, tick, tick)  # type: ignore[arg-type]
        end_pass = made.end_pass

        def end_and_change(*args: Any) -> None:
            used.append(made.policy)
            meter.others = float(len(used) // 8 % 2)
            end_pass(*args)

        made.end_pass = end_and_change  # type: ignore[method-assign]
        return made

    monkeypatch.setattr(training, "ThreadControl", control)
    spec = replace(straight.spec, name="Changing")
    changing = engine.runs.start(spec)
    wait_for(lambda: engine.runs.get(changing).step >= 7)
    engine.runs.pause(changing)
    if engine.runs.wait(changing).status is RunStatus.PAUSED:
        engine.runs.resume(changing)
    ended = engine.runs.wait(changing)
    engine.worker.call(lambda: torch.set_num_threads(1))
    assert ended.status is RunStatus.DONE and set(used) == {SPIN, WAIT, ONE}, ended.error
    assert losses(engine, changing) == losses(engine, straight.id)
    assert engine.library.adapter(ended.adapter).sha256 == engine.library.adapter(straight.adapter).sha256
    event = latest(engine.runs.events(changing)[0], MachineEvent)
    assert event is not None and event["cores"] == event["most_threads"] == 2


def test_the_page_says_that_the_machine_is_busy_while_a_run_trains() -> None:
    text = describe_load(1.0, 2, 1, 2)
    event = {"kind": "machine", "step": 3, "threads": 1, "most_threads": 2, "cores": 2, "text": text}
    assert live._machine(event) is not None and text in str(live._machine(event))
    assert live._machine({**event, "text": ""}) is None and live._machine(None) is None
