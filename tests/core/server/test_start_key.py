"""The key of one start is accepted beside the stored ones, and a key file holds one usable key."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import Request

from core.errors import SpecError, StorageError
from core.server.access import Role
from core.server.start_key import StartKeyAccess, make_start_key, read_start_key
from core.store.api_keys import ApiKeys
from core.store.workspace import Workspace


def send(key: str) -> Request:
    headers = [(b"authorization", b"Bearer " + key.encode("latin-1"))] if key else []
    return Request({"type": "http", "headers": headers, "client": ("127.0.0.1", 1)})


def test_the_start_key_is_the_owner_and_stored_keys_keep_their_role(tmp_path: Path) -> None:
    keys, secret = ApiKeys(Workspace(tmp_path)), make_start_key()
    access = StartKeyAccess(keys, secret)
    _, stored = keys.create("bot", "viewer")
    assert access.identify(send(secret)).role is Role.OWNER
    assert access.identify(send(stored)).role is Role.VIEWER
    for wrong in ("", secret[:-1], secret + "x", "é", make_start_key()):
        assert access.identify(send(wrong)).role is Role.NONE
    assert make_start_key() != secret and len(secret) == 35


def test_a_key_file_holds_the_key_in_its_first_line(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("a-key-of-32-characters-or-so-xyz \nnotes\n", encoding="utf-8")
    assert read_start_key(file) == "a-key-of-32-characters-or-so-xyz"


@pytest.mark.parametrize("text", ["", "short", "x" * 513, "two words of a long key", "ключ-ключ-ключ-ключ"])
def test_a_file_without_a_usable_key_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match="must be a key of 16 to 512") as caught:
        read_start_key(file)
    assert not text or text not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("missing", "binary"):
        with pytest.raises(StorageError, match=f"{name} cannot be read"):
            read_start_key(tmp_path / name)
