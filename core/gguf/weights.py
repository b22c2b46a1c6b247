"""Writes the tensors of a GGUF file as bfloat16 safetensors, a few rows at a time.

    file ─ read rows ─> blocks ─ gguf.dequantize ─> float32 ─ check, subtract, round ─> bfloat16 ─> shard

Memory stays at some ten megabytes whatever the size of the model. Values are rounded to the nearest bfloat16,
ties to even.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from core.errors import BaseModelError
from core.gguf.header import TensorInfo
from core.gguf.reading_plan import TensorPlan

if TYPE_CHECKING:
    import numpy as np

CHUNK_VALUES = 4 << 20
SHARD_BYTES = 4 << 30
BF16_BYTES = 2
NUMBERS_LIMIT = 65_536  # values of a tensor that is read as a list


def read_numbers(file: IO[bytes], info: TensorInfo, name: str) -> list[float]:
    """The values of a small tensor.

    Raises:
        BaseModelError: it is too large, or has values that are not finite.
    """
    if info.rows * info.shape[-1] > NUMBERS_LIMIT:
        raise BaseModelError(f"{name!r} is damaged: the tensor {info.name} is too large.", "Copy it again.")
    values = [float(v) for v in _dequantize(_read_rows(file, info, 0, info.rows), info).ravel()]
    return [float(f"{v:.7g}") for v in values]


def write_weights(
    file: IO[bytes],
    name: str,
    plans: Sequence[TensorPlan],
    folder: Path,
    report: Callable[[int, int], None],
) -> list[str]:
    """Writes model.safetensors, or several shards and their index.

    Args:
        file: the GGUF file. name: of it, for messages.
        folder: receives the files, which must not exist.
        report: receives the bytes that are written, and those in all.

    Returns:
        the names of the files.

    Raises:
        BaseModelError: the file is damaged, or has values that are not finite. OSError: of the disk.
    """
    shards = _divide(plans)
    total, done = sum(_bytes_of(plan) for plan in plans), 0
    names, weight_map = [], {}
    for number, shard in enumerate(shards, start=1):
        whole = len(shards) == 1
        shard_name = "model.safetensors" if whole else f"model-{number:05}-of-{len(shards):05}.safetensors"
        names.append(shard_name)
        weight_map.update({plan.name: shard_name for plan in shard})
        with open(folder / shard_name, "xb") as target:
            target.write(_build_header(shard))
            for plan in shard:
                for block in _convert(file, name, plan):
                    target.write(block)
                    done += len(block)
                    report(done, total)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
        names.append("model.safetensors.index.json")
    return names


def count_bytes(plans: Sequence[TensorPlan]) -> int:
    """The bytes of the converted weights."""
    return sum(_bytes_of(plan) for plan in plans)


def _bytes_of(plan: TensorPlan) -> int:
    return plan.source.rows * plan.source.shape[-1] * BF16_BYTES


def _divide(plans: Sequence[TensorPlan]) -> list[list[TensorPlan]]:
    """Divides tensors into shards of at most SHARD_BYTES, unless one tensor is larger."""
    shards: list[list[TensorPlan]] = [[]]
    size = 0
    for plan in plans:
        if shards[-1] and size + _bytes_of(plan) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(plan)
        size += _bytes_of(plan)
    return shards


def _build_header(shard: Sequence[TensorPlan]) -> bytes:
    """The header of a safetensors file: its length, and the place of each tensor as JSON."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for plan in shard:
        end = begin + _bytes_of(plan)
        table[plan.name] = {"dtype": "BF16", "shape": list(plan.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _convert(file: IO[bytes], name: str, plan: TensorPlan) -> Iterator[bytes]:
    """Yields the bfloat16 bytes of a tensor."""
    import numpy as np

    info = plan.source
    if len(info.shape) == 1:
        values = _dequantize(_read_rows(file, info, 0, 1), info).reshape(-1)
        yield _round(_reorder(values, plan.heads), name, info, plan.offset)
        return
    head_rows = info.rows // plan.heads if plan.heads else 1
    rows = max(1, CHUNK_VALUES // (info.shape[-1] * head_rows)) * head_rows
    for begin in range(0, info.rows, rows):
        count = min(rows, info.rows - begin)
        block = _read_rows(file, info, begin, count)
        if info.type.name == "BF16" and not plan.heads and not plan.offset:
            bits = np.frombuffer(block, dtype="<u2")
            if ((bits & 0x7F80) == 0x7F80).any():
                raise _refuse_values(name, info)
            yield block
        else:
            values = _reorder(_dequantize(block, info), plan.heads and count // head_rows)
            yield _round(values, name, info, plan.offset)


def _reorder(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Puts the rows of q and k into the order of transformers; `heads` of 0 leaves them as they are.

    llama.cpp rotates neighbouring values of a head, transformers the two halves of a head:

        file          a0 b0 a1 b1 a2 b2 ...        a: first half of the head, b: second half
        transformers  a0 a1 a2 ... b0 b1 b2 ...
    """
    if not heads:
        return values
    pairs = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _read_rows(file: IO[bytes], info: TensorInfo, begin: int, count: int) -> bytes:
    file.seek(info.start + begin * info.row_bytes)
    block = file.read(count * info.row_bytes)
    if len(block) != count * info.row_bytes:
        raise BaseModelError(
            f"The file became shorter while the tensor {info.name} was read.",
            "Wait until the program that writes it has finished, and start again.",
        )
    return block


def _dequantize(block: bytes, info: TensorInfo) -> np.ndarray[Any, Any]:
    """The float32 values of some rows. `block`: whole rows as they are in the file."""
    import numpy as np

    if info.type.name in ("F32", "F16"):
        kind = "<f4" if info.type.name == "F32" else "<f2"
        return np.frombuffer(block, dtype=kind).astype(np.float32).reshape(-1, info.shape[-1])
    import gguf

    blocks = np.frombuffer(block, dtype=np.uint8).reshape(-1, info.row_bytes)
    with np.errstate(all="ignore"):  # values that are not finite are refused below
        return gguf.dequantize(blocks, gguf.GGMLQuantizationType[info.type.name])


def _round(values: np.ndarray[Any, Any], name: str, info: TensorInfo, offset: float) -> bytes:
    """float32 to the bytes of the nearest bfloat16."""
    import numpy as np

    values = np.ascontiguousarray(values, dtype=np.float32)
    if offset:
        values = values - np.float32(offset)
    bits = values.view(np.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    rounded = (bits >> 16).astype("<u2")
    if not np.isfinite(values).all() or ((rounded & 0x7F80) == 0x7F80).any():
        raise _refuse_values(name, info)
    return rounded.tobytes()


def _refuse_values(name: str, info: TensorInfo) -> BaseModelError:
    return BaseModelError(
        f"{name!r} is damaged: the tensor {info.name} has values that are not finite.",
        "Copy or download the file again.",
    )
