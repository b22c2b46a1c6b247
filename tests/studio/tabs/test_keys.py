"""The keys on the Base tab: a secret is shown once, and only to an owner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.engine import Engine
from core.errors import InvalidName, NotFound, SpecError
from core.spec.access import Role
from core.store.api_keys import ApiKeys
from studio.tabs import keys
from tests.studio.shown import actions, pressed, texts
from tests.studio.test_roles import call_as


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path, load=False) as made:
        yield made


def test_a_key_is_created_shown_once_and_revoked(engine: Engine) -> None:
    assert texts(keys.refresh(engine)) == "No keys yet."
    name, shown, shelf = keys.create(engine, "ci <b>bot", "trainer")
    key = ApiKeys(engine.workspace).list()[0]
    (copy,) = actions(shown)
    assert name == "" and copy["do"] == "copy"
    found = ApiKeys(engine.workspace).find(copy["text"])
    assert found is not None and (found.name, found.role) == ("ci <b>bot", "trainer")
    assert "cannot be shown again" in texts(shown) and copy["text"] in texts(shown)
    assert "never used" in texts(shelf) and copy["text"] not in texts(shelf)
    assert actions(shelf) == [{"revoke": key.id}] and key.digest not in str(shelf)
    secret, shelf = keys.revoke(engine, pressed(revoke=key.id))
    assert secret is None and texts(shelf) == "No keys yet."
    with pytest.raises(NotFound):
        keys.revoke(engine, pressed(revoke=key.id))


def test_a_wrong_name_or_role_stands_at_its_field(engine: Engine) -> None:
    with pytest.raises(InvalidName) as empty:
        keys.create(engine, " ", "viewer")
    with pytest.raises(SpecError) as role:
        keys.create(engine, "a", "admin")
    assert (empty.value.field, role.value.field) == ("name", "role")
    assert ApiKeys(engine.workspace).list() == ()


def test_only_an_owner_sees_the_list(engine: Engine) -> None:
    ApiKeys(engine.workspace).create("ci", "viewer")
    for role, text in (
        (Role.NONE, "not signed in"),
        (Role.VIEWER, "You are viewer"),
        (Role.TRAINER, "trainer"),
    ):
        with call_as(role):
            assert text in texts(keys.refresh(engine)) and "ci" not in texts(keys.refresh(engine)).split()
    with call_as(Role.OWNER):
        assert "ci" in texts(keys.refresh(engine)).split()
