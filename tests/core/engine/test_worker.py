"""The worker thread: calls, streams in turn, runs that yield, and readers that block no stream."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from core.engine import worker as room
from core.engine.worker import Worker
from core.errors import Busy, SpecError, StudioError


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker("test")
    yield made
    made.close(5)


def counting(upto: int, log: list[str] | None = None, name: str = "") -> Generator[int, None, None]:
    for i in range(upto):
        if log is not None:
            log.append(name)
        yield i


def test_everything_runs_on_one_thread(worker: Worker) -> None:
    names = {worker.call(lambda: threading.current_thread().name)}

    def gen() -> Generator[str, None, None]:
        yield threading.current_thread().name

    names.add(worker.stream(gen).last())
    worker.run(lambda: names.add(threading.current_thread().name))
    worker.call(lambda: None)
    while len(worker._runs):
        time.sleep(0.01)
    assert names == {"test"}


def test_a_call_from_the_thread_itself_does_not_wait_for_itself(worker: Worker) -> None:
    assert worker.call(lambda: worker.call(lambda: 7)) == 7


def test_streams_take_turns(worker: Worker) -> None:
    log: list[str] = []
    gate = threading.Event()
    worker.run(lambda: gate.wait(5) and None)
    streams = [worker.stream(lambda n=n: counting(5, log, n)) for n in "ab"]
    gate.set()
    assert [s.last() for s in streams] == [4, 4]
    assert log == ["a", "b"] * 5


def test_a_run_yields_to_requests_between_its_steps(worker: Worker) -> None:
    steps: list[str] = []
    started = threading.Event()

    def run() -> None:
        for _ in range(50):
            steps.append("train")
            started.set()
            time.sleep(0.005)
            worker.yield_to_requests(0.05)

    worker.run(run)
    started.wait(5)
    assert worker.stream(lambda: counting(10, steps, "answer")).last() == 9
    assert steps.index("answer") > 0 and steps[-1] != "answer" or "train" in steps[steps.index("answer") :]


def test_a_slow_reader_gets_the_newest_value_and_blocks_no_stream(worker: Worker) -> None:
    stream = worker.stream(lambda: counting(1000))
    time.sleep(0.3)
    assert list(stream) == [999]


def test_a_closed_stream_closes_its_generator(worker: Worker) -> None:
    closed = threading.Event()

    def gen() -> Generator[int, None, None]:
        try:
            while True:
                yield 1
                time.sleep(0.001)
        finally:
            closed.set()

    stream = worker.stream(gen)
    next(iter(stream))
    stream.close()
    assert closed.wait(2)


def test_a_stream_without_a_reader_is_dropped(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LEASE_SECONDS", 0.1)

    def gen() -> Generator[int, None, None]:
        while True:
            yield 1
            time.sleep(0.001)

    stream = worker.stream(gen)
    end = time.monotonic() + 10
    while not stream._ended and time.monotonic() < end:
        time.sleep(0.02)
    assert stream._ended and not worker._streams


def test_errors_reach_the_caller_and_the_thread_continues(worker: Worker) -> None:
    def fail() -> Any:
        raise SpecError("no", "do yes")

    def gen() -> Generator[int, None, None]:
        yield 1
        raise SpecError("later", "")

    with pytest.raises(SpecError, match="no do yes"):
        worker.call(fail)
    stream = worker.stream(gen)
    with pytest.raises(SpecError, match="later"):
        list(stream)
    assert worker.call(lambda: 3) == 3


def test_t24_too_many_streams_are_refused(worker: Worker) -> None:
    gate = threading.Event()

    def gen() -> Generator[int, None, None]:
        while not gate.is_set():
            yield 1
            time.sleep(0.001)

    streams = [worker.stream(gen) for _ in range(room.STREAM_LIMIT)]
    worker.call(lambda: None)
    with pytest.raises(Busy, match="answers are being generated already"):
        worker.stream(gen)
    gate.set()
    for s in streams:
        s.close()


def test_an_unreadable_order_does_not_cost_a_run(
    worker: Worker,
) -> None:
    gate, held, begun = threading.Event(), threading.Event(), []
    asked: list[list[str]] = []

    def choose(waiting: Any) -> str:
        asked.append(list(waiting))
        if len(waiting) == 2:
            raise ValueError("no order")
        return "c" if "c" in waiting else waiting[0]

    def hold() -> None:
        held.set()
        gate.wait(5)

    worker.choose = choose
    worker.run(hold, "held")
    assert held.wait(5)
    for name in "abc":
        worker.run(lambda name=name: begun.append(name), name)
    gate.set()
    end = time.monotonic() + 5
    while len(begun) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert begun == ["c", "a", "b"] and asked == [["held"], ["a", "b", "c"], ["a", "b"], ["b"]]


CLOSING = "The studio is closing"


def test_requests_after_close_are_refused_in_words() -> None:
    worker = Worker("test")
    assert worker.close(5)
    for request in (worker.call, worker.post, worker.run, worker.stream):
        with pytest.raises(StudioError, match=CLOSING):
            request(lambda: iter(()))  # type: ignore[operator]
    assert worker.open_streams == 0 and worker.close(5)


def test_requests_left_in_the_inbox_end_with_an_error_at_close() -> None:
    worker, gate, held = Worker("test"), threading.Event(), threading.Event()
    errors: list[str] = []

    def hold() -> None:
        held.set()
        gate.wait(30)

    def ask() -> None:
        try:
            worker.call(lambda: errors.append("answered"))
        except StudioError as e:
            errors.append(str(e))

    worker.run(hold, "held")
    assert held.wait(5)
    begun: list[int] = []
    worker.run(lambda: begun.append(1), "later")
    streams = [worker.stream(lambda: counting(5)) for _ in range(3)]
    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    while worker._inbox.qsize() < 7:
        time.sleep(0.01)
    assert not worker.close(0.1), "the run still holds the thread"
    gate.set()
    for thread in asking:
        thread.join(10)
    assert [e.startswith(CLOSING) for e in errors] == [True] * 3 and begun == []
    for stream in streams:
        with pytest.raises(StudioError, match=CLOSING):
            stream.last()
    assert worker.open_streams == 0 and worker.close(10)


def test_a_stream_that_close_interrupts_ends_with_an_error_not_as_complete() -> None:
    worker = Worker("test")
    stream = worker.stream(lambda: (time.sleep(0.002) or i for i in range(10**6)))
    values = iter(stream)
    next(values)
    assert worker.close(10)
    with pytest.raises(StudioError, match=CLOSING):
        list(values)


def test_no_thread_waits_for_ever_while_the_worker_closes() -> None:
    for seed in range(12):
        worker, rng = Worker("test"), random.Random(seed)
        outcomes: list[str] = []

        def ask(kind: int, worker: Worker = worker, outcomes: list[str] = outcomes) -> None:
            try:
                while True:
                    if kind == 0:
                        assert worker.call(lambda: 3) == 3
                    elif kind == 1:
                        assert worker.stream(lambda: counting(3)).last() == 2
                    elif kind == 2:
                        worker.post(lambda: None)
                    else:
                        worker.run(lambda: worker.yield_to_requests(0.01), "run")
                    time.sleep(0)
            except Busy:  # more streams than the worker takes
                outcomes.append("busy")
            except StudioError as e:
                outcomes.append(str(e))

        threads = [threading.Thread(target=ask, args=(i % 4,), daemon=True) for i in range(16)]
        for thread in threads:
            thread.start()
        time.sleep(rng.uniform(0.0, 0.05))
        began = time.monotonic()
        closing = [threading.Thread(target=worker.close, args=(20,)) for _ in range(2)]
        for thread in closing:
            thread.start()
        for thread in threads + closing:
            thread.join(10)
        assert not any(t.is_alive() for t in threads + closing), seed
        assert time.monotonic() - began < 10 and len(outcomes) == 16
        assert all(o == "busy" or o.startswith(CLOSING) for o in outcomes)
        assert worker.open_streams == 0 and not worker.is_running


def test_a_thread_that_a_job_ends_leaves_no_caller_waiting() -> None:
    worker = Worker("test")

    def leave() -> None:
        raise SystemExit(3)

    worker.run(leave, "leaves")
    worker._thread.join(10)
    with pytest.raises(StudioError, match=CLOSING):
        worker.call(lambda: 1)
    assert worker.open_streams == 0


def test_a_generator_that_cannot_be_made_ends_its_stream_only(worker: Worker) -> None:
    def start() -> Any:
        raise SpecError("no generator", "")

    with pytest.raises(SpecError, match="no generator"):
        worker.stream(start).last()
    assert worker.call(lambda: 5) == 5 and worker.open_streams == 0


def test_a_run_waits_while_none_may_start_and_calls_are_answered(worker: Worker) -> None:
    allowed, begun = threading.Event(), threading.Event()
    worker.choose = lambda waiting: waiting[0] if allowed.is_set() else None
    worker.run(begun.set, "waits")
    assert worker.call(lambda: 7) == 7 and worker.stream(lambda: counting(4)).last() == 3
    assert not begun.wait(0.2)
    worker.call(allowed.set)
    assert begun.wait(5)
