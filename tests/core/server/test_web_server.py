"""A server that stops ends the answers that are open, with an error that their clients read."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from core.model.continuous_batch import Answer, ContinuousBatch
from core.server import web_server
from core.server.access import OpenAccess
from core.server.app import make_app

from .random_library import open_engine

pytestmark = pytest.mark.slow


def test_open_answers_end_with_an_error_when_the_server_stops(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ContinuousBatch.step

    def wait(batch: ContinuousBatch) -> list[Answer]:
        time.sleep(0.05)
        return step(batch)

    monkeypatch.setattr(ContinuousBatch, "step", wait)
    monkeypatch.setattr(web_server, "CLOSE_SECONDS", 0.1)
    ask = {"prompt": "The lamp", "max_tokens": 240, "temperature": 0}  # it does not end by itself
    body = {"model": "base", **ask, "stream": True}
    with open_engine(tiny_base, tmp_path) as engine, socket.create_server(("127.0.0.1", 0)) as opened:
        server = web_server.make_server(make_app(engine, OpenAccess()), engine)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        url = f"http://127.0.0.1:{opened.getsockname()[1]}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as response:
            lines = (line for line in response.iter_lines() if line)
            first = json.loads(next(lines).removeprefix("data: "))
            server.should_exit = True
            rest = list(lines)
        thread.join(60)
        assert not thread.is_alive() and engine.serving.active_count == 0
    assert first["object"] == "text_completion" and "server" not in response.headers
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["message"].startswith(
        "The studio is closing."
    )
