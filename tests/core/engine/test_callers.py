"""Each caller has a share of the queue; an owner, the terminal and scripts have no limit."""

from __future__ import annotations

import pytest

from core.engine import Engine, queue
from core.engine.callers import Caller, act_for, current_caller
from core.errors import Busy
from core.spec.training import TrainSpec


@pytest.fixture
def start(tmp_path, pairs, monkeypatch):
    """Starts runs, which wait because no base is loaded."""
    monkeypatch.setattr(queue, "CALLER_LIMIT", 2)
    with Engine(tmp_path / "workspace", load=False) as engine:
        dataset = engine.datasets.import_files([pairs], "Pairs", "task").id

        def start_for(caller: Caller | None, name: str) -> str:
            spec = TrainSpec(kind="task", name=name, dataset=dataset, max_steps=1)
            if caller is None:
                return engine.runs.start(spec)
            with act_for(caller):
                return engine.runs.start(spec)

        start_for.engine = engine
        yield start_for


def test_a_caller_cannot_fill_the_queue_and_others_still_can(start):
    ann, ben = Caller("ann"), Caller("ben")
    first, _ = start(ann, "1"), start(ann, "2")
    with pytest.raises(Busy, match="2 of your runs are waiting, and each user can have 2 waiting runs") as e:
        start(ann, "3")
    assert e.value.fix == "Cancel some of them, or wait until they have started."
    start(ben, "4")
    owner = Caller("olga", is_limited=False)
    for name in ("5", "6", "7"):
        start(owner, name)
    assert len(start.engine.queue.list()) == 6, "the refused run left nothing behind"
    start.engine.queue.cancel(first)
    start(ann, "8")
    with pytest.raises(Busy):
        start(ann, "9")


def test_without_a_caller_the_queue_has_no_share(start):
    for name in "123":
        start(None, name)
    assert current_caller() is None
    with act_for(Caller("ann")):
        start.engine.queue.check_room(2)
        with pytest.raises(Busy, match="got 3 more"):
            start.engine.queue.check_room(3)
