"""When a slice of a run ends: at its time, at a stop request, or with the process that started it."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from core.spec.training import TrainSpec
from core.store import runs
from core.store.workspace import Workspace
from core.train.slices import SliceJob, SliceLimit, SliceStop


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_a_slice_ends_before_the_step_that_would_be_too_long() -> None:
    clock = Clock()
    limit = SliceLimit(20.0, 4.0, clock)
    reached = []
    for moment in (109.0, 110.0, 113.0, 113.5):  # the first step includes the loading, and is not measured
        clock.time = moment
        reached.append(limit.is_reached())
    assert reached == [False, False, False, True], "113.5 and the longest step, 3 s, is after 116"


@given(st.lists(st.floats(0.01, 5.0), max_size=60), st.floats(5.0, 60.0), st.floats(0.0, 5.0))
def test_no_step_ends_too_late_where_none_is_longer_than_before(
    steps: list[float], seconds: float, reserve: float
) -> None:
    clock = Clock()
    end, limit = clock.time + seconds - reserve, SliceLimit(seconds, reserve, clock)
    for number, step in enumerate([5.0, 5.0, *steps]):  # the first is not measured, the second is the longest
        clock.time += step
        assert number < 2 or clock.time <= end + 1e-6
        if limit.is_reached():
            return


def make_stop(folder: Path, clock: Clock, parent: int) -> tuple[SliceStop, Workspace, str]:
    workspace = Workspace(folder)
    run = runs.create(workspace, TrainSpec(kind="domain", name="Slices", dataset="d"), "embedded", "")
    job = SliceJob(str(folder), run.id, "embedded", "none", "cpu", 20.0, parent, 4.0)
    return SliceStop(workspace, job, SliceLimit(20.0, 4.0, clock)), workspace, run.id


def test_the_first_request_of_a_slice_stays(tmp_path: Path) -> None:
    clock = Clock()
    stop, workspace, run_id = make_stop(tmp_path, clock, os.getppid())
    assert stop() == ""
    clock.time += 17.0
    assert stop() == "slice"
    runs.write_stop_request(workspace, run_id, "keep")
    assert stop() == "slice", "the trainer has saved without a validation: the next slice reads it"


def test_a_request_of_the_user_comes_before_the_clock(tmp_path: Path) -> None:
    clock = Clock()
    stop, workspace, run_id = make_stop(tmp_path, clock, os.getppid())
    clock.time += 17.0
    runs.write_stop_request(workspace, run_id, "keep")
    assert stop() == "keep"


def test_a_slice_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    stop, _, _ = make_stop(tmp_path, Clock(), parent=os.getpid())  # it is not the parent of this process
    assert stop() == "close"
