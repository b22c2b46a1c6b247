"""`adapters add` and `adapters prove`: findings and repairs in the terminal, and the values of --json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from core.cli.main import main
from tests.core.importing.test_refusals import factors, put


def test_an_adapter_is_checked_repaired_added_and_proven(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = put(tmp_path / "tone", {**factors(), "base_model.model.lm_head.weight": torch.ones(384, 64)})

    def run(*args: str) -> tuple[int, str]:
        options = ["--workspace", str(tmp_path / "ws"), "--base", str(tiny_base), "--quantization", "none"]
        code = main([*args, *options])
        return code, capsys.readouterr().out

    code, text = run("adapters", "add", str(source), "--check", "--repair", "drop-copies")
    assert code == 0
    assert "512 parameters in 2 layers of 2 blocks, rank 2, scaling 2" in text
    assert "--repair drop-copies: Import the LoRA part alone. " in text and "(chosen)" in text
    assert run("adapters", "list", "--json") == (0, "[]\n")

    code, text = run("adapters", "add", str(source), "--json")
    assert code == 1
    error = json.loads(text.splitlines()[-1])
    assert "was not imported" in error["error"] and "(repair drop-copies)" in error["fix"]

    command = ["adapters", "add", str(source), "--repair", "drop-copies", "--name", "Tone"]
    code, text = run(*command, "--line", "Where is the lamp?", "--json")
    assert code == 0
    value = json.loads(text.splitlines()[-1])
    assert value["preflight"]["ranks"] == [2] and value["proof"]["divergence"] > 0
    assert value["added"].startswith("tone-")
