"""Writes a LoRA adapter as GGUF, as llama.cpp loads it beside a base: `core.importing.gguf_form` reads it.

    {module: (A (r, I), B (O, r))}     the update of a module is B A: scaling and weight are folded in

llama.cpp has one alpha for the file, and scales each module by alpha / r. Ranks that differ are padded with
zeros to powers of two, and B is multiplied by r / alpha, a power of two as well: every scaling is exactly 1,
and no value is rounded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import AdapterError
from core.gguf.architectures import (
    ARCHITECTURES,
    EMBEDDING,
    HEAD,
    TensorRule,
    list_tensors,
    name_architecture,
)
from core.gguf.header_writer import TYPES, NewTensor, build_header
from core.gguf.model_metadata import complete_config
from core.gguf.model_writer import interleave
from core.gguf.quantization import open_encoder
from core.store.resumable_files import Block, write_blocks

if TYPE_CHECKING:
    import numpy as np

    Matrix = np.ndarray[Any, Any]

PRECISIONS = ("F32", "F16")
_PREFIX = "base_model.model."
_MERGE = "Export a merged model instead: there, every layer can have a change."
_WHOLE = tuple(name.removesuffix(".weight") for name in (EMBEDDING["token_embd.weight"], *HEAD.values()))


@dataclass(frozen=True)
class AdapterReport:
    """What a file is.

    Attributes:
        architecture: of llama.cpp. bytes: of the file. modules: how many have an update.
        alpha: of the file. ranks: of the modules, without the padding.
    """

    architecture: str
    bytes: int
    modules: int
    alpha: float
    ranks: tuple[int, ...]


def write_adapter(
    factors: Mapping[str, tuple[Any, Any]],
    base_config: Mapping[str, Any],
    path: Path,
    name: str,
    base_name: str = "",
    precision: str = "F32",
) -> AdapterReport:
    """Writes the file; one that exists is left as it is.

    Args:
        factors: path of a linear layer in the base -> (A (r, I), B (O, r)), arrays or tensors.
        base_config: the content of config.json of the base.
        name: of the adapter, for `general.name`. base_name: of the base; "" leaves it out.
        precision: "F32" or "F16".

    Raises:
        AdapterError: a module that an adapter of llama.cpp cannot have, or factors that do not fit it.
        BaseModelError: the base has no architecture of llama.cpp. StorageError, DiskFull: the disk refused.
    """
    config = complete_config(base_config)
    architecture = name_architecture(config["model_type"])
    assert architecture is not None
    rules = {
        rule.name.removesuffix(".weight"): rule
        for rule in list_tensors(ARCHITECTURES[architecture], config)
        if len(rule.shape) == 2
    }
    matrices = {rule.source: (rule, a, b) for rule, a, b in _list_updates(factors, rules, architecture)}
    ranks = [len(a) for _, a, _ in matrices.values()]
    alpha = ranks[0] if len(set(ranks)) == 1 else max(map(_round_up, ranks))
    metadata = {
        "general.architecture": architecture,
        "general.type": "adapter",
        "general.name": name,
        **({"general.base_model.count": 1, "general.base_model.0.name": base_name} if base_name else {}),
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
    }
    content = _encode(matrices, alpha, precision, metadata)
    digest = hashlib.sha256(content).hexdigest()
    write_blocks(path, digest, [Block(len(content), lambda: [content])])
    return AdapterReport(architecture, len(content), len(ranks), float(alpha), tuple(sorted(set(ranks))))


def _list_updates(
    factors: Mapping[str, tuple[Any, Any]], rules: Mapping[str, TensorRule], architecture: str
) -> list[tuple[TensorRule, Matrix, Matrix]]:
    """(rule, A, B) of each module, checked, in the order of the model."""
    if not factors:
        raise AdapterError("The adapter has no layers.", "Choose an adapter that was trained.")
    found: dict[str, tuple[TensorRule, Matrix, Matrix]] = {}
    for module, (a, b) in factors.items():
        layer = module.removeprefix(_PREFIX)
        if layer in _WHOLE:
            raise AdapterError(
                f"The adapter changes {layer}, and an adapter of llama.cpp cannot have a change of an "
                "embedding or a head.",
                _MERGE,
            )
        rule = rules.get(layer)
        if rule is None:
            raise AdapterError(
                f"The adapter changes {layer}, which llama.cpp has no name for in the architecture "
                f"{architecture!r}.",
                _MERGE,
            )
        found[layer] = (rule, *_check_factors(layer, _to_array(a), _to_array(b), rule.shape))
    return [found[layer] for layer in rules if layer in found]


def _to_array(values: Any) -> Matrix:
    """An array of float32 of an array or a tensor of torch."""
    import numpy as np

    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    return np.ascontiguousarray(values, dtype=np.float32)


def _check_factors(layer: str, a: Matrix, b: Matrix, shape: tuple[int, ...]) -> tuple[Matrix, Matrix]:
    import numpy as np

    outputs, inputs = shape
    fits = a.ndim == b.ndim == 2 and a.shape[1] == inputs and b.shape[0] == outputs
    if not fits or a.shape[0] != b.shape[1] or not len(a):
        raise AdapterError(
            f"The factors of {layer} have the shapes {list(a.shape)} and {list(b.shape)}, and a layer of "
            f"{outputs:,} outputs and {inputs:,} inputs needs [r, {inputs}] and [{outputs}, r].",
            "Choose the base that the adapter was trained on.",
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise AdapterError(
            f"The factors of {layer} have values that are not finite.",
            "Choose another checkpoint of its run.",
        )
    return a, b


def _round_up(rank: int) -> int:
    """The next power of two."""
    return 1 << (rank - 1).bit_length()


def _encode(
    matrices: Mapping[str, tuple[TensorRule, Matrix, Matrix]],
    alpha: int,
    precision: str,
    metadata: Mapping[str, Any],
) -> bytes:
    """The bytes of the file."""
    import numpy as np

    tensors, contents = [], []
    with open_encoder() as encoder:
        for source, (rule, a, b) in matrices.items():
            rank = len(a)
            padded = rank if rank == alpha else _round_up(rank)
            if padded != rank:
                a = np.concatenate([a, np.zeros((padded - rank, a.shape[1]), np.float32)])
                b = np.concatenate([b, np.zeros((len(b), padded - rank), np.float32)], axis=1)
            b = b * np.float32(padded / alpha)
            if rule.heads:
                b = interleave(b, rule.heads)
            for part, matrix in (("lora_a", a), ("lora_b", b)):
                tensor = NewTensor(f"{source}.{part}", matrix.shape, TYPES[precision])
                tensors.append(tensor)
                contents.append(encoder.encode(matrix, tensor.type, tensor.name) + bytes(tensor.gap))
    return build_header(metadata, tensors) + b"".join(contents)
