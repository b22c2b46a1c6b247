"""64-bit hashes of what rows ask, for many rows: equal exactly where `splits.question_key` is equal.

`hash_texts` normalizes the texts of a block in a few passes where they are ASCII with single spaces, as
`splits.normalize_text` does, and calls that function for all others. Of n questions, two share a hash with a
probability of about n² / 2^65: below one in a million for 5 million rows. They would fall into one split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from core.data.splits import list_question_parts, normalize_text
from core.data.streaming.arrow_arrays import measure, offsets_of

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

CHUNK_BYTES = 128 << 10  # that are searched together: what is made of them stays in the processor's cache
# Neither occurs in a normalized text: both count as blanks.
_ROLE_END, _PART_END = b"\x1e", b"\x1f"
_TRIM_LEFT, _TRIM_RIGHT = "\"' ", ".,;:!?\"' "  # the ASCII characters that `normalize_text` strips


def hash_questions(rows: Iterable[Mapping[str, Any]]) -> NDArray[np.uint64]:
    """Hashes what each canonical row asks, row by row."""
    return np.fromiter((_hash_parts(list_question_parts(row)) for row in rows), np.uint64)


def _hash_parts(parts: Sequence[tuple[str, str]]) -> int:
    roles = tuple(role for role, _ in parts)
    return _hash_key(roles, [text.encode("utf-8", "surrogatepass") for _, text in parts])


def _hash_key(roles: tuple[str, ...], texts: Iterable[bytes]) -> int:
    if len(roles) == 1 and roles[0] in ("", "user"):  # a text, or a single question
        return int(xxhash.xxh3_64_intdigest(next(iter(texts))))
    key = b"".join(role.encode() + _ROLE_END + text + _PART_END for role, text in zip(roles, texts))
    return int(xxhash.xxh3_64_intdigest(key))


def hash_texts(
    roles: Sequence[str],
    texts: Sequence[pa.StringArray],
    read: Callable[[int, NDArray[np.int64]], list[str]],
) -> NDArray[np.uint64]:
    """Hashes the questions of many rows that have the same roles.

    Args:
        roles: role of each part of the question; "" for the text of a domain row.
        texts: for each part the texts of all rows, as JSON writes them between quotes.
        read: reads the texts of one part in some rows from their JSON form.
    """
    columns = [_normalize(array, partial(read, part)) for part, array in enumerate(texts)]
    if len(roles) == 1 and roles[0] in ("", "user"):
        digest = xxhash.xxh3_64_intdigest
        return np.fromiter(map(digest, columns[0]), np.uint64, len(columns[0]))
    names = tuple(roles)
    return np.fromiter((_hash_key(names, parts) for parts in zip(*columns)), np.uint64, len(columns[0]))


def _normalize(texts: pa.StringArray, read: Callable[[NDArray[np.int64]], list[str]]) -> list[bytes]:
    """Normalizes texts in their JSON form, in UTF-8."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lower = pc.ascii_lower(texts)
    plain = pc.ascii_rtrim(pc.ascii_ltrim(lower, characters=_TRIM_LEFT), characters=_TRIM_RIGHT)
    normalized: list[bytes] = plain.cast(pa.binary()).to_pylist()
    is_unusual = _find_unusual(texts) | (measure(plain) == 0)
    rows = np.flatnonzero(is_unusual)
    if len(rows):
        for row, text in zip(rows.tolist(), read(rows), strict=True):
            normalized[row] = normalize_text(text).encode("utf-8", "surrogatepass")
    return normalized


def _find_unusual(texts: pa.StringArray) -> NDArray[np.bool_]:
    """Which rows have escapes, characters outside ASCII, or two spaces in a row."""
    ends = offsets_of(texts)
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[: ends[-1]]
    rows = np.zeros(len(texts), np.bool_)
    for begin in range(0, len(data), CHUNK_BYTES):
        chunk = data[begin : begin + CHUNK_BYTES + 1]  # with the first byte of the next one, for two spaces
        is_unusual = chunk > 0x7E
        is_unusual |= chunk == 0x5C
        is_space = chunk == 0x20
        is_unusual[1:] |= is_space[1:] & is_space[:-1]
        places = np.flatnonzero(is_unusual)
        if len(places):
            rows[np.searchsorted(ends, places + begin, "right") - 1] = True
    return rows
