"""The one thread that owns the model, so that the model needs no lock.

Three kinds of requests use the model: a call (short, with a return value), a stream (a Python generator that
is stepped in turn with the other streams and can be closed at any time), and a run (long; it yields to
waiting calls and streams between its own steps).

    inbox ──> calls ───────────────────────────┐
              streams  s1 s2 s3 (round robin)  ├─> the thread
              runs     r1 | r2 r3 (as chosen) ─┘      a run calls yield_to_requests() between its steps

No request outlives the thread: `close` refuses new requests, and whatever the thread leaves when it ends is
answered with an error.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from core.errors import Busy, Closing, StudioError

logger = logging.getLogger(__name__)

T = TypeVar("T")
LEASE_SECONDS = 60.0  # a stream that has no reader for this long is closed
STREAM_LIMIT = 16  # streams at once
POLL_SECONDS = 0.5  # how often a waiting thread looks whether what it waits for can still come
START_AGAIN = "Start the studio again, then repeat the request."


def make_closing_error() -> StudioError:
    """The error of a request that the worker cannot answer any more."""
    return Closing("The studio is closing.", START_AGAIN)


def make_lock() -> AbstractContextManager[bool]:
    """A lock for a few lines that several threads of the page may run at once. The model needs no lock."""
    return threading.Lock()


class Stream:
    """What a generator on the worker yields, as seen from another thread.

    Only the newest value is kept. Values are cumulative, so a slow reader misses nothing and does not block
    the worker. Iterate over the stream, or `close()` it from any thread.

    Args:
        is_served: whether the thread that steps the generator still runs.

    Attributes:
        live_mixes: the mixes of an answer that is being generated, which the reader may replace while the
            generator runs (see `core.engine.chat.LiveMixes`); None for other streams.
        answer: the id under which an answer is recorded (`core.engine.answer_quality`), or "".
    """

    def __init__(self, is_served: Callable[[], bool] = lambda: True) -> None:
        self._changed = threading.Condition()
        self._is_served = is_served
        self._value: Any = None
        self._fresh = False
        self._ended = False
        self._error: BaseException | None = None
        self._read_at = time.monotonic()
        self.closed = False
        self.live_mixes: Any = None
        self.answer = ""

    def close(self) -> None:
        """Asks the worker to drop the stream; its readers end."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        """Newest values until the end.

        Raises:
            StudioError: the error that the generator raised.
        """
        try:
            while True:
                with self._changed:
                    self._read_at = time.monotonic()
                    while not (self._fresh or self._ended or self.closed):
                        self._changed.wait(POLL_SECONDS)
                        self._read_at = time.monotonic()
                        if not (self._fresh or self._ended or self.closed or self._is_served()):
                            self._ended, self._error = True, make_closing_error()
                    fresh, value, self._fresh = self._fresh, self._value, False
                    error, over = self._error, self._ended or self.closed
                if fresh:
                    yield value
                elif error is not None:
                    raise error
                elif over:
                    return
        finally:
            self.close()

    def last(self) -> Any:
        """Waits for the end and returns the last value."""
        value = None
        for value in self:  # noqa: B007
            pass
        return value

    def take(self) -> tuple[Any, bool]:
        """The newest value, without waiting, and whether the stream has ended.

        Returns:
            the newest value, or None where it was read before; and whether no further value will come.

        Raises:
            StudioError: the error that the generator raised, after its last value was read.
        """
        with self._changed:
            self._read_at = time.monotonic()
            fresh, value, self._fresh = self._fresh, self._value, False
            is_lost = not (self._ended or self.closed or self._is_served())
            error = make_closing_error() if is_lost else self._error
            if fresh:
                return value, False
            if error is not None:
                raise error
            return None, self._ended or self.closed

    # --- the worker's side

    def put(self, value: Any) -> None:
        """Replaces the newest value."""
        with self._changed:
            self._value, self._fresh = value, True
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Marks the stream as ended, with the error that ended it."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._changed.notify_all()

    @property
    def is_abandoned(self) -> bool:
        """Whether its reader closed it, or has not read for LEASE_SECONDS."""
        return self.closed or time.monotonic() - self._read_at > LEASE_SECONDS


class BackgroundTask:
    """Long work that does not need the model, such as a download, on a thread of its own.

    Args:
        job: receives the task, and checks `stopping` from time to time.
    """

    def __init__(self, job: Callable[[BackgroundTask], None], name: str = "background") -> None:
        self.stopping = False
        self._thread = threading.Thread(target=lambda: job(self), name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether its thread still runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Asks the task to end."""
        self.stopping = True

    def join(self, seconds: float) -> None:
        """Waits until the task has ended, for at most `seconds`."""
        self._thread.join(seconds)


class _Call:
    def __init__(self, job: Callable[[], Any]) -> None:
        self.job = job
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class Worker:
    """Starts the thread; everything else goes through `call`, `stream` and `run`.

    Attributes:
        choose: receives the names of the waiting runs and returns the next one, or None while none of them
            may start; called on the thread.
    """

    def __init__(self, name: str = "model") -> None:
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._streams: deque[tuple[Stream, Generator[Any, None, None]]] = deque()
        self._runs: deque[tuple[str, Callable[[], None]]] = deque()
        self.choose: Callable[[Sequence[str]], str | None] = lambda waiting: waiting[0]
        self._choose_again = 0.0  # when `choose` is called again, after it found no run and without a request
        self._open: set[Stream] = set()  # requested and not yet ended
        self._entrance = threading.Lock()  # held while a request enters the inbox, and while it closes
        self._closing = False
        self._thread = threading.Thread(target=self._run_thread, name=name, daemon=True)
        self._thread.start()

    def call(self, job: Callable[[], T], seconds: float | None = None) -> T:
        """Runs `job` on the thread and returns its value; immediately, if called from the thread itself.

        Args:
            seconds: how long to wait; None waits until the job is done, or the thread has ended.

        Raises:
            Busy: no answer within `seconds`. StudioError: the worker is closing. Also any error that `job`
                raises.
        """
        if threading.current_thread() is self._thread:
            return job()
        call = _Call(job)
        self._send("call", call)
        end = None if seconds is None else time.monotonic() + seconds
        while not call.done.wait(POLL_SECONDS if end is None else min(POLL_SECONDS, end - time.monotonic())):
            if end is not None and time.monotonic() >= end:
                raise Busy("The model is busy with another request.", "Try again in a moment.")
            if not self.is_running and not call.done.is_set():
                raise make_closing_error()
        if call.error is not None:
            raise call.error
        return call.value  # type: ignore[no-any-return]

    def post(self, job: Callable[[], Any]) -> None:
        """Runs `job` on the thread before any later request, without waiting for it.

        Raises:
            StudioError: the worker is closing.
        """
        self._send("call", _Call(job))

    def stream(self, start: Callable[[], Generator[Any, None, None]]) -> Stream:
        """Steps a generator in turn with the other streams.

        Args:
            start: makes the generator; called on the thread. None values of the generator are skipped.

        Raises:
            Busy: STREAM_LIMIT streams are open already. StudioError: the worker is closing.
        """
        stream = Stream(lambda: self.is_running)
        self._send("stream", (stream, start), limit=STREAM_LIMIT)
        return stream

    def attach(self, stream: Stream, start: Callable[[], Generator[Any, None, None]]) -> None:
        """Steps a generator in turn with the streams; `stream` receives its values and its end.

        It does not count towards STREAM_LIMIT.

        Raises:
            StudioError: the worker is closing.
        """
        self._send("stream", (stream, start))

    def run(self, job: Callable[[], None], name: str = "") -> None:
        """Queues a long job. Jobs run one after the other; each calls `yield_to_requests` between its steps.

        Args:
            name: identifies the job when `choose` picks the next one.

        Raises:
            StudioError: the worker is closing.
        """
        self._send("run", (name, job))

    def check_open(self) -> None:
        """Checks that new requests are accepted.

        Raises:
            StudioError: the worker is closing.
        """
        if self._closing or not self.is_running:
            raise make_closing_error()

    def yield_to_requests(self, seconds: float) -> None:
        """Runs waiting calls and streams: at least one round, at most about `seconds`."""
        end = time.monotonic() + seconds
        self._receive()
        while self._streams:
            for _ in range(len(self._streams)):
                self._step()
            self._receive()
            if time.monotonic() >= end:
                return

    @property
    def is_running(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def open_streams(self) -> int:
        """How many streams are running or wait to start."""
        return len(self._open)

    def end_streams(self, error: StudioError) -> None:
        """Ends every running stream with `error`. Called on the thread, before the model is unloaded."""
        while self._streams:
            self._end_stream(*self._streams.popleft(), error)

    def close(self, seconds: float = 30.0) -> bool:
        """Ends the thread after its current step, and waits for that, for at most `seconds`.

        Requests that come later are refused. Requests that the thread leaves end with an error. A run that
        trains must have received a stop request; the thread cannot interrupt it.

        Returns:
            Whether the thread has ended.
        """
        with self._entrance:
            self._closing = True
        self._inbox.put(("wake", None))
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)
        return not self.is_running

    def _send(self, kind: str, request: Any, limit: int = 0) -> None:
        with self._entrance:
            self.check_open()
            if kind == "stream":
                if limit and len(self._open) >= limit:
                    raise Busy(f"{limit} answers are being generated already.", "Wait until one has ended.")
                self._open.add(request[0])
            self._inbox.put((kind, request))

    # --- the thread

    def _run_thread(self) -> None:
        try:
            self._loop()
        except BaseException:  # a job raised SystemExit; no caller may wait for this thread any more
            logger.exception("the thread of the model ended")
        finally:
            with self._entrance:
                self._closing = True
            self._end_requests()

    def _loop(self) -> None:
        while not self._closing:
            self._receive()
            job = None if self._closing else self._take_next_run()
            if job is not None:
                try:
                    job()
                except Exception:
                    logger.exception("a run raised an error that it did not handle")
            elif self._streams:
                self._step()
            else:  # with runs that may not start yet, `choose` is called again from time to time
                self._receive(wait=True, seconds=POLL_SECONDS if self._runs else None)

    def _end_requests(self) -> None:
        """Ends what the thread leaves: streams, and requests in the inbox. Runs stay queued on disk."""
        self.end_streams(make_closing_error())
        while True:
            try:
                kind, request = self._inbox.get_nowait()
            except queue.Empty:
                break
            if kind == "call":
                request.error = make_closing_error()
                request.done.set()
        for stream in list(self._open):  # those that were still in the inbox
            stream.end(make_closing_error())
        self._open.clear()
        self._runs.clear()

    def _receive(self, wait: bool = False, seconds: float | None = None) -> None:
        """Empties the inbox; calls are answered immediately.

        Args:
            wait: wait for a first request, for at most `seconds`, where given.
        """
        while True:
            try:
                kind, request = self._inbox.get(block=wait, timeout=seconds if wait else None)
            except queue.Empty:
                return
            wait, self._choose_again = False, 0.0
            if kind == "call":
                self._answer(request)
            elif kind == "stream":
                self._start_stream(*request)
            elif kind == "run":
                self._runs.append(request)

    def _take_next_run(self) -> Callable[[], None] | None:
        """Pops the next run. Only this thread uses the deque of runs, so it needs no lock."""
        if not self._runs or time.monotonic() < self._choose_again:
            return None
        names = [name for name, _ in self._runs]
        try:
            chosen = self.choose(names)
            if chosen is None:
                self._choose_again = time.monotonic() + POLL_SECONDS
                return None
            index = names.index(chosen)
        except Exception:  # without a readable order, the runs are trained in the order they arrived
            logger.exception("the order of the runs could not be read; the oldest one starts")
            index = 0
        _, job = self._runs[index]
        del self._runs[index]
        return job

    @staticmethod
    def _answer(call: _Call) -> None:
        try:
            call.value = call.job()
        except BaseException as e:  # noqa: BLE001 (the caller's thread raises it)
            call.error = e
        call.done.set()

    def _start_stream(self, stream: Stream, start: Callable[[], Generator[Any, None, None]]) -> None:
        try:
            self._streams.append((stream, start()))
        except Exception as e:  # noqa: BLE001 (the reader of the stream raises it)
            self._open.discard(stream)
            stream.end(e)

    def _step(self) -> None:
        """Runs one step of the next stream."""
        stream, generator = self._streams.popleft()
        error: Exception | None = None
        try:
            if not stream.is_abandoned:
                value = next(generator)
                if value is not None:
                    stream.put(value)
                self._streams.append((stream, generator))
                return
        except StopIteration:
            pass
        except StudioError as e:
            error = e
        except Exception as e:  # noqa: BLE001 (the reader of the stream raises it)
            logger.exception("a stream raised an error")
            error = e
        self._end_stream(stream, generator, error)

    def _end_stream(
        self, stream: Stream, generator: Generator[Any, None, None], error: Exception | None
    ) -> None:
        """Closes the generator of a stream and ends the stream."""
        try:
            generator.close()
        except Exception:
            logger.exception("a stream raised an error when it was closed")
        self._open.discard(stream)
        stream.end(error)
