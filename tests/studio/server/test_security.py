"""Who may talk to the studio (T22, T25): hosts, origins, exposure; and what our own addresses give away."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from core.errors import NotFound, SpecError
from studio.server import security
from studio.server.routes import routes
from studio.server.streams import CLOSE_MESSAGE, StreamEnd


def client(space: bool = False, hosts: tuple[str, ...] = ()) -> TestClient:
    app = Starlette(
        routes=[Route("/", lambda r: PlainTextResponse("in"), methods=["GET", "POST"])],
        middleware=security.middleware(hosts, space),
    )
    return TestClient(app, base_url="http://127.0.0.1:7860")


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "localhost"])
def test_loopback_names_are_let_in(host):
    assert client().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.1.5:7860"])
def test_t22_a_rebound_name_is_refused(host):
    assert client().get("/", headers={"host": host}).status_code == 400


def test_a_space_is_reached_by_its_own_name_only():
    with_name = client(space=True, hosts=("me-studio.hf.space",))
    assert with_name.get("/", headers={"host": "me-studio.hf.space"}).status_code == 200
    assert with_name.get("/", headers={"host": "you-studio.hf.space"}).status_code == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"sec-fetch-site": "same-origin", "origin": "http://127.0.0.1:7860"}, 200),
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({}, 200),
    ],
)
def test_t22_posts_from_other_pages_are_refused(headers, status):
    assert client().post("/", headers=headers).status_code == status


def test_reading_is_not_hindered_by_where_one_comes_from():
    assert client().get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200


def test_the_policy_names_no_other_host_except_a_space_s_frame():
    assert "http" not in client().get("/").headers["content-security-policy"]
    framed = client(space=True).get("/").headers["content-security-policy"]
    assert (
        framed.split("frame-ancestors")[1].count("https://") == 3
        and "http" not in framed.split("frame-ancestors")[0]
    )


@pytest.mark.parametrize(
    ("host", "share", "auth", "space"),
    [("0.0.0.0", False, None, False), ("192.168.1.5", False, None, False), ("127.0.0.1", True, None, False)],
)
def test_t25_nothing_but_loopback_without_a_password(host, share, auth, space):
    with pytest.raises(SpecError, match="no password"):
        security.check_exposure(host, share, auth, space)


@pytest.mark.parametrize(
    ("host", "share", "auth", "space"),
    [
        ("127.0.0.1", False, None, False),
        ("::1", False, None, False),
        ("0.0.0.0", True, ("a", "b"), False),
        ("0.0.0.0", False, None, True),
    ],
)
def test_loopback_a_password_or_the_platform_will_do(host, share, auth, space):
    security.check_exposure(host, share, auth, space)


def test_own_headers_decide_before_the_host():
    assert not security.SameOrigin.is_same_origin(
        Headers({"sec-fetch-site": "cross-site", "origin": "http://h", "host": "h"})
    )


class Shelf:
    """An engine that holds one report."""

    def __init__(self, folder):
        self.file = folder / "report.csv"
        self.file.write_text("name\nbase\n")

    def report_csv(self, item_id):
        if item_id != "r-1":
            raise NotFound(f"There is no report {item_id!r} here.")
        return self.file

    def archive_adapter(self, item_id):
        raise RuntimeError("/secret/path")


class Guarded(Starlette):
    """What our routes ask of Gradio's application."""

    auth: object = None
    cookie_id = "c"
    tokens: dict[str, str] = {"t": "me"}  # noqa: RUF012


def shelf_client(tmp_path, auth: object = None) -> TestClient:
    app = Guarded(routes=routes(Shelf(tmp_path)))
    app.auth = auth
    return TestClient(app)


def test_a_report_is_downloaded_as_an_attachment(tmp_path):
    answer = shelf_client(tmp_path).get("/gradio_api/studio/download/report/r-1.csv")
    assert (answer.status_code, answer.text) == (200, "name\nbase\n")
    assert answer.headers["content-disposition"] == 'attachment; filename="r-1.csv"'


def test_what_is_not_there_is_not_found_and_a_failure_tells_nothing(tmp_path):
    with_shelf = shelf_client(tmp_path)
    assert with_shelf.get("/gradio_api/studio/download/report/r-2.csv").status_code == 404
    failed = with_shelf.get("/gradio_api/studio/download/adapter/a-1.zip")
    assert failed.status_code == 500 and "secret" not in failed.text


def test_t23_downloads_ask_for_the_login_that_the_page_asks_for(tmp_path):
    with_shelf = shelf_client(tmp_path, auth={"me": "pw"})
    address = "/gradio_api/studio/download/report/r-1.csv"
    assert with_shelf.get(address).status_code == 401
    assert with_shelf.get(address, headers={"cookie": "access-token-unsecure-c=t"}).status_code == 200
    assert with_shelf.get(address, headers={"cookie": "access-token-unsecure-c=other"}).status_code == 401


def test_the_chart_library_comes_from_the_installed_package(tmp_path):
    answer = shelf_client(tmp_path).get("/gradio_api/studio/plotly.min.js")
    assert (
        answer.status_code == 200
        and "javascript" in answer.headers["content-type"]
        and len(answer.content) > 1_000_000
    )


def test_a_stream_that_said_its_last_line_is_not_cut_off_by_the_visitor_who_hangs_up():
    """What the visitor asked meanwhile would be dropped with it."""
    ended, heard = [], []

    async def lines():
        try:
            for line in ('data: {"msg":"process_completed"}\n\n', 'data: {"msg":"close_stream"}\n\n'):
                yield line
            await asyncio.sleep(0.2)
            ended.append("by itself")
        except BaseException:
            ended.append("cut off")
            raise

    async def visit(through: bool) -> None:
        hung_up = asyncio.Event()

        async def receive():
            await hung_up.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            heard.append(message.get("body", b""))
            if b"close_stream" in heard[-1]:
                hung_up.set()
                await asyncio.sleep(0.05)

        async def app(scope, receive, send):
            await StreamingResponse(lines())(scope, receive, send)

        scope = {"type": "http", "path": "/gradio_api/queue/data", "asgi": {"spec_version": "2.3"}}
        await (StreamEnd(app) if through else app)(scope, receive, send)

    asyncio.run(visit(through=False))
    asyncio.run(visit(through=True))
    assert ended == ["cut off", "by itself"] and b"close_stream" in b"".join(heard)
    assert [m.cls for m in security.middleware((), False)][-1] is StreamEnd


def test_the_last_line_is_written_as_gradio_writes_it():
    from gradio.server_messages import CloseStreamMessage

    assert CLOSE_MESSAGE in orjson.dumps(CloseStreamMessage().model_dump())
