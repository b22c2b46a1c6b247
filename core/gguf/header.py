"""Reads the header of a GGUF file within bounds: its metadata, and where each tensor lies.

    "GGUF"  version  tensors  keys                             4 + 4 + 8 + 8 bytes
    keys x (name, type, value)
    tensors x (name, dimensions, type, offset)                 the offset counts from the data
    padding to the alignment, then the data

Every length is checked against the file before it is used, so a damaged file ends in a sentence. Source: the
specification of GGUF, versions 2 and 3.
"""

from __future__ import annotations

import math
import os
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from core.errors import BaseModelError
from core.store.files import check_regular_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER_LIMIT = 256 << 20  # bytes; the largest vocabularies take 30 MB
KEY_LIMIT = 10_000
TENSOR_LIMIT = 100_000
ARRAY_LIMIT = 4_000_000  # values
TEXT_LIMIT = 4 << 20  # bytes of one text; a chat template has some thousand
NAME_LIMIT = 256  # bytes of the name of a key or tensor
DIMENSION_LIMIT = 4
ALIGNMENT_LIMIT = 1 << 16
BLOCK_BYTES = 1 << 20
SUMMARY_BYTES = 1 << 20  # `read_summary` reads no further

_TEXT, _ARRAY = 8, 9
_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_COPY_AGAIN = "Copy or download the file again."


@dataclass(frozen=True)
class TensorType:
    """How the values of a tensor are stored: `block` values take `bytes` bytes."""

    name: str
    block: int
    bytes: int


# By the number that a file states. Types without a conversion to numbers are left out.
TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
}
# `general.file_type`: what a whole file is called.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        shape: rows first, as in torch; GGUF lists the dimensions the other way round.
        start: where its bytes begin in the file.
        bytes: how many there are.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    start: int
    bytes: int

    @property
    def row_bytes(self) -> int:
        """The bytes of a row: of all values along the last dimension."""
        return self.shape[-1] // self.type.block * self.type.bytes

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return math.prod(self.shape[:-1])


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file.

    Attributes:
        name: of the file, for messages.
        metadata: key to number, text, truth value or list of these.
        tensors: by name.
        size: of the file, in bytes.
    """

    name: str
    metadata: dict[str, Any] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)
    size: int

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return str(self.metadata["general.architecture"])

    @property
    def quantization(self) -> str:
        """What the file is called by its quantization: Q4_K_M, for example."""
        stated = FILE_TYPES.get(self.metadata.get("general.file_type", -1))
        if stated:
            return stated
        sizes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            sizes[tensor.type.name] += tensor.bytes
        return sizes.most_common(1)[0][0] if sizes else ""

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of its architecture: "context_length" is "llama.context_length" of a Llama."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


@dataclass(frozen=True)
class GgufSummary:
    """What the first bytes of a GGUF file say.

    Attributes:
        architecture: "llama", for example; "" where it is not among the first keys.
        quantization: of the whole file; "" where it is not stated.
        parts: how many files the model is split into; 1 for a whole model.
    """

    architecture: str
    quantization: str = ""
    parts: int = 1


def read_header(file: IO[bytes], name: str) -> GgufHeader:
    """Reads the header of an open file.

    Args:
        name: of the file, for messages.

    Raises:
        BaseModelError: it is not a GGUF file, it is damaged, or it has values of an unknown type.
    """
    size = os.fstat(file.fileno()).st_size
    reader = _Reader(file, name, min(size, HEADER_LIMIT), size)
    tensor_count, key_count = reader.read_preamble()
    metadata = {}
    for _ in range(key_count):
        key = reader.read_text(NAME_LIMIT)
        metadata[key] = reader.read_value(reader.read_number("I"))
    if not isinstance(metadata.get("general.architecture"), str):
        reader.fail("its header names no architecture")
    table = [reader.read_tensor() for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= ALIGNMENT_LIMIT:
        reader.fail(f"its alignment is {alignment!r}")
    data = -(-reader.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for tensor_name, shape, type_number, offset in table:
        if tensor_name in tensors:
            reader.fail(f"it has two tensors {tensor_name!r}")
        tensors[tensor_name] = _place_tensor(reader, tensor_name, shape, type_number, data + offset)
    if sum(tensor.bytes for tensor in tensors.values()) > max(0, size - data):
        reader.fail("its tensors overlap")
    return GgufHeader(name, metadata, tensors, size)


def _place_tensor(
    reader: _Reader, name: str, shape: tuple[int, ...], type_number: int, start: int
) -> TensorInfo:
    """Checks that a tensor has a known type and lies within the file."""
    tensor_type = TENSOR_TYPES.get(type_number)
    if tensor_type is None:
        known = ", ".join(t.name for t in TENSOR_TYPES.values())
        raise BaseModelError(
            f"{reader.name!r} has a tensor ({name}) of the quantization number {type_number}, which is not "
            "supported.",
            f"These are: {known}. Choose another file of the model, Q4_K_M or Q8_0 for example.",
        )
    if shape[-1] % tensor_type.block:
        reader.fail(f"the rows of {name} have {shape[-1]:,} values, which {tensor_type.name} cannot store")
    count = math.prod(shape) // tensor_type.block * tensor_type.bytes
    if start + count > reader.size:
        missing = start + count - reader.size
        raise BaseModelError(
            f"{reader.name!r} is not complete: {missing:,} bytes of the tensor {name} are missing.",
            _COPY_AGAIN,
        )
    return TensorInfo(name, shape, tensor_type, start, count)


def read_summary(path: Path) -> GgufSummary:
    """Reads the first keys of a file, up to the vocabulary: it takes less than a millisecond.

    Raises:
        BaseModelError: it is not a GGUF file, or is damaged there. NotFound, InvalidName: it is not a file.
    """
    check_regular_file(path)
    try:
        with open(path, "rb") as file:
            return _summarize(_Reader(file, path.name, SUMMARY_BYTES, path.stat().st_size))
    except OSError as e:
        raise BaseModelError(
            f"{path.name!r} cannot be read: {e.strerror or e}.", "Check its permissions."
        ) from e


def _summarize(reader: _Reader) -> GgufSummary:
    _, key_count = reader.read_preamble()
    found: dict[str, Any] = {}
    for _ in range(key_count):
        key = reader.read_text(NAME_LIMIT)
        if key.startswith("tokenizer."):
            break
        found[key] = reader.read_value(reader.read_number("I"))
    parts = found.get("split.count", 1)
    return GgufSummary(
        str(found.get("general.architecture", "")),
        FILE_TYPES.get(found.get("general.file_type", -1), ""),
        parts if isinstance(parts, int) and parts > 1 else 1,
    )


class _Reader:
    """Reads values one after the other, and never past a limit.

    Args:
        limit: bytes that may be read.
        size: of the file.
    """

    def __init__(self, file: IO[bytes], name: str, limit: int, size: int) -> None:
        self.name, self.size, self.position = name, size, 0
        self._file, self._limit = file, min(limit, size)
        self._buffer = bytearray()

    def fail(self, reason: str) -> NoReturn:
        raise BaseModelError(f"{self.name!r} is damaged: {reason}.", _COPY_AGAIN)

    def _take(self, count: int) -> int:
        """Makes sure that `count` more bytes are in the buffer; returns where they begin."""
        begin, self.position = self.position, self.position + count
        if self.position > self._limit:
            what = "it ends within its header" if self._limit == self.size else "its header is too long"
            self.fail(what)
        while len(self._buffer) < self.position:
            wanted = min(max(BLOCK_BYTES, self.position - len(self._buffer)), self._limit - len(self._buffer))
            block = self._file.read(wanted)
            if not block:
                self.fail("it ends within its header")
            self._buffer += block
        return begin

    def read_number(self, form: str) -> Any:
        return struct.unpack_from(f"<{form}", self._buffer, self._take(struct.calcsize(f"<{form}")))[0]

    def read_text(self, limit: int = TEXT_LIMIT) -> str:
        length = self.read_number("Q")
        if length > limit:
            self.fail(f"it states a text of {length:,} bytes")
        begin = self._take(length)
        try:
            return self._buffer[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a text of its header is not UTF-8")

    def read_value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.read_number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.read_text()
        if kind != _ARRAY:
            self.fail(f"its header has a value of the unknown type {kind}")
        kind, count = self.read_number("I"), self.read_number("Q")
        if count > ARRAY_LIMIT:
            self.fail(f"it states a list of {count:,} values")
        if kind == _TEXT:
            return [self.read_text() for _ in range(count)]
        if kind not in _NUMBERS:
            self.fail(f"its header has a list of the unknown type {kind}")
        form = f"<{count}{_NUMBERS[kind]}"
        return list(struct.unpack_from(form, self._buffer, self._take(struct.calcsize(form))))

    def read_preamble(self) -> tuple[int, int]:
        """(number of tensors, number of keys)

        Raises:
            BaseModelError: it is not a GGUF file of a version that can be read.
        """
        if self.size < 24:
            self._refuse_format(self._file.read(4))
        begin = self._take(8)
        magic, version = struct.unpack_from("<4sI", self._buffer, begin)
        if magic != MAGIC:
            self._refuse_format(magic)
        if version & 0xFFFF == 0:
            raise BaseModelError(
                f"{self.name!r} is a GGUF file for big-endian processors.",
                "Choose the usual, little-endian file of the model.",
            )
        if version not in VERSIONS:
            raise BaseModelError(
                f"{self.name!r} is a GGUF file of version {version}; versions 2 and 3 can be read.",
                "Choose a newer file of the model.",
            )
        tensor_count, key_count = self.read_number("Q"), self.read_number("Q")
        if tensor_count > TENSOR_LIMIT or key_count > KEY_LIMIT:
            self.fail(f"it states {tensor_count:,} tensors and {key_count:,} keys")
        return tensor_count, key_count

    def _refuse_format(self, magic: bytes) -> NoReturn:
        what = "It is empty" if not self.size else f"It begins with {magic!r}, not with {MAGIC!r}"
        raise BaseModelError(f"{self.name!r} is not a GGUF file. {what}.", "Choose a file of the type GGUF.")

    def read_tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape with rows first, number of its type, offset from the data)"""
        name = self.read_text(NAME_LIMIT)
        count = self.read_number("I")
        if not 1 <= count <= DIMENSION_LIMIT:
            self.fail(f"the tensor {name} has {count} dimensions")
        dimensions = [self.read_number("Q") for _ in range(count)]
        if any(d < 1 or d > 1 << 40 for d in dimensions):
            self.fail(f"the tensor {name} has the dimensions {dimensions}")
        return name, tuple(reversed(dimensions)), self.read_number("I"), self.read_number("Q")
