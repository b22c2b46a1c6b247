"""The one thread that owns the model.

Whatever uses the model comes here as one of three: a call (short, answered), a stream (a Python
generator, stepped in turn with the others, closed at any time), or a run (long, and lends the model to
the others between its own steps). So there is no lock around the model. Knows nothing of models.

    inbox ──> calls ───────────────────────────┐
              streams  s1 s2 s3 (round robin)  ├─> the thread
              runs     r1 | r2 r3 (as chosen) ─┘      a run calls serve() between its steps
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

from core.errors import Busy, StudioError

logger = logging.getLogger(__name__)

T = TypeVar("T")
LEASE_SECONDS = 60.0  # a stream that nobody reads for so long is closed
STREAM_LIMIT = 16  # streams at once


class Stream:
    """What a generator on the worker yields, seen from another thread.

    Only the newest value is kept: values are cumulative, so a slow reader misses nothing and holds
    nobody up. Iterate it, or `close()` it from any thread.
    """

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._value: Any = None
        self._fresh = False
        self._ended = False
        self._error: BaseException | None = None
        self._read_at = time.monotonic()
        self.closed = False
        self.desk: Any = None  # what the reader may change while the generator runs, if it takes wishes

    def close(self) -> None:
        """Asks the worker to drop it; readers end."""
        with self._turn:
            self.closed = True
            self._turn.notify_all()

    def __iter__(self) -> Iterator[Any]:
        """Newest values until the end.

        Raises:
            StudioError: what the generator raised.
        """
        try:
            while True:
                with self._turn:
                    self._read_at = time.monotonic()
                    while not (self._fresh or self._ended or self.closed):
                        self._turn.wait(0.5)
                        self._read_at = time.monotonic()
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

    # --- the worker's side

    def put(self, value: Any) -> None:
        with self._turn:
            self._value, self._fresh = value, True
            self._turn.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        with self._turn:
            self._ended, self._error = True, error
            self._turn.notify_all()

    @property
    def abandoned(self) -> bool:
        return self.closed or time.monotonic() - self._read_at > LEASE_SECONDS


class Errand:
    """Something long that needs no model, such as a download, on a thread of its own.

    Args:
        job: is given the errand, and looks at `stopping` now and then.
    """

    def __init__(self, job: Callable[[Errand], None], name: str = "errand") -> None:
        self.stopping = False
        self._thread = threading.Thread(target=lambda: job(self), name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """Asks it to end."""
        self.stopping = True

    def join(self, seconds: float) -> None:
        """Waits for its end, for at most so many seconds."""
        self._thread.join(seconds)


class _Call:
    def __init__(self, job: Callable[[], Any]) -> None:
        self.job = job
        self.done = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None


class Worker:
    """Starts the thread; everything else goes through `call`, `stream` and `run`."""

    def __init__(self, name: str = "model") -> None:
        self._inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._streams: deque[tuple[Stream, Generator[Any, None, None]]] = deque()
        self._runs: deque[tuple[str, Callable[[], None]]] = deque()
        self.choose: Callable[[Sequence[str]], str] = lambda waiting: waiting[
            0
        ]  # which run is next; asked on the thread
        self._open: set[Stream] = set()  # asked for and not yet ended
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def call(self, job: Callable[[], T], seconds: float | None = None) -> T:
        """Runs `job` on the thread and returns its value; from the thread itself, at once.

        Raises:
            Busy: no answer within `seconds`. Whatever the job raises.
        """
        if threading.current_thread() is self._thread:
            return job()
        call = _Call(job)
        self._inbox.put(("call", call))
        if not call.done.wait(seconds):
            raise Busy("The model is busy with something else.", "Try again in a moment.")
        if call.error is not None:
            raise call.error
        return call.value  # type: ignore[no-any-return]

    def post(self, job: Callable[[], Any]) -> None:
        """Runs `job` on the thread before whatever is asked for later; nobody waits for it."""
        self._inbox.put(("call", _Call(job)))

    def stream(self, start: Callable[[], Generator[Any, None, None]]) -> Stream:
        """Steps the generator that `start` makes, in turn with the others; None values are not shown.

        Raises:
            Busy: too many streams at once.
        """
        if len(self._open) >= STREAM_LIMIT:
            raise Busy(f"{STREAM_LIMIT} answers are being written already.", "Wait for one to end.")
        stream = Stream()
        self._open.add(stream)
        self._inbox.put(("stream", (stream, start)))
        return stream

    def run(self, job: Callable[[], None], name: str = "") -> None:
        """Queues a long job; they run one after the other, each calling `serve` between its steps.

        Args:
            name: what `choose` is told of it, when it is asked which of those that wait is next.
        """
        self._inbox.put(("run", (name, job)))

    def serve(self, seconds: float) -> None:
        """Lends the thread to waiting calls and streams: at least one round, at most about `seconds`."""
        end = time.monotonic() + seconds
        self._take()
        while self._streams:
            for _ in range(len(self._streams)):
                self._step()
            self._take()
            if time.monotonic() >= end:
                return

    @property
    def streams(self) -> int:
        """How many are being read or wait to be."""
        return len(self._open)

    def end_streams(self, error: StudioError) -> None:
        """Ends every stream with an error, on the thread: what they stand on is about to go."""
        while self._streams:
            stream, generator = self._streams.popleft()
            generator.close()
            self._open.discard(stream)
            stream.end(error)

    def close(self, seconds: float = 30.0) -> None:
        """Ends the thread after the step it is in; a run is expected to hear of it by its own flag."""
        self._closing = True
        self._inbox.put(("wake", None))
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)

    # --- the thread

    def _loop(self) -> None:
        while not self._closing:
            self._take(wait=not (self._streams or self._runs))
            if self._runs and not self._closing:
                try:
                    self._chosen()()
                except Exception:
                    logger.exception("a run ended in an error that it did not handle")
            elif self._streams:
                self._step()
        for stream, generator in self._streams:
            generator.close()
            stream.end()

    def _take(self, wait: bool = False) -> None:
        """Accepts what came in; calls are answered at once."""
        while True:
            try:
                kind, what = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if kind == "call":
                self._answer(what)
            elif kind == "stream":
                stream, start = what
                self._streams.append((stream, start()))
            elif kind == "run":
                self._runs.append(what)

    def _chosen(self) -> Callable[[], None]:
        """Takes the run out whose turn it is. Nobody else touches the line, so that changing its order needs no lock."""
        names = [name for name, _ in self._runs]
        try:
            at = names.index(self.choose(names))
        except Exception:  # an order that cannot be read costs the order, never a run
            logger.exception("the order of the runs is not known; the one that was asked for first begins")
            at = 0
        _, job = self._runs[at]
        del self._runs[at]
        return job

    @staticmethod
    def _answer(call: _Call) -> None:
        try:
            call.value = call.job()
        except BaseException as e:  # noqa: BLE001 (it belongs to the caller's thread)
            call.error = e
        call.done.set()

    def _step(self) -> None:
        """One step of the stream whose turn it is."""
        stream, generator = self._streams.popleft()
        error: Exception | None = None
        try:
            if not stream.abandoned:
                value = next(generator)
                if value is not None:
                    stream.put(value)
                self._streams.append((stream, generator))
                return
            generator.close()
        except StopIteration:
            pass
        except StudioError as e:
            error = e
        except Exception as e:  # noqa: BLE001 (shown to whoever reads the stream)
            logger.exception("a stream ended in an error")
            error = e
        self._open.discard(stream)
        stream.end(error)
