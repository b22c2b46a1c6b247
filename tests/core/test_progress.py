"""The progress of long work: lines in a log or a pipe come every few seconds."""

from __future__ import annotations

import io

import pytest

from core.cli.common import ProgressBar
from core.progress import LineClock


def test_a_line_is_due_whenever_the_seconds_have_passed() -> None:
    seconds = 0.0
    clock = LineClock(5.0, lambda: seconds)
    due = []
    for second in range(17):
        seconds = float(second)
        if clock.is_due():
            due.append(second)
    assert due == [5, 10, 15]


def test_a_pipe_gets_a_line_for_every_activity_and_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    seconds = 0.0
    bar = ProgressBar()
    bar._clock = LineClock(5.0, lambda: seconds)
    for second in range(12):
        seconds = float(second)
        bar.show(second / 20, f"model.bin: {second} of 20 MB")
    bar.show(1.0, "model.bin: 20 of 20 MB")
    lines = out.getvalue().splitlines()
    texts = [line.split(": ")[1] for line in lines]
    assert texts == ["0 of 20 MB", "5 of 20 MB", "10 of 20 MB", "20 of 20 MB"]
    assert "\r" not in out.getvalue()
