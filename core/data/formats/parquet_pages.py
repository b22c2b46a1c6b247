"""What the pages of a parquet file say before they are decoded: how long the texts of a dictionary are.

    column chunk ─> [dictionary page] data page data page ...      each: a header in Thrift's compact protocol

A dictionary of one long text and a million references to it take a few kilobytes, and decode to gigabytes.
The metadata at the end of the file may claim anything; pyarrow decodes by the headers of the pages, which are
read here.
Source: https://github.com/apache/parquet-format (PageHeader), and Thrift's compact protocol specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, Any

DICTIONARY_LIMIT_BYTES = 64 << 20  # of one dictionary
PAGE_LIMIT = 1_000_000  # pages of a file
HEADER_BYTES = 1 << 16  # of a page; its statistics hold two texts
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3  # types of pages
_INDEX = 1
_DICTIONARY_ENCODINGS = (2, 8)  # PLAIN_DICTIONARY and RLE_DICTIONARY
_DELTA_BYTE_ARRAY = 7
_DEPTH_LIMIT = 8
_TRUE, _FALSE, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, (9, 10), 12


@dataclass(frozen=True)
class Pages:
    """The pages of one column chunk.

    Attributes:
        count: how many there are.
        references: values that refer to the dictionary.
        longest: bytes of the longest text of the dictionary; 0 without one.
    """

    count: int
    references: int
    longest: int


def survey_pages(file: IO[bytes], start: int, size: int, codec: str) -> Pages:
    """Reads the headers of the pages of a chunk of texts, and its dictionary.

    Args:
        file: open for reading, seekable.
        start, size: of the chunk in the file, in bytes.
        codec: of its pages, as pyarrow names it.

    Raises:
        ValueError: the headers are damaged, or the dictionary is too large or not at the beginning.
    """
    at, end = start, start + size
    count = references = longest = 0
    while at < end:
        file.seek(at)
        header = _Header(file.read(min(HEADER_BYTES, end - at)))
        fields = header.read_struct()
        kind, unpacked, packed = (_take_number(fields, key) for key in (1, 2, 3))
        begin = at + header.at
        at = begin + packed
        count += 1
        if count > PAGE_LIMIT or at > end:
            raise ValueError("its pages do not fit into the column")
        if kind == _DICTIONARY:
            if count > 1:
                raise ValueError("a dictionary is not at the beginning of its column")
            longest = _find_longest(file, begin, packed, unpacked, codec)
        elif kind in (_DATA, _DATA_V2):
            details = fields.get(5 if kind == _DATA else 8)
            if not isinstance(details, dict):
                raise ValueError("the header of a page is incomplete")
            encoding = _take_number(details, 2 if kind == _DATA else 4)
            if encoding == _DELTA_BYTE_ARRAY:
                raise ValueError("a page has the encoding DELTA_BYTE_ARRAY, which is not supported")
            if encoding in _DICTIONARY_ENCODINGS:
                references += _take_number(details, 1)
        elif kind != _INDEX:
            raise ValueError(f"a page has the unknown type {kind}")
    return Pages(count, references, longest)


def _take_number(fields: dict[int, Any], key: int) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or value < 0:
        raise ValueError("the header of a page is incomplete")
    return value


def _find_longest(file: IO[bytes], begin: int, packed: int, unpacked: int, codec: str) -> int:
    """The bytes of the longest text in a dictionary page."""
    import pyarrow as pa

    if unpacked > DICTIONARY_LIMIT_BYTES or packed > DICTIONARY_LIMIT_BYTES:
        raise ValueError(f"a dictionary has more than {DICTIONARY_LIMIT_BYTES:,} bytes")
    file.seek(begin)
    data = file.read(packed)
    if codec.upper() != "UNCOMPRESSED":
        name = "lz4_raw" if codec.upper() == "LZ4" else codec.lower()
        try:
            data = pa.Codec(name).decompress(data, unpacked).to_pybytes()
        except (ValueError, TypeError, OSError):  # damaged, or a codec that only the reader of pages has
            return unpacked  # no text is longer
    longest = at = 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        longest, at = max(longest, length), at + 4 + length
    return min(longest, unpacked)


class _Header:
    """A struct in Thrift's compact protocol, as a dict of field number to value; texts and lists are skipped.

    Attributes:
        at: where the rest begins.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def read_struct(self, depth: int = 0) -> dict[int, Any]:
        """Reads a struct from its first field to its end.

        Raises:
            ValueError: it is damaged.
        """
        if depth > _DEPTH_LIMIT:
            raise ValueError("the header of a page is nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while (first := self._take_byte()) != 0:
            number = number + (first >> 4) if first >> 4 else self._read_integer()
            fields[number] = self._read_value(first & 15, depth)
        return fields

    def _read_value(self, kind: int, depth: int, is_item: bool = False) -> Any:
        if kind in (_TRUE, _FALSE):
            return self._take_byte() == _TRUE if is_item else kind == _TRUE
        if kind == _BYTE:
            return self._take_byte()
        if kind in _INTEGERS:
            return self._read_integer()
        if kind == _DOUBLE:
            return self._skip(8)
        if kind == _BINARY:
            return self._skip(self._read_varint())
        if kind in _LISTS:
            first = self._take_byte()
            count = first >> 4 if first >> 4 < 15 else self._read_varint()
            if count > len(self._data):
                raise ValueError("the header of a page is damaged")
            for _ in range(count):
                self._read_value(first & 15, depth + 1, is_item=True)
            return None
        if kind == _STRUCT:
            return self.read_struct(depth + 1)
        raise ValueError("the header of a page is damaged")

    def _take_byte(self) -> int:
        if self.at >= len(self._data):
            raise ValueError("the header of a page is cut off")
        self.at += 1
        return self._data[self.at - 1]

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self._data):
            raise ValueError("the header of a page is cut off")

    def _read_varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._take_byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("the header of a page is damaged")

    def _read_integer(self) -> int:
        value = self._read_varint()
        return (value >> 1) ^ -(value & 1)
