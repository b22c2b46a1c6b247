"""A causal base's decoder layers as flat lists of 8-bit weights, for `core.model.fast_decoding`.

```
norm ─ [query | key | value] ─ rotary ─ attention ─ [output] ─ + ─ norm ─ [gate | up] ─ · ─ [down] ─ +
       one PackedGroup                               another                 another         another
```

The packed copy is made from the loaded weights, which stay as they are: training, losses and evaluations use
the base's own precision.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.model import families
from core.model.fast_kernels import LANES, PackedWeight, choose_block, pack_weight

# Kinds of rotary positions whose angles depend on the position only.
STATIC_ROTARY = ("default", "linear", "llama3", "yarn")
HEAD_PARTS = 8  # head size must be a multiple of this


@dataclass(frozen=True)
class PackedGroup:
    """Projections that read the same tensor, packed as one weight.

    Attributes:
        owner, names: the module that holds the projections, and their names in it. The modules themselves
            are replaced when an adapter is added.
        sizes: outputs of each projection.
        weight: all outputs, one projection after the other.
        norm: (K,) weight of the RMS norm before the projections, or None.
        bias: (O,) or None.
    """

    owner: Any
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    weight: PackedWeight
    norm: torch.Tensor | None
    bias: torch.Tensor | None

    @functools.cached_property
    def norm_address(self) -> int:
        """The address of the norm's weight; 0 without a norm."""
        return 0 if self.norm is None else self.norm.data_ptr()

    def modules(self) -> list[Any]:
        """The projections, with the adapters that are loaded now."""
        return [getattr(self.owner, name) for name in self.names]


@dataclass(frozen=True)
class PackedLayer:
    """One decoder layer. The norms of queries and keys, (D,) each, are None in most families."""

    query_key_value: PackedGroup
    output: PackedGroup
    gate_up: PackedGroup
    down: PackedGroup
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None

    @property
    def groups(self) -> tuple[PackedGroup, ...]:
        """All projections, in the order of the forward."""
        return self.query_key_value, self.output, self.gate_up, self.down


@dataclass(frozen=True)
class PackedBase:
    """A base's weights for decoding.

    Attributes:
        embed_tokens: the base's embedding.
        layers: the decoder layers.
        norm: (H,) weight of the last norm.
        head: the packed output layer, (V, H).
        vocabulary: V, without the padding of the packed head.
        heads, key_heads, head_size: of the attention.
        epsilon: of all RMS norms.
        scaling: factor of the attention scores.
        rotary: the base's module for cosines and sines.
    """

    embed_tokens: Any
    layers: list[PackedLayer]
    norm: torch.Tensor
    head: PackedWeight
    vocabulary: int
    heads: int
    key_heads: int
    head_size: int
    epsilon: float
    scaling: float
    rotary: Any

    @property
    def token_vectors(self) -> torch.Tensor:
        """(V, H) fp32, the base's own tensor."""
        return self.embed_tokens.weight.detach()  # type: ignore[no-any-return]

    @property
    def memory_bytes(self) -> int:
        """Size of the packed weights in memory."""
        groups = [group.weight for layer in self.layers for group in layer.groups]
        return sum(weight.memory_bytes for weight in (*groups, self.head))

    @property
    def blocks(self) -> set[int]:
        """The block sizes of its weights; each needs kernels of its own."""
        return {g.weight.block for layer in self.layers for g in layer.groups} | {self.head.block}


def unpackable_reason(base: Any) -> str:
    """Returns why a base cannot answer from packed weights, or "".

    Args:
        base: a `core.model.base.Base`.
    """
    config = base.model.config
    rotary = getattr(config, "rope_parameters", None) or {}
    width = getattr(config, "hidden_size", 0)
    inner = getattr(config, "intermediate_size", 0)
    if base.device.type != "cpu":
        return "8-bit answers are for CPUs"
    if config.model_type not in families.PLAIN_DECODERS:
        return f"8-bit answers do not support the family {config.model_type!r}"
    if base.quantization != "none":
        return f"the base is quantized already ({base.quantization})"
    if getattr(config, "hidden_act", "") != "silu":
        return f"8-bit answers do not support the activation {getattr(config, 'hidden_act', '')!r}"
    if rotary.get("rope_type", "default") not in STATIC_ROTARY:
        return f"8-bit answers do not support rotary positions of the type {rotary.get('rope_type')!r}"
    if any("full" not in kind for kind in getattr(config, "layer_types", None) or []) or _slides(config):
        return "8-bit answers do not support a sliding attention window"
    head_size = _head_size(config)
    shapes = (width, inner, head_size * config.num_attention_heads)
    if not all(choose_block(n) for n in shapes) or head_size % HEAD_PARTS:
        return f"8-bit answers need layer widths that are multiples of 16, got {shapes}"
    if head_size * config.num_key_value_heads % LANES:
        return f"8-bit answers need key heads of a multiple of {LANES} numbers"
    return ""


def _slides(config: Any) -> bool:
    """Whether attention has a window that is shorter than the context."""
    window = getattr(config, "sliding_window", None)
    return bool(
        window and window < config.max_position_embeddings and getattr(config, "use_sliding_window", True)
    )


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def pack_base(base: Any) -> Generator[None, None, PackedBase]:
    """Packs the weights of a base that `unpackable_reason` has nothing against, one layer per step."""
    model, config = base.model, base.model.config
    body = model.model
    layers = []
    for layer in body.layers:
        layers.append(_pack_layer(layer))
        yield
    head = model.lm_head.weight
    return PackedBase(
        embed_tokens=body.embed_tokens,
        layers=layers,
        norm=body.norm.weight.detach().float(),
        head=pack_weight(head.detach()),
        vocabulary=len(head),
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=_head_size(config),
        epsilon=float(config.rms_norm_eps),
        scaling=float(body.layers[0].self_attn.scaling),
        rotary=body.rotary_emb,
    )


def _pack_layer(layer: Any) -> PackedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    query_norm, key_norm = (None if norm is None else norm.weight.detach().float() for norm in norms)
    return PackedLayer(
        _pack_group(attention, families.QUERY_KEY_VALUE, layer.input_layernorm),
        _pack_group(attention, families.ATTENTION_OUTPUT, None),
        _pack_group(mlp, families.GATE_UP, layer.post_attention_layernorm),
        _pack_group(mlp, families.DOWN, None),
        query_norm,
        key_norm,
    )


def _pack_group(owner: Any, names: Sequence[str], norm: Any) -> PackedGroup:
    layers = [getattr(owner, name) for name in names]
    layers = [layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer for layer in layers]
    biases = [layer.bias for layer in layers]
    bias = None
    if any(b is not None for b in biases):
        bias = torch.cat(
            [
                torch.zeros(layer.out_features) if b is None else b.detach().float()
                for layer, b in zip(layers, biases, strict=True)
            ]
        )
    return PackedGroup(
        owner,
        tuple(names),
        tuple(layer.out_features for layer in layers),
        pack_weight(torch.cat([layer.weight.detach() for layer in layers])),
        None if norm is None else norm.weight.detach().float(),
        bias,
    )


class Scratch:
    """Buffers for N tokens, which every layer writes again.

    Attributes:
        x: (N, H) the residual stream. heads: (N, queries, keys and values). gates: (N, gate and up). inner:
            (N, feed-forward size).
        rounded: the addresses of an input rounded to int16, and of its rows' scales.
    """

    def __init__(self, packed: PackedBase, tokens: int) -> None:
        self.tokens = tokens
        if not tokens:
            return
        layer = packed.layers[0]
        width = packed.token_vectors.shape[1]
        inner = layer.down.weight.inputs
        widest = max(group.weight.inputs for group in layer.groups)
        self.x = torch.empty(tokens, width)
        self.heads = torch.empty(tokens, layer.query_key_value.weight.outputs)
        self.gates = torch.empty(tokens, layer.gate_up.weight.outputs)
        self.inner = torch.empty(tokens, inner)
        self._q = torch.empty(tokens, widest, dtype=torch.int16)
        self._scales, self._ranks_scales = torch.empty(tokens), torch.empty(tokens)
        self._ranks: list[torch.Tensor] = []
        self._ranks_q: list[torch.Tensor] = []
        self.rounded = self._q.data_ptr(), self._scales.data_ptr()

    def reserve_ranks(self, ranks: int) -> tuple[int, tuple[int, int]]:
        """Makes room for rank space; returns the addresses of (N, R) numbers, and of the same rounded."""
        size = self.tokens * ranks
        if (
            not self._ranks or self._ranks[-1].numel() < size
        ):  # earlier calls hold the addresses of older ones
            self._ranks.append(torch.empty(size))
            self._ranks_q.append(torch.empty(size, dtype=torch.int16))
        return self._ranks[-1].data_ptr(), (self._ranks_q[-1].data_ptr(), self._ranks_scales.data_ptr())
