"""What runs in a process with a GPU: an answer, or a slice of a run. `core.engine.gpu_calls` has the picture.

Such a process is forked from that of the page. It has none of its threads, and must not use the resident base
of the page, which another thread may have been changing; so it loads the base again, from the page cache of
the system. A process that serves several calls keeps the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.spec.mix import Mix, Sampling
from core.store.workspace import Workspace

if TYPE_CHECKING:
    from core.engine.chat import Frame
    from core.model.resident import Resident
    from core.retrieve.passages import Passage
    from core.spec.training import RunStatus
    from core.train.slices import SliceJob


@dataclass(frozen=True)
class AnswerJob:
    """What an answer is given; plain values, which are pickled.

    Attributes:
        workspace: the folder of its adapters.
        base, quantization, device: how the base is loaded, as in `core.model.base.load_base`.
        prompt, mixes, sampling, chat, same_noise, thinking, passages: as in `core.engine.chat.Chat.stream`.
        tokens_per_second: of all columns together, from which the GPU time is estimated.
        load_seconds: that loading the base takes.
    """

    workspace: str
    base: str
    quantization: str
    device: str
    prompt: str | tuple[dict[str, str], ...]
    mixes: tuple[Mix, ...]
    sampling: Sampling
    chat: bool
    same_noise: bool
    thinking: bool
    tokens_per_second: float
    load_seconds: float
    passages: tuple[tuple[Passage, ...] | None, ...] | None = None


@dataclass(frozen=True)
class SliceEnd:
    """How a slice ended: the status of its run, RUNNING where the next slice continues it."""

    status: RunStatus


class GpuTasks:
    """The tasks. Each is a generator function of one job, called in a process with a GPU."""

    def __init__(self) -> None:
        self._resident: Resident | None = None
        self._loaded: tuple[str, ...] = ()  # workspace, base, quantization and device of the resident base

    def answer(self, job: AnswerJob) -> Iterator[Frame]:
        """Answers a prompt under every mix; yields Frames."""
        from core.engine.chat import LiveMixes, generate_frames

        frames = generate_frames(
            self._load(job),
            job.prompt if isinstance(job.prompt, str) else list(job.prompt),
            LiveMixes(job.mixes),
            job.sampling,
            job.chat,
            job.same_noise,
            job.thinking,
            passages=job.passages,
        )
        for frame in frames:
            if frame is not None:
                yield frame

    def train(self, job: SliceJob) -> Iterator[SliceEnd]:
        """Trains one slice of a run; yields how it ended."""
        from core.train.slices import SliceLimit, train_slice

        limit = SliceLimit(job.seconds, job.reserve)  # loading the base is a part of the slice
        resident = self._load(job)
        try:
            run = train_slice(resident, job, limit)
        except BaseException:
            self._resident, self._loaded = None, ()  # what a failed step has left is not used again
            raise
        yield SliceEnd(run.status)

    def _load(self, job: Any) -> Resident:
        """The base of a job, with a library to load adapters from.

        Raises:
            BaseModelError
        """
        from core.model.base import load_base
        from core.model.resident import Resident

        wanted = (job.workspace, job.base, job.quantization, job.device)
        if self._resident is None or self._loaded != wanted:
            workspace = Workspace(Path(job.workspace))
            base = load_base(job.base, job.quantization, job.device, workspace=workspace)
            self._resident, self._loaded = Resident(base, workspace), wanted
        return self._resident
