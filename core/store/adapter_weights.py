"""Checks of adapter_model.safetensors: tensor names, shapes and finite values, one tensor at a time."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from core.errors import AdapterError
from core.store.adapter_config import COPIES, UNMIXABLE

FILE = "adapter_model.safetensors"
HEADER_LIMIT = 100_000_000  # bytes of JSON, as in safetensors
MAGNITUDE = "lora_magnitude_vector"  # the tensor that DoRA adds: one number per output
TOKENS = "trainable_tokens_delta"  # the vectors of trained tokens, one row each
TOKEN_END = f".token_adapter.{TOKENS}"
PREFIX = "base_model.model."  # of every tensor's name in peft's file format
OWN = "own"  # the part of a tensor that replaces weights of the base
# Part of a tensor's name -> why its adapter cannot be mixed.
FOREIGN_TENSORS = {
    MAGNITUDE: UNMIXABLE["use_dora"],
    "lora_embedding_": COPIES,
    "token_adapter": COPIES,
    "lora_B.bias": UNMIXABLE["lora_bias"],
    "embed_tokens.weight": COPIES,
    "lm_head.weight": COPIES,
    "modules_to_save": COPIES,
}
# Floating-point types of safetensors: an unsigned integer type to read them as, and the bits that are all set
# in an infinite value or NaN. numpy has no bfloat16, so the bits are tested instead of the values.
NON_FINITE_BITS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
    "F8_E8M0": ("u1", 0xFF),
    "C64": ("<u4", 0x7F80_0000),  # two F32
}
INTEGERS = ("BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64")


def check_size(path: Path) -> None:
    """Checks that a safetensors file is as long as its header says, without reading the tensors.

    Raises:
        AdapterError: it is not. OSError
    """
    stat = os.stat(path)
    _check_size(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _check_size(path: Path, size: int, modified: int) -> None:
    """See `check_size`; a file that passed and has not changed since is not read again."""
    try:
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= min(size - 8, HEADER_LIMIT):
                raise ValueError("it has no header")
            file.seek(0)
            end = max((end for _, end in _read_header(file).values()), default=8 + header_bytes)
            if end != size:
                raise ValueError(f"it has {size:,} bytes, and its header describes {end:,}")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
        raise AdapterError(f"it is not a complete safetensors file ({e})") from e


def write_weights(write: Callable[[Path], None], path: Path) -> None:
    """Writes weights with safetensors, which reports the error of the system only as a text.

    Args:
        write: writes the safetensors file at the path that it receives.

    Raises:
        OSError: the disk refused.
    """
    try:
        write(path)
    except SafetensorError as e:
        number = re.search(r"os error (\d+)", str(e))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(e))) from e


def check_weights(folder: Path, config: dict[str, Any]) -> tuple[int, int]:
    """Checks the tensors of an adapter against its config.

    Args:
        folder: the folder of the adapter.
        config: its config, as `parse_config` returns it.

    Returns:
        The number of tensors and the number of values in them.

    Raises:
        AdapterError: the file is unreadable, or a tensor is missing, foreign, misshapen or not finite.
    """
    path, values = folder / FILE, 0
    modules: dict[str, set[str]] = {}  # module -> the parts of its update that occur
    own: set[str] = set()  # names of the modules that it replaces
    try:
        with safe_open(str(path), framework="np") as tensors, open(path, "rb") as file:
            header = _read_header(file)
            for key in tensors.keys():  # noqa: SIM118 (safe_open is not a dict)
                tensor = tensors.get_slice(key)
                shape = tuple(tensor.get_shape())
                values += math.prod(shape)
                if not _is_finite(file, header, key, tensor.get_dtype()):
                    raise AdapterError(
                        f"The tensor {key!r} holds NaN or infinite values.",
                        "The adapter is unusable: train it again with a lower learning rate.",
                    )
                module, part = _check_tensor(key, shape, config)
                if part == OWN:
                    own.add(module)
                else:
                    modules.setdefault(module, set()).add(part)
    except (SafetensorError, OSError) as e:
        raise AdapterError(
            f"{FILE} cannot be read: {e}.", "Restore it from a backup, or train the adapter again."
        ) from e
    parts_per_module = 3 if config.get("use_dora") else 2
    incomplete = sorted(m for m, parts in modules.items() if len(parts) != parts_per_module)
    if incomplete or not modules:
        raise AdapterError(
            f"A low-rank factor is missing in {incomplete[0] if incomplete else FILE}.",
            "Restore the file from a backup, or train the adapter again.",
        )
    named = {*(config.get("modules_to_save") or ()), *(config.get("trainable_token_indices") or ())}
    if missing := sorted(named - own):
        raise AdapterError(
            f"The trained weights of {missing[0]} are missing in {FILE}.",
            "Restore the file from a backup, or train the adapter again.",
        )
    return parts_per_module * len(modules) + len(own), values


def _check_tensor(key: str, shape: tuple[int, ...], config: dict[str, Any]) -> tuple[str, str]:
    """Checks the name and shape of a tensor; returns (module, lora_A | lora_B | magnitude | own)."""
    if name := _find_own(key, shape, config):
        return name, OWN
    if config.get("use_dora") and key.endswith(f".{MAGNITUDE}") and len(shape) == 1:
        return key.removesuffix(f".{MAGNITUDE}"), MAGNITUDE
    module, _, part = key.removesuffix(".weight").rpartition(".")
    rank = _rank_of(module, config)
    problem = f"The tensor {key!r} of shape {shape} is not a LoRA factor of rank {rank}"
    if obstacle := next((o for name, o in FOREIGN_TENSORS.items() if name in key), None):
        raise AdapterError(f"{problem}: {obstacle.reason}.", obstacle.fix)
    is_factor = part in ("lora_A", "lora_B") and len(shape) == 2
    if not is_factor or not _has_rank(shape[0 if part == "lora_A" else 1], rank, config):
        raise AdapterError(f"{problem}.", "Convert the adapter to plain LoRA first.")
    return module, part


def _find_own(key: str, shape: tuple[int, ...], config: dict[str, Any]) -> str:
    """The name of the module whose weights a tensor replaces, as the config lists it; "" for others."""
    path = key.removeprefix(PREFIX)
    if path.endswith(TOKEN_END):
        name = path.removesuffix(TOKEN_END)
        ids = (config.get("trainable_token_indices") or {}).get(name)
        return name if ids and len(shape) == 2 and shape[0] == len(ids) else ""
    name, _, parameter = path.rpartition(".")
    is_listed = name in (config.get("modules_to_save") or ()) and ".lora_" not in key
    return name if is_listed and parameter in ("weight", "bias") and len(shape) in (1, 2) else ""


def _rank_of(module: str, config: dict[str, Any]) -> int:
    """The rank of a module: that of the first rank pattern that ends its path, otherwise the common rank."""
    patterns: dict[str, int] = config.get("rank_pattern") or {}
    return next(
        (rank for name, rank in patterns.items() if f".{module}".endswith(f".{name}")), int(config["r"])
    )


def _has_rank(size: int, rank: int, config: dict[str, Any]) -> bool:
    """Whether a factor has this rank. A factor of fused experts has the ranks of all experts side by side."""
    return size == rank or bool(config.get("target_parameters")) and size > 0 and size % rank == 0


def _read_header(file: IO[bytes]) -> dict[str, tuple[int, int]]:
    """Tensor -> (first byte, last byte + 1) in the file. `safe_open` has checked the header before."""
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    offsets = {key: entry["data_offsets"] for key, entry in header.items() if key != "__metadata__"}
    return {key: (8 + length + begin, 8 + length + end) for key, (begin, end) in offsets.items()}


def _is_finite(file: IO[bytes], header: dict[str, tuple[int, int]], key: str, dtype: str) -> bool:
    if dtype in INTEGERS:
        return True
    if dtype not in NON_FINITE_BITS:
        raise AdapterError(
            f"The tensor {key!r} has the type {dtype}, which cannot be checked.",
            "Convert the adapter to float32, float16 or bfloat16.",
        )
    integer, bits = NON_FINITE_BITS[dtype]
    begin, end = header[key]
    file.seek(begin)
    values = np.fromfile(file, integer, (end - begin) // np.dtype(integer).itemsize)
    mask = values.dtype.type(bits)
    return not bool(((values & mask) == mask).any())
