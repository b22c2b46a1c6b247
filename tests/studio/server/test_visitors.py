"""How many pages a visitor may have open, and how much it may upload: just over the limits."""

from __future__ import annotations

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from core.spec.access import Role
from core.store.api_keys import ApiKeys
from core.store.workspace import Workspace
from studio.server import upload_shares, visitors
from studio.server.access import PageAccess
from studio.server.upload_shares import UploadShares
from studio.server.visitors import OwnSession
from tests.studio.caller import Caller

UPLOAD = "/gradio_api/upload"


async def show(request: Request) -> PlainTextResponse:
    return PlainTextResponse("the page")


async def take(request: Request) -> JSONResponse:
    return JSONResponse(len(await request.body()))


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """A client without a browser's cookies, of a studio with a heartbeat that lasts until `close.set()`."""
    close = anyio.Event()

    async def beat(request: Request) -> StreamingResponse:
        async def messages():
            yield "data: ALIVE\n\n"
            await close.wait()

        return StreamingResponse(messages(), media_type="text/event-stream")

    monkeypatch.setattr(upload_shares, "get_upload_folder", lambda: str(tmp_path / "uploads"))
    access = PageAccess(ApiKeys(Workspace(tmp_path / "workspace")), 7860, Role.OWNER)
    routes = [
        Route("/", show),
        Route("/gradio_api/heartbeat/{session}", beat),
        Route(UPLOAD, take, methods=["POST"]),
    ]

    def make(role: Role = Role.TRAINER) -> httpx.AsyncClient:
        layers = [
            Middleware(Caller, role=role),
            Middleware(OwnSession, access=access),
            Middleware(UploadShares),
        ]
        app = Starlette(routes=routes, middleware=layers)
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")

    make.close, make.cookie, make.folder = close, access.cookie, tmp_path / "uploads"
    return make


def visit(client: httpx.AsyncClient, path: str, visitor: str, cookie: str, **headers: str):
    return client.get(path, headers={"cookie": f"{cookie}={visitor}", **headers})


@pytest.mark.parametrize(("own", "total", "what"), [
    (2, 9, "You have 2 pages of the studio open, and each visitor can have 2."),
    (9, 2, "The studio is full: 2 of 2 pages are open."),
])  # fmt: skip
def test_one_page_too_many_is_refused_until_another_closes(studio, monkeypatch, own, total, what):
    monkeypatch.setattr(visitors, "PAGES_PER_VISITOR", own)
    monkeypatch.setattr(visitors, "PAGE_LIMIT", total)

    async def run() -> None:
        async with studio() as client, anyio.create_task_group() as tasks:
            for session in ("a", "b"):
                tasks.start_soon(visit, client, f"/gradio_api/heartbeat/{session}", "ann", studio.cookie)
            await anyio.wait_all_tasks_blocked()
            refused = await visit(client, "/", "ann", studio.cookie)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
            assert refused.json()["detail"].startswith(what)
            page = await visit(client, "/", "ann", studio.cookie, accept="text/html")
            assert page.status_code == 503 and what in page.text and "<h1>Adapter Studio</h1>" in page.text
            assert (await visit(client, "/gradio_api/heartbeat/c", "ann", studio.cookie)).status_code == 503
            other = await visit(client, "/", "ben", studio.cookie)
            assert other.status_code == (200 if total == 9 else 503)
            studio.close.set()
        async with studio() as client:
            assert (await visit(client, "/", "ann", studio.cookie)).text == "the page"

    anyio.run(run)


def test_a_visitor_may_upload_its_share_and_no_byte_more(studio, monkeypatch):
    monkeypatch.setattr(upload_shares, "VISITOR_BYTES", 100)

    async def run() -> None:
        async with studio() as client:

            async def send(visitor: str, size: int, chunked: bool = False) -> httpx.Response:
                async def parts():
                    for _ in range(size):
                        yield b"x"

                headers = {"cookie": f"{studio.cookie}={visitor}"}
                return await client.post(UPLOAD, content=parts() if chunked else b"x" * size, headers=headers)

            assert (await send("ann", 60)).json() == 60
            for chunked in (False, True):
                refused = await send("ann", 41, chunked)
                assert refused.status_code == 413
                if not chunked:
                    assert refused.text == (
                        "Each visitor may upload 100 bytes a day, and you have uploaded 60 bytes; this "
                        "upload has 41 bytes. Send less, or wait a day."
                    )
            assert (await send("ben", 100)).json() == 100

    anyio.run(run)


def test_the_share_of_yesterday_is_free_again(studio, monkeypatch):
    now = [0.0]
    shares = UploadShares(lambda *_: None, clock=lambda: now[0])
    monkeypatch.setattr(upload_shares, "VISITOR_BYTES", 100)
    shares._add("ann", 100)
    with pytest.raises(upload_shares.ShareExceeded):
        shares._check("ann", 0, 1)
    now[0] = upload_shares.DAY_SECONDS
    shares._check("ann", 0, 100)


def test_all_uploads_together_are_limited_and_an_owner_is_not(studio, monkeypatch):
    monkeypatch.setattr(upload_shares, "TOTAL_BYTES", 100)
    studio.folder.mkdir()
    (studio.folder / "drop").write_bytes(b"x" * 90)

    async def run() -> None:
        async with studio() as client:
            assert (await client.post(UPLOAD, content=b"x" * 10)).json() == 10
            refused = await client.post(UPLOAD, content=b"x" * 11)
            assert (refused.status_code, refused.text) == (
                507,
                "All uploads that are not imported yet may have 100 bytes, and they have 90 bytes. Import or "
                "remove what you have dropped, or ask the owner of the studio.",
            )
        async with studio(Role.OWNER) as client:
            assert (await client.post(UPLOAD, content=b"x" * 500)).json() == 500

    anyio.run(run)
