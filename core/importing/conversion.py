"""From a plan to plain LoRA of the library: tensors under peft's names, and a configuration made from them.

    PiSSA, OLoRA   s B A - s B0 A0           =  s [B -B0] [A; A0]                       twice the rank;
                                                also CorDA, where the file of its start is given
    DoRA           g (W + s B A) - W         =  U S V^T (truncated at rounding)         up to full rank,
                                                where the user asks for plain LoRA; else it stays DoRA
    experts        column e r + j of lora_B  -> column j E + e                          the same rank

with g = m / |W + s B A| by row (Liu et al. 2024, arXiv 2402.09353).

Letters: O outputs, I inputs, r rank, E experts.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from core.errors import AdapterError
from core.importing import gguf_form
from core.importing.base_view import BaseView
from core.importing.examination import Plan, compute_scale
from core.importing.foreign import Factors, ForeignAdapter
from core.importing.peft_form import PREFIX
from core.importing.settings import CONVERT_DORA, CONVERT_START, GROUPED, SUBTRACT_START
from core.model.lora_init import START_FACTORS
from core.store.adapter_config import ALPHA_LIMIT, LIST_LIMIT, RANK_LIMIT, parse_config
from core.store.adapter_weights import MAGNITUDE, TOKEN_END

ROUNDING = 1e-7  # singular values below this share of the largest are rounding of fp32

Pair = tuple[torch.Tensor, torch.Tensor]


def convert(
    foreign: ForeignAdapter, base: BaseView, plan: Plan
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Builds what the library stores.

    Args:
        plan: of an examination without open findings.

    Returns:
        tensors under the names of peft's file format, and the fields of a LoraConfig.

    Raises:
        AdapterError: a weight of the base that a conversion needs cannot be read, or a value is too large.
    """
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    scalings: dict[str, float] = {}
    is_live = CONVERT_DORA.id not in plan.repairs
    for layer, factors in plan.layers.items():
        experts = base.layers[layer.replace(".base_layer", "")].experts
        rank = factors.rank // experts if experts else factors.rank
        scaling = compute_scale(foreign, factors, rank)
        a, b = _convert_layer(foreign, base, plan, layer, factors, scaling)
        if CONVERT_DORA.id in plan.repairs and factors.magnitude is not None:
            scaling = 1.0
        tensors[f"{PREFIX}{layer}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{layer}.lora_B.weight"] = b.contiguous()
        if is_live and factors.magnitude is not None:
            tensors[f"{PREFIX}{layer}.{MAGNITUDE}"] = factors.magnitude.read().contiguous()
        ranks[layer] = a.shape[0] // experts if experts else a.shape[0]
        scalings[layer] = scaling
    for path, weights in plan.own.items():
        for parameter, tensor in weights.items():
            tensors[f"{PREFIX}{path}.{parameter}"] = tensor.read().clone().contiguous()
    for path, (_, tensor) in plan.tokens.items():
        tensors[f"{PREFIX}{path}{TOKEN_END}"] = tensor.read().contiguous()
    return tensors, _build_config(foreign, base, plan, ranks, scalings)


def _convert_layer(
    foreign: ForeignAdapter, base: BaseView, plan: Plan, layer: str, factors: Factors, scaling: float
) -> Pair:
    """The factors of one layer as plain LoRA: A (r, I) and B (O, r)."""
    a, b = factors.a.read(), factors.b.read()
    if foreign.architecture and gguf_form.permutes_rows(foreign.architecture):
        if layer.endswith(gguf_form.QUERY):
            b = gguf_form.restore_rows(b, base.heads)
        elif layer.endswith(gguf_form.KEY):
            b = gguf_form.restore_rows(b, base.key_value_heads)
    experts = base.layers[layer.replace(".base_layer", "")].experts
    if experts and GROUPED.id in plan.repairs:
        b = b.reshape(b.shape[0], experts, -1).transpose(1, 2).reshape(b.shape)
    if SUBTRACT_START.id in plan.repairs and factors.start is not None:
        return _join((a, b), (factors.start[0].read(), factors.start[1].read()))
    if CONVERT_START.id in plan.repairs:
        return _subtract_start(foreign, base, layer, (a, b), scaling)
    if CONVERT_DORA.id in plan.repairs and factors.magnitude is not None:
        return _convert_dora(base.read_weight(layer), (a, b), factors.magnitude.read(), scaling)
    return a, b


def _subtract_start(
    foreign: ForeignAdapter, base: BaseView, layer: str, factors: Pair, scaling: float
) -> Pair:
    """Joins the trained factors with the start that was subtracted from the base."""
    kind = str(foreign.settings["init_lora_weights"]).partition("_")[0]
    start = START_FACTORS[kind](base.read_weight(layer), factors[0].shape[0], scaling)
    return _join(factors, (start.a, start.b))


def _join(factors: Pair, start: Pair) -> Pair:
    """[A; A0] and [B, -B0], whose product is that of the factors less that of the start."""
    (a, b), (a0, b0) = ((t.float() for t in pair) for pair in (factors, start))
    return torch.cat([a, a0]), torch.cat([b, -b0], dim=1)


def _convert_dora(weight: torch.Tensor, factors: Pair, magnitude: torch.Tensor, scaling: float) -> Pair:
    """The change of a DoRA layer at weight 1, as factors of the smallest rank that holds it."""
    a, b = (t.double() for t in factors)
    whole = weight.double() + scaling * (b @ a)
    gain = magnitude.double() / whole.norm(dim=1).clamp_min(1e-12)
    change = gain[:, None] * whole - weight.double()
    u, s, vh = torch.linalg.svd(change, full_matrices=False)
    rank = max(1, int((s > s[0] * ROUNDING).sum()))
    root = s[:rank].sqrt()
    return (root[:, None] * vh[:rank]).float(), (u[:, :rank] * root).float()


def _build_config(
    foreign: ForeignAdapter, base: BaseView, plan: Plan, ranks: dict[str, int], scalings: dict[str, float]
) -> dict[str, Any]:
    """The configuration: full names of the layers, and what their tensors say."""
    if len(ranks) > LIST_LIMIT:
        raise AdapterError(
            f"It changes {len(ranks):,} layers; at most {LIST_LIMIT:,} can be named.",
            "Train it on fewer layers, or merge it into its base.",
        )
    # rsLoRA is kept as such where the tensors are; a conversion changes the rank, and states plain alphas.
    is_doubled = bool(plan.repairs & {CONVERT_START.id, SUBTRACT_START.id})
    is_converted = is_doubled or CONVERT_DORA.id in plan.repairs
    is_stabilized = foreign.is_rank_stabilized and not is_converted
    alphas = {m: _round(s * (ranks[m] ** 0.5 if is_stabilized else ranks[m])) for m, s in scalings.items()}
    if is_doubled:  # twice the columns, each scaled as before
        alphas = {m: _round(scalings[m] * ranks[m]) for m in ranks}
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    names = {m: m.replace(".base_layer", "") for m in ranks}
    plain = [m for m in ranks if names[m] not in plan.experts]
    config = {
        "peft_type": "LORA",
        "task_type": base.task_type,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(plain),
        "bias": "none",
        "fan_in_fan_out": base.fan_in_fan_out,
        "use_rslora": is_stabilized,
    }
    if plan.target_parameters:
        config["target_parameters"] = sorted(plan.target_parameters)
    if CONVERT_DORA.id not in plan.repairs and any(f.magnitude is not None for f in plan.layers.values()):
        config["use_dora"] = True
    if plan.own:
        config["modules_to_save"] = sorted(plan.own)
    if plan.tokens:
        config["trainable_token_indices"] = {path: ids for path, (ids, _) in sorted(plan.tokens.items())}
    if other_ranks := {m: r for m, r in ranks.items() if r != rank}:
        config["rank_pattern"] = other_ranks
    if other_alphas := {m: a for m, a in alphas.items() if a != alpha}:
        config["alpha_pattern"] = other_alphas
    if max(ranks.values()) > RANK_LIMIT or not all(0 < a <= ALPHA_LIMIT for a in alphas.values()):
        raise AdapterError(
            f"Ranks must be at most {RANK_LIMIT:,} and alpha above 0 and at most {ALPHA_LIMIT:,}, got rank "
            f"{max(ranks.values()):,} and alpha {max(alphas.values()):g}.",
            "Merge the adapter into its base with the tool that made it.",
        )
    return parse_config(config, only_plain=False)


def _round(alpha: float) -> float:
    """A whole number where it is one but for rounding."""
    return float(round(alpha)) if abs(alpha - round(alpha)) < 1e-9 * max(1.0, abs(alpha)) else alpha
