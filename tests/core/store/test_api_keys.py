"""API keys: hashes on disk, roles, revocation, the day of the last use, and several processes."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import DamagedRecord, InvalidName, NotFound, SpecError, StorageError
from core.spec.access import ROLES
from core.store import api_keys, backup
from core.store.api_keys import ApiKey, ApiKeys, digest_of
from core.store.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "w")


@pytest.fixture
def keys(workspace: Workspace) -> ApiKeys:
    return ApiKeys(workspace)


@pytest.fixture
def one_key(keys: ApiKeys) -> tuple[ApiKeys, ApiKey, str]:
    return (keys, *keys.create("program", "viewer"))


def test_a_secret_has_192_random_bits_and_finds_its_key(keys: ApiKeys) -> None:
    made = {keys.create(f"k{i}", role) for i, role in enumerate(ROLES)}
    assert all(re.fullmatch(r"as-[A-Za-z0-9_-]{32}", secret) for _, secret in made)
    assert len({secret for _, secret in made}) == 3
    for key, secret in made:
        found = keys.find(secret)
        assert found is not None and (found.id, found.role) == (key.id, key.role)


def test_t21_the_file_holds_only_the_hash_and_is_private(workspace: Workspace, keys: ApiKeys) -> None:
    _, secret = keys.create("program", "owner")
    text = workspace.keys_path.read_text()
    assert secret not in text and secret[3:] not in text and digest_of(secret) in text
    assert stat.S_IMODE(os.stat(workspace.keys_path).st_mode) == 0o600
    assert [p.name for p in workspace.root.glob(".api_keys*")] == [".api_keys.json"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60))
def test_only_the_secret_itself_finds_a_key(one_key: tuple[ApiKeys, ApiKey, str], text: str) -> None:
    keys, key, secret = one_key
    for wrong in (text, secret + text[:1], secret[:-1], key.digest, key.id, ""):
        assert wrong == secret or keys.find(wrong) is None


def test_another_process_sees_a_new_and_a_revoked_key_at_once(workspace: Workspace, keys: ApiKeys) -> None:
    server = ApiKeys(workspace)
    assert server.list() == ()
    key, secret = keys.create("program", "trainer")
    assert server.find(secret) is not None
    assert keys.revoke("program").id == key.id
    assert server.find(secret) is None and server.list() == ()


def test_the_day_of_the_last_use_is_written_once_a_day(
    workspace: Workspace, keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = keys.create("program", "viewer")
    assert keys.list()[0].used == ""
    writes: list[object] = []
    write = ApiKeys._write
    monkeypatch.setattr(ApiKeys, "_write", lambda self, new: (writes.append(new), write(self, new)))
    for day, count in (("2026-01-31", 1), ("2026-01-31", 1), ("2026-02-01", 2)):
        monkeypatch.setattr(api_keys, "_today", lambda day=day: day)
        assert keys.find(secret) is not None
        assert (ApiKeys(workspace).list()[0].used, len(writes)) == (day, count)


def test_a_use_that_cannot_be_noted_does_not_refuse_the_request(
    keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = keys.create("program", "viewer")

    def refuse(*values: object) -> None:
        raise StorageError("read-only")

    monkeypatch.setattr(ApiKeys, "_write", refuse)
    found = keys.find(secret)
    assert found is not None and found.used == ""


def test_wrong_names_roles_and_too_many_keys_are_refused(
    keys: ApiKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.create("program", "viewer")
    with pytest.raises(SpecError, match="already a key called 'program'"):
        keys.create(" program ", "owner")
    with pytest.raises(SpecError, match="one of viewer, trainer, owner, got 'none'"):
        keys.create("other", "none")
    with pytest.raises(InvalidName):
        keys.create("", "viewer")
    with pytest.raises(NotFound, match="No key has the name or id 'other'"):
        keys.revoke("other")
    monkeypatch.setattr(api_keys, "KEY_LIMIT", 1)
    with pytest.raises(SpecError, match="At most 1 keys"):
        keys.create("other", "viewer")
    assert len(keys.list()) == 1


@pytest.mark.parametrize("text", ["{", '{"keys": [{"role": "admin"}]}', '{"keys": 5}', "[" * 40])
def test_a_damaged_file_lets_nobody_in_and_is_named(workspace: Workspace, text: str) -> None:
    workspace.keys_path.write_text(text)
    with pytest.raises(DamagedRecord, match="api_keys"):
        ApiKeys(workspace).find("as-" + "x" * 32)


def test_a_backup_leaves_the_keys_on_their_machine(
    workspace: Workspace, keys: ApiKeys, tmp_path: Path
) -> None:
    keys.create("program", "viewer")
    (workspace.root / "base.json").write_text(json.dumps({"name": "embedded"}))
    backup.pack(workspace.root, tmp_path / "b.zip", False)
    assert b"api_keys" not in (tmp_path / "b.zip").read_bytes()
