"""How much GPU time an answer or a run needs, before it begins.

An answer requests the time of a batch that decodes its columns one after the other. No batch does, so it is
an upper bound of the decoding:

    seconds = load + tokens * columns / tokens_per_second

A run is estimated from its tokens and the rate of the newest run on its base, and where none was measured,
from the number of weights: a step takes about 6 floating-point operations for each weight and token.

Source: Kaplan et al. 2020, arXiv 2001.08361, section 2.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.spec.recommendation import DataSize, count_batch_rows
from core.spec.training import TrainSpec

if TYPE_CHECKING:
    from core.engine.gpu_tasks import AnswerJob

# Stated, not measured: no GPU of this kind was at hand.
START_SECONDS = 6.0  # that a process with a GPU needs before it runs a task
BYTES_PER_SECOND = 1e9  # at which a base is read, and moved to a GPU
BYTES_PER_PARAMETER = 2
TOKENS_PER_SECOND = 25.0  # of one row that is decoded
OPERATIONS_PER_SECOND = 2e13  # of a training step
STEP_TOKENS_PER_SECOND = 8000.0  # of training at most: a small base waits for its kernels to start
RESERVE_SECONDS = 8.0  # at the end of a slice, in which no step begins: a checkpoint is still saved
ANSWER_LIMITS = (10, 120)  # seconds that an answer requests


def estimate_load_seconds(parameters: int) -> float:
    """How long it takes until a process with a GPU can use a base of so many weights."""
    return START_SECONDS + BYTES_PER_PARAMETER * parameters / BYTES_PER_SECOND


def estimate_answer_seconds(job: AnswerJob) -> int:
    """For how long an answer requests the GPU."""
    tokens = job.sampling.max_new_tokens * len(job.mixes)
    low, high = ANSWER_LIMITS
    return min(high, max(low, math.ceil(job.load_seconds + tokens / job.tokens_per_second)))


@dataclass(frozen=True)
class SlicePlan:
    """What a run in slices will need, estimated before it starts.

    Attributes:
        seconds: of GPU time, all slices together.
        slices: how many; 1 at least.
        slice_seconds: GPU time that one slice requests.
        is_measured: whether the rate is that of an earlier run on this base.
    """

    seconds: int
    slices: int
    slice_seconds: int
    is_measured: bool

    @property
    def text(self) -> str:
        """The plan for the page, in one sentence."""
        plural = "" if self.slices == 1 else "s"
        how = "as measured in an earlier run" if self.is_measured else "not measured on this base yet"
        return (
            f"ZeroGPU: about {_format_seconds(self.seconds)} of your GPU time in {self.slices} slice{plural} "
            f"of at most {self.slice_seconds} s ({how}); the daily quota of your Hugging Face account cannot "
            "be read from here, and where it ends, the run pauses with a checkpoint and can be resumed later."
        )


def plan_slices(
    spec: TrainSpec,
    size: DataSize,
    parameters: int,
    slice_seconds: int,
    tokens_per_second: float = 0.0,
) -> SlicePlan:
    """Estimates the GPU time of a run in slices.

    Args:
        size: of the training split.
        parameters: of the base.
        slice_seconds: of GPU time that a slice requests.
        tokens_per_second: measured in an earlier run on this base; 0 where there was none.
    """
    rows = count_batch_rows(size, spec.max_length, spec.packing, spec.replay_share)
    steps_per_epoch = math.ceil(rows / spec.effective_batch)
    steps = spec.max_steps or math.ceil(steps_per_epoch * spec.epochs)
    tokens = steps * size.tokens / (1 - min(spec.replay_share, 0.9)) / steps_per_epoch
    rate = tokens_per_second or min(STEP_TOKENS_PER_SECOND, OPERATIONS_PER_SECOND / (6 * max(1, parameters)))
    unused = estimate_load_seconds(parameters) + RESERVE_SECONDS
    slices = max(1, math.ceil(tokens / rate / max(1.0, slice_seconds - unused)))
    seconds = math.ceil(tokens / rate + slices * unused)
    return SlicePlan(seconds, slices, slice_seconds, bool(tokens_per_second))


def _format_seconds(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{math.ceil(seconds / 60)} minutes"
