"""Event logs: appended and never rewritten, read by cursor; a torn line costs only itself."""

import errno
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from core.errors import StorageError
from core.store import event_log as room
from core.store.event_log import EventLog, read_since


@pytest.fixture
def log(tmp_path):
    return EventLog(tmp_path / "run" / "events.jsonl")


def test_events_come_back_as_they_were_written(log):
    log.append("step", step=1, loss=2.5)
    log.append("note", text="é\nline two")
    events, cursor = read_since(log.path)
    assert [(e["kind"], e.get("step"), e.get("loss"), e.get("text")) for e in events] == [
        ("step", 1, 2.5, None),
        ("note", None, None, "é\nline two"),
    ]
    assert cursor == log.path.stat().st_size
    assert (
        abs(events[0]["time"] - time.time()) < 60 and 0 <= events[0]["elapsed"] <= events[1]["elapsed"] < 60
    )


def test_a_cursor_gives_only_what_is_new(log):
    log.append("a")
    _, cursor = read_since(log.path)
    assert read_since(log.path, cursor) == ([], cursor)
    log.append("b")
    log.append("c")
    events, cursor = read_since(log.path, cursor)
    assert [e["kind"] for e in events] == ["b", "c"] and read_since(log.path, cursor)[0] == []


def test_a_missing_log_and_an_empty_log_have_no_events(tmp_path):
    assert read_since(tmp_path / "none.jsonl", 17) == ([], 0)
    (tmp_path / "empty.jsonl").touch()
    assert read_since(tmp_path / "empty.jsonl") == ([], 0)


def test_a_cursor_beyond_the_end_starts_again(log):
    log.append("a")
    assert [e["kind"] for e in read_since(log.path, 10_000)[0]] == ["a"]


def test_an_unterminated_last_line_is_left_for_the_next_read(log):
    log.append("a")
    whole = log.path.stat().st_size
    with open(log.path, "ab") as f:
        f.write(b'{"kind": "b", "ti')
    events, cursor = read_since(log.path)
    assert [e["kind"] for e in events] == ["a"] and cursor == whole
    with open(log.path, "ab") as f:
        f.write(b'me": 1}\n')
    assert [e["kind"] for e in read_since(log.path, cursor)[0]] == ["b"]


def test_after_a_torn_line_the_next_event_starts_on_its_own_line(log):
    log.append("a")
    with open(log.path, "ab") as f:
        f.write(b'{"kind": "tor')
    EventLog(log.path).append("b")
    assert [e["kind"] for e in read_since(log.path)[0]] == ["a", "unreadable", "b"]


def test_a_writer_that_is_killed_loses_no_event_before_it(tmp_path):
    path = tmp_path / "events.jsonl"
    code = (
        "import os, sys, pathlib\nfrom core.store.event_log import EventLog\n"
        "log = EventLog(pathlib.Path(sys.argv[1]))\n"
        "for i in range(50): log.append('step', step=i)\nos._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(room.__file__).parents[2], check=False)
    assert [e["step"] for e in read_since(path)[0]] == list(range(50))


DEEP = b"[" * 33 + b"]" * 33


@pytest.mark.parametrize("torn", [b"not json", b"[1]", b'"x"', b"\xff\xfe", b"\0\0", DEEP, b"{"])
def test_an_unreadable_line_is_counted_and_the_other_lines_are_read(log, torn):
    log.append("a")
    with open(log.path, "ab") as f:
        f.write(torn + b"\n\n")
    log.append("b")
    assert [e["kind"] for e in read_since(log.path)[0]] == ["a", "unreadable", "b"]


def test_after_a_failed_write_the_next_event_starts_on_its_own_line(log, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

    log.append("a")
    monkeypatch.setattr(room, "open", lambda path, mode, **more: Full(open(path, mode)), raising=False)
    with pytest.raises(StorageError, match="The disk is full"):
        log.append("lost")
    monkeypatch.undo()
    log.append("b")
    assert [e["kind"] for e in read_since(log.path)[0]] == ["a", "unreadable", "b"]


def test_numbers_that_are_not_finite_are_written_as_texts(log):
    log.append("step", loss=float("nan"), more={"x": float("inf"), "y": [1.5, float("-inf")]})
    line = log.path.read_text()
    event = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the log"))
    assert (event["loss"], event["more"]) == ("nan", {"x": "inf", "y": [1.5, "-inf"]})


def test_a_lone_surrogate_does_not_stop_a_run(log):
    log.append("sample", text="a\ud800b")
    assert read_since(log.path)[0][0]["text"] == "a?b"


def test_a_long_log_is_read_in_parts_without_losing_an_event(log, monkeypatch):
    monkeypatch.setattr(room, "READ_LIMIT_BYTES", 500)
    for i in range(100):
        log.append("step", step=i)
    seen, cursor = [], 0
    for _ in range(100):
        events, cursor = read_since(log.path, cursor)
        seen += [e["step"] for e in events]
    assert seen == list(range(100)) and cursor == log.path.stat().st_size


def test_a_line_longer_than_one_read_does_not_block_readers(log, monkeypatch):
    monkeypatch.setattr(room, "READ_LIMIT_BYTES", 200)
    log.append("note", text="x" * 1000)
    log.append("after")
    kinds, cursor = [], 0
    for _ in range(12):
        events, cursor = read_since(log.path, cursor)
        kinds += [e["kind"] for e in events]
    assert kinds[-1] == "after" and set(kinds[:-1]) == {"unreadable"}


def test_threads_share_a_log_without_mixing_lines(log):
    def write(who):
        for i in range(100):
            log.append("step", who=who, step=i, text="x" * 200)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    events, _ = read_since(log.path)
    assert len(events) == 400
    for n in range(4):
        assert [e["step"] for e in events if e.get("who") == n] == list(range(100))


def test_a_log_that_cannot_be_opened_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        EventLog(tmp_path / "file" / "events.jsonl")
