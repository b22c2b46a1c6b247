"""Writes the weights of a model as a folder that transformers, vLLM and other tools load.

    ModelTensors ─ a few rows ─> float32 ─ round ─> model-00001-of-0000N.safetensors, and their index
    folder of the base ─> tokenizer, chat template, generation config, licences; never code or pickles

Weight files are written block by block, so that a call after a crash continues where the last one was.
"""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.export.base_layout import BaseLayout
from core.export.model_settings import complete_config, complete_generation, complete_tokenizer_config
from core.export.precisions import CONFIG_NAMES
from core.export.weight_files import build_header, divide, list_entries, write_file
from core.gguf.model_tensors import INDEX, WEIGHTS, ModelTensors, Precision
from core.store.files import atomic_write, storage_error, write_json
from core.store.json_text import parse_json
from core.store.resumable_files import PollStop, Report

SHARD_BYTES = 4_000_000_000
COPY_LIMIT = 256 << 20  # bytes of a file that is copied
# The files of a base that are copied as they are. Everything else stays behind: weights, code, pickles.
COPIED_FILES = (
    "tokenizer.json",
    "tokenizer*.model",
    "spiece.model",
    "tekken.json",
    "sentencepiece*.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    "COPYING*",
)
SETTINGS_FILES = ("config.json", "generation_config.json", "tokenizer_config.json")
CODE_SUFFIXES = (".py", ".pyc", ".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".so")


def count_weight_bytes(tensors: ModelTensors, precision: str) -> int:
    """The bytes of the weight files, without their headers.

    Args:
        precision: of `ExportSpec`: "base", "bf16", "f16" or "f32".
    """
    return sum(e.size for e in list_entries(tensors, precision))


def write_weights(
    folder: Path,
    tensors: ModelTensors,
    plan: str,
    precision: str = "base",
    shard_bytes: int = SHARD_BYTES,
    report: Report = lambda done, total: None,
    poll_stop: PollStop = lambda: False,
) -> list[str]:
    """Writes the weight files, or continues them; complete files are left as they are.

    Args:
        folder: exists.
        plan: a digest of what the values follow from: base, adapters, weights.
        precision: "base", "bf16", "f16" or "f32".
        shard_bytes: size of a file, at most, unless one tensor is larger.

    Returns:
        The names of the files.

    Raises:
        Cancelled: it was stopped; what is written stays for the next call. StorageError, DiskFull.
        SpecError: a value is too large for the precision.
    """
    shards = divide(list_entries(tensors, precision), shard_bytes)
    sizes = [len(build_header(shard)) + sum(e.size for e in shard) for shard in shards]
    total = sum(sizes)
    names = []
    for number, shard in enumerate(shards):
        name = WEIGHTS if len(shards) == 1 else f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        shifted = _shift(report, sum(sizes[:number]), total)
        write_file(folder / name, tensors, shard, plan, shifted, poll_stop)
        names.append(name)
    if len(shards) > 1:
        weight_map = {e.name: name for name, shard in zip(names, shards, strict=True) for e in shard}
        size = sum(e.size for shard in shards for e in shard)
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
        names.append(INDEX)
    return names


def _shift(report: Report, begin: int, total: int) -> Report:
    """Reports the bytes of one file as bytes of all files."""
    return lambda done, _: report(begin + done, total)


def write_settings(
    folder: Path,
    tensors: ModelTensors,
    layout: BaseLayout,
    precision: str = "base",
    stop_tokens: Sequence[str] = (),
) -> list[str]:
    """Writes everything beside the weights: config, tokenizer, chat template, generation config, licences.

    Args:
        stop_tokens: tokens that end an answer beside those of the base.

    Returns:
        The names of the files.

    Raises:
        StorageError, DiskFull. BaseModelError: the tokenizer of the base cannot be read.
    """
    names = _copy_files(layout.folder, folder)
    dtype = CONFIG_NAMES[_main_precision(tensors, precision)]
    write_json(folder / "config.json", complete_config(tensors.config, layout.config, dtype))
    tokenizer_config = _read_settings(layout.folder / "tokenizer_config.json")
    generation = _read_settings(layout.folder / "generation_config.json")
    completed = complete_tokenizer_config(layout, tokenizer_config, has_template=_has_template(folder))
    write_json(folder / "tokenizer_config.json", completed.config)
    if completed.template:
        with atomic_write(folder / "chat_template.jinja", "w") as f:
            f.write(completed.template)
        names.append("chat_template.jinja")
    write_json(
        folder / "generation_config.json",
        complete_generation(generation, layout.config, completed.tokenizer, stop_tokens),
    )
    return [*names, *SETTINGS_FILES]


def _main_precision(tensors: ModelTensors, precision: str) -> Precision:
    """The precision of most values."""
    counts: Counter[Precision] = Counter()
    for e in list_entries(tensors, precision):
        counts[e.precision] += math.prod(e.shape)
    return counts.most_common(1)[0][0]


def count_copied_bytes(folder: Path) -> int:
    """The bytes of the files beside the weights of a base that an export holds."""
    return sum(file.stat().st_size for file in _find_copies(folder))


def _find_copies(folder: Path) -> list[Path]:
    return [
        file
        for file in sorted(folder.iterdir())
        if any(fnmatch.fnmatchcase(file.name, pattern) for pattern in COPIED_FILES)
        and file.suffix not in CODE_SUFFIXES
        and file.is_file()
        and file.stat().st_size <= COPY_LIMIT
    ]


def _copy_files(source: Path, target: Path) -> list[str]:
    names = []
    for file in _find_copies(source):
        try:
            data = file.read_bytes()
        except OSError as e:
            raise storage_error(e, file) from e
        with atomic_write(target / file.name) as f:
            f.write(data)
        names.append(file.name)
    return names


def _read_settings(path: Path) -> dict[str, Any]:
    """A file of settings of the base; {} where it has none that can be read."""
    try:
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _has_template(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))
