"""The page's document is made once for each address; what differs between visitors is never shared."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from core.engine import Engine
from studio.app import serve
from studio.server import document
from studio.server.document import SharedDocument
from tests.browser.conftest import free_port


@pytest.fixture
def counted() -> TestClient:
    """A client of an application that numbers the documents that it makes."""
    made: list[str] = []

    async def show(request: Request) -> PlainTextResponse:
        made.append(str(request.url))
        response = PlainTextResponse(f"{len(made)} {request.headers['host']}", headers={"x-made": "yes"})
        if "cookie" in request.query_params:
            response.set_cookie("seen", "1")
        if "fails" in request.query_params:
            response.status_code = 500
        return response

    routes = [Route("/", show, methods=["GET", "POST"]), Route("/other", show)]
    return TestClient(Starlette(routes=routes, middleware=[Middleware(SharedDocument)]))


def test_visitors_of_one_address_share_a_document_and_its_headers(counted):
    first, second = counted.get("/"), counted.get("/?run=1")
    assert first.text == second.text == "1 testserver"
    assert first.headers["x-made"] == second.headers["x-made"] == "yes"
    assert counted.get("/", headers={"host": "studio.test"}).text == "2 studio.test"
    assert counted.get("/", headers={"x-forwarded-proto": "https"}).text == "3 testserver"
    assert counted.get("/").text == "1 testserver"


@pytest.mark.parametrize("query", ["?deep_link=x", "?page=x", "?cookie=1", "?fails=1"])
def test_what_is_not_for_everyone_is_made_each_time(counted, query):
    assert [counted.get(f"/{query}").text[:1] for _ in range(2)] == ["1", "2"]
    assert counted.get("/").text[:1] == "3"


def test_other_routes_and_methods_are_not_shared(counted):
    answers = [counted.get("/other"), counted.get("/other"), counted.post("/"), counted.post("/")]
    assert [a.text[:1] for a in answers] == ["1", "2", "3", "4"]


def test_the_number_of_documents_in_memory_is_limited(counted, monkeypatch):
    monkeypatch.setattr(document, "ADDRESS_LIMIT", 2)
    hosts = ["a", "b", "c"]
    assert [counted.get("/", headers={"host": h}).text[:1] for h in hosts] == ["1", "2", "3"]
    assert [counted.get("/", headers={"host": h}).text[:1] for h in ("c", "a")] == ["3", "4"]


def test_the_shared_document_of_the_page_equals_the_one_that_gradio_makes(tmp_path):
    with Engine(tmp_path, load=False) as engine:
        page = serve(engine, port=free_port(), block=False)
        try:
            made = httpx.get(page.local_url)
            shared = httpx.get(page.local_url)
            again = httpx.get(f"{page.local_url}?page=")
        finally:
            page.close(verbose=False)
    assert made.status_code == shared.status_code == 200
    assert made.text == shared.text == again.text and "window.gradio_config" in made.text
    names = set(made.headers) - {"date"}
    assert names == set(shared.headers) - {"date"}
    assert {n: made.headers[n] for n in names} == {n: shared.headers[n] for n in names}
    assert "set-cookie" not in made.headers
