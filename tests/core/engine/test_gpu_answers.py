"""Answers in a process with a GPU: one call for all columns, the same text, and errors that arrive whole."""

from __future__ import annotations

import contextvars
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_worker import SimulatedError, SimulatedSpaces
from core.engine import Engine
from core.engine.gpu_calls import GpuCalls, read_values
from core.errors import Closing, GpuError, GpuQuota, NotFound, SpecError
from core.retrieve.passages import Passage
from core.space.zero_gpu import ZeroGpu
from core.spec.mix import Mix, Sampling

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ZeroGPU forks, and so does its simulation")
PROMPT = "Where is the red lamp?"
SAMPLING = Sampling(max_new_tokens=24, temperature=0.8, seed=3)
VISITOR = contextvars.ContextVar("VISITOR", default="")


@pytest.fixture
def spaces() -> Iterator[SimulatedSpaces]:
    made = SimulatedSpaces(reuse=True)
    yield made
    made.close()


@pytest.fixture
def engine(tiny_base: Path, tmp_path: Path, spaces: SimulatedSpaces) -> Iterator[Engine]:
    with Engine(tmp_path / "ws", str(tiny_base), "none", "cpu", gpu=GpuCalls(ZeroGpu(spaces))) as made:
        made.resident_base.wait()
        yield made


def test_a_compare_is_one_call_and_answers_as_without_it(
    engine: Engine, spaces: SimulatedSpaces, tiny_base: Path
) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    passage = Passage("d", "Notes", "a.txt", "", 0, 12, "The red lamp", 1.0)

    def ask(asked: Engine, passages: Any = None) -> Any:
        how = {"same_noise": False, "passages": passages}
        return asked.chat.stream(messages, [Mix(), Mix()], SAMPLING, **how).last()

    there = [ask(engine), ask(engine, [[passage], None])]
    with Engine(engine.workspace.root, str(tiny_base), "none", "cpu") as plain:
        here = [ask(plain), ask(plain, [[passage], None])]
    shown = [[(c.text, c.tokens, c.reason, c.stamp) for c in f.columns] for f in (*there, *here)]
    assert shown[:2] == shown[2:] and shown[0] != shown[1]
    assert shown[0][0][1] > 1 and shown[0][0][0] != shown[0][1][0] and all(f.done for f in there)
    assert there[1].prompts == here[1].prompts and there[1].prompts[0].used == (passage,)
    assert [c.forked for c in spaces.calls] == [True, False], "the second call finds the process idle"
    assert [c.seconds for c in spaces.calls[:1]] == [10], "48 tokens at 25 a second, and the start"


def test_the_error_of_an_answer_arrives_as_it_was_raised(engine: Engine) -> None:
    with pytest.raises(NotFound, match="missing-adapter"):
        engine.chat.stream(PROMPT, [Mix(weights={"missing-adapter": 1.0})], SAMPLING).last()
    with pytest.raises(SpecError, match="mixes must be between 1 and"):
        engine.chat.stream(PROMPT, [])


def test_a_refused_or_killed_call_ends_the_answer_with_its_reason(
    engine: Engine, spaces: SimulatedSpaces
) -> None:
    spaces.refuse = lambda number: SimulatedError("(30s requested vs. 4s left).", "ZeroGPU quota exceeded")
    with pytest.raises(GpuQuota, match="30s requested vs. 4s left") as refused:
        engine.chat.stream(PROMPT, [Mix()], SAMPLING).last()
    assert refused.value.left_seconds == 4
    spaces.refuse, spaces.kill_after = lambda number: None, lambda number: 0.0
    with pytest.raises(GpuError, match="ZeroGPU: GPU task aborted. Try again."):
        engine.chat.stream(PROMPT, [Mix()], SAMPLING).last()


def test_a_closed_answer_frees_its_process(engine: Engine, spaces: SimulatedSpaces) -> None:
    stream = engine.chat.stream(PROMPT, [Mix()], replace(SAMPLING, max_new_tokens=4), chat=False)
    stream.close()
    end = time.monotonic() + 60
    while not (spaces.calls and spaces.calls[0].took) and time.monotonic() < end:
        time.sleep(0.01)
    assert spaces.calls[0].took and not engine.chat._calls._open  # type: ignore[union-attr]
    engine.close()
    with pytest.raises(Closing):
        engine.chat.stream(PROMPT, [Mix()], SAMPLING)


def test_values_are_read_in_the_context_of_the_request() -> None:
    def values() -> Iterator[str]:
        yield VISITOR.get()
        yield VISITOR.get()

    token = VISITOR.set("alice")
    context = contextvars.copy_context()
    VISITOR.reset(token)
    assert list(read_values(values(), context)) == ["alice", "alice"] and VISITOR.get() == ""
