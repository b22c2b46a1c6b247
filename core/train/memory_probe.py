"""A measurement of the memory of one real step.

A run starts with one forward and backward of its longest batch. It records the ratio of the measured memory
to the estimate of `core.train.memory`, and later estimates on the same base are multiplied by that ratio.
"""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from core.data.tokens.token_table import TableRows
from core.spec.training import TrainSpec
from core.train.memory import ModelShape, available_bytes, estimate

MIN_GROWTH_BYTES = 32 << 20  # a smaller growth depends on the allocator more than on the step
RATIO_LIMIT = 4.0  # a ratio of measured and estimated memory stays within this factor
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class MemoryProbe:
    """A measured step; the fields of the run's "memory" event.

    Attributes:
        rows, length: size of the batch, the length in tokens.
        estimated_step, measured_step: bytes; the measurement is None where the system does not report it.
        measured_as: what was measured, in words.
        ratio: measured over estimated; None where the growth is too small to tell.
        free: bytes that the device still has; None where the system does not report them.
    """

    rows: int
    length: int
    estimated_step: int
    measured_step: int | None
    measured_as: str
    ratio: float | None
    free: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class MemoryMeter:
    """Measures how far memory grows from its construction to `growth()`.

    On a GPU this is torch's allocated memory. On a CPU it is the resident set of the process, whose peak
    Linux lets a process reset. A process reuses memory that it has freed before, without growing, so a small
    number is a lower bound.
    """

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.what = "allocated by torch" if on_gpu else "resident set of the process"
        gc.collect()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._start: int | None = int(torch.cuda.memory_allocated())
            return
        try:
            CLEAR_REFS.write_text("5", encoding="ascii")  # resets the peak, see proc(5)
            self._start = _process_memory("VmRSS")
        except OSError:
            self._start = None

    def growth(self) -> int | None:
        """Bytes from the start to the peak; None where the system does not report them."""
        if self._start is None:
            return None
        if self.on_gpu:
            return int(torch.cuda.max_memory_allocated()) - self._start
        peak = _process_memory("VmHWM")
        return None if peak is None else max(0, peak - self._start)


def _process_memory(key: str) -> int | None:
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return None


def memory_ratio(measured: int | None, estimated: int) -> float | None:
    """Measured over estimated step memory; None where the growth is too small to tell."""
    if measured is None or measured < MIN_GROWTH_BYTES or estimated <= 0:
        return None
    return round(min(RATIO_LIMIT, max(1 / RATIO_LIMIT, measured / estimated)), 3)


def longest_batch(trainer: Any) -> tuple[dict[str, Any], int, int]:
    """The batch of the longest rows, as the collator returns it; its rows, and its length in tokens."""
    rows = trainer.train_dataset
    lengths = rows.lengths if isinstance(rows, TableRows) else [len(ids) for ids in rows["input_ids"]]
    longest = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    longest = longest[: trainer.args.per_device_train_batch_size]
    batch = trainer.data_collator([trainer.train_dataset[i] for i in longest])
    return batch, len(longest), lengths[longest[0]]


def probe_step(trainer: Any, spec: TrainSpec, base: Any) -> MemoryProbe:
    """Measures one forward and backward of the longest batch. Gradients and random state are as before it.

    Args:
        trainer: a StudioTrainer whose model is ready to train.
    """
    batch, rows, length = longest_batch(trainer)
    shape = ModelShape.from_base(base)
    need = estimate(shape, replace(spec, max_length=max(16, length), batch_size=rows))
    batch.pop("row_lengths", None)  # counts tokens only; the model does not accept it
    count = trainer._get_num_items_in_batch([batch], trainer.args.device)
    trainer.model_wrapped.train()
    meter = MemoryMeter(shape.on_gpu)
    with torch.random.fork_rng():
        inputs = trainer._prepare_inputs(batch)
        trainer.compute_loss(trainer.model_wrapped, inputs, num_items_in_batch=count).backward()
    measured = meter.growth()
    trainer.model_wrapped.zero_grad()
    return MemoryProbe(
        rows=rows,
        length=length,
        estimated_step=need.step,
        measured_step=measured,
        measured_as=meter.what,
        ratio=memory_ratio(measured, need.step),
        free=available_bytes(shape.on_gpu),
    )
