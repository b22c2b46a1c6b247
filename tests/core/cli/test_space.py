"""`space build` in the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from core.cli.main import main
from core.store import adapters, mixes
from core.store.workspace import Workspace
from tests.core.store.test_backup import CONFIG


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    import torch

    made = Workspace(tmp_path / "w")
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {key.format("A"): torch.ones(2, 8), key.format("B"): torch.ones(8, 2)}
    config = {**CONFIG, "target_modules": ["q_proj"]}
    meta = {"kind": "domain", "base": {"name": "smollm2-135m", "fingerprint": "f" * 64}}
    adapters.add(made, "notes-0001", "Notes", lambda p: save_file(tensors, p), config, meta)
    mixes.save(made, "Half", {"notes-0001": 0.5})
    return made


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main(["space", "build", *(str(a) for a in arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_space_is_built_and_described(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "space"
    options = ["--workspace", workspace.root, "--hardware", "zero-a10g", "--json"]
    code, out, _ = run(capsys, target, "--mix", "Half", *options)
    built = json.loads(out.splitlines()[-1])
    assert code == 0 and built["folder"] == str(target) and built["base"] == "smollm2-135m"
    assert built["adapters"] == ["notes-0001"] and len(built["mixes"]) == 1
    assert "1 adapters, 1 mixes" in out and f"hf upload OWNER/NAME {target} ." in out
    assert "note: On ZeroGPU, answers and training use the GPU time of each visitor" in out
    assert '["--base", "smollm2-135m"' in (target / "app.py").read_text().replace("'", '"')
    code, _, err = run(capsys, target, "--workspace", workspace.root)
    assert code == 1 and "is not empty; nothing was changed" in err


def test_mistakes_are_said_and_write_nothing(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "space"
    code, _, err = run(capsys, target, "--adapter", "Note", "--workspace", workspace.root)
    assert code == 1 and "no adapter 'Note'. Give an id or a name. It has: notes-0001 (Notes)." in err
    code, _, err = run(
        capsys, target, "--adapter", "Notes", "--base", "embedded", "--workspace", workspace.root
    )
    assert code == 1 and "'Notes' was trained on smollm2-135m" in err
    code, _, err = run(capsys, target, "--adapter", "Notes", "--workspace", tmp_path / "mistyped")
    assert code == 1 and "is not a workspace" in err and not (tmp_path / "mistyped").exists()
    code, _, err = run(capsys, target, "--title", " ")
    assert code == 1 and "name must not be empty" in err
    assert not target.exists()


def test_an_empty_space_needs_no_workspace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, tmp_path / "space", "--workspace", tmp_path / "none")
    assert code == 0 and "base embedded, 0 adapters, 0 mixes" in out
    assert not (tmp_path / "none").exists() and not (tmp_path / "space" / "seed").exists()
