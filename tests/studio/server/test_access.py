"""Logins with a name and a password: their form (T25), and secrets that no message quotes (T21)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import SpecError
from core.spec.access import Role
from core.store.api_keys import ApiKeys
from core.store.workspace import Workspace
from studio.server.access import Login, PageAccess, read_logins

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("planted", "without a colon"),
        ("", "without a colon"),
        (":planted", "an empty name"),
        ("  :planted", "an empty name"),
        ("planted:", "an empty password"),
        ("planted:  ", "an empty password"),
    ],
)
def test_t25_a_login_without_colon_name_or_password_is_refused(text: str, problem: str) -> None:
    with pytest.raises(SpecError, match=f"must be NAME:PASSWORD, got .*{problem}") as caught:
        Login.parse(text)
    assert "planted" not in str(caught.value)


@given(st.text(min_size=1).filter(lambda t: t.strip()), st.text(min_size=1).filter(lambda t: t.strip()))
def test_names_and_passwords_are_read_as_they_are(name: str, password: str) -> None:
    name = name.replace(":", "")
    if name.strip():
        assert Login.parse(f"{name}:{password}", Role.VIEWER) == Login(name.strip(), password, Role.VIEWER)


def test_a_file_holds_several_logins(tmp_path: Path) -> None:
    file = tmp_path / "logins"
    file.write_bytes(b"\xef\xbb\xbfann:a:b\r\n\nvic:c\n")
    assert read_logins(None, file, Role.TRAINER) == [
        Login("ann", "a:b", Role.TRAINER),
        Login("vic", "c", Role.TRAINER),
    ]
    assert read_logins("eve:d", None, Role.OWNER) == [Login("eve", "d")]
    assert read_logins(None, None, Role.OWNER) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "not UTF-8"),
        (b"", "without a colon"),
        (b"ann:a\nplanted", "colon"),
    ],
)
def test_t25_a_file_without_logins_opens_nothing(tmp_path: Path, content: bytes | None, problem: str) -> None:
    file = tmp_path / "logins"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SpecError, match=problem) as caught:
        read_logins(None, file, Role.OWNER)
    assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "password", "role"),
    [
        ("ann", "a", Role.OWNER),
        ("vic", "v", Role.VIEWER),
        ("ann", "v", None),
        ("ann", "", None),
        ("", "", None),
        ("\ud800", "a", None),
    ],
)
def test_only_the_password_of_the_name_is_right(
    tmp_path: Path, name: str, password: str, role: Role | None
) -> None:
    logins = [Login("ann", "a"), Login("vic", "v", Role.VIEWER)]
    access = PageAccess(ApiKeys(Workspace(tmp_path)), 7860, Role.NONE, logins=logins)
    found = access.check_password(name, password)
    assert (found.role if found else None) == role


@pytest.mark.parametrize(
    ("options", "variables", "problem"),
    [
        (["--auth", "planted"], {}, "got a text without a colon"),
        ([], {"ADAPTER_STUDIO_AUTH": "planted:"}, "got an empty password"),
        (["--host", "0.0.0.0"], {}, "Other machines can reach 0.0.0.0, and no password is set"),
    ],
)
def test_t25_the_studio_does_not_start_with_such_a_login(
    tmp_path: Path, options: list[str], variables: dict[str, str], problem: str
) -> None:
    done = subprocess.run(
        [sys.executable, "launch.py", "--workspace", str(tmp_path), "--no-browser", *options],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1 and problem in done.stderr and "planted" not in done.stderr + done.stdout
