"""Which type each tensor of a GGUF file gets, and how its values are encoded.

    F32, F16, BF16    numpy
    Q8_0, Q5_0, Q4_0  the package gguf
    Q4_K, Q5_K, Q6_K  llama.cpp's own quantizer in a library that an installed package has, in a process of
                      its own (`native_quantizer.py`)

Vectors (norms, biases, factors of the rotary embedding) stay in F32. The other rules are those of llama.cpp's
`llama-quant.cpp` without an importance matrix.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import BaseModelError, SpecError
from core.gguf.header import FILE_TYPES, TENSOR_TYPES, TensorType
from core.gguf.header_writer import TYPES
from core.gguf.native_quantizer import REQUEST

if TYPE_CHECKING:
    import numpy as np

QUANTIZATIONS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K_M")
NATIVE_TYPES = ("Q4_K", "Q5_K", "Q6_K")
# llama.cpp, in the version that was tried; requirements-bench.txt has it, too.
PACKAGE = "xllamacpp==2026.10.11549"
INSTALL = f"Install llama.cpp's quantizer with `pip install {PACKAGE}`, or choose Q4_0 or Q8_0."
# Package -> where its library lies in it.
LIBRARIES = {
    "xllamacpp": ("xllamacpp*.so",),
    "llama_cpp": ("lib/*ggml-base*.so*", "lib/*ggml-base*.dylib", "lib/ggml-base*.dll"),
    "llama_cpp_py_sync": ("*ggml-base*.so*", "*ggml-base*.dylib", "ggml-base*.dll"),
    "libggml": ("lib*/*ggml-base*.so*", "lib*/*ggml-base*.dylib", "bin/ggml-base*.dll"),
}
# A type whose blocks do not divide a row -> what llama.cpp takes instead.
_SMALLER_BLOCKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
_START_SECONDS = 60
# The largest number that each type can hold: float16 stores the values, or the scale of a block.
_HALF = 65_504.0
_LARGEST = {"F16": _HALF, "Q8_0": 127 * _HALF, "Q4_0": 8 * _HALF, "Q5_0": 16 * _HALF, "Q5_1": _HALF}


@dataclass(frozen=True)
class TypeChoice:
    """The type of a tensor, and why it is not the usual one, as a clause; "" where it is."""

    type: TensorType
    reason: str = ""


def get_file_type(quantization: str) -> int:
    """The number of a quantization in `general.file_type`.

    Raises:
        SpecError: an unknown quantization.
    """
    if quantization not in QUANTIZATIONS:
        raise SpecError(
            f"The quantization must be one of {', '.join(QUANTIZATIONS)}, got {quantization!r}."
        ).at("quantization")
    return next(number for number, name in FILE_TYPES.items() if name == quantization)


@dataclass(frozen=True)
class ModelShape:
    """What the types of the tensors depend on.

    Attributes:
        layers: how many the model has.
        is_tied: whether the embedding is also the head.
        is_70b: whether llama.cpp counts it as a model of 70B, whose small values get more bits.
    """

    layers: int
    is_tied: bool
    is_70b: bool = False


def choose_type(
    quantization: str, name: str, shape: tuple[int, ...], model: ModelShape, has_native: bool
) -> TypeChoice:
    """Chooses the type of a tensor.

    Args:
        name: of the tensor in the file. shape: rows first.
        has_native: whether llama.cpp's own quantizer is installed.
    """
    if len(shape) == 1:
        return TypeChoice(TYPES["F32"])
    usual = _find_usual_type(quantization, name, model)
    chosen, width = usual, shape[-1]
    if width % TYPES[chosen].block:
        chosen = _SMALLER_BLOCKS.get(chosen, "F16")
        if width % TYPES[chosen].block:
            chosen = "F16"
        reason = f"rows of {width:,} values, which are not a multiple of {TYPES[usual].block}"
        return TypeChoice(TYPES[chosen], f"{usual} cannot store {reason}")
    if chosen in NATIVE_TYPES and not has_native:
        return TypeChoice(TYPES["Q8_0"], f"{usual} needs llama.cpp's own quantizer, which is not installed")
    return TypeChoice(TYPES[chosen])


def _find_usual_type(quantization: str, name: str, model: ModelShape) -> str:
    """The type by the rules of llama.cpp, whatever the width of the rows is."""
    if quantization not in ("Q4_0", "Q4_K_M"):
        return quantization
    if name == "output.weight" or (model.is_tied and name == "token_embd.weight"):
        return "Q6_K"
    if quantization == "Q4_0":
        return "Q4_0"
    part = name.split(".")[2] if name.startswith("blk.") else ""
    if part in ("attn_v", "attn_qkv", "ffn_down") and _has_more_bits(int(name.split(".")[1]), model.layers):
        return "Q6_K"
    if model.is_70b and part in ("attn_v", "attn_qkv"):
        return "Q5_K"
    return "Q4_K"


def _has_more_bits(layer: int, layers: int) -> bool:
    """Whether Q4_K_M spends more bits on a layer: the first and last eighth, and every third between them."""
    first = layers // 8
    return layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2


class Encoder:
    """Encodes rows of float32 values. Use `open_encoder`, which ends the process of the native library."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def encode(self, values: np.ndarray[Any, Any], kind: TensorType, name: str) -> bytes:
        """The bytes of some rows.

        Args:
            values: (rows, values of a row) or a vector, float32.
            name: of the tensor, for messages.

        Raises:
            BaseModelError: a value is not finite, or too large for the type.
        """
        import numpy as np

        values = np.ascontiguousarray(values, dtype=np.float32)
        largest = float(np.abs(values).max(initial=0.0))  # NaN, where one value is
        if not largest <= _LARGEST.get(kind.name, _HALF if kind.name in NATIVE_TYPES else 3.38e38):
            raise _refuse_values(name, kind.name, largest)
        if kind.name == "F32":
            return values.astype("<f4", copy=False).tobytes()
        if kind.name == "F16":
            return values.astype("<f2").tobytes()
        if kind.name == "BF16":
            bits = values.view(np.uint32)
            return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
        if kind.name in NATIVE_TYPES:
            return self._encode_natively(values, kind)
        import gguf

        return bytes(gguf.quantize(values, gguf.GGMLQuantizationType[kind.name]).tobytes())

    def _encode_natively(self, values: np.ndarray[Any, Any], kind: TensorType) -> bytes:
        if self._child is None:
            library = find_library()
            if library is None:
                raise BaseModelError("llama.cpp's own quantizer is not installed.", INSTALL)
            self._child = _start_child(library)
        rows, width = values.shape
        row_bytes = width // kind.block * kind.bytes
        number = next(n for n, known in TENSOR_TYPES.items() if known is kind)
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(REQUEST.pack(number, rows, width, row_bytes))
            self._child.stdin.write(values.tobytes())
            self._child.stdin.flush()
            result = self._child.stdout.read(rows * row_bytes)
        except OSError:
            result = b""
        if len(result) != rows * row_bytes:
            code = self._child.wait()
            raise BaseModelError(
                f"The process of llama.cpp's quantizer ended with code {code}.",
                "Choose Q4_0 or Q8_0, which need no native library.",
            )
        return result

    def close(self) -> None:
        """Ends the process of the native library."""
        if self._child is not None:
            self._child.kill()
            with self._child:
                self._child = None


@contextlib.contextmanager
def open_encoder() -> Iterator[Encoder]:
    """An encoder, until the end of the block."""
    encoder = Encoder()
    try:
        yield encoder
    finally:
        encoder.close()


def find_library() -> Path | None:
    """The library with llama.cpp's own quantizer; None where no installed package has one that works."""
    for package, patterns in LIBRARIES.items():
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            continue
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for pattern in patterns:
                for path in sorted(Path(folder).glob(pattern)):
                    status = path.stat()
                    if _check_library(path, status.st_size, status.st_mtime_ns):
                        return path
    return None


@functools.lru_cache(maxsize=64)
def _check_library(path: Path, size: int, modified: int) -> bool:
    """Whether the library quantizes a row: 256 zeros become a block of 144 bytes. Once for each file."""
    request = REQUEST.pack(12, 1, 256, 144) + bytes(1024)
    try:
        done = subprocess.run(
            _build_command(path), input=request, capture_output=True, timeout=_START_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and len(done.stdout) == 144


def _start_child(library: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _build_command(library),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _build_command(library: Path) -> list[str]:
    script = Path(__file__).with_name("native_quantizer.py")
    return [sys.executable, "-I", str(script), str(library)]


def _refuse_values(name: str, kind: str, largest: float) -> BaseModelError:
    if largest != largest or largest == float("inf"):
        return BaseModelError(
            f"The tensor {name} has values that are not finite.",
            "Choose another checkpoint: these weights are damaged.",
        )
    return BaseModelError(
        f"The tensor {name} has values up to {largest:.3g}, which {kind} cannot store.", "Choose BF16 or F32."
    )
