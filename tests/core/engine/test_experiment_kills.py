"""SIGKILL in the middle of an experiment: it continues cell by cell, and ends as without a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
KILLS = 3


@pytest.mark.slow
def test_a_killed_experiment_ends_as_without_a_kill_and_repeats_nothing(tiny_base: Path) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork a process")
    command = [sys.executable, "-m", "benchmarks.experiment_kills", "--json", "--base", str(tiny_base)]
    ran = subprocess.run([*command, "--kills", str(KILLS)], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    outcome = json.loads(ran.stdout.splitlines()[-1])
    assert outcome["problems"] == [] and outcome["kills"] == KILLS and outcome["experiments"] >= 1
    assert outcome["needed_lines"] == 52 * outcome["experiments"]
    assert outcome["needed_answers"] == 46 * outcome["experiments"]  # two rows share a general answer
    # A kill loses at most a batch, and the line about an answer that was appended just then.
    assert outcome["needed_lines"] - KILLS <= outcome["appended"] <= outcome["needed_lines"]
    assert outcome["needed_answers"] - KILLS <= outcome["computed"]
    assert outcome["computed"] <= outcome["needed_answers"] + 16 * KILLS
