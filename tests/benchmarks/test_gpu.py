"""`benchmarks/gpu.py` runs the same code with `--device cpu`, and reports "not run" without a CUDA device."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def test_without_a_gpu_the_script_says_that_it_did_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--json", "--store", str(tmp_path / "f.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["not run: no CUDA device", '{"ran": false}']
    assert json.loads((tmp_path / "f.json").read_text(encoding="utf-8")) == {"ran": False}


def test_the_gpu_script_measures_a_tiny_base_on_a_cpu(tmp_path: Path) -> None:
    stored = tmp_path / "figures.json"
    parts = ["--parts", "training", "mixing", "--sides", "studio", "floor"]
    least = ["--precisions", "none", "--kinds", "task"]
    assert gpu.main(["--device", "cpu", *parts, *least, "--store", str(stored)]) == 0
    figures = json.loads(stored.read_text(encoding="utf-8"))
    assert figures["ran"] is True and figures["device"] == "cpu" and "not_measured" not in figures
    assert figures["tiny_none_task_studio_tokens_per_second"] > 0
    assert figures["tiny_none_task_training_over_floor"] > 0
    assert figures["tiny_none_4_mixes_over_peft"] > 0
    assert 0 < figures["tiny_none_4_mixes_over_bare_base"] < 3


def test_what_does_not_fit_into_the_time_is_named(tmp_path: Path) -> None:
    stored = tmp_path / "figures.json"
    arguments = ["--device", "cpu", "--parts", "mixing", "--seconds", "0", "--store", str(stored)]
    assert gpu.main(arguments) == 0
    figures = json.loads(stored.read_text(encoding="utf-8"))
    assert figures["not_measured"] == ["tiny_nf4_mixing", "tiny_none_mixing"]
