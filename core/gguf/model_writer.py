"""Writes a model of transformers as a GGUF file, some rows at a time, continued after a crash.

    ModelTensors ─ read rows ─> float32 ─ order of llama.cpp, offset ─> encode ─> block of the file
    folder ──────── tokenizer_writer ─> tokenizer.ggml.*, chat template ─> header

`plan_model` does all checks and knows the exact size; `write_model` writes. Memory stays at some ten
megabytes beside what `ModelTensors` takes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import BaseModelError
from core.gguf import model_metadata, tokenizer_writer
from core.gguf.architectures import ARCHITECTURES, TensorRule, list_tensors
from core.gguf.header_writer import TYPES, NewTensor, build_header
from core.gguf.model_tensors import ModelTensors
from core.gguf.quantization import (
    INSTALL,
    Encoder,
    ModelShape,
    choose_type,
    find_library,
    get_file_type,
    open_encoder,
)
from core.store.files import ensure_space
from core.store.resumable_files import Block, PollStop, Report, write_blocks

if TYPE_CHECKING:
    import numpy as np

CHUNK_VALUES = 2 << 20
# Tensors of checkpoints that follow from the config.
_COMPUTED = (".rotary_emb.inv_freq",)


@dataclass(frozen=True)
class GgufReport:
    """What a file is.

    Attributes:
        architecture: of llama.cpp. quantization: as it was chosen.
        bytes: of the file. parameters: numbers in the weights.
        types: type -> how many tensors are stored in it.
        fallbacks: tensors that are stored in another type than the quantization has, a sentence for each
            reason.
        notes: what is different in llama.cpp, a sentence each.
        kept: tensors that the quantization itself stores more precisely, a sentence for each type.
    """

    architecture: str
    quantization: str
    bytes: int
    parameters: int
    types: dict[str, int]
    fallbacks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class GgufPlan:
    """A file that can be written.

    Attributes:
        header: its bytes up to the first tensor.
        rules: of the tensors in the model; None for those of the rotary embedding.
    """

    report: GgufReport
    header: bytes = field(repr=False)
    tensors: list[NewTensor] = field(repr=False)
    rules: list[TensorRule | None] = field(repr=False)
    rotary: dict[str, list[float]] = field(repr=False)


def plan_model(
    model: ModelTensors, tokenizer: Path, quantization: str, name: str, metadata: dict[str, str] | None = None
) -> GgufPlan:
    """Decides what a file holds, and checks that a reader finds the same model and tokenizer in it.

    Args:
        tokenizer: a folder that transformers can load a tokenizer from.
        quantization: one of `quantization.QUANTIZATIONS`.
        name: of the model, for `general.name`.
        metadata: further texts of the header: "general.license", for example.

    Raises:
        SpecError: an unknown quantization.
        BaseModelError: the model or its tokenizer cannot be written as GGUF, or llama.cpp's quantizer is
            missing.
    """
    file_type = get_file_type(quantization)
    keys = model_metadata.build_keys(model.config)
    architecture = ARCHITECTURES[keys.architecture]
    rules = list_tensors(architecture, keys.config)
    _check_tensors(model, rules, keys.config)
    has_native = quantization in ("Q4_0", "Q4_K_M") and find_library() is not None
    if quantization == "Q4_K_M" and not has_native:
        raise BaseModelError("Q4_K_M needs llama.cpp's own quantizer, which is not installed.", INSTALL)
    tensors, fallbacks = _choose_types(quantization, rules, keys, has_native)
    rotary = [NewTensor(n, (len(values),), TYPES["F32"]) for n, values in keys.tensors.items()]
    tokens = tokenizer_writer.build_keys(tokenizer, keys.config["vocab_size"], keys.architecture, name)
    header_keys: dict[str, Any] = {
        "general.architecture": keys.architecture,
        "general.type": "model",
        "general.name": tokens.name,
        **(metadata or {}),
        "general.file_type": file_type,
        **({"general.quantization_version": 2} if quantization not in ("F32", "F16", "BF16") else {}),
        **keys.keys,
        **tokens.keys,
    }
    everything = [*rotary, *tensors]
    model_metadata.check_read_back(keys, header_keys, everything, name)
    header = build_header(header_keys, everything)
    report = GgufReport(
        architecture=keys.architecture,
        quantization=quantization,
        bytes=len(header) + sum(t.bytes + t.gap for t in everything),
        parameters=sum(_count(t) for t in tensors),
        types=dict(sorted(Counter(t.type.name for t in everything).items())),
        fallbacks=fallbacks,
        notes=[*keys.notes, *tokens.notes],
        kept=_describe_precise_types(quantization, tensors),
    )
    return GgufPlan(report, header, everything, [*[None] * len(rotary), *rules], keys.tensors)


def write_model(
    plan: GgufPlan,
    model: ModelTensors,
    path: Path,
    source: str,
    report: Report = lambda done, total: None,
    poll_stop: PollStop = lambda: False,
) -> GgufReport:
    """Writes the file, or continues it where the process ended; a file that exists is left as it is.

    Args:
        model: what the plan was made of.
        source: a digest of the weights, and of the adapters in them.

    Raises:
        Cancelled: it was stopped; the next call continues. StorageError, DiskFull: the disk refused.
        BaseModelError: a value is not finite, or too large for its type.
    """
    digest = hashlib.sha256(plan.header + b"\0" + source.encode()).hexdigest()
    part = path.with_name(path.name + ".part")
    if not path.exists():
        ensure_space(path.parent, plan.report.bytes - (part.stat().st_size if part.exists() else 0))
    with open_encoder() as encoder:
        blocks = [Block(len(plan.header), lambda: [plan.header])]
        for tensor, rule in zip(plan.tensors, plan.rules, strict=True):
            if rule is None:
                blocks.append(_make_vector(encoder, tensor, plan.rotary[tensor.name]))
            else:
                blocks += _divide(model, encoder, tensor, rule)
        write_blocks(path, digest, blocks, report, poll_stop)
    return plan.report


def _check_tensors(model: ModelTensors, rules: list[TensorRule], config: dict[str, Any]) -> None:
    """Refuses a checkpoint without a tensor of the model, or with further ones: it is another model then."""
    fix = "Copy or download the folder again, or choose another model."
    for rule in rules:
        shape = model.shapes.get(rule.name)
        if shape is None:
            raise BaseModelError(f"The weights have no tensor {rule.name}.", fix)
        if tuple(shape) != rule.shape:
            raise BaseModelError(
                f"The tensor {rule.name} has the shape {list(shape)}, and the config implies "
                f"{list(rule.shape)}.",
                fix,
            )
    known = {rule.name for rule in rules} | ({"lm_head.weight"} if config["tie_word_embeddings"] else set())
    rest = [n for n in model.shapes if n not in known and not n.endswith(_COMPUTED)]
    if rest:
        more = f" and {len(rest) - 3:,} more" if len(rest) > 3 else ""
        raise BaseModelError(
            f"The weights have tensors that a model of the type {config['model_type']!r} does not have: "
            f"{', '.join(rest[:3])}{more}.",
            "Choose a model without additions.",
        )


def _choose_types(
    quantization: str, rules: list[TensorRule], keys: model_metadata.ModelKeys, has_native: bool
) -> tuple[list[NewTensor], list[str]]:
    config = keys.config
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    is_70b = layers == 80 and (
        keys.architecture == "qwen2"
        or (keys.architecture == "llama" and heads != config["num_key_value_heads"])
    )
    shape = ModelShape(layers, bool(config["tie_word_embeddings"]), is_70b)
    tensors = []
    reasons: dict[tuple[str, str], list[str]] = {}
    for rule in rules:
        choice = choose_type(quantization, rule.source, rule.shape, shape, has_native)
        tensors.append(NewTensor(rule.source, rule.shape, choice.type))
        if choice.reason:
            reasons.setdefault((choice.type.name, choice.reason), []).append(rule.source)
    fallbacks = [
        f"{_name_some(names)} {'is' if len(names) == 1 else 'are'} stored as {kind}: {reason}."
        for (kind, reason), names in reasons.items()
    ]
    return tensors, fallbacks


def _describe_precise_types(quantization: str, tensors: list[NewTensor]) -> list[str]:
    """What stays more precise by the rules of the quantization, a sentence for each type."""
    vectors = [t for t in tensors if len(t.shape) == 1]
    kept = []
    if vectors and quantization != "F32":
        kept.append(f"{len(vectors):,} vectors (norms and biases) are stored as F32.")
    better = [t.name for t in tensors if t.type.name == "Q6_K"]
    if better:
        verb = "is" if len(better) == 1 else "are"
        kept.append(f"{_name_some(better)} {verb} stored as Q6_K, as {quantization} has it in llama.cpp.")
    return kept


def _name_some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names):,} tensors ({names[0]}, ...)"


def _count(tensor: NewTensor) -> int:
    return tensor.bytes // tensor.type.bytes * tensor.type.block


def _make_vector(encoder: Encoder, tensor: NewTensor, values: list[float]) -> Block:
    import numpy as np

    content = encoder.encode(np.array(values, dtype=np.float32), tensor.type, tensor.name)
    content += bytes(tensor.gap)
    return Block(len(content), lambda: [content])


def _divide(model: ModelTensors, encoder: Encoder, tensor: NewTensor, rule: TensorRule) -> list[Block]:
    """The blocks of a tensor: whole rows, and whole heads where rows are interleaved."""
    if len(tensor.shape) == 1:
        read = _make_reader(model, encoder, tensor, rule, 0, tensor.shape[0])
        return [Block(tensor.bytes + tensor.gap, read)]
    count, width = tensor.shape
    unit = count // rule.heads if rule.heads else 1
    rows = max(1, CHUNK_VALUES // (width * unit)) * unit
    blocks = []
    for begin in range(0, count, rows):
        end = min(begin + rows, count)
        padding = tensor.gap if end == count else 0
        read = _make_reader(model, encoder, tensor, rule, begin, end)
        blocks.append(Block((end - begin) * tensor.row_bytes + padding, read))
    return blocks


def _make_reader(
    model: ModelTensors, encoder: Encoder, tensor: NewTensor, rule: TensorRule, begin: int, end: int
) -> Callable[[], Iterator[bytes]]:
    def read() -> Iterator[bytes]:
        values = model.read(rule.name, begin, end)
        if rule.heads:
            values = interleave(values, rule.heads * (end - begin) // tensor.shape[0])
        if rule.offset:
            values = values + type(values.flat[0])(rule.offset)
        padding = bytes(tensor.gap) if end == tensor.shape[0] else b""
        yield encoder.encode(values, tensor.type, rule.name) + padding

    return read


def interleave(values: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Puts rows of q or k into the order of llama.cpp's layout of Llama; `weights.py` has the reverse.

        transformers  a0 a1 a2 ... b0 b1 b2 ...        a: first half of the head, b: second half
        file          a0 b0 a1 b1 a2 b2 ...

    Args:
        values: (rows of whole heads, ...). heads: how many.
    """
    halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
