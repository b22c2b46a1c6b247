"""Weights of a folder are read by rows without torch, and damaged folders end in a sentence."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from core.errors import BaseModelError
from core.gguf.model_tensors import FolderTensors

ROOT = Path(__file__).resolve().parents[3]


def make_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "a": torch.randn(7, 5, generator=generator).bfloat16(),
        "b": torch.randn(4, 3, generator=generator).half(),
        "c": torch.randn(6, generator=generator),
        "d": torch.tensor([[float("nan"), float("inf"), -0.0]]).bfloat16(),
    }


def save(folder: Path, weights: dict[str, torch.Tensor], shards: int = 1) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return
    files = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({n: w for n, w in weights.items() if files[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


@pytest.mark.parametrize("shards", [1, 3])
def test_any_rows_of_any_type_are_read_as_float32(shards: int, tmp_path: Path) -> None:
    weights = make_weights()
    save(tmp_path / "base", weights, shards)
    tensors = FolderTensors(tmp_path / "base")
    assert tensors.config == {"model_type": "llama"}
    assert tensors.shapes == {name: tuple(w.shape) for name, w in weights.items()}
    assert [tensors.dtype_of(name) for name in "abcd"] == ["BF16", "F16", "F32", "BF16"]
    for name, weight in weights.items():
        expected = weight.float().numpy()
        for begin, end in ((0, None), (1, 3), (2, 2), (3, 100)):
            rows = tensors.read(name, begin, end)
            assert rows.dtype == np.float32
            assert np.array_equal(rows, expected[begin:end], equal_nan=True)
        tensors.read(name)[...] = 0  # the values are the caller's own


def test_weights_are_read_without_torch(tmp_path: Path) -> None:
    save(tmp_path / "base", make_weights())
    code = (
        "import sys; from pathlib import Path; from core.gguf.model_tensors import FolderTensors;"
        "t = FolderTensors(Path(sys.argv[1])); print(t.read('a').shape, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "base")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["(7,", "5)", "False"]


def write_header(path: Path, header: object, data: int) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


def entry(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json in 'base' cannot be read: No such file"),
        (lambda f: (f / "config.json").write_text("["), "config.json is not an object of JSON"),
        (lambda f: (f / "model.safetensors").unlink(), r"'base' has no \*.safetensors weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "has no header of safetensors"),
        (lambda f: write_header(f / "model.safetensors", [], 0), "model.safetensors in 'base' is damaged"),
        (lambda f: write_header(f / "model.safetensors", {}, 0), "its files have no tensors"),
        (
            lambda f: write_header(f / "model.safetensors", entry(), 15),
            "does not have all bytes of the tensor a",
        ),
        (lambda f: write_header(f / "model.safetensors", entry(shape=[-2, -2]), 16), "an impossible shape"),
        (
            lambda f: write_header(f / "model.safetensors", entry(dtype="F8_E4M3"), 16),
            "the type F8_E4M3; BF16, F16",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "../x.safetensors"}}'
            ),
            "does not name its files",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text(
                '{"weight_map": {"a": "x.safetensors"}}'
            ),
            "x.safetensors in 'base' cannot be read",
        ),
    ],
)
def test_damaged_folders_end_in_a_sentence(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    save(tmp_path / "base", make_weights())
    damage(tmp_path / "base")
    with pytest.raises(BaseModelError, match=message):
        FolderTensors(tmp_path / "base")


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    save(tmp_path / "base", {"a": torch.zeros(100, 100)})
    tensors = FolderTensors(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    with open(path, "r+b") as file:
        file.truncate(20_000)
    assert tensors.read("a", 0, 10).shape == (10, 100)
    with pytest.raises(BaseModelError, match="model.safetensors became shorter while it was read"):
        tensors.read("a")
