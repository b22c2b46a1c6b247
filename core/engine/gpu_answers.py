"""Answers in a process with a GPU: one call for all columns, with the mixes by value. `GpuAnswers`.

A call requests the GPU for a number of seconds before it begins (`estimate_answer_seconds`), from the rate of
the answers before it: MARGIN of the slowest of the last ones, TOKENS_PER_SECOND where none was measured.
"""

from __future__ import annotations

import contextvars
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from core.engine.gpu_calls import DEVICE, Task, read_values
from core.engine.gpu_estimates import TOKENS_PER_SECOND, estimate_load_seconds
from core.engine.gpu_tasks import AnswerJob
from core.engine.resident_base import ResidentBase
from core.engine.worker import STREAM_LIMIT, BackgroundTask, Stream, make_closing_error, make_lock
from core.errors import BaseModelError, Busy, GpuError, StudioError
from core.spec.mix import Sampling
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.engine.chat import Frame, LiveMixes
    from core.retrieve.passages import Passage

logger = logging.getLogger(__name__)

MARGIN = 0.7  # of a measured rate: the next answer may be slower
MEASURED = 8  # answers whose rates are remembered
MEASURED_TOKENS = 16  # shorter answers are not measured


class GpuAnswers:
    """Starts answers, and follows them on threads that wait. Safe to call from any thread.

    Args:
        answer: the wrapped task (`GpuCalls.answer`).
    """

    def __init__(self, workspace: Workspace, resident_base: ResidentBase, answer: Task) -> None:
        self._workspace, self._resident_base, self._answer = workspace, resident_base, answer
        self._lock = make_lock()  # guards the fields below
        self._open: set[Stream] = set()
        self._rates: deque[float] = deque(maxlen=MEASURED)
        self._is_closing = False

    @property
    def tokens_per_second(self) -> float:
        """The rate from which the GPU time of the next answer is estimated."""
        rates = list(self._rates)
        return MARGIN * min(rates) if rates else TOKENS_PER_SECOND

    def stream(
        self,
        prompt: str | Sequence[dict[str, str]],
        live: LiveMixes,
        sampling: Sampling,
        chat: bool,
        same_noise: bool,
        thinking: bool,
        passages: Sequence[Sequence[Passage] | None] | None = None,
    ) -> Stream:
        """Answers one prompt under every mix; a stream of Frames, as that of `Chat.stream`.

        The call is made in the context of the caller, whose GPU time it uses.

        Raises:
            Busy: STREAM_LIMIT answers are being generated. Closing
        """
        stream, context = Stream(), contextvars.copy_context()
        stream.live_mixes = live
        with self._lock:
            if self._is_closing:
                raise make_closing_error()
            if len(self._open) >= STREAM_LIMIT:
                raise Busy(
                    f"{STREAM_LIMIT} answers are being generated already.", "Wait until one has ended."
                )
            self._open.add(stream)
        question = prompt if isinstance(prompt, str) else tuple(prompt)
        found = tuple(None if p is None else tuple(p) for p in passages or ())

        def make_job() -> AnswerJob:
            base, quantization, _ = self._resident_base.choice
            return AnswerJob(
                str(self._workspace.root),
                base,
                quantization,
                DEVICE,
                question,
                live.take(),
                sampling,
                chat,
                same_noise,
                thinking,
                self.tokens_per_second,
                estimate_load_seconds(self._resident_base.info.parameters),
                found or None,
            )

        BackgroundTask(lambda task: self._follow(stream, make_job, context), "gpu-answer")
        return stream

    def _follow(
        self, stream: Stream, make_job: Callable[[], AnswerJob], context: contextvars.Context
    ) -> None:
        """Passes the frames of a call on, until they end or their reader is gone.

        Args:
            make_job: called when the base is loaded here: until then, its files may be incomplete.
        """
        frame: Frame | None = None
        error: StudioError | None = None
        try:
            info = self._resident_base.wait()
            if self._resident_base.peek() is None:
                raise BaseModelError(
                    info.error or "The base model is not loaded.", "Choose another base, then try again."
                )
            for frame in read_values(self._answer(make_job()), context):
                stream.put(frame)
                if stream.is_abandoned:
                    break
            if frame is None or not (frame.done or stream.is_abandoned):
                error = GpuError("The answer ended before it was complete.", "Send the prompt again.")
            elif frame.done:
                self._measure(frame)
        except StudioError as e:
            error = e
        except Exception as e:  # noqa: BLE001 (the reader of the stream raises it)
            logger.exception("a call of an answer failed")
            error = GpuError(f"The answer failed ({type(e).__name__}).", "Send the prompt again.")
        finally:
            with self._lock:
                self._open.discard(stream)
            stream.end(error)

    def _measure(self, frame: Frame) -> None:
        tokens = sum(column.tokens for column in frame.columns)
        seconds = max((column.seconds for column in frame.columns), default=0.0)
        if tokens >= MEASURED_TOKENS and seconds > 0:
            self._rates.append(tokens / seconds)

    def close(self) -> None:
        """Refuses further answers, and ends those that are being generated."""
        with self._lock:
            self._is_closing = True
            streams: list[Any] = list(self._open)
        for stream in streams:
            stream.close()
