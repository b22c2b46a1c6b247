"""The reference pages say what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def check() -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "docs/reference.py", "--check"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_reference_pages_are_those_of_the_code() -> None:
    found = check()
    assert found.returncode == 0, f"{found.stdout}{found.stderr}: run `python docs/reference.py`"


def test_every_route_names_its_role_and_every_verb_its_arguments() -> None:
    api = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    assert "| `DELETE /api/adapters/{adapter_id}` | owner |" in api and "`GET /health` | anyone |" in api
    assert api.count("| anyone |") == 2, "health and readiness"
    terminal = (ROOT / "docs/reference/terminal.md").read_text(encoding="utf-8")
    assert "## `python -m core serve`" in terminal and "`--no-token`" in terminal
