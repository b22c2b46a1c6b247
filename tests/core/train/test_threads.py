"""Threads of a run on the CPU: what is chosen under which load, that it is exact, and what the user reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.engine import Engine
from core.spec.training import RunStatus
from core.store.events import MachineEvent, latest
from core.train import train as training
from core.train.machine import CpuMeter, Load, read_cpu_seconds
from core.train.threads import LoadReport, ThreadChoice, ThreadControl, Window, describe_load, list_choices
from studio.components import live
from tests.core.train.test_training import domain_spec, losses, wait_for

# Steps a second of the embedded base on two cores, by busy processes beside it and by threads (spinning).
SPEEDS = {0: {2: 10.4, 1: 6.3}, 1: {2: 3.1, 1: 6.2}, 2: {2: 1.0, 1: 4.4}}
# Cores that the busy processes get, and the share of its time that the training thread gets.
OTHERS = {0: {2: 0.02, 1: 0.02}, 1: {2: 0.67, 1: 0.99}, 2: {2: 1.0, 1: 1.33}}
SHARES = {0: {2: 1.0, 1: 1.0}, 1: {2: 0.7, 1: 1.0}, 2: {2: 0.5, 1: 0.67}}


def simulate(choice: ThreadChoice, busy: int, seconds: float, start: float, is_known: bool = True) -> float:
    """Lets the choice train on the measured machine; returns its mean steps a second."""
    now, steps = start, 0
    while now < start + seconds:
        threads = choice.threads
        step_seconds = 1 / SPEEDS[busy][threads]
        count = max(1, round(0.4 / step_seconds))
        now, steps = now + count * step_seconds, steps + count
        others = OTHERS[busy][threads] if is_known else None
        choice.update(Window(count * step_seconds, count, SHARES[busy][threads], others), now)
    return steps / (now - start)


@pytest.mark.parametrize(("is_known", "target"), [(True, 0.95), (False, 0.9)])
def test_the_choice_is_near_the_best_beside_none_one_and_two(is_known: bool, target: float) -> None:
    choice, start = ThreadChoice(2, 2), 0.0
    for busy in (0, 1, 2, 0, 2, 1, 0):
        speed = simulate(choice, busy, 120.0, start, is_known)
        best = max(SPEEDS[busy].values())
        assert speed >= target * best, f"beside {busy}: {speed:.2f} of {best} steps a second"
        start += 1000.0


def test_the_first_step_already_has_the_number_that_fits() -> None:
    for others, threads in ((None, 2), (0.0, 2), (0.35, 2), (0.7, 1), (1.0, 1), (2.0, 1)):
        choice = ThreadChoice(2, 2)
        choice.choose_first(others)
        assert choice.threads == threads, others


def test_a_load_between_the_limits_changes_nothing() -> None:
    for threads in (1, 2):
        choice = ThreadChoice(2, 2)
        choice.threads = threads
        assert choice.update(Window(1.0, 10.0, 1.0, 0.3), 0.0) == threads


def test_a_slower_number_is_taken_back_and_tried_again_ever_later() -> None:
    choice, tries, now, before = ThreadChoice(2, 2), [], 0.0, 2
    while now < 100.0:  # the counters show a load, but one thread is slower all the same
        now += 1.0
        threads = choice.update(Window(1.0, 10.0 if choice.threads == 2 else 6.0, 1.0, 0.8), now)
        if (before, threads) == (2, 1):
            tries.append(now)
        before = threads
    assert tries == [1.0, 7.0, 18.0, 39.0, 80.0]
    assert choice.update(Window(1.0, 2.0, 1.0, 1.5), 100.5) == 1, "another load is another question"


def test_more_cores_allow_more_threads() -> None:
    assert {n: list_choices(n) for n in (1, 2, 3, 8)} == {1: [1], 2: [2, 1], 3: [3, 2, 1], 8: [8, 7, 4, 1]}
    for others, threads in ((0.2, 8), (1.0, 7), (2.0, 4), (4.1, 4), (6.0, 1)):
        choice = ThreadChoice(8, 8)
        choice.choose_first(others)
        assert choice.threads == threads, others
    choice = ThreadChoice(4, 8)  # four threads on eight cores lose nothing to three busy processes
    choice.choose_first(3.0)
    assert choice.threads == 4


def test_a_forbidden_number_is_never_chosen_again() -> None:
    choice = ThreadChoice(2, 2)
    assert choice.update(Window(1.0, 3.0, 0.7, 1.0), 0.0) == 1
    choice.forbid(1)
    assert choice.threads == 2 and choice.update(Window(1.0, 3.0, 0.7, 1.0), 100.0) == 2


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
    report = LoadReport(4, 8)
    assert not any(report.update(Window(0.5, 1.0, 1.0, 3.0), 4, i * 0.5) for i in range(40))


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

    def control(report: Any) -> ThreadControl:
        torch.set_num_threads(2)
        made = ThreadControl(
            report, meter=meter, clock=lambda: float(next(ticks)), thread_time=lambda: float(next(ticks))
        )  # type: ignore[arg-type]
        end_pass = made.end_pass

        def end_and_change(*args: Any) -> None:
            used.append(torch.get_num_threads())
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
    assert ended.status is RunStatus.DONE and set(used) == {1, 2}, ended.error
    assert losses(engine, changing) == losses(engine, straight.id)
    assert engine.library.adapter(ended.adapter).sha256 == engine.library.adapter(straight.adapter).sha256
    event = latest(engine.runs.events(changing)[0], MachineEvent)
    assert event is not None and event["cores"] == event["most_threads"] == 2


def test_the_page_says_that_the_machine_is_busy_while_a_run_trains() -> None:
    text = describe_load(1.0, 2, 1, 2)
    event = {"kind": "machine", "step": 3, "threads": 1, "most_threads": 2, "cores": 2, "text": text}
    assert live._machine(event) is not None and text in str(live._machine(event))
    assert live._machine({**event, "text": ""}) is None and live._machine(None) is None
