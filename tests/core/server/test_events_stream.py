"""Server-sent events: places to continue from, errors in between, and readers that leave."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.engine import Engine
from core.engine.chat import Frame
from core.engine.worker import Stream
from core.errors import BaseModelError, NotFound, SpecError
from core.model.columns import Column
from core.server.events_stream import end_with_problem, format_frame, read_place, stream_run
from core.spec.training import RunStatus

from .live_server import serve


def collect(frames) -> list[str]:
    async def run() -> list[str]:
        return [frame async for frame in frames]

    return asyncio.run(run())


@settings(deadline=None)
@given(st.integers(0, 10**15 - 1), st.integers(1, 10**9 - 1))
def test_a_place_is_a_cursor_with_or_without_events_after_it(cursor, count):
    assert read_place(str(cursor)) == (cursor, 0)
    assert read_place(f"{cursor}-{count}") == (cursor, count)


@settings(deadline=None)
@given(st.text(max_size=30).filter(lambda t: not t.isdecimal() and "-" not in t))
def test_any_other_text_is_refused_as_a_place(text):
    with pytest.raises(SpecError, match="cursor must be an id"):
        read_place(text)


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.text() | st.integers(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
        max_leaves=20,
    )
)
def test_a_frame_is_one_block_whatever_it_holds(data):
    head, line, end, rest = format_frame(data, place="7").split("\n")
    assert (head, end, rest) == ("id: 7", "", "") and json.loads(line.removeprefix("data: ")) == data


class Log:
    """A run whose log is read in the given batches; its cursor is their count."""

    def __init__(self, batches: list[list[dict]]) -> None:
        self.batches = batches
        self.runs = self

    def events(self, run_id: str, cursor: int) -> tuple[list[dict], int]:
        if cursor < len(self.batches):
            return self.batches[cursor], cursor + 1
        return [], cursor

    def get(self, run_id: str) -> SimpleNamespace:
        return SimpleNamespace(status=RunStatus.DONE, adapter="a")

    def is_ending(self, run: object) -> bool:
        return False


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_a_stream_continues_after_any_frame_of_any_log(sizes, data):
    numbers = iter(range(100))
    log = Log([[{"kind": "step", "step": next(numbers)} for _ in range(size)] for size in sizes])
    whole = collect(stream_run(log, "r"))
    assert len(whole) == sum(sizes) + 1 and "event: end" in whole[-1]
    cut = data.draw(st.integers(0, len(whole) - 1))
    place = whole[cut].split("\n")[0].removeprefix("id: ")
    rest = collect(stream_run(log, "r", place))
    assert rest == (whole[cut + 1 :] or whole[-1:])


def test_an_error_after_the_first_frame_becomes_a_problem():
    async def frames():
        yield format_frame({"x": 1})
        raise NotFound("The run is gone.", "Start another one.")

    first, last = collect(end_with_problem(frames()))
    assert first == 'data: {"x": 1}\n\n' and last.startswith("event: problem\n")
    assert json.loads(last.split("data: ")[1])["status"] == 404


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory):
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), quantization="none", device="cpu") as made:
        made.bases.current(wait=True)
        yield made


BODY = {"prompt": "Where?", "mixes": ["base"] * 4, "sampling": {"max_new_tokens": 200}, "chat": False}


@pytest.mark.slow
def test_an_answer_ends_when_its_reader_leaves(engine):
    with serve(engine) as url, httpx.Client(timeout=60) as client:
        with client.stream("POST", f"{url}/api/compare/stream", json=BODY) as response:
            next(response.iter_lines())
        wait_for_closed_streams(engine)
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"{url}/api/compare", json=BODY, timeout=0.05)
        wait_for_closed_streams(engine)


def wait_for_closed_streams(engine):
    deadline = time.monotonic() + 30
    while engine.worker.open_streams and time.monotonic() < deadline:
        time.sleep(0.02)
    assert engine.worker.open_streams == 0


@pytest.mark.slow
def test_a_base_change_in_mid_stream_is_a_problem_of_its_reader(engine, monkeypatch):
    stream = Stream(lambda: True)
    monkeypatch.setattr(engine.chat, "stream", lambda *_, **__: stream)
    stream.put(Frame([Column(text="In")] * 4, done=False))
    with serve(engine) as url, httpx.Client(timeout=60) as client:
        with client.stream("POST", f"{url}/api/compare/stream", json=BODY) as response:
            lines = response.iter_lines()
            assert next(lines) == "event: frame"
            stream.end(BaseModelError("The base model was changed.", "Send the prompt again."))
            rest = list(lines)
    problem = json.loads(rest[rest.index("event: problem") + 1].removeprefix("data: "))
    assert (problem["status"], problem["title"]) == (503, "The base model was changed.")
