"""Messages between a child process and its parent: questions, errors, logs, and unexpected ends."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.data.child_process import ChildProcess, rebuild_error
from core.errors import Cancelled, DataError, StudioError
from tests.core.data.child_jobs import ERRORS

JOBS = "tests.core.data.child_jobs"
ROOT = Path(__file__).parents[3]


def make() -> ChildProcess:
    return ChildProcess(JOBS, "test")


def test_a_child_gets_the_answer_of_each_question():
    assert make().run({"what": "ask"}, lambda question: question["number"] ** 2) == [0, 1, 4]

    def refuse(question):
        raise DataError("no.", "Ask less.", file="a", line=question["number"] + 1)

    with pytest.raises(DataError, match="a, line 1: no. Ask less."):
        make().run({"what": "ask"}, refuse)


@pytest.mark.parametrize("index", range(len(ERRORS)), ids=lambda i: type(ERRORS[i]).__name__)
def test_an_error_of_the_child_keeps_its_class_and_attributes(index):
    with pytest.raises(StudioError) as caught:
        make().run({"what": "error", "index": index})
    expected = ERRORS[index]
    assert type(caught.value) is type(expected) and vars(caught.value) == vars(expected)
    assert caught.value.args == expected.args and str(caught.value) == str(expected)


def test_memory_errors_and_defects_become_a_sentence(caplog):
    with pytest.raises(StudioError, match="^The test ran out of memory. It may"):
        make().run({"what": "memory"})
    with pytest.raises(StudioError, match="^The test failed: ValueError: a defect"):
        make().run({"what": "defect"})
    assert "Traceback" in caplog.text and "raise ValueError" in caplog.text


def test_a_killed_child_becomes_a_sentence_and_its_output_is_logged(caplog):
    process = make()
    with pytest.raises(
        StudioError, match=r"process of the test was killed \(signal 9\). It may have run out"
    ):
        process.run({"what": "kill"})
    assert process.ended_early and "the last words" in caplog.text


def test_logs_of_a_child_reach_the_log_of_its_parent(caplog):
    with caplog.at_level(logging.INFO):
        heavy = make().run({"what": "log"})
    assert heavy == []  # importing the module of a job loads none of them
    assert [(r.name, r.levelname, r.getMessage()) for r in caplog.records] == [
        ("core.data.loud", "WARNING", "3 rows are odd")
    ]


def test_cancelling_reaches_the_child_with_its_next_report(tmp_path):
    calls = []

    def answer(question):
        calls.append(question["progress"])
        if len(calls) == 2:
            raise Cancelled("The test was cancelled.")

    started = time.monotonic()
    with pytest.raises(Cancelled):
        make().run({"what": "report", "path": str(tmp_path / "end")}, answer)
    assert (tmp_path / "end").read_text() == "removed its draft"
    assert time.monotonic() - started >= 0.2  # two reports have some time between them
    assert calls[0] == {"done": 1, "total": 2, "text": "Working", "report": "", "rows": 0}


def test_a_process_that_was_ended_is_cancelled_and_never_starts(tmp_path):
    process = make()
    process.end()
    with pytest.raises(Cancelled, match="The test was cancelled."):
        process.run({"what": "report", "path": str(tmp_path / "end")})
    assert not (tmp_path / "end").exists()


@pytest.mark.skipif(os.name == "nt", reason="kills a process by a signal")
def test_a_child_ends_by_itself_when_its_parent_is_killed(tmp_path):
    code = (
        "from core.data.child_process import ChildProcess\n"
        f"child = ChildProcess({JOBS!r}, 'test')\n"
        f"child.run({{'what': 'report', 'path': {str(tmp_path / 'end')!r}}},"
        " lambda question: print(child.process.pid, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while not (tmp_path / "end").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "end").read_text() == "removed its draft"
    while time.monotonic() < deadline:
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{child}/stat").exists() and ") Z " in Path(f"/proc/{child}/stat").read_text():
            return  # ended; nothing has waited for it yet
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child runs on without its parent")


def test_an_error_of_an_unknown_class_stays_an_error():
    error = rebuild_error({"class": "Newer", "values": {"what": "x.", "fix": "y."}})
    assert type(error) is StudioError and str(error) == "x. y."
