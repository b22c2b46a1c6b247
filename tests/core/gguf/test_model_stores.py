"""The stores of Ollama and LM Studio, in the layout that these programs write."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from core.errors import BaseModelError
from core.gguf import model_stores
from core.gguf.model_stores import ModelFolders, find_model, list_models, read_settings

MODEL, TEMPLATE, PARAMS, ADAPTER, PROJECTOR = (
    f"application/vnd.ollama.image.{kind}" for kind in ("model", "template", "params", "adapter", "projector")
)


def add_blob(root: Path, content: bytes) -> dict[str, Any]:
    """Writes a blob as Ollama does; returns what a manifest says of it."""
    digest = hashlib.sha256(content).hexdigest()
    path = root / "blobs" / f"sha256-{digest}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"digest": f"sha256:{digest}", "size": len(content)}


def add_model(
    root: Path,
    name: str,
    layers: dict[str, bytes] | list[dict[str, Any]],
    host: str = "registry.ollama.ai",
    namespace: str = "library",
) -> Path:
    """Writes a model as `ollama pull` does. `name`: model:tag."""
    if isinstance(layers, dict):
        layers = [{"mediaType": kind, **add_blob(root, content)} for kind, content in layers.items()]
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", **add_blob(root, b"{}")}
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": config,
        "layers": layers,
    }
    model, _, tag = name.partition(":")
    path = root / "manifests" / host / namespace / model / tag
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return path


def test_models_of_ollama_have_the_names_that_people_type(tmp_path: Path) -> None:
    layers = {MODEL: b"GGUF model", TEMPLATE: b"{{ .Prompt }}", PARAMS: b'{"stop": ["<|im_end|>", 5]}'}
    add_model(tmp_path, "qwen2.5:0.5b-instruct", layers)
    add_model(tmp_path, "llama3.2:latest", {MODEL: b"GGUF other"})
    add_model(tmp_path, "tuned:v1", {MODEL: b"GGUF tuned"}, namespace="somebody")
    add_model(tmp_path, "Qwen2.5-GGUF:Q4_K_M", {MODEL: b"GGUF hub"}, host="hf.co", namespace="bartowski")
    folders = ModelFolders(ollama=(tmp_path,))
    assert [m.name for m in list_models(folders)] == [
        "hf.co/bartowski/Qwen2.5-GGUF:Q4_K_M",
        "llama3.2:latest",
        "qwen2.5:0.5b-instruct",
        "somebody/tuned:v1",
    ]
    model = find_model(folders, "qwen2.5:0.5b-instruct")
    assert model is not None and not model.why and model.path.read_bytes() == b"GGUF model"
    assert model.sha256 == hashlib.sha256(b"GGUF model").hexdigest() and model.bytes == 10
    assert read_settings(model) == ("{{ .Prompt }}", ["<|im_end|>"])
    latest = find_model(folders, "llama3.2")
    assert latest is not None and latest.name == "llama3.2:latest" and read_settings(latest) == ("", [])
    assert find_model(folders, "qwen2.5") is None


def test_adapters_and_pictures_of_a_model_are_named(tmp_path: Path) -> None:
    add_model(tmp_path, "a:1", {MODEL: b"GGUF", ADAPTER: b"GGUF lora", PROJECTOR: b"GGUF clip"})
    (model,) = list_models(ModelFolders(ollama=(tmp_path,)))
    assert not model.why and "adds an adapter to this model; it is left out" in model.notes[0]
    assert "reads pictures is left out" in model.notes[1]


def test_a_damaged_store_costs_one_model_each(tmp_path: Path) -> None:
    blob = add_blob(tmp_path, b"GGUF")
    one = {"mediaType": MODEL, **blob}
    (add_model(tmp_path, "text:1", [one])).write_text("{")
    add_model(tmp_path, "none:1", [])
    add_model(tmp_path, "two:1", [one, one])
    add_model(tmp_path, "path:1", [{**one, "digest": "sha256:../../../etc/hostname"}])
    add_model(tmp_path, "upper:1", [{**one, "digest": blob["digest"].upper()}])
    add_model(tmp_path, "gone:1", [{**one, "digest": f"sha256:{'0' * 64}"}])
    add_model(tmp_path, "size:1", [{**one, "size": 5}])
    add_model(tmp_path, "good:1", [one])
    link = tmp_path / "blobs" / f"sha256-{'1' * 64}"
    link.symlink_to(tmp_path / "manifests")
    add_model(tmp_path, "link:1", [{**one, "digest": f"sha256:{'1' * 64}"}])
    big = add_model(tmp_path, "big:1", [one])
    big.write_bytes(big.read_bytes() + b" " * model_stores.MANIFEST_LIMIT)
    why = {m.name: m.why for m in list_models(ModelFolders(ollama=(tmp_path,)))}
    assert why.pop("good:1") == ""
    assert "has no file of a model" in why.pop("none:1").replace("It has", "has")
    assert "2 files" in why.pop("two:1")
    assert "is a link" in why.pop("link:1") and "4 bytes and not 5" in why.pop("size:1")
    assert "is missing in Ollama's store. Pull the model again" in why.pop("gone:1")
    for name in ("path:1", "upper:1"):
        assert "is not a sha256" in why.pop(name)
    assert "more than 1,048,576 bytes" in why.pop("big:1")
    assert "Its manifest in Ollama's store is damaged" in why.pop("text:1") and not why


def test_links_and_odd_names_in_a_store_are_not_followed(tmp_path: Path) -> None:
    add_model(tmp_path / "other", "secret:1", {MODEL: b"GGUF"})
    add_model(tmp_path / "store", "good:1", {MODEL: b"GGUF"})
    library = tmp_path / "store" / "manifests" / "registry.ollama.ai" / "library"
    (library / "linked").symlink_to(
        tmp_path / "other" / "manifests" / "registry.ollama.ai" / "library" / "secret"
    )
    (library / "a b").mkdir()
    (library / "a b" / "1").write_text("{}")
    assert [m.name for m in list_models(ModelFolders(ollama=(tmp_path / "store",)))] == ["good:1"]
    with pytest.raises(BaseModelError, match="cannot be read"):
        model = find_model(ModelFolders(ollama=(tmp_path / "store",)), "good:1")
        assert model is not None
        params = tmp_path / "params"
        params.write_text("[")
        read_settings(model_stores.StoredModel("a", "a", "ollama", model.path, texts={"params": params}))


def test_models_of_lm_studio_are_one_each(tmp_path: Path) -> None:
    root = tmp_path / "models"
    for name in (
        "bartowski/Qwen2.5-GGUF/Qwen2.5-Q4_K_M.gguf",
        "bartowski/Qwen2.5-GGUF/mmproj-model-f16.gguf",
        "big/Large-GGUF/Large-00001-of-00003.gguf",
        "big/Large-GGUF/Large-00002-of-00003.gguf",
        "big/Large-GGUF/Large-00003-of-00003.gguf",
        "mlx/Other/model.safetensors",
        "too/deep/folder/model.gguf",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"GGUF")
    (root / "bartowski" / "Qwen2.5-GGUF" / "link.gguf").symlink_to(path)
    models = {m.label: m for m in list_models(ModelFolders(lm_studio=(root, tmp_path / "missing")))}
    assert set(models) == {
        "bartowski/Qwen2.5-GGUF/Qwen2.5-Q4_K_M.gguf",
        "bartowski/Qwen2.5-GGUF/link.gguf",
        "big/Large-GGUF/Large",
    }
    whole = models["bartowski/Qwen2.5-GGUF/Qwen2.5-Q4_K_M.gguf"]
    assert whole.name == str(whole.path) and whole.bytes == 4 and not whole.why
    assert "is split into 3 files" in models["big/Large-GGUF/Large"].why
    assert "is a link" in models["bartowski/Qwen2.5-GGUF/link.gguf"].why


def test_the_folders_of_a_user_follow_the_environment(tmp_path: Path) -> None:
    found = ModelFolders.find({"OLLAMA_MODELS": str(tmp_path / "o"), "XDG_CACHE_HOME": str(tmp_path / "c")})
    assert found.ollama == (tmp_path / "o",) and found.downloads == tmp_path / "c" / "adapter-studio"
    usual = ModelFolders.find({})
    assert usual.ollama[0] == Path.home() / ".ollama" / "models"
    assert Path.home() / ".lmstudio" / "models" in usual.lm_studio


def test_a_store_is_only_read(tmp_path: Path) -> None:
    add_model(tmp_path, "a:1", {MODEL: b"GGUF", PARAMS: b"{}"})
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")}
    for folder, _, _ in os.walk(tmp_path):
        os.chmod(folder, 0o555)
    try:
        (model,) = list_models(ModelFolders(ollama=(tmp_path,)))
        read_settings(model)
    finally:
        for folder, _, _ in os.walk(tmp_path):
            os.chmod(folder, 0o755)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")} == before
