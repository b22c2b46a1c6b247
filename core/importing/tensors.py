"""The tensors of a foreign file, read one at a time: shapes first, values when they are needed.

.safetensors ────────────────────────────────┐
.bin ─ a process of its own ─> .safetensors ─┼─> StoredTensor
.gguf ─ core.gguf.header ────────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from core.errors import AdapterError
from core.store import adapter_weights

TENSOR_LIMIT = 200_000
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
COPY_AGAIN = "Copy or download the file again."


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file.

    Attributes:
        name: in the file, for messages.
        shape: rows first.
        read: returns its values, in the type of the file.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @property
    def size(self) -> int:
        """How many values it has."""
        count = 1
        for n in self.shape:
            count *= n
        return count


def transpose(tensor: StoredTensor) -> StoredTensor:
    """The transpose of a matrix."""
    return StoredTensor(tensor.name, tensor.shape[::-1], lambda: tensor.read().t().contiguous())


def read_safetensors(path: Path, name: str = "") -> dict[str, StoredTensor]:
    """Lists the tensors of a safetensors file.

    Args:
        name: of the file, for messages; "" takes that of the path.

    Raises:
        AdapterError: it is damaged, or has tensors that are not floating-point numbers.
    """
    shown = name or path.name
    try:
        adapter_weights.check_size(path)
        tensors: Any = safe_open(str(path), framework="pt")
        names = list(tensors.keys())
    except AdapterError as e:
        raise AdapterError(f"{shown!r} is damaged: {e.what}.", COPY_AGAIN) from e
    except (SafetensorError, OSError) as e:
        raise AdapterError(f"{shown!r} cannot be read: {e}.", COPY_AGAIN) from e
    if len(names) > TENSOR_LIMIT:
        raise AdapterError(
            f"{shown!r} has {len(names):,} tensors; at most {TENSOR_LIMIT:,} are read.",
            "It is not the file of an adapter.",
        )
    return {n: _list_tensor(tensors, n, shown) for n in names}


def _list_tensor(tensors: Any, name: str, file: str) -> StoredTensor:
    part = tensors.get_slice(name)
    kind = part.get_dtype()
    if kind not in FLOATS:
        raise AdapterError(
            f"The tensor {name!r} of {file!r} has the type {kind}; an adapter has floating-point numbers.",
            "Save the adapter as float32, float16 or bfloat16 with the tool that made it.",
        )

    def read() -> torch.Tensor:
        values: torch.Tensor = tensors.get_tensor(name)
        return values if values.itemsize > 1 else values.to(torch.float32)

    return StoredTensor(name, tuple(part.get_shape()), read)
