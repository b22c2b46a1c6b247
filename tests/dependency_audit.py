"""Looks the installed packages up in an index of advisories (T26); `make check` runs it.

Without a network, or where no index answers, one sentence says that the audit was not done, and the exit code
is 0. An advisory for an installed version is listed, and the exit code is 1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS, TOOL = ROOT / "requirements-audit.txt", ROOT / ".audit"
ANSWER_SECONDS, WHOLE_SECONDS = 5, 120


def install(tool: Path = TOOL, requirements: Path = REQUIREMENTS) -> str:
    """Installs the tool into a folder of its own, once for each content of the requirements.

    Returns:
        why that was not possible, or "".
    """
    stamp = tool / "requirements.txt"
    if stamp.is_file() and stamp.read_bytes() == requirements.read_bytes():
        return ""
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade",
        "--retries", "0", "--timeout", str(ANSWER_SECONDS), "--target", str(tool), "-r", str(requirements),
    ]  # fmt: skip
    if run(command) != 0:
        return "pip-audit could not be installed"
    stamp.write_bytes(requirements.read_bytes())
    return ""


def run(command: Sequence[str], **variables: str) -> int | None:
    """Runs a command without its output; returns its exit code, None after WHOLE_SECONDS."""
    try:
        return subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, timeout=WHOLE_SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        return None


def look_up(tool: Path = TOOL, options: Sequence[str] = ()) -> list[dict[str, object]] | None:
    """The installed packages with their advisories; None where no index answers.

    Args:
        options: further options of pip-audit.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [
            sys.executable, "-m", "pip_audit", "--path", sysconfig.get_path("purelib"), "--format", "json",
            "--output", str(result), "--progress-spinner", "off", "--timeout", str(ANSWER_SECONDS), *options,
        ]  # fmt: skip
        run(command, PYTHONPATH=str(tool))
        if not result.is_file():
            return None
        return list(json.loads(result.read_text(encoding="utf-8"))["dependencies"])


def describe(packages: Sequence[dict[str, object]] | None, problem: str = "") -> tuple[list[str], int]:
    """The lines to print, and the exit code."""
    if packages is None:
        reason = problem or "no index of advisories answered"
        return [f"Dependency audit: not done, because {reason}."], 0
    # An index that does not know a package at all makes pip-audit (2.10) end with success.
    audited = [package for package in packages if not package.get("skip_reason")]
    if not audited:
        return describe(None)
    lines = []
    for package in audited:
        found = package.get("vulns") or []
        for advisory in found if isinstance(found, list) else []:
            fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
            lines.append(f"{package['name']} {package['version']}: {advisory['id']}, fixed in {fixed}")
    skipped = len(packages) - len(audited)
    rest = f" {skipped} packages are not in the index." if skipped else ""
    return [
        *lines,
        f"Dependency audit: {len(audited)} packages, {len(lines)} known advisories.{rest}",
    ], int(bool(lines))


def main() -> int:
    """Audits, and prints what was found."""
    problem = install()
    lines, code = describe(None if problem else look_up(), problem)
    sys.stdout.write("\n".join(lines) + "\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
