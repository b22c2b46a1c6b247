"""Calls into a process that has a GPU for a limited time, where the process of the page has none.

    this process: Chat, RunExecutor                          a process per call: `core.engine.gpu_tasks`
    GpuAnswers.stream ─┐                                     ┌─> GpuTasks.answer  ─> Frame, Frame, ...
    SlicedRuns.train  ─┴─ wrap(task, seconds)(job) ─ pickle ─┴─> GpuTasks.train   ─> SliceEnd
                                                 <─ pickle ─ values, or one Failure

`wrap` makes a function that runs a task in such a process; `core.space.zero_gpu` has the one of a Space, and
an ordinary studio has none of this. Jobs and values are plain data. An error crosses as a value, because a
process with a GPU may report nothing of an exception but its class.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from core.data.child_process import describe_error, rebuild_error
from core.engine.gpu_estimates import estimate_answer_seconds
from core.engine.gpu_tasks import GpuTasks
from core.errors import SpecError, StudioError

Task = Callable[[Any], Iterator[Any]]  # a job -> its values
DEVICE = "auto"  # of a task: its process has a GPU, where that of the page was started with "cpu"
SLICE_SECONDS = 60  # of GPU time that one call of a training run requests
SLICE_LIMITS = (20, 600)


class Wrap(Protocol):
    """Makes a function that runs a task in a process with a GPU."""

    def __call__(self, task: Task, estimate_seconds: Callable[[Any], int]) -> Task:
        """Wraps a generator function.

        Args:
            task: receives one job and yields values; both are pickled.
            estimate_seconds: for how long a job requests the GPU.

        Returns:
            a function that yields the values of the task. It raises GpuError where the process is refused
            or ends early; closing it ends the task after its next value.
        """


@dataclass(frozen=True)
class Failure:
    """An error of a task, as a value; see `core.data.child_process.describe_error`."""

    error: dict[str, Any]


def report_failure(task: Task) -> Task:
    """A task whose StudioErrors are values."""

    def report(job: Any) -> Iterator[Any]:
        try:
            yield from task(job)
        except StudioError as e:
            yield Failure(describe_error(e))

    return report


def read_values(values: Iterator[Any], context: contextvars.Context | None = None) -> Iterator[Any]:
    """The values of a task.

    Args:
        context: in which the call is made: that of the request that pays for it with its GPU time.

    Raises:
        StudioError: the error of the task, or of the call.
    """
    context = context or contextvars.copy_context()
    try:
        while (value := context.run(next, values, None)) is not None:
            if isinstance(value, Failure):
                raise rebuild_error(value.error)
            yield value
    finally:
        close = getattr(values, "close", None)
        if close is not None:
            context.run(close)


def read_slice_seconds(text: str) -> int:
    """The GPU time of a slice from the text of a setting; SLICE_SECONDS where it is empty.

    Raises:
        SpecError: it is not a whole number.
    """
    if not text.strip():
        return SLICE_SECONDS
    try:
        return int(text)
    except ValueError:
        low, high = SLICE_LIMITS
        raise SpecError(
            f"A slice must be a whole number of seconds between {low} and {high}, got {text!r}."
        ) from None


class GpuCalls:
    """The tasks of a studio whose process has no GPU.

    Args:
        wrap: called once for every task, before the page is served.
        slice_seconds: of GPU time that a call of a training run requests.

    Raises:
        SpecError: `slice_seconds` is outside SLICE_LIMITS.
    """

    def __init__(self, wrap: Wrap, slice_seconds: int = SLICE_SECONDS) -> None:
        low, high = SLICE_LIMITS
        if not low <= slice_seconds <= high:
            raise SpecError(f"A slice must be between {low} and {high} seconds, got {slice_seconds}.")
        tasks = GpuTasks()
        self.slice_seconds = slice_seconds
        self.answer = wrap(report_failure(tasks.answer), estimate_answer_seconds)
        self.train = wrap(report_failure(tasks.train), lambda job: round(job.seconds))
