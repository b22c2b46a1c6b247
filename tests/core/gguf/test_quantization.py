"""The type of each tensor by llama.cpp's rules, and the library that quantizes in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from core.errors import BaseModelError
from core.gguf import native_quantizer, quantization
from core.gguf.header_writer import TYPES
from core.gguf.quantization import ModelShape, choose_type, open_encoder

needs_native = pytest.mark.skipif(
    quantization.find_library() is None, reason="no package with llama.cpp's quantizer is installed"
)


def choose(quantization: str, name: str, width: int = 256, has_native: bool = True, **model: bool) -> str:
    shape = ModelShape(16, model.get("is_tied", False), model.get("is_70b", False))
    return choose_type(quantization, name, (8, width), shape, has_native).type.name


def test_types_of_a_mixture_follow_the_rules_of_llama_cpp() -> None:
    assert choose("Q4_K_M", "blk.4.attn_q.weight") == "Q4_K"
    assert choose("Q4_K_M", "output.weight") == choose("Q4_0", "output.weight") == "Q6_K"
    assert choose("Q4_K_M", "token_embd.weight") == "Q4_K"
    assert choose("Q4_K_M", "token_embd.weight", is_tied=True) == "Q6_K"
    better = [0, 1, 4, 7, 10, 13, 14, 15]  # the outer eighths, and every third between them
    for part in ("attn_v", "attn_qkv", "ffn_down"):
        assert [i for i in range(16) if choose("Q4_K_M", f"blk.{i}.{part}.weight") == "Q6_K"] == better
    assert choose("Q4_K_M", "blk.2.attn_v.weight", is_70b=True) == "Q5_K"
    assert choose("Q4_K_M", "blk.2.ffn_down.weight", is_70b=True) == "Q4_K"
    for kind in ("F32", "F16", "BF16", "Q8_0"):
        assert choose(kind, "output.weight") == choose(kind, "blk.0.attn_v.weight") == kind


def test_rows_that_a_block_does_not_divide_take_a_smaller_block_or_f16() -> None:
    assert choose("Q4_K_M", "blk.4.attn_q.weight", 576) == "Q5_0"
    assert choose("Q4_K_M", "output.weight", 576) == choose("Q4_0", "output.weight", 576) == "Q8_0"
    assert choose("Q4_K_M", "blk.2.attn_v.weight", 576, is_70b=True) == "Q5_1"
    for kind in ("Q4_K_M", "Q8_0", "Q4_0"):
        assert choose(kind, "blk.4.attn_q.weight", 100) == "F16"
    choice = choose_type("Q4_K_M", "output.weight", (8, 576), ModelShape(2, False), True)
    assert choice.reason == "Q6_K cannot store rows of 576 values, which are not a multiple of 256"
    choice = choose_type("Q4_0", "output.weight", (8, 256), ModelShape(2, False), False)
    assert choice.type.name == "Q8_0" and "which is not installed" in choice.reason


@needs_native
def test_the_library_quantizes_rows_that_the_package_gguf_reads() -> None:
    values = np.random.default_rng(1).normal(size=(6, 512)).astype(np.float32)
    with open_encoder() as encoder:
        for kind, largest in (("Q4_K", 0.3), ("Q5_K", 0.15), ("Q6_K", 0.08)):
            content = encoder.encode(values, TYPES[kind], "x")
            assert len(content) == 6 * 2 * TYPES[kind].bytes
            rows = np.frombuffer(content, np.uint8).reshape(6, -1)
            again = gguf.dequantize(rows, gguf.GGMLQuantizationType[kind])
            assert 0 < float(np.abs(again - values).max()) < largest
            assert encoder.encode(values[2:4], TYPES[kind], "x") == rows[2:4].tobytes(), (
                "rows are independent"
            )


def test_a_library_that_ends_its_process_ends_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "xllamacpp.so"
    broken.write_bytes(b"not a library")
    status = broken.stat()
    assert quantization._check_library(broken, status.st_size, status.st_mtime_ns) is False
    monkeypatch.setattr(quantization, "find_library", lambda: broken)
    values = np.ones((1, 256), np.float32)
    with (
        open_encoder() as encoder,
        pytest.raises(BaseModelError, match="quantizer ended with code 3.*Choose Q4_0"),
    ):
        encoder.encode(values, TYPES["Q4_K"], "x")


def test_no_library_is_named_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        quantization, "LIBRARIES", {"a_package_that_is_not_here": ("*.so",), "json": ("*.so",)}
    )
    assert quantization.find_library() is None
    with open_encoder() as encoder, pytest.raises(BaseModelError, match="pip install xllamacpp"):
        encoder.encode(np.ones((1, 256), np.float32), TYPES["Q6_K"], "x")


def test_the_process_of_the_library_imports_nothing_of_the_studio() -> None:
    source = Path(native_quantizer.__file__).read_text(encoding="utf-8")
    imported = {line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imported - {"__future__"} <= set(sys.stdlib_module_names)
