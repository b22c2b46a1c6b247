"""`keys create`, `keys list` and `keys revoke` in the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main
from core.store.api_keys import ApiKeys
from core.store.workspace import Workspace


def run(capsys: pytest.CaptureFixture[str], root: Path, *arguments: Any) -> tuple[int, str, str]:
    code = main(["keys", *map(str, arguments), "--workspace", str(root)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_key_is_created_listed_and_revoked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, tmp_path, "create", "ci bot", "--role", "trainer")
    first, second = out.splitlines()
    secret = first.removeprefix("ci bot (trainer): ")
    assert code == 0 and second == "Copy it now: it cannot be shown again."
    found = ApiKeys(Workspace(tmp_path)).find(secret)
    assert found is not None and found.role == "trainer"
    code, out, _ = run(capsys, tmp_path, "list")
    assert code == 0 and secret not in out and "ci bot  trainer" in out and found.digest not in out
    code, out, _ = run(capsys, tmp_path, "revoke", "ci bot")
    assert (code, out) == (0, "revoked: ci bot\n") and ApiKeys(Workspace(tmp_path)).find(secret) is None
    assert run(capsys, tmp_path, "list")[1] == "no keys\n"


def test_a_program_reads_the_key_and_its_role_is_the_lowest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = json.loads(run(capsys, tmp_path, "create", "a", "--json")[1].splitlines()[-1])
    assert made["role"] == "viewer" and ApiKeys(Workspace(tmp_path)).find(made["key"]) is not None
    assert "digest" not in made
    code, _, err = run(capsys, tmp_path, "revoke", "b")
    assert code == 1 and "No key has the name or id 'b'" in err
    code, _, err = run(capsys, tmp_path, "create", "a")
    assert code == 1 and "already a key called 'a'" in err
