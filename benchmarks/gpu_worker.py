"""A simulation of the processes of ZeroGPU, which can be killed: `SimulatedSpaces` stands for `spaces`.

It does what `spaces` 0.51.3 does (`spaces/zero/wrappers.py`, read), without its scheduler and without a GPU:

- a call forks this process, unless the process of an earlier call of the same task is idle;
- the arguments go through a pickled queue; the task runs on a thread of the process;
- a generator's values come back through a pickled queue, one by one, then an end;
- of an exception only the class name returns; a killed process is "GPU task aborted";
- closing the generator ends the task after its next value.
"""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

CONTEXT: Any = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
VALUE, ERROR, END = "value", "error", "end"


class SimulatedError(Exception):
    """As `gr.Error`: a message and a title, and `str` is the quoted message."""

    def __init__(self, message: str, title: str = "ZeroGPU worker error") -> None:
        self.message, self.title = message, title
        super().__init__(message)

    def __str__(self) -> str:
        return repr(self.message)


@dataclass
class Call:
    """A call that was made.

    Attributes:
        pid: of its process.
        seconds: that it requested.
        killed: whether the simulation killed it.
        forked: whether a process was started for it.
        took: seconds until its end.
    """

    pid: int
    seconds: int
    forked: bool
    killed: bool = False
    took: float = 0.0


class _Worker:
    """A forked process that runs one task, one call after the other."""

    def __init__(self, task: Callable[..., Iterator[Any]]) -> None:
        self.arguments: Any = CONTEXT.SimpleQueue()
        self.results: Any = CONTEXT.SimpleQueue()
        self.stop = CONTEXT.Event()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns: this process has threads
            self.process = CONTEXT.Process(target=self._serve, args=(task,), daemon=True)
            self.process.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """Ends the results of a process that has died. It may have died while it held the queue's lock."""
        self.process.join()
        with contextlib.suppress(ValueError):
            self.results._wlock.release()
        with contextlib.suppress(OSError):  # the call has ended, and nothing reads them any more
            self.results.put(None)

    def _serve(self, task: Callable[..., Iterator[Any]]) -> None:
        while True:
            job = self.arguments.get()
            self.stop.clear()
            with ThreadPoolExecutor(1) as threads:
                threads.submit(self._run, task, job).result()
            self.results.put((END, None))

    def _run(self, task: Callable[..., Iterator[Any]], job: Any) -> None:
        values = task(job)
        try:
            for value in values:
                if self.stop.is_set():
                    values.close()  # type: ignore[attr-defined]
                    break
                self.results.put((VALUE, value))
        except Exception as e:  # noqa: BLE001 (its class is all that returns, as in the package)
            self.results.put((ERROR, type(e).__name__))


@dataclass
class SimulatedSpaces:
    """What `core.space.zero_gpu.ZeroGpu` needs of the package.

    Attributes:
        kill_after: the number of a call, from 0, to the seconds after which it is killed; None lets it end.
        refuse: an error for the number of a call that is refused; None lets it begin.
        reuse: whether an idle process serves the next call.
        calls: those that were made.
    """

    kill_after: Callable[[int], float | None] = lambda number: None
    refuse: Callable[[int], Exception | None] = lambda number: None
    reuse: bool = False
    calls: list[Call] = field(default_factory=list)
    idle: dict[int, _Worker] = field(default_factory=dict)

    def GPU(self, task: Callable[..., Iterator[Any]], duration: Callable[[Any], int]) -> Any:  # noqa: N802
        """Wraps a generator function of one job."""
        assert inspect.isgeneratorfunction(task), "the package looks at the function to find out"
        requests = [0]

        def call(job: Any) -> Iterator[Any]:
            number, requests[0] = requests[0], requests[0] + 1
            if (error := self.refuse(number)) is not None:
                raise error
            worker = self.idle.pop(id(task), None)
            is_new = worker is None or not worker.process.is_alive()
            if worker is None or is_new:
                worker = _Worker(task)
            record = Call(worker.process.pid or 0, duration(job), is_new)
            self.calls.append(record)
            begun, ended = time.monotonic(), threading.Event()
            seconds = self.kill_after(number)
            if seconds is not None:
                arguments = (worker, record, seconds, ended)
                threading.Thread(target=self._kill, args=arguments, daemon=True).start()
            worker.arguments.put(job)
            try:
                yield from self._read(worker, record)
            finally:
                ended.set()
                record.took = time.monotonic() - begun
                if self.reuse and worker.process.is_alive():
                    self.idle[id(task)] = worker
                else:
                    worker.process.kill()

        return call

    @staticmethod
    def _read(worker: _Worker, record: Call) -> Iterator[Any]:
        while True:
            message = worker.results.get()
            if message is None:
                raise SimulatedError("GPU task aborted")
            kind, value = message
            if kind == END:
                return
            if kind == ERROR:
                raise SimulatedError(value)
            try:
                yield value
            except GeneratorExit:
                worker.stop.set()
                raise

    @staticmethod
    def _kill(worker: _Worker, record: Call, seconds: float, ended: threading.Event) -> None:
        if ended.wait(seconds):
            return
        record.killed = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.process.pid or 0, signal.SIGKILL)

    def close(self) -> None:
        """Ends the idle processes."""
        for worker in self.idle.values():
            worker.process.kill()
        self.idle.clear()
