"""Keys as credentials (T23), wrong ones and their growing delay, and routes that name their role."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from core.server import failed_attempts, problems
from core.server.access import Access, KeyAccess, OpenAccess, Principal, Role, require
from core.server.failed_attempts import FailedAttempts, address_of
from core.store.api_keys import ApiKeys
from core.store.workspace import Workspace


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def serve(access: Access) -> TestClient:
    app = FastAPI()
    app.state.access = access
    problems.add_handlers(app)
    for role in Role:

        @app.get(f"/{role.label}")
        async def show(principal: Principal = Depends(require(role))) -> str:  # noqa: B008
            return principal.name

    return TestClient(app)


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    return ApiKeys(Workspace(tmp_path))


@pytest.mark.parametrize("form", ["Authorization: Bearer {}", "Authorization: bearer  {}", "x-api-key: {}"])
def test_t23_each_role_may_do_what_the_ones_below_may(keys: ApiKeys, form: str) -> None:
    client = serve(KeyAccess(keys))
    for role in (Role.VIEWER, Role.TRAINER, Role.OWNER):
        _, secret = keys.create(f"a {role.label}", role.label)
        name, _, value = form.format(secret).partition(": ")
        for route in Role:
            answer = client.get(f"/{route.label}", headers={name: value})
            assert answer.status_code == (200 if route <= role else 403), (role, route)
            assert answer.status_code != 200 or answer.json() == f"key:a {role.label}"


def test_t23_callers_without_a_key_or_with_a_wrong_one_get_401(keys: ApiKeys) -> None:
    client = serve(KeyAccess(keys))
    _, secret = keys.create("revoked", "owner")
    keys.revoke("revoked")
    for headers in ({}, {"authorization": "Basic eDp5"}, {"x-api-key": secret}, {"authorization": secret}):
        answer = client.get("/viewer", headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["detail"].startswith("Sign in first.")
    assert serve(OpenAccess()).get("/owner").json() == "owner"


def test_wrong_keys_are_delayed_and_logged_and_a_right_key_is_not(
    keys: ApiKeys, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    client = serve(KeyAccess(keys, FailedAttempts(clock)))
    _, secret = keys.create("program", "viewer")
    wrong = {"x-api-key": "as-planted-and-wrong"}
    with caplog.at_level(logging.WARNING):
        assert [client.get("/viewer", headers=wrong).status_code for _ in range(7)] == [401] * 5 + [429] * 2
    refused = client.get("/viewer", headers=wrong)
    assert refused.headers["retry-after"] == "1" and "Try again in 1 s" in refused.json()["detail"]
    assert client.get("/viewer", headers={"x-api-key": secret}).status_code == 200
    assert len(caplog.records) == 5 and "planted" not in caplog.text and "testclient" in caplog.text
    clock.seconds += 1.01
    assert [client.get("/viewer", headers=wrong).status_code for _ in range(2)] == [401, 429]


@given(st.integers(5, 40))
def test_the_delay_doubles_up_to_five_minutes(count: int) -> None:
    clock = Clock()
    attempts = FailedAttempts(clock)
    for _ in range(count):
        attempts.add("10.0.0.1")
    assert attempts.wait_seconds("10.0.0.1") == min(2.0 ** (count - 5), 300.0)
    assert attempts.wait_seconds("10.0.0.2") == 0
    clock.seconds += 3601
    attempts.add("10.0.0.1")
    assert attempts.wait_seconds("10.0.0.1") == 0, "an hour later the count begins at one"


def test_t24_addresses_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_attempts, "ADDRESS_LIMIT", 3)
    attempts = FailedAttempts(Clock())
    for address in "abcdeb":
        attempts.add(address)
    assert list(attempts._failures) == ["d", "e", "b"]
    attempts.clear("e")
    attempts.clear("never seen")
    assert list(attempts._failures) == ["d", "b"]


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("127.0.0.1", 5), "127.0.0.1"),
        (("::1", 5), "::1"),
        (("2001:db8:1:2:3:4:5:6", 5), "2001:db8:1:2::/64"),
        (("x" * 100, 5), "x" * 64),
        (None, "unknown"),
    ],
)
def test_ipv6_neighbours_count_as_one_address(client: object, address: str) -> None:
    assert address_of({"client": client}) == address
