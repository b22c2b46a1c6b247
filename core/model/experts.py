"""Adapters on the experts of a mixture, in rank space, through transformers' experts registry.

peft stores the factors of rank r for all experts at once (`ParamWrapper.get_delta_factors`):

```
lora_A (E·r, I)   by expert, the ranks of an expert together      row     e·r + q
lora_B (O, r·E)   by rank, the experts of a rank together         column  q·E + e
```

and computes W + delta for every expert at every step. Here a pair of token and expert costs only its own
ranks. Adapters that do not train are concatenated, with B transposed, and peft's parameters are views of the
result; then the factors of one expert are whole rows.

bitsandbytes quantizes linear layers only, so `quantize_experts` puts fused expert weights into 4 bits after
loading (which therefore passes through 16 bits), as a parametrization. peft 0.21 does not find such weights
once an adapter wraps them, leaves its delta on them, and trains through a cached copy without the delta;
`expose_weight_names` and `_ExpertsForward` in `core.model.peft_patch` correct that.

Letters: B rows, N tokens (flattened, row by row), K experts per token, S = N·K pairs of token and expert, E
experts, r rank of one adapter, R ranks of all adapters of a block, I inputs, O outputs.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _batched_linear, _grouped_linear

from core.errors import AdapterError

NAME = "rank_space"  # the key of `experts_forward` in transformers' registry
# Pairs per expert above which a loop over the experts is cheaper than gathering the factors for every pair.
LOOP_THRESHOLD = 2
LAYER_PREFIX = re.compile(r".*\.\d+\.")  # the part of a path up to the layer's index
PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")


class MixerReference:
    """Refers to the mixer from a module, without making it a submodule or part of the state dict."""

    __slots__ = ("mixer",)

    def __init__(self, mixer: Any) -> None:
        self.mixer = mixer


@dataclass(eq=False)
class ExpertLoraBlock:
    """The adapters of one expert parameter that share one pair of products.

    Attributes:
        a: (E·R, I).
        b: (R·E, O), the transpose of peft's.
        rows_a, rows_b: (E, R) the rows of `a` and `b` that belong to an expert.
        columns: the index of its `RankColumns` in the mixer.
    """

    a: torch.Tensor
    b: torch.Tensor
    rows_a: torch.Tensor
    rows_b: torch.Tensor
    columns: int

    def delta(
        self, x: torch.Tensor, expert: torch.Tensor, weights: torch.Tensor, counts: Sequence[int]
    ) -> torch.Tensor:
        """Computes what these adapters add: B_e (weights ⊙ (A_e x)), with the expert e of each pair.

        Args:
            x: (S, I).
            expert: (S,) the expert of each pair.
            weights: (S, R) or (1, R).
            counts: for many pairs, sorted by expert, the number of pairs of each expert; otherwise empty.

        Returns:
            (S, O)
        """
        x, weights = x.to(self.a.dtype), weights.to(self.a.dtype)
        if not counts:
            inner = torch.bmm(self.a[self.rows_a[expert]], x.unsqueeze(-1)).squeeze(-1) * weights
            return torch.bmm(inner.unsqueeze(1), self.b[self.rows_b[expert]]).squeeze(1)
        parts, start = [], 0
        for e, count in enumerate(counts):
            if count:
                pairs = slice(start, start + count)
                own_weights = weights[pairs] if len(weights) > 1 else weights
                inner = nn.functional.linear(x[pairs], self.a[self.rows_a[e]]) * own_weights
                parts.append(inner @ self.b[self.rows_b[e]])
                start += count
        return torch.cat(parts)


@dataclass(eq=False)
class ExpertAdapters:
    """What `attach` stores on an experts module.

    Attributes:
        reference: the mixer.
        depth: the index of the layer's depth in the mixer.
        config: the module's own config, which names the experts function of the model.
        blocks: parameter name -> the blocks of its adapters.
    """

    reference: MixerReference
    depth: int
    config: Any
    blocks: dict[str, list[ExpertLoraBlock]] = field(default_factory=dict)


def unmixable_reason(layer: Any) -> str:
    """Returns why a peft wrapper of a parameter cannot be mixed, or ""."""
    module = layer.get_base_layer()
    if layer.num_experts == 1 or layer.parameter_name not in PARAMETERS or not hasattr(module, "_apply_gate"):
        return f"it is trained on the bare parameter {layer.parameter_name!r} of {type(module).__name__}"
    if module._is_expert_parallel:
        return "the experts are spread over several devices"
    return ""


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the fused expert weights of a model.

    Returns:
        path -> shape, (E, O, I), or (E, I, O) for a model that stores them transposed.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules():
        if hasattr(type(module), "_apply_gate"):
            parametrized = getattr(module, "parametrizations", {})
            for name in PARAMETERS:
                if name in parametrized:  # reading the attribute itself would dequantize the weight
                    shapes[f"{path}.{name}"] = tuple(parametrized[name][0].quant_state.shape)
                elif (weight := module._parameters.get(name)) is not None:
                    shapes[f"{path}.{name}"] = tuple(weight.shape)
    return shapes


def target_parameters(model: nn.Module) -> list[str]:
    """Returns peft's `target_parameters` for an adapter on all experts."""
    return sorted({LAYER_PREFIX.sub("", path.replace(".base_layer", "")) for path in weight_shapes(model)})


def parameters_per_rank(model: nn.Module) -> int:
    """Counts the parameters that one rank has over all experts: per expert, a row of A and a column of B."""
    return sum(e * (o + i) for e, o, i in weight_shapes(model).values())


def quantize_experts(model: nn.Module) -> None:
    """Quantizes fused expert weights to nf4 after loading; bitsandbytes otherwise leaves them in 16 bits.

    They are most of such a model. A layer dequantizes them whenever it computes, one layer at a time.
    """
    for path in list(weight_shapes(model)):
        owner, _, name = path.rpartition(".")
        replace_parameter_4bit(model.get_submodule(owner), name, compress_statistics=True, quant_type="nf4")


@contextlib.contextmanager
def expose_weight_names(model: nn.Module) -> Iterator[None]:
    """Gives quantized expert weights their names back while open, as placeholders of the right shape.

    peft looks weights up by name and reads their shape, and finds quantized ones only while no adapter wraps
    them. A placeholder is one zero, expanded.
    """
    modules = [
        m for m in model.modules() if "parametrizations" in m._modules and hasattr(type(m), "_apply_gate")
    ]
    originals = [(module, module.__class__, module._modules.pop("parametrizations")) for module in modules]
    for module, cls, parametrizations in originals:
        module.__class__ = cls.__mro__[1]
        for name, parts in parametrizations.items():  # type: ignore[operator, union-attr]
            state = parts[0].quant_state
            zero = parts.original.new_zeros(1, dtype=state.dtype)
            module.register_parameter(name, nn.Parameter(zero.expand(state.shape), requires_grad=False))
    try:
        yield
    finally:
        for module, cls, parametrizations in originals:
            for name in parametrizations:  # type: ignore[union-attr]
                del module._parameters[name]
            module._modules["parametrizations"] = parametrizations
            module.__class__ = cls


def make_block(layer: Any, names: Sequence[str], columns: int, is_trainee: bool) -> ExpertLoraBlock:
    """Makes the block of some adapters of a peft wrapper.

    Args:
        layer: the `ParamWrapper`.
        names: peft's names of the adapters. They are concatenated, and peft's parameters become views of the
            result.
        columns: the index of the `RankColumns` in the mixer.
        is_trainee: `names` is the adapter in training, whose tensors are used as they are.
    """
    experts, ranks = layer.num_experts, [layer.r[n] for n in names]
    starts = [experts * sum(ranks[:i]) for i in range(len(names))]
    rows_a = torch.cat(
        [start + torch.arange(experts * r).view(experts, r) for start, r in zip(starts, ranks, strict=True)],
        dim=1,
    )
    rows_b = torch.arange(experts).unsqueeze(1) + experts * torch.arange(sum(ranks))
    if is_trainee:
        a, b = layer.lora_A[names[0]].weight, layer.lora_B[names[0]].weight.T
    else:
        with torch.no_grad():
            a = torch.cat([layer.lora_A[n].weight for n in names])
            b = torch.cat([layer.lora_B[n].weight.T for n in names])
            for n, start, r in zip(names, starts, ranks, strict=True):
                layer.lora_A[n].weight.data = a[start : start + experts * r]
                layer.lora_B[n].weight.data = b[start : start + experts * r].T
    return ExpertLoraBlock(a, b, rows_a.to(a.device), rows_b.to(a.device), columns)


def attach(module: Any, mixer: Any, depth: int) -> None:
    """Makes an experts module compute by `experts_forward`, which only its own copy of the config names."""
    module.expert_adapters = ExpertAdapters(MixerReference(mixer), depth, module.config)
    module.config = copy.copy(module.config)
    module.config._experts_implementation_internal = NAME


def detach(module: Any) -> None:
    """Undoes `attach`."""
    module.config = module.expert_adapters.config
    del module.expert_adapters


def experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Computes the experts with the adapters of the active mix, as an experts function of transformers.

    Where no adapter of the module is active, it calls the experts function that the model's config names.

    Args:
        self: the experts module.
        hidden_states: (N, I).
        top_k_index: (N, K) the experts of each token.
        top_k_weights: (N, K) the router's weights.

    Returns:
        (N, I)

    Raises:
        AdapterError: N is not a multiple of the rows of the mix.
    """
    adapters = self.expert_adapters
    mix = adapters.reference.mixer.active_mix
    terms: dict[str, list[tuple[ExpertLoraBlock, torch.Tensor]]] = {}
    if mix:
        for name, blocks in adapters.blocks.items():
            with_rows = [(block, mix.rows[block.columns][adapters.depth]) for block in blocks]
            terms[name] = [(block, rows) for block, rows in with_rows if rows is not None]
    if not any(terms.values()):
        own = ALL_EXPERTS_FUNCTIONS.get_interface(
            adapters.config._experts_implementation, type(self).forward.__wrapped__
        )
        return own(self, hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]
    tokens, per_token = top_k_index.shape
    expert = top_k_index.reshape(-1)
    token = torch.arange(tokens, device=expert.device).repeat_interleave(per_token)
    # Sorted by expert, the weights of an expert are read once, not once per pair.
    is_grouped = expert.device.type == "cpu" or len(expert) > self.num_experts
    counts: list[int] = []
    if is_grouped:
        expert, order = torch.sort(expert, stable=True)
        token = token[order]
        tally = torch.bincount(expert, minlength=self.num_experts)
        ends = tally.cumsum(0).to(torch.int32)
        counts = tally.tolist() if len(expert) > LOOP_THRESHOLD * self.num_experts else []

    def project(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = getattr(self, name), getattr(self, f"{name}_bias")[expert] if self.has_bias else None
        if is_grouped:
            y = _grouped_linear(x, weight, ends, bias, self.is_transposed)
        else:
            y = _batched_linear(x, weight[expert], bias, self.is_transposed)
        for block, rows in terms.get(name, ()):
            y = y + block.delta(x, expert, _pair_weights(rows, token, tokens), counts)
        return y.to(x.dtype)

    inner = project("gate_up_proj" if self.has_gate else "up_proj", hidden_states[token])
    inner = project("down_proj", self._apply_gate(inner) if self.has_gate else self.act_fn(inner))
    if self.has_post_expert_norm:
        inner = self.post_expert_norm(inner)
    if is_grouped:
        inner = inner[torch.argsort(order)]
    weighted = inner.view(tokens, per_token, -1) * top_k_weights.unsqueeze(-1)
    return weighted.sum(1).to(hidden_states.dtype)


def _pair_weights(rows: torch.Tensor, token: torch.Tensor, tokens: int) -> torch.Tensor:
    """Returns the weights of each pair: (B, 1, R) -> (S, R), or (1, R) where all rows are equal.

    Args:
        token: (S,) the token of each pair; the tokens of a row are consecutive.
        tokens: N.
    """
    if tokens % len(rows):
        raise AdapterError(
            f"The experts got {tokens} tokens, and the mix has {len(rows)} rows.",
            "Give every row equally many tokens, or one mix for all.",
        )
    return rows[0] if len(rows) == 1 else rows[:, 0][token // (tokens // len(rows))]


ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)
