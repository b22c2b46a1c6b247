"""A server without the page refuses other host names, pages of other sites, and large bodies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from core.server import problems
from core.server.protection import BODY_LIMIT, is_loopback, protect


def connect(host: str = "127.0.0.1", allowed: tuple[str, ...] = (), name: str = "127.0.0.1") -> TestClient:
    app = FastAPI()
    problems.add_handlers(app)

    async def measure(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    app.add_api_route("/size", measure, methods=["GET", "POST"])
    app.add_api_route("/api/datasets", measure, methods=["POST"])
    protect(app, host, allowed)
    return TestClient(app, base_url=f"http://{name}:7861")


@pytest.mark.parametrize(
    "host, is_local",
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.2", False), ("studio.example", False), ("", False)],
)  # fmt: skip
def test_loopback_is_what_only_this_machine_reaches(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_names_of_loopback_are_accepted(name: str) -> None:
    assert connect(name=name).get("/size").status_code == 200


def test_other_host_names_are_refused_on_loopback() -> None:
    assert connect(name="evil.example").get("/size").status_code == 400
    assert connect(allowed=("studio.example",), name="studio.example").get("/size").status_code == 200
    open_to_all = connect(host="0.0.0.0", name="studio.example")
    assert open_to_all.get("/size").status_code == 200
    limited = connect(host="0.0.0.0", allowed=("studio.example",), name="evil.example")
    assert limited.get("/size").status_code == 400


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:7861"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "http://127.0.0.1:7860"}, 403),  # another port of this machine
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_other_sites_are_refused(method: str, headers: dict[str, str], status: int) -> None:
    answer = connect().request(method, "/size", headers=headers)
    assert answer.status_code == (405 if status == 200 and method == "OPTIONS" else status)
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    if status == 403:
        assert answer.json()["status"] == 403


def in_pieces(size: int) -> Iterator[bytes]:
    for _ in range(size // 1000):
        yield b"x" * 1000


@pytest.mark.parametrize("as_stream", [False, True])
def test_bodies_over_one_megabyte_are_refused_but_uploads(as_stream: bool) -> None:
    client = connect()

    def send(path: str, size: int) -> Any:
        return client.post(path, content=in_pieces(size) if as_stream else b"x" * size)

    assert send("/size", BODY_LIMIT).json() == {"bytes": BODY_LIMIT}
    answer = send("/size", BODY_LIMIT + 1000)
    assert answer.status_code == 413 and "1,000,000 bytes" in answer.json()["detail"]
    assert send("/api/datasets", BODY_LIMIT + 1000).json() == {"bytes": BODY_LIMIT + 1000}
