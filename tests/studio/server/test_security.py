"""Which requests the studio accepts (T22, T25): hosts, origins, exposure; and what its own routes serve."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import orjson
import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from core.errors import NotFound, SpecError
from core.spec.access import Role
from studio.server import security
from studio.server.routes import routes
from studio.server.streams import CLOSE_MESSAGE, StreamEnd
from tests.studio.caller import Caller


def client(space: bool = False, hosts: tuple[str, ...] = ()) -> TestClient:
    app = Starlette(
        routes=[Route("/", lambda r: PlainTextResponse("in"), methods=["GET", "POST"])],
        middleware=security.middleware(hosts, space),
    )
    return TestClient(app, base_url="http://127.0.0.1:7860")


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "localhost"])
def test_loopback_names_are_accepted(host):
    assert client().get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "192.168.1.5:7860"])
def test_t22_a_rebound_host_name_is_refused(host):
    assert client().get("/", headers={"host": host}).status_code == 400


def test_a_space_accepts_its_own_host_name_only():
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
def test_t22_posts_from_other_sites_are_refused(headers, status):
    assert client().post("/", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "image"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}, 200),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"sec-fetch-site": "none"}, 200),
    ],
)
def test_t22_another_site_may_link_to_the_page_and_read_nothing(headers, status):
    assert client().get("/", headers=headers).status_code == status


def test_the_content_policy_names_another_host_only_for_a_space_s_frame():
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
def test_t25_only_loopback_is_allowed_without_a_password(host, share, auth, space):
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
def test_loopback_a_password_or_a_space_is_enough(host, share, auth, space):
    security.check_exposure(host, share, auth, space)


def test_sec_fetch_site_decides_before_origin():
    assert not security.is_same_origin(
        Headers({"sec-fetch-site": "cross-site", "origin": "http://h", "host": "h"})
    )


class FakeEngine:
    """An engine with one report, whose library cannot make an archive."""

    def __init__(self, folder):
        self.file = folder / "report.csv"
        self.file.write_text("name\nbase\n")
        self.evaluation = SimpleNamespace(report_csv=self.report_csv)
        self.library = SimpleNamespace(archive=self.archive)

    def report_csv(self, item_id):
        if item_id != "r-1":
            raise NotFound(f"There is no report {item_id!r} here.")
        return self.file

    def archive(self, item_id):
        raise RuntimeError("/secret/path")


def download_client(tmp_path, role: Role = Role.OWNER) -> TestClient:
    app = Starlette(routes=routes(FakeEngine(tmp_path)), middleware=[Middleware(Caller, role=role)])
    return TestClient(app)


def test_a_report_is_downloaded_as_an_attachment(tmp_path):
    response = download_client(tmp_path).get("/gradio_api/studio/download/report/r-1.csv")
    assert (response.status_code, response.text) == (200, "name\nbase\n")
    assert response.headers["content-disposition"] == 'attachment; filename="r-1.csv"'


def test_a_missing_report_is_404_and_an_error_gives_no_details(tmp_path):
    downloads = download_client(tmp_path)
    assert downloads.get("/gradio_api/studio/download/report/r-2.csv").status_code == 404
    failed = downloads.get("/gradio_api/studio/download/adapter/a-1.zip")
    assert failed.status_code == 500 and "secret" not in failed.text


@pytest.mark.parametrize(
    ("role", "report", "adapter"),
    [(Role.NONE, 401, 401), (Role.VIEWER, 200, 403), (Role.TRAINER, 200, 403), (Role.OWNER, 200, 500)],
)
def test_t23_downloads_check_the_role_by_themselves(tmp_path, role, report, adapter):
    downloads = download_client(tmp_path, role)
    assert downloads.get("/gradio_api/studio/download/report/r-1.csv").status_code == report
    assert downloads.get("/gradio_api/studio/download/adapter/a-1.zip").status_code == adapter


def test_t23_a_route_without_the_gate_serves_nothing(tmp_path):
    bare = TestClient(Starlette(routes=routes(FakeEngine(tmp_path))))
    assert bare.get("/gradio_api/studio/download/report/r-1.csv").status_code == 401


def test_the_chart_library_comes_from_the_installed_package(tmp_path):
    response = download_client(tmp_path).get("/gradio_api/studio/plotly.min.js")
    assert (
        response.status_code == 200
        and "javascript" in response.headers["content-type"]
        and len(response.content) > 1_000_000
    )


def test_a_stream_after_its_close_message_is_not_cancelled_by_a_disconnect():
    """Events that the client has queued since would be dropped with it."""
    ended, received = [], []

    async def lines():
        try:
            for line in ('data: {"msg":"process_completed"}\n\n', 'data: {"msg":"close_stream"}\n\n'):
                yield line
            await asyncio.sleep(0.2)
            ended.append("completed")
        except BaseException:
            ended.append("cancelled")
            raise

    async def visit(use_middleware: bool) -> None:
        disconnected = asyncio.Event()

        async def receive():
            await disconnected.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            received.append(message.get("body", b""))
            if b"close_stream" in received[-1]:
                disconnected.set()
                await asyncio.sleep(0.05)

        async def app(scope, receive, send):
            await StreamingResponse(lines())(scope, receive, send)

        scope = {"type": "http", "path": "/gradio_api/queue/data", "asgi": {"spec_version": "2.3"}}
        await (StreamEnd(app) if use_middleware else app)(scope, receive, send)

    asyncio.run(visit(use_middleware=False))
    asyncio.run(visit(use_middleware=True))
    assert ended == ["cancelled", "completed"] and b"close_stream" in b"".join(received)
    assert [m.cls for m in security.middleware((), False)][-1] is StreamEnd


def test_the_close_message_is_the_one_that_gradio_sends():
    from gradio.server_messages import CloseStreamMessage

    assert CLOSE_MESSAGE in orjson.dumps(CloseStreamMessage().model_dump())
