"""Damaged GGUF headers end in a sentence, and nothing is read past a limit."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path
from typing import IO

import pytest

from core.errors import BaseModelError, InvalidName, NotFound
from core.gguf import header as gguf_header
from core.gguf.header import GgufHeader, read_header, read_summary


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def number(name: str, value: int) -> bytes:
    return key(name, 4, struct.pack("<I", value))


def tensor(name: str, dimensions: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


ARCHITECTURE = key("general.architecture", 8, text("llama"))


def build(
    keys: list[bytes], tensors: list[bytes] | None = None, data: bytes = b"", version: int = 3, **counts: int
) -> bytes:
    tensors = tensors or []
    head = struct.pack(
        "<4sIQQ",
        b"GGUF",
        version,
        counts.get("tensor_count", len(tensors)),
        counts.get("key_count", len(keys)),
    )
    head += b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


def read(content: bytes, tmp_path: Path) -> GgufHeader:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with open(path, "rb") as file:
        return read_header(file, "model.gguf")


def test_values_and_places_are_read(tmp_path: Path) -> None:
    numbers = key("llama.list", 9, struct.pack("<IQ3f", 6, 3, 1.0, 2.0, 0.5))
    names = key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("é"))
    truth = key("tokenizer.ggml.add_bos_token", 7, b"\1")
    tensors = [tensor("one", (32, 2)), tensor("two", (64, 3), kind=8, offset=256)]
    found = read(
        build([ARCHITECTURE, number("llama.block_count", 7), numbers, names, truth], tensors, b"\0" * 1000),
        tmp_path,
    )
    assert found.architecture == "llama" and found.get("block_count") == 7
    assert found.metadata["llama.list"] == [1.0, 2.0, 0.5]
    assert found.metadata["tokenizer.ggml.tokens"] == ["a", "é"]
    assert found.metadata["tokenizer.ggml.add_bos_token"] is True
    one, two = found.tensors["one"], found.tensors["two"]
    assert one.shape == (2, 32) and two.shape == (3, 64) and two.row_bytes == 68 and two.bytes == 204
    assert two.start - one.start == 256 and one.start % 32 == 0 and found.quantization == "F32"


DAMAGES = {
    "empty": (b"", "is not a GGUF file. It is empty"),
    "another file": (b"PK\3\4" + b"\0" * 60, r"is not a GGUF file. It begins with b'PK"),
    "version 1": (build([ARCHITECTURE], version=1), "of version 1; versions 2 and 3 can be read"),
    "big-endian": (build([ARCHITECTURE], version=3 << 24), "for big-endian processors"),
    "no architecture": (build([number("a", 1)]), "its header names no architecture"),
    "too many keys": (build([ARCHITECTURE], key_count=10_001), "10,001 keys"),
    "too many tensors": (build([ARCHITECTURE], tensor_count=100_001), "100,001 tensors"),
    "unknown value": (build([ARCHITECTURE, key("a", 13, b"")]), "a value of the unknown type 13"),
    "list of lists": (
        build([ARCHITECTURE, key("a", 9, struct.pack("<IQ", 9, 1))]),
        "list of the unknown type 9",
    ),
    "long list": (
        build([ARCHITECTURE, key("a", 9, struct.pack("<IQ", 4, 4_000_001))]),
        "states a list of 4,000,001 values",
    ),
    "long text": (
        build([ARCHITECTURE, key("a", 8, struct.pack("<Q", (4 << 20) + 1))]),
        "states a text of 4,194,305 bytes",
    ),
    "long name": (build([struct.pack("<Q", 257)]), "states a text of 257 bytes"),
    "not UTF-8": (build([ARCHITECTURE, key("a", 8, struct.pack("<Q", 1) + b"\xff")]), "is not UTF-8"),
    "ends early": (build([ARCHITECTURE], key_count=2)[:70], "it ends within its header"),
    "five dimensions": (
        build([ARCHITECTURE], [tensor("a", (1, 1, 1, 1, 1))], b"\0" * 64),
        "has 5 dimensions",
    ),
    "no values": (build([ARCHITECTURE], [tensor("a", (0,))]), r"has the dimensions \[0\]"),
    "unknown quantization": (
        build([ARCHITECTURE], [tensor("a", (32,), kind=41)], b"\0" * 64),
        r"\(a\) of the quantization number 41, which is not supported. These are: F32, F16, Q4_0",
    ),
    "half a block": (
        build([ARCHITECTURE], [tensor("a", (33,), kind=8)], b"\0" * 64),
        "have 33 values, which Q8_0 cannot store",
    ),
    "data missing": (
        build([ARCHITECTURE], [tensor("a", (32,))], b"\0" * 127),
        "is not complete: 1 bytes of the tensor a are missing",
    ),
    "two of one name": (
        build([ARCHITECTURE], [tensor("a", (8,)), tensor("a", (8,))], b"\0" * 64),
        "has two tensors 'a'",
    ),
    "overlap": (
        build([ARCHITECTURE], [tensor("a", (8,)), tensor("b", (8,))], b"\0" * 32),
        "its tensors overlap",
    ),
    "alignment": (
        build([ARCHITECTURE, number("general.alignment", 0)], [tensor("a", (8,))], b"\0" * 64),
        "its alignment is 0",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_header_ends_in_a_sentence(name: str, tmp_path: Path) -> None:
    content, message = DAMAGES[name]
    with pytest.raises(BaseModelError, match=message):
        read(content, tmp_path)


def test_no_cut_or_changed_byte_raises_another_error(tmp_path: Path) -> None:
    whole = build(
        [ARCHITECTURE, number("llama.block_count", 2), key("a", 9, struct.pack("<IQ", 8, 1) + text("t"))],
        [tensor("one", (32, 2)), tensor("two", (64, 3), kind=8, offset=256)],
        b"\0" * 460,
    )
    read(whole, tmp_path)
    chance = random.Random(3)
    damaged = [whole[:n] for n in range(0, len(whole), 7)]
    for _ in range(400):
        changed = bytearray(whole)
        changed[chance.randrange(260)] = chance.randrange(256)
        damaged.append(bytes(changed))
    refused = 0
    for content in damaged:
        try:
            read(content, tmp_path)
        except BaseModelError as e:
            refused += 1
            assert e.what.startswith("'model.gguf'") and e.fix
    assert refused > 250


def test_a_header_is_read_only_as_far_as_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = build([ARCHITECTURE, key("a", 8, text("x" * 5000))])
    read(content, tmp_path)
    monkeypatch.setattr(gguf_header, "HEADER_LIMIT", 4000)
    with pytest.raises(BaseModelError, match="its header is too long"):
        read(content, tmp_path)


class CountingFile(io.FileIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
        block = super().read(size)
        CountingFile.count += len(block or b"")
        return block or b""


def test_a_summary_stops_before_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = b"".join(text(f"token {i}") for i in range(200_000))
    keys = [
        ARCHITECTURE,
        number("general.file_type", 15),
        number("split.count", 3),
        key("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 200_000) + tokens),
    ]
    path = tmp_path / "model.gguf"
    path.write_bytes(build(keys))

    def open_counted(path: Path, mode: str) -> IO[bytes]:
        return CountingFile(path, mode)  # type: ignore[return-value]

    monkeypatch.setattr(gguf_header, "open", open_counted, raising=False)
    found = read_summary(path)
    assert (found.architecture, found.quantization, found.parts) == ("llama", "Q4_K_M", 3)
    assert path.stat().st_size > 3_000_000 and CountingFile.count <= gguf_header.BLOCK_BYTES


def test_links_and_folders_are_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(build([ARCHITECTURE]))
    (tmp_path / "link.gguf").symlink_to(file)
    with pytest.raises(InvalidName, match="is not a regular file"):
        read_summary(tmp_path / "link.gguf")
    with pytest.raises(NotFound):
        read_summary(tmp_path / "missing.gguf")
