"""Builds the header of a GGUF file: what `header.py` reads.

"GGUF"  version  tensors  keys                             4 + 4 + 8 + 8 bytes
keys x (name, type, value)
tensors x (name, dimensions, type, offset)                 the offset counts from the data
padding to the alignment, then the data, each tensor padded to the alignment
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.gguf.header import MAGIC, TENSOR_TYPES, TensorType

VERSION = 3
ALIGNMENT = 32
TYPES = {kind.name: kind for kind in TENSOR_TYPES.values()}

_NUMBER_OF = {kind.name: number for number, kind in TENSOR_TYPES.items()}
_UINT32, _INT32, _FLOAT32, _BOOL, _TEXT, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True)
class NewTensor:
    """A tensor of a file that is written.

    Attributes:
        shape: rows first. type: how its values are stored.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType

    @property
    def row_bytes(self) -> int:
        """The bytes of a row: of all values along the last dimension."""
        return self.shape[-1] // self.type.block * self.type.bytes

    @property
    def bytes(self) -> int:
        """The bytes of all rows, without the padding."""
        rows = 1
        for n in self.shape[:-1]:
            rows *= n
        return rows * self.row_bytes

    @property
    def gap(self) -> int:
        """The zero bytes behind it, up to the alignment."""
        return -self.bytes % ALIGNMENT


def build_header(metadata: Mapping[str, Any], tensors: Sequence[NewTensor]) -> bytes:
    """The bytes of a file up to the values of its first tensor.

    Args:
        metadata: key -> text, truth value, number, or a list of texts or numbers. Integers are stored as 32
            bits, unsigned alone and signed in lists; floating-point numbers as float32.
        tensors: in the order of their values.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_pack_text(key), _pack_value(value)]
    offset = 0
    for tensor in tensors:
        parts += [
            _pack_text(tensor.name),
            struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape)),
            struct.pack("<IQ", _NUMBER_OF[tensor.type.name], offset),
        ]
        offset += tensor.bytes + tensor.gap
    header = b"".join(parts)
    return header + bytes(-len(header) % ALIGNMENT)


def _pack_text(text: str) -> bytes:
    content = text.encode("utf-8", errors="replace")
    return struct.pack("<Q", len(content)) + content


def _pack_value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _TEXT) + _pack_text(value)
    return struct.pack("<I", _ARRAY) + _pack_list(value)


def _pack_list(values: Sequence[Any]) -> bytes:
    if values and isinstance(values[0], str):
        return struct.pack("<IQ", _TEXT, len(values)) + b"".join(map(_pack_text, values))
    if values and isinstance(values[0], float):
        return struct.pack(f"<IQ{len(values)}f", _FLOAT32, len(values), *values)
    return struct.pack(f"<IQ{len(values)}i", _INT32, len(values), *values)
