"""The audit of dependencies in `make check` (T26): what it says with and without an index of advisories."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import dependency_audit as audit

ROOT = Path(__file__).resolve().parents[1]


def test_t26_make_check_audits_and_the_tool_is_pinned() -> None:
    make = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "check: lint types layers audit" in make and "tests/dependency_audit.py" in make
    assert "pip-audit==" in audit.REQUIREMENTS.read_text(encoding="utf-8")


def test_without_an_index_one_sentence_says_that_nothing_was_audited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = tmp_path / "pip_audit"  # ends as pip-audit does when no index answers: an error, and no result
    tool.mkdir()
    (tool / "__init__.py").write_text("")
    (tool / "__main__.py").write_text("raise SystemExit('could not connect')")
    assert audit.look_up(tmp_path) is None
    monkeypatch.setattr(audit, "install", lambda: "")
    monkeypatch.setattr(audit, "TOOL", tmp_path)
    monkeypatch.setattr(audit, "look_up", lambda: None)
    assert audit.main() == 0
    said = capsys.readouterr().out
    assert said == "Dependency audit: not done, because no index of advisories answered.\n"


def test_a_tool_that_cannot_be_installed_fails_nothing(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"./{'absent'}\n")
    problem = audit.install(tmp_path / "tool", requirements)
    assert problem == "pip-audit could not be installed"
    lines, code = audit.describe(None, problem)
    assert (lines, code) == (["Dependency audit: not done, because pip-audit could not be installed."], 0)


def test_an_advisory_is_listed_and_fails_the_check(tmp_path: Path) -> None:
    tool = tmp_path / "pip_audit"
    tool.mkdir()
    (tool / "__init__.py").write_text("")
    (tool / "__main__.py").write_text(
        "import json, sys\n"
        "path = sys.argv[sys.argv.index('--output') + 1]\n"
        "found = [{'name': 'a', 'version': '1.0', 'vulns': [{'id': 'PYSEC-1', 'fix_versions': ['1.1']}]},\n"
        "         {'name': 'b', 'version': '2.0', 'vulns': []},\n"
        "         {'name': 'c', 'skip_reason': 'not found'}]\n"
        "json.dump({'dependencies': found}, open(path, 'w'))\n"
        "raise SystemExit(1)\n"
    )
    lines, code = audit.describe(audit.look_up(tmp_path))
    assert lines == [
        "a 1.0: PYSEC-1, fixed in 1.1",
        "Dependency audit: 2 packages, 1 known advisories. 1 packages are not in the index.",
    ]
    assert code == 1


def test_an_index_that_knows_no_package_has_audited_nothing() -> None:
    lines, code = audit.describe([{"name": "a", "skip_reason": "not found"}])
    assert (lines, code) == (
        ["Dependency audit: not done, because no index of advisories answered."],
        0,
    )
