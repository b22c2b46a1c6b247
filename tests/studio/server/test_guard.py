"""The guard on a real port (T22, T23): the login link, passwords, sessions, keys, and other origins."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from core.engine import Engine
from core.server.app import make_app
from core.spec.access import Role
from core.store.api_keys import ApiKeys
from studio.app import serve
from studio.server import access as page_access
from studio.server.access import Login, ScopeAccess
from studio.server.guard import route_role
from tests.browser.conftest import free_port

ROUTES = (
    "/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/heartbeat/x", "/gradio_api/file=x",
    "/assets/x.js", "/gradio_api/studio/plotly.min.js", "/gradio_api/studio/download/workspace.zip",
    "/v1/models", "/api/runs", "/gradio_api/queue/data?session_hash=x", "/monitoring", "/svelte/x",
    "/static/x", "/unknown", "//config",
)  # fmt: skip
POSTS = (
    "/gradio_api/queue/join", "/gradio_api/component_server", "/gradio_api/upload", "/gradio_api/cancel",
    "/gradio_api/reset", "/v1/chat/completions", "/fine-tuning/setup", "/gradio_api/run/predict",
)  # fmt: skip


class Studio:
    """A served page and what it announced."""

    def __init__(self, engine: Engine, **options: Any) -> None:
        self.engine, self.links = engine, []
        self.page = serve(
            engine,
            port=free_port(),
            block=False,
            announce=self.links.append,
            announce_link=self.links.append,
            **options,
        )
        self.url = self.page.local_url.rstrip("/")

    def client(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def open_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Studio]]:
    pages = []
    with Engine(tmp_path_factory.mktemp("guard"), load=False) as engine:

        def open_(**options: Any) -> Studio:
            studio = Studio(engine, **options)
            pages.append(studio.page)
            return studio

        yield open_
        for page in pages:
            page.close(verbose=False)


@pytest.fixture(scope="module")
def linked(open_studio: Callable[..., Studio]) -> Studio:
    return open_studio(link=True)


@pytest.fixture(scope="module")
def guarded(open_studio: Callable[..., Studio]) -> Studio:
    return open_studio(logins=[Login("ann", "s:e:c", Role.OWNER), Login("vic", "looks", Role.VIEWER)])


def test_t23_without_the_link_every_route_of_page_and_api_is_401(linked: Studio) -> None:
    with linked.client() as client:
        for route in ROUTES:
            assert client.get(route).status_code == 401, route
        for route in POSTS:
            assert client.post(route, json={}).status_code == 401, route
        for public in ("/favicon.ico", "/manifest.json", "/gradio_api/startup-events"):
            assert client.get(public).status_code == 200, public
        page = client.get("/").text
    assert "The console in which" not in page and "console in which the studio was started" in page
    assert "<script" not in page and "?token=" in page and linked.links[-1] not in page


def test_a_link_signs_one_browser_in_once_and_the_next_is_announced(linked: Studio) -> None:
    first = linked.links[-1]
    with linked.client() as client:
        opened = client.get(f"{first}&mix=a")
        assert (opened.status_code, opened.headers["location"]) == (303, "./?mix=a")
        assert opened.headers["cache-control"] == "no-store"
        cookie = opened.headers["set-cookie"]
        assert f"adapter-studio-{urlsplit(linked.url).port}=" in cookie
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
        assert urlsplit(first).query.removeprefix("token=") not in cookie
        assert client.get("/config").status_code == 200, "the cookie is enough"
        assert linked.links[-1] != first and len(linked.links) == 2
        again = client.get(linked.links[-1])
        assert again.status_code == 303 and len(linked.links) == 2, (
            "a browser that is signed in uses up no link"
        )
    with linked.client() as other:
        refused = other.get(first)
        assert refused.status_code == 401 and "used already" in refused.text
        assert "set-cookie" not in refused.headers
        assert other.head(linked.links[-1]).status_code == 401, "only opening it uses it up"
        assert other.get(linked.links[-1]).status_code == 303


def test_logging_out_ends_the_session(linked: Studio) -> None:
    with linked.client() as client:
        client.get(linked.links[-1])
        cookies = dict(client.cookies)
        assert client.get("/config").status_code == 200
        assert client.get("/logout", headers={"sec-fetch-site": "cross-site"}).status_code == 403
        asked = client.get("/logout")
        assert (asked.status_code, client.get("/config").status_code) == (200, 200)
        assert "You are signed in as owner." in asked.text and 'method="post"' in asked.text
        assert client.post("/logout", headers={"origin": "http://localhost:9"}).status_code == 403
        assert client.post("/logout").status_code == 303
    with linked.client() as copy:
        copy.cookies.update(cookies)
        assert copy.get("/config").status_code == 401


def test_sessions_end_by_age_and_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    sessions = page_access.Sessions(lambda: seconds[0])
    ann = page_access.Principal("ann", Role.OWNER)
    token = sessions.start(ann)
    seconds[0] = 30 * 24 * 3600 - 1.0
    assert sessions.find(token) == ann
    seconds[0] += 1
    assert sessions.find(token) is None and sessions._sessions == {}
    monkeypatch.setattr(page_access, "SESSION_LIMIT", 2)
    tokens = [sessions.start(ann) for _ in range(3)]
    assert [sessions.find(t) for t in tokens] == [None, ann, ann]
    assert sessions.find("") is None and token not in str(sessions._sessions)


def test_keys_open_the_page_s_own_routes_too(linked: Studio) -> None:
    keys = ApiKeys(linked.engine.workspace)
    _, viewer = keys.create("viewer", "viewer")
    _, owner = keys.create("owner", "owner")
    with linked.client() as client:
        for header in ({"x-api-key": viewer}, {"authorization": f"Bearer {viewer}"}):
            assert client.get("/config", headers=header).status_code == 200
            workspace = "/gradio_api/studio/download/workspace.zip"
            assert client.get(workspace, headers=header).status_code == 403
            assert client.post("/gradio_api/upload", headers=header).status_code == 403
        assert client.get(workspace, headers={"x-api-key": owner}).content[:2] == b"PK"
        assert client.get("/config", headers={"x-api-key": viewer[:-1]}).status_code == 401
        assert client.get("/config", headers={"x-api-key": "ключ".encode()}).status_code == 401


def test_t25_a_login_form_lets_named_users_in(guarded: Studio) -> None:
    page = {"accept": "text/html"}
    with guarded.client() as client:
        form = client.get("/")
        assert form.status_code == 401 and 'name="password"' in form.text and guarded.links[0].endswith("/")
        wrong = client.post("/login", data={"username": "ann", "password": "s:e"}, headers=page)
        assert wrong.status_code == 401 and "name or the password is wrong" in wrong.text
        right = client.post("/login", data={"username": "ann", "password": "s:e:c"}, headers=page)
        assert (right.status_code, right.headers["location"]) == (303, "./")
        assert client.get("/gradio_api/studio/download/workspace.zip").status_code == 200
    with guarded.client() as program:  # gradio_client signs in like this
        assert program.post("/login", data={"username": "vic", "password": "looks"}).json() == {
            "success": True
        }
        assert program.get("/config").status_code == 200
        assert program.get("/gradio_api/studio/download/workspace.zip").status_code == 403


def test_failed_logins_are_delayed_and_logged_without_the_password(
    open_studio: Callable[..., Studio], caplog: pytest.LogCaptureFixture
) -> None:
    studio = open_studio(logins=[Login("ann", "right")])
    with studio.client() as client, caplog.at_level(logging.INFO):
        form = {"username": "ann", "password": "planted-guess"}
        assert [client.post("/login", data=form).status_code for _ in range(6)] == [401] * 5 + [429]
        early = client.post("/login", data={**form, "password": "right"}, headers={"accept": "text/html"})
        assert early.status_code == 429 and "Try again in 1 s" in early.text
    refusals = [r for r in caplog.records if "wrong name or password" in r.getMessage()]
    assert len(refusals) == 5 and "127.0.0.1" in caplog.text and "planted" not in caplog.text


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://127.0.0.1:9", "http://localhost:9", "null"]
)
def test_t22_no_answer_is_shared_with_another_origin(linked: Studio, origin: str) -> None:
    preflight = {"origin": origin, "access-control-request-method": "POST"}
    with linked.client() as client:
        client.get(linked.links[-1])
        answers = [
            client.options("/gradio_api/queue/join", headers=preflight),
            client.options("/v1/models", headers=preflight),
            *(client.get(r, headers={"origin": origin}) for r in ("/", "/config", "/v1/models")),
            client.get("/config"),
        ]
    assert [a.status_code for a in answers[2:]] == [403, 403, 403, 200]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control-")], answer.url


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_t22_another_site_may_only_link_to_the_page_itself(linked: Studio, site: str) -> None:
    link = {"sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    with linked.client() as client:
        client.get(linked.links[-1])
        for path in ("/config", "/logout", "/gradio_api/studio/download/workspace.zip", "/v1/models"):
            assert client.get(path, headers=link).status_code == 403
        assert client.get("/", headers={**link, "sec-fetch-mode": "no-cors"}).status_code == 403
        assert client.get("/", headers=link).status_code == 200
        client.cookies.clear()  # a browser leaves a strict cookie out of such a request
        reopened = client.get("/", headers=link)
        assert reopened.status_code == 401 and 'http-equiv="refresh"' in reopened.text
        assert "refresh" not in client.get("/", headers={**link, "sec-fetch-site": "same-origin"}).text


def test_t24_bodies_over_a_megabyte_are_refused_but_for_uploads(linked: Studio) -> None:
    def in_chunks() -> Iterator[bytes]:
        for _ in range(11):
            yield b" " * 100_000

    with linked.client() as client:
        client.get(linked.links[-1])
        for route in ("/gradio_api/queue/join", "/gradio_api/component_server"):
            refused = client.post(
                route, content=b" " * 1_000_001, headers={"content-type": "application/json"}
            )
            assert refused.status_code == 413 and "at most 1,000,000 bytes" in refused.text
            chunked = client.post(route, content=in_chunks(), headers={"content-type": "application/json"})
            assert chunked.status_code == 413
        stored = client.post("/gradio_api/upload", files={"files": ("a.txt", b"x" * 1_100_000)})
        assert stored.status_code == 200 and Path(stored.json()[0]).stat().st_size == 1_100_000
        Path(stored.json()[0]).unlink()


def test_without_link_and_logins_every_visitor_is_the_owner(open_studio: Callable[..., Studio]) -> None:
    with open_studio().client() as client:
        assert client.get("/gradio_api/studio/download/workspace.zip").status_code == 200
        assert client.get("/config", headers={"x-api-key": "any"}).status_code == 200


def test_an_anonymous_visitor_of_a_space_is_a_viewer(open_studio: Callable[..., Studio]) -> None:
    with open_studio(space_host="me.hf.space", link=True).client() as client:
        opened = client.get("/")
        cookie = opened.headers["set-cookie"]
        assert opened.status_code == 200 and cookie.startswith("adapter-studio-visitor-")
        assert "HttpOnly" in cookie and "SameSite=None; Secure" in cookie
        assert client.get("/config").status_code == 200
        assert client.post("/gradio_api/upload").status_code == 403
        assert client.get("/gradio_api/studio/download/workspace.zip").status_code == 403


def test_t23_the_session_of_another_visitor_cannot_be_used(linked: Studio) -> None:
    with linked.client() as first, linked.client() as second:
        first.get(linked.links[-1])
        second.get(linked.links[-1])
        guide = next(b._id for b in linked.page.blocks.values() if getattr(b, "elem_id", "") == "guide")
        body = {"data": {}, "component_id": guide, "fn_name": "poll", "session_hash": "of-first"}
        assert first.post("/gradio_api/component_server", json=body).status_code == 200
        event = {"data": [], "fn_index": 0, "session_hash": "of-first"}
        for path, json in (
            ("component_server", body),
            ("queue/join", event),
            ("queue/join/", event),
            ("cancel", event),
        ):
            refused = second.post(f"/gradio_api/{path}", json=json)
            assert refused.status_code == 403 and "another visitor" in refused.text
        for path in ("queue/data?session_hash=of-first", "heartbeat/of-first", "stream/of-first/1/1/x.ts"):
            assert second.get(f"/gradio_api/{path}").status_code == 403
        assert (
            second.post("/gradio_api/component_server", json={**body, "session_hash": "own"}).status_code
            == 200
        )
        assert first.post("/gradio_api/component_server", json=body).status_code == 200


@pytest.mark.parametrize("body", [b"[1]", b"{", b"[" * 40 + b"]" * 40, b"\xff"])
def test_t2_events_that_are_not_one_flat_json_object_are_refused(linked: Studio, body: bytes) -> None:
    with linked.client() as client:
        client.get(linked.links[-1])
        refused = client.post("/gradio_api/queue/join", content=body)
        assert refused.status_code == 400 and refused.text == "The request must hold one JSON object."


def test_an_event_is_refused_with_a_toast_where_the_role_is_too_low(guarded: Studio) -> None:
    page = guarded.page
    index = next(i for i, f in page.fns.items() if f.fn is not None and f.fn.__name__ == "change_base")
    exports = next(b._id for b in page.blocks.values() if getattr(b, "elem_id", "") == "exports")
    with guarded.client() as viewer:
        viewer.post("/login", data={"username": "vic", "password": "looks"})
        body = {"data": ["embedded", "none"], "fn_index": index, "session_hash": "vic-1"}
        assert viewer.post("/gradio_api/queue/join", json=body).status_code == 200
        with viewer.stream("GET", "/gradio_api/queue/data?session_hash=vic-1") as events:
            lines = [line for line in events.iter_lines() if "process_completed" in line]
        assert len(lines) == 1 and "This needs the role owner, and you are viewer." in lines[0]
        server = {"component_id": exports, "session_hash": "vic-1"}
        poll = viewer.post(
            "/gradio_api/component_server", json={**server, "data": {}, "fn_name": "poll_exports"}
        )
        assert poll.json() == {"exports": []}
        data = {"do": "delete", "export": "x"}
        act = viewer.post(
            "/gradio_api/component_server", json={**server, "data": data, "fn_name": "act_on_export"}
        )
        assert act.json()["error"].startswith("This needs the role owner, and you are viewer.")


def walk_routes(routes: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Method and path of every route, also of included routers; parameters of paths are filled in."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from walk_routes(inner.routes)
            continue
        for method in sorted(getattr(route, "methods", None) or {"GET"}):
            yield method, re.sub(r"{[^}]*}", "x", route.path)


def test_t23_every_route_of_page_and_api_refuses_nobody_and_low_roles(linked: Studio) -> None:
    keys = ApiKeys(linked.engine.workspace)
    secrets = {role: keys.create(f"walk {role}", role)[1] for role in ("viewer", "trainer")}
    page_routes = set(walk_routes(linked.page.app.routes))
    api_routes = set(walk_routes(make_app(linked.engine, ScopeAccess()).routes))
    assert len(page_routes) > 60 and len(api_routes) > 20
    seen = dict.fromkeys(Role, 0)
    with linked.client() as client:
        for method, path in sorted(page_routes | api_routes):
            needed = route_role(path)
            is_login = path.rstrip("/") in ("/login", "/logout")
            seen[needed] += 1
            if needed is not Role.NONE:
                status = client.request(method, path).status_code
                assert status == (303 if is_login else 401), (method, path)
            for name, secret in secrets.items():
                if needed > Role[name.upper()]:
                    refused = client.request(method, path, headers={"x-api-key": secret})
                    assert refused.status_code == 403, (method, path)
                    assert method == "HEAD" or f"you are {name}" in refused.text, (method, path)
    assert seen[Role.NONE] < 15 < seen[Role.OWNER] and seen[Role.TRAINER] >= 2


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("/config", Role.VIEWER),
        ("/gradio_api/upload", Role.TRAINER),
        ("/gradio_api/upload_progress", Role.TRAINER),
        ("/gradio_api/studio/download/adapter/a.zip", Role.OWNER),
        ("/gradio_api/studio/download/dataset/a.zip", Role.OWNER),
        ("/gradio_api/studio/download/export/a/b", Role.OWNER),
        ("/gradio_api/studio/download/workspace.zip", Role.OWNER),
        ("/gradio_api/studio/download/report/r.csv", Role.VIEWER),
        ("/gradio_api/run/predict", Role.OWNER),
        ("/health", Role.NONE),
        ("/healthy", Role.VIEWER),
        ("/health/../config", Role.NONE),  # no route of this name exists; Starlette resolves no dots
        ("/v1/models", Role.VIEWER),
        ("/new", Role.VIEWER),
    ],
)
def test_the_table_of_routes_names_the_role(path: str, role: Role) -> None:
    assert route_role(path) is role
