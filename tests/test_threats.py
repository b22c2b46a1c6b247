"""Every threat of the threat model has a test that is named after it."""

from __future__ import annotations

import re
from pathlib import Path

THREATS = 26


def test_every_threat_has_a_test_of_its_name() -> None:
    names = {
        name
        for file in Path(__file__).parent.rglob("test_*.py")
        for name in re.findall(r"def (test_t\d\w*)", file.read_text(encoding="utf-8"))
    }
    found = {int(n) for name in names for n in re.findall(r"(?<=_t)\d+(?=_)", name)}
    assert set(range(1, THREATS + 1)) - found == set()
