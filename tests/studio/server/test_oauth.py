"""Signing in on a Space with an OpenID provider (T22, T23, T25): roles, state, PKCE, sessions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest

from core.engine import Engine
from core.errors import AccessError, SpecError
from core.spec.access import Role
from studio.app import serve
from studio.server import oauth
from studio.server.access import Login, PageAccess, Visit, describe_visit, read_visitor_role
from studio.server.openid import OpenIdSettings
from tests.browser.conftest import free_port
from tests.openid_provider import CLIENT, SECRET, OpenIdProvider

DOWNLOAD = "/gradio_api/studio/download/workspace.zip"
OWNER = {"preferred_username": "ann", "orgs": [{"preferred_username": "owner-org", "roleInOrg": "admin"}]}
OTHER = {"preferred_username": "bob", "orgs": [{"preferred_username": "owner-org", "roleInOrg": "write"}]}


class Space:
    """A served Space, its provider, and its OAuth with a clock that a test can move."""

    def __init__(self, engine: Engine) -> None:
        self.provider = OpenIdProvider()
        port = free_port()
        self.settings = self.provider.settings(f"127.0.0.1:{port}", trainers=frozenset({"tess"}))
        logins = [Login("pat", "s:e:c")]
        options: dict[str, Any] = {"logins": logins, "openid": self.settings}
        self.page = serve(engine, port=port, block=False, space_host="127.0.0.1", **options)
        self.url = f"http://127.0.0.1:{port}"

    def client(self) -> Browser:
        # Without connections that are kept: the server may close one while a busy machine sends on it.
        return Browser(base_url=self.url, timeout=60, limits=httpx.Limits(max_keepalive_connections=0))


class Browser(httpx.Client):
    """Sends `Secure` cookies over HTTP, as browsers do on loopback."""

    def send(self, request: httpx.Request, **more: Any) -> httpx.Response:
        response = super().send(request, **more)
        for cookie in self.cookies.jar:
            cookie.secure = False
        return response

    def begin(self) -> str:
        """The address of the provider to which a sign-in leads."""
        response = self.get("/login/huggingface")
        assert response.status_code == 303
        return str(response.headers["location"])

    def sign_in(self, provider: OpenIdProvider, user: dict[str, Any]) -> httpx.Response:
        return self.get(provider.approve(self.begin(), user), headers={"sec-fetch-site": "cross-site",
                        "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"})  # fmt: skip

    def is_owner(self) -> bool:
        return self.get(DOWNLOAD).status_code == 200


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    with Engine(tmp_path_factory.mktemp("space"), load=False) as engine:
        served = Space(engine)
        yield served
        served.page.close(verbose=False)
        served.provider.close()


def test_the_owner_signs_in_beside_anonymous_viewers(space: Space, caplog: pytest.LogCaptureFixture) -> None:
    with space.client() as owner, space.client() as visitor, caplog.at_level(logging.INFO):
        assert [c.get("/config").status_code for c in (owner, visitor)] == [200, 200]
        assert not owner.is_owner() and owner.post("/gradio_api/upload").status_code == 403
        address = owner.begin()
        asked = dict(parse_qsl(urlsplit(address).query))
        assert address.startswith(f"{space.provider.url}/oauth/authorization?")
        assert asked["redirect_uri"] == f"{space.url}/login/callback" and asked["client_id"] == CLIENT
        assert len(asked["state"]) > 40 and len(asked["code_challenge"]) == 43
        signed_in = owner.sign_in(space.provider, OWNER)
        assert (signed_in.status_code, signed_in.headers["location"]) == (303, "../")
        cookies = signed_in.headers.get_list("set-cookie")
        session = next(c for c in cookies if c.startswith("adapter-studio-7") or "Max-Age=28800" in c)
        assert "HttpOnly" in session and "SameSite=none" in session and "Secure" in session
        assert owner.is_owner() and not visitor.is_owner()
    logged = [r.getMessage() for r in caplog.records if r.name.startswith(("studio", "core", "httpx2"))]
    assert "Signed in: hf:ann as owner" in logged
    assert not [line for line in logged if "planted" in line or asked["state"] in line]


@pytest.mark.parametrize(
    ("user", "upload"),
    [
        (OTHER, 403),
        ({"preferred_username": "tess"}, 422),  # a trainer may upload; this request has no file
        ({"preferred_username": "eve", "orgs": "owner-org"}, 403),
    ],
)
def test_t23_other_users_are_viewers_or_listed_trainers(
    space: Space, user: dict[str, Any], upload: int
) -> None:
    with space.client() as client:
        assert client.sign_in(space.provider, user).status_code == 303
        assert client.post("/gradio_api/upload").status_code in (upload, 400 if upload != 403 else 403)
        assert client.get("/config").status_code == 200 and not client.is_owner()


@pytest.mark.parametrize(
    ("user", "role"),
    [
        ({"preferred_username": "owner-org"}, Role.OWNER),
        ({"preferred_username": "Owner-org"}, Role.VIEWER),
        (OWNER, Role.OWNER),
        (OTHER, Role.VIEWER),
        ({**OWNER, "orgs": [{**OWNER["orgs"][0], "securityRestrictions": ["mfa"]}]}, Role.VIEWER),  # type: ignore[index]
        ({**OWNER, "orgs": [{"preferred_username": "elsewhere", "roleInOrg": "admin"}]}, Role.VIEWER),
        ({**OWNER, "orgs": [None, 1]}, Role.VIEWER),
    ],
)
def test_the_name_or_an_administrated_organisation_makes_the_owner(user: dict[str, Any], role: Role) -> None:
    settings = OpenIdSettings(CLIENT, "https://huggingface.co", "a.hf.space", "owner-org", SECRET)
    assert settings.find_principal(user).role is role
    unowned = OpenIdSettings(CLIENT, "https://huggingface.co", "a.hf.space", "", SECRET)
    assert unowned.find_principal(user).role is Role.VIEWER
    assert SECRET not in repr(settings)


@pytest.mark.parametrize("name", [None, "", "a b", "<b>", "ann\n", 7, "x" * 97])
def test_a_user_without_a_usable_name_is_refused(name: Any) -> None:
    settings = OpenIdSettings(CLIENT, "https://huggingface.co", "a.hf.space", "ann", SECRET)
    with pytest.raises(AccessError, match="no user name"):
        settings.find_principal({"preferred_username": name})


def test_t22_a_wrong_state_or_a_foreign_callback_starts_no_session(space: Space) -> None:
    with space.client() as victim, space.client() as attacker:
        good = space.provider.approve(attacker.begin(), OTHER)
        assert victim.get(good).status_code == 400, "it began in the attacker's browser"
        victim.begin()
        assert victim.get(good).status_code == 400, "its state is not the one of this browser"
        back = space.provider.approve(victim.begin(), OWNER)
        assert victim.get(back.replace("state=", "state=x")).status_code == 400
        refused = victim.get(back)
        assert refused.status_code == 400 and "Begin again" in refused.text, "an attempt is used up"
        assert 'href="login/huggingface"' in refused.text and '<base href="../">' in refused.text
        assert not victim.is_owner() and "Max-Age=28800" not in str(refused.headers)
        assert attacker.get(good).status_code == 303
        assert attacker.get(good).status_code == 400, "a code works once"


def test_a_declined_sign_in_leaves_a_viewer(space: Space) -> None:
    with space.client() as client:
        declined = client.get(space.provider.decline(client.begin()))
        assert declined.status_code == 403 and "declined" in declined.text
        assert client.get("/config").status_code == 200 and not client.is_owner()


@pytest.mark.parametrize(
    ("path", "status", "body", "shown"),
    [
        ("/oauth/token", 400, b'{"error": "invalid_grant"}', 403),
        ("/oauth/token", 200, b"{}", 403),
        ("/oauth/token", 200, b'{"access_token": "t"}', 403),  # userinfo does not know it
        ("/oauth/userinfo", 200, b"[]", 502),
        ("/oauth/userinfo", 200, b"[" * 40 + b"]" * 40, 502),
        ("/oauth/userinfo", 200, b" " * 200_001, 502),
        ("/oauth/userinfo", 302, b"", 502),
        ("/oauth/userinfo", 500, b"planted <b>", 502),
    ],
)
def test_what_the_provider_answers_wrongly_signs_nobody_in(
    space: Space, path: str, status: int, body: bytes, shown: int
) -> None:
    with space.client() as client:
        address = client.begin()
        space.provider.answers[path] = (status, body)
        try:
            answer = client.get(space.provider.approve(address, OWNER))
        finally:
            space.provider.answers.clear()
        assert answer.status_code == shown and "planted" not in answer.text
        assert "The sign-in service" in answer.text and not client.is_owner()


def test_a_provider_that_cannot_be_reached_is_one_sentence(space: Space) -> None:
    settings = OpenIdSettings(CLIENT, f"http://127.0.0.1:{free_port()}", "127.0.0.1", "ann", SECRET)
    with pytest.raises(AccessError, match="did not answer as expected"):
        oauth.Provider(settings).make_address("http://x/", "s", "v")


def test_a_sign_in_ends_after_ten_minutes_and_a_session_after_eight_hours(
    space: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.testclient import TestClient

    from core.store.api_keys import ApiKeys
    from core.store.workspace import Workspace
    from studio.server.guard import Guard

    seconds = [0.0]
    keys = ApiKeys(Workspace(tmp_path))
    access = PageAccess(keys, 1, Role.VIEWER, has_provider=True)
    access.sessions._clock = lambda: seconds[0]
    settings = space.provider.settings("testserver")
    flow = oauth.OAuth(settings, access, lambda: seconds[0])
    seen: list[Visit] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse

        seen.append(describe_visit(Request(scope)))
        await PlainTextResponse("ok")(scope, receive, send)

    client = TestClient(Guard(app, access, flow), follow_redirects=False)
    for wait, status in ((599.0, 303), (600.0, 400)):
        address = client.get("/login/huggingface").headers["location"]
        back = space.provider.approve(address, {"preferred_username": "owner-org"})
        seconds[0] += wait
        assert client.get(back).status_code == status
    client.get("/")
    seconds[0] += 8 * 3600
    client.get("/")
    assert seen == [Visit(Role.OWNER, "owner-org", False, True), Visit(Role.VIEWER, "", True, False)]
    monkeypatch.setattr(oauth, "PENDING_LIMIT", 3)
    for _ in range(5):
        client.get("/login/huggingface")
    assert len(flow._pending) == 3
    assert client.post("/login/callback").status_code == 303
    elsewhere = client.get("/login/huggingface", headers={"host": "custom.example"})
    assert elsewhere.headers["location"] == "http://testserver/login"


def test_the_login_page_offers_both_ways_and_signing_out_needs_a_post(space: Space) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    with space.client() as client:
        page = client.get("/login", headers=link)
        assert page.status_code == 200 and 'name="password"' in page.text
        assert "Sign in with Hugging Face" in page.text
        assert client.get("/login/huggingface", headers=link).status_code == 403
        assert client.get("/logout").status_code == 303, "no session"
        form = {"username": "pat", "password": "s:e:c"}
        client.post("/login", data=form, headers={"accept": "text/html"})
        assert client.is_owner()
        asked = client.get("/logout")
        assert asked.status_code == 200 and "signed in as pat" in asked.text and client.is_owner()
        assert client.post("/logout", headers={**link, "origin": "https://evil.example"}).status_code == 403
        assert client.post("/logout", headers={"origin": "https://evil.example"}).status_code == 403
        copy = dict(client.cookies)
        left = client.post("/logout", headers={"origin": space.url})
        assert left.status_code == 303 and not client.is_owner()
        assert "SameSite=none; Secure" in left.headers["set-cookie"]
        client.cookies.update(copy)
        assert not client.is_owner(), "the session ended on the server"


def test_t23_a_session_of_another_user_cannot_be_used(space: Space) -> None:
    with space.client() as ann, space.client() as bob:
        ann.sign_in(space.provider, OWNER)
        bob.sign_in(space.provider, OTHER)
        guide = next(b._id for b in space.page.blocks.values() if getattr(b, "elem_id", "") == "guide")
        body = {"data": {}, "component_id": guide, "fn_name": "poll", "session_hash": "of-ann"}
        assert ann.post("/gradio_api/component_server", json=body).status_code == 200
        assert bob.post("/gradio_api/component_server", json=body).status_code == 403
        first = next(c.value for c in ann.cookies.jar if c.value)
        ann.sign_in(space.provider, OTHER)
        assert not ann.is_owner()
        ann.cookies.set(next(c.name for c in ann.cookies.jar), str(first))
        assert not ann.is_owner(), "signing in again ends the session before"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"OAUTH_CLIENT_SECRET": ""}, "OAUTH_CLIENT_SECRET is missing"),
        ({"OPENID_PROVIDER_URL": "http://huggingface.co"}, "begins with https://"),
        ({"OPENID_PROVIDER_URL": "file:///etc"}, "begins with https://"),
    ],
)
def test_t25_a_space_does_not_start_with_half_of_the_settings(changes: dict[str, str], problem: str) -> None:
    with pytest.raises(SpecError, match=problem) as caught:
        OpenIdSettings.read({**ENVIRONMENT, **changes})
    assert "planted" not in str(caught.value)


ENVIRONMENT = {
    "OAUTH_CLIENT_ID": CLIENT,
    "OAUTH_CLIENT_SECRET": SECRET,
    "OAUTH_SCOPES": "openid profile email",
    "OPENID_PROVIDER_URL": "https://huggingface.co/",
    "SPACE_HOST": "ann-demo.hf.space,demo.example",
    "SPACE_ID": "ann/demo",
    "ADAPTER_STUDIO_TRAINERS": "tess, tom",
}


def test_the_settings_are_those_of_the_space() -> None:
    found = OpenIdSettings.read(ENVIRONMENT)
    assert found == OpenIdSettings(
        CLIENT, "https://huggingface.co", "ann-demo.hf.space", "ann", SECRET, "openid profile email",
        frozenset({"tess", "tom"}),
    )  # fmt: skip
    assert OpenIdSettings.read({"SPACE_ID": "ann/demo"}) is None
    named = OpenIdSettings.read({**ENVIRONMENT, "SPACE_AUTHOR_NAME": "org"})
    assert named is not None and named.owner == "org"


def test_visitors_of_a_space_have_at_most_the_role_viewer() -> None:
    assert [read_visitor_role(text) for text in ("", "viewer", " None")] == [
        Role.VIEWER, Role.VIEWER, Role.NONE,
    ]  # fmt: skip
    with pytest.raises(SpecError, match="must be viewer or none, got 'owner'"):
        read_visitor_role("owner")


def test_a_space_asks_the_hub_for_signing_in() -> None:
    import yaml

    from core.space.card import SpaceSpec, format_readme
    from core.space.selection import Selection

    built = format_readme(SpaceSpec(), "embedded", Selection(), "6.31.0")
    own = (Path(__file__).resolve().parents[3] / "README.md").read_text(encoding="utf-8")
    for text in (built, own):
        assert yaml.safe_load(text.split("---\n")[1])["hf_oauth"] is True
    assert "Sign in with Hugging Face" in built and "ADAPTER_STUDIO_TRAINERS" in built
