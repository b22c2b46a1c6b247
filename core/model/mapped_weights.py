"""Keeps the weights of an idle base in a file instead of in memory, exactly as they are.

The answers of a base with 8-bit weights do not read its own weights; training, losses and evaluations do.
So the loaded weights are written to a file without a name, which ends with the process, and are mapped from
it. The pages of a file can leave the memory at any moment, and are read again when they are used:

    weights in memory ─ write ─> file ─ map ─> the same tensors ─ release ─> on disk only
                                                     └──── any use reads the pages that it needs

Every number stays the same to the bit, and no code that uses the model knows of it.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from core.store.files import ensure_space, storage_error

LEAST_TENSOR_BYTES = 1 << 16  # smaller tensors stay in memory
LEAST_BYTES = 128 << 20  # a base with less is left as it is
MOST_BYTES = 4 << 30  # of the file; a base with more is left as it is
ALIGNMENT = mmap.PAGESIZE


def choose_weights(base: Any) -> list[torch.nn.Parameter]:
    """The weights of a base that can be mapped; [] where that does not pay or is not possible.

    Args:
        base: a `core.model.base.Base`.
    """
    if sys.platform != "linux" or base.device.type != "cpu" or base.quantization != "none":
        return []
    chosen = [p for p in base.model.parameters() if _is_mappable(p)]
    size = sum(_count_bytes(p) for p in chosen)
    return chosen if LEAST_BYTES <= size <= MOST_BYTES else []


def _is_mappable(parameter: torch.nn.Parameter) -> bool:
    return (
        not parameter.requires_grad
        and parameter.layout is torch.strided
        and parameter.is_contiguous()
        and _count_bytes(parameter) >= LEAST_TENSOR_BYTES
    )


def _count_bytes(tensor: torch.Tensor) -> int:
    return int(tensor.numel() * tensor.element_size())


class MappedWeights:
    """Weights and their copies in a file.

    Attributes:
        bytes: size of the file.
    """

    def __init__(
        self, weights: list[torch.nn.Parameter], folder: Path, is_stopped: Callable[[], bool]
    ) -> None:
        """Writes the weights, which must not change; any thread may do it.

        Args:
            folder: on the disk that is used.
            is_stopped: ends the writing early; the result is then useless.

        Raises:
            StorageError: the disk is full, or cannot be written.
        """
        self._weights, self._offsets = weights, [0]
        for weight in weights:
            self._offsets.append(self._offsets[-1] + -(-_count_bytes(weight) // ALIGNMENT) * ALIGNMENT)
        self.bytes = self._offsets[-1]
        ensure_space(folder, 2 * self.bytes)  # a run must still find space for its checkpoints
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                for weight, offset in zip(weights, self._offsets, strict=False):
                    if is_stopped():
                        return
                    file.seek(offset)
                    file.write(memoryview(weight.detach().flatten().view(torch.uint8).numpy()))
                file.truncate(self.bytes)
                file.flush()
                self._map = mmap.mmap(file.fileno(), self.bytes, access=mmap.ACCESS_COPY)
        except OSError as e:
            raise storage_error(e, folder) from e

    def install(self) -> None:
        """Replaces the weights in memory by those of the file. Only the thread that owns the model may."""
        for weight, offset in zip(self._weights, self._offsets, strict=False):
            mapped = torch.frombuffer(self._map, dtype=weight.dtype, count=weight.numel(), offset=offset)
            weight.data = mapped.view(weight.shape)
        self._weights = []

    def release(self) -> None:
        """Removes the weights from memory until they are used again.

        The mapping is private, so this also undoes a change of the frozen weights, which nothing makes.
        """
        self._map.madvise(mmap.MADV_DONTNEED)


def trim_heap() -> None:
    """Returns the freed memory that the C library keeps to the system, where it can (glibc)."""
    if sys.platform != "linux":
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # another C library
        return
