"""Writes an adapter or a mix as a folder that plain peft loads, version 0.6 and later.

    one adapter at weight 1   its own factors, bit by bit; rsLoRA becomes alpha * sqrt(r)
    a mix                     [B1 B2] [A1; A2] with weights and scalings folded into A; alpha = r

The configuration names only what differs from peft's defaults: older versions refuse fields that they do not
know. They match patterns only behind a dot, so that patterns leave out the first part of a module's path.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from core.export.provenance import build_metadata, compute_plan, find_time, name_base
from core.export.recipes import describe_openvino, describe_vllm
from core.export.sources import ExportSource
from core.export.weight_files import divide, list_entries, write_file
from core.gguf.model_tensors import Precision
from core.model.deltas import PREFIX
from core.model.low_rank import Factors
from core.spec.export import NAME_LIMIT, ExportSpec
from core.store.adapter_files import CARD, CONFIG, METADATA, WEIGHTS, write_checksums
from core.store.files import atomic_write, link_file, sha256_of, write_json
from core.store.model_card import format_model_card
from core.store.resumable_files import PollStop, Report

if TYPE_CHECKING:
    import numpy as np

PLAIN_COPY = "adapter.safetensors"
DEFAULTS = {"bias": "none"}  # of peft, beside what is false or empty
_PRECISIONS: dict[torch.dtype, Precision] = {torch.bfloat16: "BF16", torch.float16: "F16"}


def write_peft_folder(
    folder: Path,
    source: ExportSource,
    plain_copy: bool = False,
    report: Report = lambda done, total: None,
    poll_stop: PollStop = lambda: False,
) -> list[str]:
    """Writes the folder, or continues it.

    Args:
        folder: exists.
        plain_copy: adds the weights under the name adapter.safetensors, too.

    Returns:
        The names of the files.

    Raises:
        Cancelled: it was stopped; the next call continues. StorageError, DiskFull: the disk refused.
    """
    tensors = _list_tensors(source)
    (entries,) = divide(list_entries(tensors, "base"), 1 << 62)
    write_file(folder / WEIGHTS, tensors, entries, compute_plan(source, "peft"), report, poll_stop)
    config = build_config(source)
    write_json(folder / CONFIG, config)
    digest = sha256_of(folder / WEIGHTS)
    metadata = {**build_metadata(source, "peft", rank=config["r"]), "sha256": digest}
    metadata["created"] = find_time(folder) or metadata["created"]
    write_json(folder / METADATA, metadata)
    with atomic_write(folder / CARD, "w") as f:
        f.write("\n".join([format_model_card(metadata, config), *_list_recipes(source), ""]))
    names = [WEIGHTS, CONFIG, METADATA, CARD]
    if plain_copy:
        (folder / PLAIN_COPY).unlink(missing_ok=True)
        link_file(folder / WEIGHTS, folder / PLAIN_COPY)
        names.append(PLAIN_COPY)
    write_checksums(folder, {WEIGHTS: digest, **({PLAIN_COPY: digest} if plain_copy else {})})
    return [*names, "checksums.txt"]


def _list_recipes(source: ExportSource) -> list[str]:
    """How other runtimes use the folder, in lines of Markdown."""
    if source.own_form or source.layout.family.seq2seq:
        return []
    name, base = ExportSpec(name=source.name[:NAME_LIMIT]).file_name, name_base(source.layout.name)
    scalings = {alpha / rank for rank, alpha in _list_pairs(source)}
    scaling = scalings.pop() if len(scalings) == 1 else None
    return [
        *describe_vllm(".", name, base, source.rank),
        "",
        *describe_openvino(WEIGHTS, scaling),
    ]


def _list_pairs(source: ExportSource) -> list[tuple[int, float]]:
    """(rank, alpha) of every module."""
    ranks, alphas = _find_scales(source)
    return [(ranks[m], alphas[m]) for m in ranks]


def count_peft_bytes(source: ExportSource) -> int:
    """The bytes of the weights."""
    return sum(e.size for e in list_entries(_list_tensors(source), "base"))


def build_config(source: ExportSource) -> dict[str, Any]:
    """The adapter_config.json: only what differs from peft's defaults."""
    if source.own_form:
        named = {k: v for k, v in source.own_form.config.items() if v and DEFAULTS.get(k) != v}
        named.pop("lora_dropout", None)
        return {**named, "base_model_name_or_path": name_base(source.layout.name)}
    ranks, alphas = _find_scales(source)
    rank, alpha = _choose_common(ranks, alphas)
    family = source.layout.family
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": family.task_type,
        "base_model_name_or_path": name_base(source.layout.name),
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": _name_targets(source),
    }
    if family.fan_in_fan_out:
        config["fan_in_fan_out"] = True
    patterns = _name_patterns({m: (ranks[m], alphas[m]) for m in ranks}, (rank, alpha))
    if others := {name: r for name, (r, _) in patterns.items() if r != rank}:
        config["rank_pattern"] = others
    if other_alphas := {name: a for name, (_, a) in patterns.items() if a != alpha}:
        config["alpha_pattern"] = other_alphas
    return config


def _collect(source: ExportSource) -> dict[str, Factors]:
    """Module -> the factors that are stored, without what alpha says."""
    if source.is_plain:
        return {m: source.parts[0].stored.factors[m] for m in source.modules}
    return {m: _to_single(source.factors(m)) for m in source.modules}


def _list_tensors(source: ExportSource) -> _StoredTensors:
    if source.own_form:
        return _StoredTensors(source.own_form.tensors)
    return _StoredTensors(
        {
            f"{PREFIX}{module}.lora_{side}.weight": tensor
            for module, pair in _collect(source).items()
            for side, tensor in (("A", pair.a), ("B", pair.b))
        }
    )


def _to_single(factors: Factors) -> Factors:
    return Factors(factors.a.float(), factors.b.float())


def _find_scales(source: ExportSource) -> tuple[dict[str, int], dict[str, float]]:
    """Module -> rank, and module -> the alpha that gives its scaling as alpha / rank."""
    if not source.is_plain:
        ranks = {m: source.factors(m).rank for m in source.modules}
        return ranks, dict(ranks)
    stored = source.parts[0].stored
    return (
        {m: stored.ranks[m] for m in source.modules},
        {m: _simplify(stored.scaling[m] * stored.ranks[m], stored.ranks[m]) for m in source.modules},
    )


def _simplify(alpha: float, rank: int) -> float:
    """A whole number where it gives the same scaling, but for the last bit."""
    whole = round(alpha)
    return whole if math.isclose(whole / rank, alpha / rank, rel_tol=1e-14) else alpha


def _choose_common(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> tuple[int, float]:
    """The rank and alpha without a pattern: of a module that no pattern can name, or the most frequent."""
    nameless = [m for m in ranks if "." not in m]
    if nameless:
        return ranks[nameless[0]], alphas[nameless[0]]
    pairs = Counter((ranks[m], alphas[m]) for m in ranks)
    return pairs.most_common(1)[0][0]


def _name_patterns(
    values: Mapping[str, tuple[int, float]], common: tuple[int, float]
) -> dict[str, tuple[int, float]]:
    """Pattern -> (rank, alpha) of the modules with other values than the common ones."""
    by_tail: dict[str, set[tuple[int, float]]] = {}
    for module, value in values.items():
        by_tail.setdefault(_tail(module), set()).add(value)
    return {
        _tail(m) if len(by_tail[_tail(m)]) == 1 else m: value
        for m, value in values.items()
        if value != common
    }


def _tail(module: str) -> str:
    """The path without its first part."""
    return module.partition(".")[2] or module


def _name_targets(source: ExportSource) -> list[str]:
    """The last parts of the paths where they name exactly the adapted modules; else the whole paths."""
    modules = set(source.modules)
    short = {m.rpartition(".")[2] for m in modules}
    named = {path for path, _ in source.layout.model.named_modules() if path.rpartition(".")[2] in short}
    return sorted(short if named == modules else modules)


class _StoredTensors:
    """The tensors of an adapter under the names of peft's file format; a `ModelTensors`."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.config: dict[str, Any] = {}
        self._tensors = tensors
        self.shapes: dict[str, tuple[int, ...]] = {n: tuple(t.shape) for n, t in self._tensors.items()}

    def dtype_of(self, name: str) -> Precision:
        return _PRECISIONS.get(self._tensors[name].dtype, "F32")

    def read(self, name: str, begin_row: int = 0, end_row: int | None = None) -> np.ndarray[Any, Any]:
        values: np.ndarray[Any, Any] = self._tensors[name][begin_row:end_row].float().contiguous().numpy()
        return values
