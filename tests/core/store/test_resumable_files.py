"""Files that are written block by block: every place of a stop, another plan, a damaged journal."""

from __future__ import annotations

import pytest

from core.errors import Cancelled, DiskFull
from core.store import resumable_files
from core.store.resumable_files import Block, write_blocks

CONTENT = [bytes([n]) * (n + 1) for n in range(40)]


def blocks_of(content, read):
    def make(piece):
        def read_piece():
            read.append(piece)
            yield piece[: len(piece) // 2]
            yield piece[len(piece) // 2 :]

        return Block(len(piece), read_piece)

    return [make(piece) for piece in content]


@pytest.fixture(autouse=True)
def sync_often(monkeypatch):
    monkeypatch.setattr(resumable_files, "SYNC_BYTES", 100)


@pytest.mark.parametrize("at", [1, 2, 30, 31, 60, 79, 80])
def test_a_stopped_file_is_continued_and_equals_one_written_at_once(tmp_path, at):
    path, count, read = tmp_path / "file", 0, []

    def poll():
        nonlocal count
        count += 1
        return count == at

    with pytest.raises(Cancelled):
        write_blocks(path, "plan", blocks_of(CONTENT, read), poll_stop=poll)
    assert not path.exists()
    before, done = len(read), []
    write_blocks(path, "plan", blocks_of(CONTENT, read), lambda n, total: done.append(n))
    assert path.read_bytes() == b"".join(CONTENT)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    again = before + len(read[before:]) - len(CONTENT)
    assert 0 <= again <= 15, "what was on the disk is not computed again"
    assert done == sorted(done) and done[-1] == sum(map(len, CONTENT))


def test_a_part_of_another_plan_is_begun_again(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(Cancelled):
        write_blocks(path, "one", blocks_of(CONTENT, read := []), poll_stop=lambda: len(read) > 30)
    other = [piece[::-1] + b"x" for piece in CONTENT]
    write_blocks(path, "two", blocks_of(other, []))
    assert path.read_bytes() == b"".join(other)


@pytest.mark.parametrize("journal", ["", "{}", "[]", '{"plan": "plan", "blocks": 3, "bytes": 900}', "{"])
def test_a_damaged_journal_costs_only_time(tmp_path, journal):
    (tmp_path / "file.part").write_bytes(b"rest of something")
    (tmp_path / "file.progress").write_text(journal)
    write_blocks(tmp_path / "file", "plan", blocks_of(CONTENT, []))
    assert (tmp_path / "file").read_bytes() == b"".join(CONTENT)


def test_a_full_disk_is_said_and_the_part_stays(tmp_path):
    def fail():
        yield b"a"
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFull):
        write_blocks(tmp_path / "file", "plan", [Block(200, lambda: [b"b" * 200]), Block(2, fail)])
    assert (tmp_path / "file.part").exists() and not (tmp_path / "file").exists()


def test_a_block_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="block 1 of file has 3 bytes"):
        write_blocks(tmp_path / "file", "plan", [Block(2, lambda: [b"abc"])])
    assert not (tmp_path / "file").exists()
