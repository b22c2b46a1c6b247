"""Arrow arrays from the memory of numpy arrays and bytes, without pandas.

`pyarrow.array` and conversions of Python values import pandas, which costs more time and memory than a small
import has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


def from_integers(values: NDArray[Any]) -> pa.Array:
    """An array of integers, such as indices."""
    import pyarrow as pa

    values = np.ascontiguousarray(values)
    kind = pa.int32() if values.dtype == np.int32 else pa.int64()
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def from_mask(values: NDArray[np.bool_]) -> pa.BooleanArray:
    """An array of true and false."""
    import pyarrow as pa

    bits = np.packbits(values, bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])


def from_texts(texts: Iterable[str | bytes | None]) -> pa.StringArray:
    """An array of texts; bytes are UTF-8."""
    import pyarrow as pa

    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int32)
    np.cumsum([len(text or b"") for text in encoded], out=offsets[1:])
    valid = None
    if None in encoded:
        valid = pa.py_buffer(np.packbits([text is not None for text in encoded], bitorder="little"))
    data = pa.py_buffer(b"".join(text or b"" for text in encoded))
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), data, valid)


def repeat(text: str, count: int) -> pa.StringArray:
    """The same text many times."""
    return from_texts([text]).take(from_integers(np.zeros(count, np.int32)))


def to_scalar(text: str) -> pa.StringScalar:
    """A text as one value."""
    return from_texts([text])[0]


def to_mask(values: pa.BooleanArray) -> NDArray[np.bool_]:
    """True and false as a numpy array; no value may be missing."""
    return np.asarray(values.to_numpy(zero_copy_only=False), np.bool_)


def measure(texts: pa.StringArray) -> NDArray[np.int32]:
    """The bytes of each text."""
    return np.diff(offsets_of(texts))


def offsets_of(texts: pa.StringArray) -> NDArray[np.int32]:
    """Where each text begins in the data of the array, and where the last one ends."""
    buffer = texts.buffers()[1]
    if buffer is None:
        return np.zeros(1, np.int32)
    return np.frombuffer(buffer, np.int32)[texts.offset : texts.offset + len(texts) + 1]
