"""Large files have the bytes that were written, with and without O_DIRECT."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random

import pytest

from core.store import large_files
from core.store.large_files import LargeFile, LargeReader, set_direct

SIZES = (0, 1, 4095, 4096, 8192, 8193, 40_000)


class RefusingFile(io.FileIO):
    """A file on a disk that accepts O_DIRECT and then refuses every transfer with it."""

    refused = 0

    def _check(self):
        import fcntl

        if fcntl.fcntl(self.fileno(), fcntl.F_GETFL) & os.O_DIRECT:
            RefusingFile.refused += 1
            raise OSError(errno.EINVAL, "Invalid argument")

    def write(self, block):
        self._check()
        return super().write(block[: 1 + len(block) // 2])  # and the system may write a part

    def readinto(self, space):
        self._check()
        return super().readinto(space)


@pytest.fixture(params=["direct", "cached", "refusing"])
def disk(request, monkeypatch):
    monkeypatch.setattr(large_files, "STAGE_BYTES", 8192)
    monkeypatch.setattr(large_files, "FLUSH_BYTES", 8192)
    if request.param == "cached":
        monkeypatch.setattr(large_files, "set_direct", lambda descriptor, is_direct: False)
    if request.param == "refusing":
        if not hasattr(os, "O_DIRECT"):
            pytest.skip("this system has no O_DIRECT")
        monkeypatch.setattr(large_files, "open", lambda path, mode, buffering: RefusingFile(path, mode[0]),
                            raising=False)  # fmt: skip
        RefusingFile.refused = 0
    return request.param


@pytest.mark.parametrize("size", SIZES)
def test_a_file_has_the_bytes_and_the_digest_of_its_blocks(tmp_path, disk, size):
    draw = random.Random(size)
    content = draw.randbytes(size)
    cuts = sorted([0, size, *(draw.randint(0, size) for _ in range(7))])
    path = tmp_path / "file"
    with LargeFile(path) as file:
        for begin, end in zip(cuts, cuts[1:]):
            file.write(memoryview(content)[begin:end].cast("b"))  # as the buffers of Arrow are
        assert file.size == size
    file.close()
    assert path.read_bytes() == content and file.sha.hexdigest() == hashlib.sha256(content).hexdigest()
    read = bytearray(size + 100)
    with LargeReader(path) as reader:
        first = reader.readinto(memoryview(read)[:5001])
        rest = reader.readinto(memoryview(read)[first:])
        assert reader.readinto(bytearray(1)) == 0
    assert (first, rest) == (min(size, 5001), max(0, size - 5001)) and read[:size] == content
    if disk == "refusing":
        assert RefusingFile.refused == (0 if size < 8192 else 2)  # once for the file, once for the reader


def test_a_full_disk_is_an_error_and_the_file_is_closed(tmp_path, monkeypatch):
    class FullFile(io.FileIO):
        def write(self, block):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(large_files, "open", lambda path, mode, buffering: FullFile(path, "x"), raising=False)
    file = LargeFile(tmp_path / "file")
    file.write(b"a few bytes")
    with pytest.raises(OSError, match="No space left"):
        file.close()
    file.close()
    assert file._file.closed


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no O_DIRECT")
def test_direct_transfers_are_switched_on_and_off(tmp_path):
    import fcntl

    with open(tmp_path / "file", "xb", buffering=0) as f:
        is_direct = set_direct(f.fileno(), True)
        assert bool(fcntl.fcntl(f.fileno(), fcntl.F_GETFL) & os.O_DIRECT) == is_direct
        assert set_direct(f.fileno(), False) is False
        assert f.write(b"three") == 5
