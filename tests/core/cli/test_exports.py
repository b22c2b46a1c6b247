"""`export` and `exports` in the terminal, on the tiny base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main
from core.engine import Engine
from tests.core.merge.test_bake import add_random_adapter
from tests.studio.exported import FAILED, put_export
from tests.upload_hub import serve_uploads


@pytest.fixture(scope="module")
def workspace(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    with Engine(folder, str(tiny_base), "none", "cpu") as engine:
        resident = engine.worker.call(engine.resident_base.get)
        add_random_adapter(resident, "law", 4, 8, ("q_proj", "down_proj"), False)
    return folder


def run(workspace: Path, base: Path, capsys: Any, *arguments: str) -> tuple[int, Any, str]:
    """(exit code, JSON of the last line, everything printed)"""
    common = ["--workspace", str(workspace), "--base", str(base), "--quantization", "none", "--json"]
    code = main([*arguments, *common])
    text = capsys.readouterr().out
    return code, json.loads(text.strip().splitlines()[-1]), text


def test_an_export_is_estimated_written_listed_verified_and_deleted(workspace, tiny_base, capsys, tmp_path):
    code, found, text = run(workspace, tiny_base, capsys, "export", "law", "--dry-run", "--form", "merged")
    assert code == 0 and found["estimate"]["bytes"] > 100_000 and "takes about" in text
    out = tmp_path / "law"
    given = ("export", "law=0.5", "--out", str(out), "--prompts", "0", "--name", "half", "--form", "peft")
    code, found, text = run(workspace, tiny_base, capsys, *given)
    export_id = found["export"]["id"]
    assert code == 0 and found["folder"] == str(out) and "adapter_model.safetensors" in text
    assert (out / "adapter_config.json").exists() and (out / "checksums.txt").exists()
    code, found, _ = run(workspace, tiny_base, capsys, "exports", "list")
    assert [e["name"] for e in found] == ["half"]
    code, found, _ = run(workspace, tiny_base, capsys, "exports", "show", "half")
    assert found["id"] == export_id and found["is_complete"]
    code, found, _ = run(workspace, tiny_base, capsys, "adapters", "verify", str(out))
    assert code == 0 and len(found["checked"]) >= 4
    code, found, text = run(workspace, tiny_base, capsys, "export", "law", "--out", str(out))
    assert code == 1 and "exists already" in found["error"]
    code, found, _ = run(workspace, tiny_base, capsys, "export", "law=auto")
    assert code == 1 and "law is on Auto" in found["error"]
    code, found, _ = run(workspace, tiny_base, capsys, "exports", "delete", "half")
    assert found == {"deleted": export_id}
    assert run(workspace, tiny_base, capsys, "exports", "list")[1] == []


def test_an_export_is_uploaded_and_a_failed_one_only_on_request(tmp_path, capsys):
    with Engine(tmp_path, load=False) as engine:
        put_export(engine, files={"README.md": b"x"})
        put_export(engine, "failed-0000", files={"README.md": b"x"}, certificate=FAILED)
    with serve_uploads() as hub:
        code, found, text = run(tmp_path, tmp_path, capsys, "exports", "push", "answers-0a1b", "me/x")
        address = "https://huggingface.co/me/x/commit/1"
        assert (code, found) == (0, {"uploaded": "answers-0a1b", "address": address}), text
        assert f"uploaded: {address}" in text
        given = ("exports", "push", "failed-0000", "me/y")
        code, found, _ = run(tmp_path, tmp_path, capsys, *given)
        assert code == 1 and "--although-failed" in found["fix"] and len(hub.created) == 1
        code, found, _ = run(tmp_path, tmp_path, capsys, *given, "--although-failed", "--public")
        assert code == 0 and hub.created[1].get("visibility", "public") == "public"
        code, found, _ = run(tmp_path, tmp_path, capsys, "exports", "push", "answers-0a1b", "me/forbidden")
        assert code == 1 and "does not let you write" in found["error"]


def test_a_bundle_also_holds_what_has_weight_0(workspace, tiny_base, capsys):
    given = ("export", "law", "--form", "bundle", "--prompts", "0", "--gguf-quantization", "f32")
    with Engine(workspace, str(tiny_base), "none", "cpu") as engine:
        resident = engine.worker.call(engine.resident_base.get)
        add_random_adapter(resident, "odd", 6, 9, ("q_proj",), False)
    code, found, text = run(workspace, tiny_base, capsys, given[0], "law=0.5, odd=0", *given[2:])
    assert code == 0, text
    assert found["export"]["spec"]["weights"] == {"law": 0.5, "odd": 0.0}
    scales = json.loads((Path(found["folder"]) / "scales.json").read_text())
    weights = {a["file"].rpartition("-")[2]: a["weight"] for a in scales["adapters"]}
    assert weights == {"law.lora.gguf": 0.5, "odd.lora.gguf": 0.0}
    code, found, _ = run(workspace, tiny_base, capsys, given[0], "law=0.5, none=0", *given[2:])
    assert code == 1 and "none" in found["error"]


def test_the_quantization_of_a_gguf_file_is_not_that_of_the_base(workspace, tiny_base, capsys):
    given = ("export", "law", "--form", "gguf", "--dry-run", "--gguf-quantization")
    sizes = [run(workspace, tiny_base, capsys, *given, q)[1]["estimate"]["bytes"] for q in ("f32", "f16")]
    assert sizes[0] > 1.2 * sizes[1]
