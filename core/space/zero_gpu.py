"""ZeroGPU of Hugging Face Spaces: tasks run in a forked process, which has a GPU for the seconds it requests.

What this relies on, read in `spaces` 0.51.3 and not run on a Space:

- `spaces.GPU(task, duration=...)` wraps a function. A call requests a GPU for `duration` seconds, or for what
  `duration` returns for the same arguments, and runs the task in a process that is forked from this one. A
  process that has ended a call may serve a later one of the same task.
- Arguments and results are pickled. A generator's values come one by one; closing it stops the task after
  its next value.
- Of an exception in the process, its class name alone returns, in an error of Gradio. A process that was
  killed raises one, too, as does a refused request: its message holds the seconds that are left of the quota.
- The quota is that of the request in whose context (`contextvars`) the call is made.
- torch is changed while `spaces` is imported: in this process every check says that a CUDA device exists, and
  using it fails outside the main thread. So the base of this process is loaded with the device "cpu".
- The functions must be wrapped before Gradio's `Blocks.launch`, which reports them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

from core.errors import GpuError, GpuQuota, StudioError

logger = logging.getLogger(__name__)

PACKAGE = "spaces"
VARIABLE = "SPACES_ZERO_GPU"  # of the environment of a Space on ZeroGPU
TRUE = ("1", "t", "true")  # as the package reads it
SECONDS_VARIABLE = "ADAPTER_STUDIO_SLICE_SECONDS"
DEVICE = "cpu"  # of the base in the process of the page
NOTICE = (
    "This Space runs on ZeroGPU: every answer, and every slice of a training run, uses the GPU time of the "
    "visitor who starts it. Weights that are changed while an answer grows apply to the next answer. "
    "Evaluations, analyses and the prompt suite run on the CPU."
)
LEFT = re.compile(r"requested vs\. (-?\d+)s left")
TAGS = re.compile(r"<[^>]+>")
QUOTA = ("quota", "credits")  # of the titles of refused requests
WAIT = "Sign in to Hugging Face for more GPU time, or try again when some is left."
AGAIN = "Try again."

Task = Callable[[Any], Iterator[Any]]


def is_zero_gpu(value: str) -> bool:
    """Whether a value of VARIABLE means ZeroGPU; "" where it is not set."""
    return value.lower() in TRUE


class ZeroGpu:
    """Wraps tasks with the decorator of a Space.

    Args:
        package: the module `spaces`.
    """

    def __init__(self, package: Any) -> None:
        self._package = package

    def __call__(self, task: Task, estimate_seconds: Callable[[Any], int]) -> Task:
        """A function that runs a task in a process with a GPU; see `core.engine.gpu_calls.Wrap`."""
        decorated = self._package.GPU(task, duration=estimate_seconds)

        def call(job: Any) -> Iterator[Any]:
            try:
                yield from decorated(job)
            except StudioError:
                raise
            except Exception as e:
                logger.warning("a call on ZeroGPU ended: %s", read_message(e))
                raise read_error(e) from e

        return call


def read_message(error: Exception) -> str:
    """What an error of the package says, as plain text; `str` of an error of Gradio is a quoted text."""
    return TAGS.sub("", str(getattr(error, "message", error))).strip() or type(error).__name__


def read_error(error: Exception) -> GpuError:
    """An error of the package in the studio's words."""
    message = read_message(error)
    ended = message if message[-1] in ".!?" else f"{message}."
    if any(word in str(getattr(error, "title", "")).lower() for word in QUOTA):
        match = LEFT.search(message)
        left = max(0, int(match.group(1))) if match else None
        return GpuQuota(f"ZeroGPU: {ended}", WAIT, left_seconds=left)
    return GpuError(f"ZeroGPU: {ended}", AGAIN)
