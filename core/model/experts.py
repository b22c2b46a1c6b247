"""Adapters on the experts of a mixture-of-experts layer, in rank space, through transformers' experts registry.

Letters: B rows, N tokens (flattened, row by row), K experts a token, S = N·K pairs, E experts, R rank, I inputs, O outputs.
peft lays a factor pair of rank r out for all experts at once (`ParamWrapper.get_delta_factors`):

    lora_A (E·r, I)   expert by expert, its ranks together        row  e·r + q
    lora_B (O, r·E)   rank by rank, the experts fastest           column  q·E + e

and itself builds W + delta for every expert at every step. Here a pair (token, expert) pays for its own ranks only.
Adapters at rest lie one below the other, B transposed, and peft's parameters are views of that.
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

NAME = "rank_space"  # ours in the registry
MANY = (
    2  # pairs an expert, from which a loop over the experts is cheaper than fetching its factors once a pair
)
NUMBERED = re.compile(r".*\.\d+\.")  # the part of a path that says which layer
PARAMETERS = ("gate_up_proj", "up_proj", "down_proj")


class Reference:
    """Holds the mixer without becoming a submodule or a part of the state dict."""

    __slots__ = ("mixer",)

    def __init__(self, mixer: Any) -> None:
        self.mixer = mixer


@dataclass(eq=False)
class Block:
    """Adapters of one expert parameter that share one pair of products.

    Attributes:
        a: (E·R, I); b: (R·E, O), the transpose of peft's, so that what belongs to an expert is whole rows.
        rows_a, rows_b: (E, R) the rows of `a` and `b` that belong to an expert.
        ranks: which of the mixer's `Ranks` they follow.
    """

    a: torch.Tensor
    b: torch.Tensor
    rows_a: torch.Tensor
    rows_b: torch.Tensor
    ranks: int

    def delta(
        self, x: torch.Tensor, expert: torch.Tensor, weights: torch.Tensor, counts: Sequence[int]
    ) -> torch.Tensor:
        """What these adapters add.

        Args:
            x: (S, I). expert: (S,). weights: (S, R) or (1, R).
            counts: for many pairs, sorted by expert, how many each expert has; else empty.

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
                here = slice(start, start + count)
                inner = nn.functional.linear(x[here], self.a[self.rows_a[e]]) * (
                    weights[here] if len(weights) > 1 else weights
                )
                parts.append(inner @ self.b[self.rows_b[e]])
                start += count
        return torch.cat(parts)


@dataclass(eq=False)
class Hung:
    """What hangs on one experts module.

    Attributes:
        config: the module's own, which says how it computes without us.
        blocks: parameter name -> blocks.
    """

    reference: Reference
    depth: int
    config: Any
    blocks: dict[str, list[Block]] = field(default_factory=dict)


def unmixable_reason(layer: Any) -> str:
    """Why a peft wrapper of a parameter cannot be mixed here, or ""."""
    module = layer.get_base_layer()
    if layer.num_experts == 1 or layer.parameter_name not in PARAMETERS or not hasattr(module, "_apply_gate"):
        return f"it is trained on the bare parameter {layer.parameter_name!r} of {type(module).__name__}"
    if module._is_expert_parallel:
        return "the experts are spread over several devices"
    return ""


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The fused expert weights of a model: path -> shape (E, O, I), or (E, I, O) for a model that stores them so."""
    found: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules():
        if hasattr(type(module), "_apply_gate"):
            packed = getattr(module, "parametrizations", {})
            for name in PARAMETERS:
                if name in packed:  # asked for itself, it would be unpacked
                    found[f"{path}.{name}"] = tuple(packed[name][0].quant_state.shape)
                elif name in module._parameters:
                    found[f"{path}.{name}"] = tuple(module._parameters[name].shape)  # type: ignore[union-attr]
    return found


def target_parameters(model: nn.Module) -> list[str]:
    """What peft's `target_parameters` is to be for adapters on all experts."""
    return sorted({NUMBERED.sub("", path.replace(".base_layer", "")) for path in weight_shapes(model)})


def parameters_per_rank(model: nn.Module) -> int:
    """How many numbers one rank of an adapter on all experts has: for every expert a row of A and a column of B."""
    return sum(e * (o + i) for e, o, i in weight_shapes(model).values())


def quantize_experts(model: nn.Module) -> None:
    """Puts fused expert weights into 4 bits after loading, which bitsandbytes otherwise leaves in 16: they are most of such a model.

    They are unpacked whenever a layer computes, one layer at a time.
    """
    for path in list(weight_shapes(model)):
        owner, _, name = path.rpartition(".")
        replace_parameter_4bit(model.get_submodule(owner), name, compress_statistics=True, quant_type="nf4")


@contextlib.contextmanager
def expose_weight_names(model: nn.Module) -> Iterator[None]:
    """While open, packed expert weights stand under their names, as tensors of the right shape that hold one zero.

    peft finds weights by name and asks their shape; it finds packed ones only where no other adapter hangs yet.
    """
    hidden = [
        m for m in model.modules() if "parametrizations" in m._modules and hasattr(type(m), "_apply_gate")
    ]
    kept = [(module, module.__class__, module._modules.pop("parametrizations")) for module in hidden]
    for module, cls, packed in kept:
        module.__class__ = cls.__mro__[1]
        for name, parts in packed.items():  # type: ignore[operator, union-attr]
            state = parts[0].quant_state
            module.register_parameter(
                name,
                nn.Parameter(
                    parts.original.new_zeros(1, dtype=state.dtype).expand(state.shape), requires_grad=False
                ),
            )
    try:
        yield
    finally:
        for module, cls, packed in kept:
            for name in packed:  # type: ignore[union-attr]
                del module._parameters[name]
            module._modules["parametrizations"] = packed
            module.__class__ = cls


def lay_out(layer: Any, group: Sequence[str], ranks: int, training: bool) -> Block:
    """The block of some adapters of a peft wrapper: those at rest move together, the one in training stays as it lies."""
    experts, sizes = layer.num_experts, [layer.r[n] for n in group]
    starts = [experts * sum(sizes[:i]) for i in range(len(group))]
    rows_a = torch.cat(
        [start + torch.arange(experts * r).view(experts, r) for start, r in zip(starts, sizes, strict=True)],
        dim=1,
    )
    rows_b = torch.arange(experts).unsqueeze(1) + experts * torch.arange(sum(sizes))
    if training:
        a, b = layer.lora_A[group[0]].weight, layer.lora_B[group[0]].weight.T
    else:
        with torch.no_grad():
            a = torch.cat([layer.lora_A[n].weight for n in group])
            b = torch.cat([layer.lora_B[n].weight.T for n in group])
            for n, start, r in zip(
                group, starts, sizes, strict=True
            ):  # peft's parameters become views: one copy of every number
                layer.lora_A[n].weight.data = a[start : start + experts * r]
                layer.lora_B[n].weight.data = b[start : start + experts * r].T
    return Block(a, b, rows_a.to(a.device), rows_b.to(a.device), ranks)


def hold(module: Any, mixer: Any, depth: int) -> None:
    """Makes an experts module compute by `forward` below; only its own copy of the config says so."""
    module.hung = Hung(Reference(mixer), depth, module.config)
    module.config = copy.copy(module.config)
    module.config._experts_implementation_internal = NAME


def release(module: Any) -> None:
    """Leaves an experts module as `hold` found it."""
    module.config = module.hung.config
    del module.hung


def forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """An experts function of transformers: the experts' own unless an adapter of theirs is on.

    Args:
        self: the experts module. hidden_states: (N, I). top_k_index, top_k_weights: (N, K).

    Returns:
        (N, I)

    Raises:
        AdapterError: the tokens cannot be told apart by rows.
    """
    hung = self.hung
    live = hung.reference.mixer.active_mix
    found = (
        {name: [(b, live.rows[b.ranks][hung.depth]) for b in blocks] for name, blocks in hung.blocks.items()}
        if live
        else {}
    )
    terms = {
        name: [(block, rows) for block, rows in pairs if rows is not None] for name, pairs in found.items()
    }
    if not any(terms.values()):
        own = ALL_EXPERTS_FUNCTIONS.get_interface(
            hung.config._experts_implementation, type(self).forward.__wrapped__
        )
        return own(self, hidden_states, top_k_index, top_k_weights)  # type: ignore[no-any-return]
    tokens, chosen = top_k_index.shape
    expert = top_k_index.reshape(-1)
    token = torch.arange(tokens, device=expert.device).repeat_interleave(chosen)
    grouped = (
        expert.device.type == "cpu" or len(expert) > self.num_experts
    )  # weights of an expert are read once, not once a pair
    counts: list[int] = []
    if grouped:
        expert, order = torch.sort(expert, stable=True)
        token = token[order]
        tally = torch.bincount(expert, minlength=self.num_experts)
        ends = tally.cumsum(0).to(torch.int32)
        counts = tally.tolist() if len(expert) > MANY * self.num_experts else []

    def project(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = getattr(self, name), getattr(self, f"{name}_bias")[expert] if self.has_bias else None
        if grouped:
            y = _grouped_linear(x, weight, ends, bias, self.is_transposed)
        else:
            y = _batched_linear(x, weight[expert], bias, self.is_transposed)
        for block, rows in terms.get(name, ()):
            y = y + block.delta(x, expert, _of_pairs(rows, token, tokens), counts)
        return y.to(x.dtype)

    inner = project("gate_up_proj" if self.has_gate else "up_proj", hidden_states[token])
    inner = project("down_proj", self._apply_gate(inner) if self.has_gate else self.act_fn(inner))
    if self.has_post_expert_norm:
        inner = self.post_expert_norm(inner)
    if grouped:
        inner = inner[torch.argsort(order)]
    weighted = inner.view(tokens, chosen, -1) * top_k_weights.unsqueeze(-1)
    return weighted.sum(1).to(hidden_states.dtype)


def _of_pairs(rows: torch.Tensor, token: torch.Tensor, tokens: int) -> torch.Tensor:
    """(B, 1, R) -> (S, R), or (1, R) where one row is for all: a row's tokens follow each other."""
    if tokens % len(rows):
        raise AdapterError(
            f"The experts were given {tokens} tokens, and the mix has {len(rows)} rows.",
            "Give every row equally many tokens, or one mix for all.",
        )
    return rows[0] if len(rows) == 1 else rows[:, 0][token // (tokens // len(rows))]


ALL_EXPERTS_FUNCTIONS.register(NAME, forward)
