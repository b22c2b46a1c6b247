"""What the resident base looks like to a foreign adapter: its layers, their shapes, its weights, its tokens.

The view holds references to frozen weights and may be read on any thread. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open

from core.errors import AdapterError, BaseModelError
from core.model import experts, own_weights
from core.model.base import folder_of, locate
from core.model.resident import Resident

UNQUANTIZED = ("Embedding", "Linear", "Conv1D")
# Layers whose output is a product with a matrix, which is what a low-rank update can be added to.
PRODUCTS = ("Linear", "Linear4bit", "Linear8bitLt", "Conv1D")


@dataclass(frozen=True)
class BaseLayer:
    """A layer of the base.

    Attributes:
        kind: the name of its class.
        outputs, inputs: of its matrix; 0 for layers without one.
        width: of a norm, whose weight is a vector; 0 for other layers.
        parameters: of fused experts, the name of each -> its shape, (E, O, I) or (E, I, O).
    """

    kind: str
    outputs: int = 0
    inputs: int = 0
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    width: int = 0

    @property
    def is_product(self) -> bool:
        """Whether it is of a kind that may be mixed: this is an allow-list."""
        return self.kind in PRODUCTS

    @property
    def experts(self) -> int:
        """The number of fused experts; 0 for other layers."""
        return next((shape[0] for shape in self.parameters.values()), 0)


@dataclass(frozen=True)
class BaseView:
    """The resident base.

    Attributes:
        layers: path -> layer, without the layers that adapters have added.
        vocabulary: rows of its input embedding.
        embedding, head: paths of the input embedding and of the head; "" where there is none.
        is_tied: whether the head has the very weights of the embedding.
        template: its chat template, or "".
        heads, key_value_heads: of its attention; 0 where the config states none.
        stop_tokens: texts of the tokens that end an answer.
        vocabulary_texts: texts of all tokens.
        read_weight: returns the (O, I) matrix or the (V, D) embedding of a layer in fp32.
    """

    name: str
    fingerprint: str
    model_type: str
    task_type: str
    fan_in_fan_out: bool
    quantization: str
    layers: dict[str, BaseLayer] = field(repr=False)
    vocabulary: int
    embedding: str
    head: str
    is_tied: bool
    template: str
    heads: int
    key_value_heads: int
    stop_tokens: tuple[str, ...]
    vocabulary_texts: frozenset[str] = field(repr=False)
    read_weight: Callable[[str], torch.Tensor]


def describe_base(resident: Resident) -> BaseView:
    """Describes the resident base. Call it on the worker's thread."""
    base = resident.base
    model, config = base.model, base.model.config.get_text_config()
    modules: dict[str, Any] = {}
    for path, module in model.named_modules():
        if any(
            part in ("base_layer", "parametrizations") or part.startswith("lora_") for part in path.split(".")
        ):
            continue
        modules[path] = module.get_base_layer() if isinstance(module, LoraLayer) else module
    fused: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in experts.weight_shapes(model).items():
        owner, _, name = path.replace(".base_layer", "").rpartition(".")
        fused.setdefault(owner, {})[name] = shape
    layers = {
        path: BaseLayer("Experts", parameters=fused[path]) if path in fused else _describe_layer(m)
        for path, m in modules.items()
        if path in fused or m._parameters
    }
    embedding = model.get_input_embeddings()
    return BaseView(
        name=base.name,
        fingerprint=base.fingerprint,
        model_type=str(config.model_type),
        task_type=base.family.task_type,
        fan_in_fan_out=base.family.fan_in_fan_out,
        quantization=base.quantization,
        layers=layers,
        vocabulary=int(embedding.weight.shape[0]),
        embedding=own_weights.find_path(model, embedding),
        head=own_weights.find_path(model, model.get_output_embeddings()),
        is_tied=own_weights.is_tied(model),
        template=str(base.tokenizer.chat_template or "") if base.has_own_template else "",
        heads=int(getattr(config, "num_attention_heads", 0) or 0),
        key_value_heads=int(
            getattr(config, "num_key_value_heads", 0) or getattr(config, "num_attention_heads", 0) or 0
        ),
        stop_tokens=tuple(base.tokenizer.convert_ids_to_tokens(base.eos_ids)),
        vocabulary_texts=frozenset(base.tokenizer.get_vocab()),
        read_weight=_make_reader(base.name, base.quantization, modules, base.family.fan_in_fan_out),
    )


def _name_kind(module: Any) -> str:
    """The name of a layer's class; that of the library where `core.model.nf4_cpu` has derived its own."""
    return next(c.__name__ for c in type(module).__mro__ if not c.__module__.startswith("core."))


def _describe_layer(module: Any) -> BaseLayer:
    kind = _name_kind(module)
    if hasattr(module, "out_features") and hasattr(module, "in_features"):
        return BaseLayer(kind, int(module.out_features), int(module.in_features))
    weight: Any = getattr(module, "weight", None)
    if kind == "Conv1D":
        return BaseLayer(kind, int(weight.shape[1]), int(weight.shape[0]))
    if kind == "Embedding":
        return BaseLayer(kind, int(weight.shape[0]), int(weight.shape[1]))
    if kind.endswith("Norm") and getattr(weight, "ndim", 0) == 1:
        return BaseLayer(kind, width=len(weight))
    return BaseLayer(kind)


def _make_reader(
    name: str, quantization: str, modules: dict[str, Any], is_transposed: bool
) -> Callable[[str], torch.Tensor]:
    """Reads weights in the base's own precision: from memory, or from its files where it is quantized."""
    files: dict[str, Path] = {}

    def read_weight(layer: str) -> torch.Tensor:
        kind = _name_kind(modules[layer])
        if quantization == "none" or kind in UNQUANTIZED:  # the head of a quantized base often is, too
            matrix = modules[layer].weight.detach().to("cpu", torch.float32)
            return matrix.t().contiguous() if kind == "Conv1D" else matrix
        matrix = _read_from_files(files, name, layer)
        # Files hold the matrices of Conv1D layers as (I, O); bitsandbytes has made Linear layers of them.
        return matrix.t().contiguous() if is_transposed and layer != "lm_head" else matrix

    return read_weight


def _read_from_files(files: dict[str, Path], name: str, layer: str) -> torch.Tensor:
    try:
        if not files:
            for file in sorted(folder_of(*locate(name)).glob("*.safetensors")):
                with safe_open(str(file), framework="pt") as f:
                    files.update(dict.fromkeys(f.keys(), file))
        keys = (f"{layer}.weight", f"{layer}.weight".partition(".")[2])
        key = next(k for k in keys if k in files)
        with safe_open(str(files[key]), framework="pt") as f:
            matrix: torch.Tensor = f.get_tensor(key).float()
        return matrix
    except (StopIteration, OSError, BaseModelError) as e:
        raise AdapterError(
            f"The base is quantized, and its files have no weight for {layer!r}.",
            "Load the base without quantization, and import the adapter again.",
        ) from e
