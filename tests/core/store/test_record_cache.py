"""Records are read again exactly when their files have changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from core.data.datasets import import_dataset, list_datasets, load_dataset
from core.errors import DamagedRecord, NotFound
from core.store import mixes, record_cache
from core.store.record_cache import RecordCache
from core.store.workspace import Workspace


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was changed just now counts as settled, so that a test need not wait."""
    monkeypatch.setattr(record_cache, "SETTLE_NANOSECONDS", -(10**9))


def count_reads(cache: RecordCache, file: Path, times: int) -> int:
    calls = []
    for _ in range(times):
        assert cache.read((), (file.name,), lambda: calls.append(1) or file.read_text()) == file.read_text()
    return len(calls)


def test_an_unchanged_file_is_read_once(tmp_path, settled):
    file, cache = tmp_path / "a", RecordCache(tmp_path)
    file.write_text("one")
    assert count_reads(cache, file, 5) == 1


@pytest.mark.parametrize("change", ["content", "replaced", "same size", "touched back"])
def test_every_change_of_a_file_is_seen(tmp_path, settled, change):
    file, cache = tmp_path / "a", RecordCache(tmp_path)
    file.write_text("one")
    before = file.stat()
    assert count_reads(cache, file, 2) == 1
    time.sleep(0.02)  # more than one tick of the clock of the file system
    if change == "content":
        file.write_text("three")
    elif change == "replaced":
        (tmp_path / "b").write_text("two")
        os.replace(tmp_path / "b", file)
    else:
        file.write_text("two")
    if change == "touched back":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert count_reads(cache, file, 2) == 1


def test_a_file_that_was_changed_just_now_is_read_again(tmp_path):
    file, cache = tmp_path / "a", RecordCache(tmp_path)
    file.write_text("one")
    assert count_reads(cache, file, 3) == 3
    old = time.time_ns() - 10**9
    os.utime(file, ns=(old, old))
    assert count_reads(cache, file, 3) == 3, "its other time is still new"


def test_an_error_is_not_kept(tmp_path, settled):
    file, cache, calls = tmp_path / "a", RecordCache(tmp_path), []

    def fail() -> None:
        calls.append(1)
        raise ValueError("unreadable")

    file.write_text("one")
    for _ in range(2):
        with pytest.raises(ValueError, match="unreadable"):
            cache.read((), ("a",), fail)
    assert len(calls) == 2
    file.unlink()
    with pytest.raises(FileNotFoundError):
        count_reads(cache, file, 1)


def test_the_number_of_records_in_memory_is_limited(tmp_path, settled, monkeypatch):
    monkeypatch.setattr(record_cache, "ENTRY_LIMIT", 3)
    cache = RecordCache(tmp_path)
    for number in range(8):
        (tmp_path / str(number)).write_text("x")
        count_reads(cache, tmp_path / str(number), 1)
        assert len(cache._entries) <= 3


def test_items_that_are_damaged_or_deleted_after_a_list_are_noticed(tmp_path, pairs, settled):
    workspace = Workspace(tmp_path / "w")
    made = import_dataset(workspace, [pairs], "Pairs")
    mix = mixes.save(workspace, "Empty", {})
    assert list_datasets(workspace) == list_datasets(workspace) == [made]
    assert [m.id for m in mixes.load_all(workspace)] == [mix.id]
    time.sleep(0.02)
    split = workspace.path("datasets", made.id, "splits", f"{made.id}_val.jsonl")
    split.write_bytes(split.read_bytes()[:-1])
    assert list_datasets(workspace) == []
    with pytest.raises(DamagedRecord, match="cut off"):
        load_dataset(workspace, made.id)
    workspace.remove("mixes", mix.id)
    with pytest.raises(NotFound):
        mixes.load(workspace, mix.id)
