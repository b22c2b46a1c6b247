"""Checks a baked adapter: its files against the computed updates, its logits against the live mix."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from core.errors import AdapterError
from core.model.decoding import all_logits
from core.model.deltas import StoredFactors, WeightFunction, load_factors
from core.model.generate import inference_mode_for
from core.model.low_rank import Factors, concat, distance, norm
from core.model.resident import Resident
from core.model.scoring import kl_divergence
from core.spec.mix import Mix
from core.store.adapters import Adapter

# Tolerance of factors read back from disk, as a share of the norms of the parts: fp32 rounding.
FILE_TOLERANCE = 1e-6
# Tolerance of an exact bake's logits on an fp32 base, as a share of the live mix's largest logit (at least
# 1).
LOGIT_TOLERANCE = 1e-4
PROBE_TOKENS = 48


@dataclass(frozen=True)
class MixPart:
    """One adapter of a mix, read from its files."""

    adapter: Adapter
    stored: StoredFactors


def concat_parts(parts: Sequence[MixPart], module: str, weight: WeightFunction) -> Factors:
    """The mix's update of one module, without loss."""
    return concat(
        [p.stored.delta(module, weight(p.adapter.id, module)) for p in parts if module in p.stored.factors]
    )


def check_files(
    resident: Resident,
    adapter: Adapter,
    baked: Mapping[str, Factors],
    parts: Sequence[MixPart],
    weight: WeightFunction,
    exact: bool,
) -> Iterator[str]:
    """Reads the saved adapter again and compares it with what was computed, or for an exact method with the
    mix.

    Yields:
        The name of each module after its check.

    Raises:
        AdapterError: a module is missing or differs by more than `FILE_TOLERANCE`.
    """
    saved = load_factors(resident.workspace, adapter.id)
    if saved.factors.keys() != baked.keys():
        raise AdapterError(
            f"The saved modules of {adapter.name!r} differ from the baked ones.",
            "The adapter was removed; please report this, with the adapters of the mix.",
        )
    for module in saved.factors:
        delta = saved.delta(module)
        changing = [p for p in parts if module in p.stored.factors]
        norms = [norm(p.stored.delta(module, weight(p.adapter.id, module))) for p in changing]
        size = math.hypot(*norms, norm(delta))
        error = distance(concat_parts(parts, module, weight) if exact else baked[module], delta)
        if not error <= FILE_TOLERANCE * size:  # also true for NaN
            raise AdapterError(
                f"The update of {module} must be within {FILE_TOLERANCE * size:.2g} of the expected one, "
                f"got a distance of {error:.2g}.",
                "The adapter was removed; verify the adapters of the mix, then bake again.",
            )
        yield module


def compare_logits(
    resident: Resident, mix: Mix, adapter: Adapter, probe: Sequence[int], exact: bool
) -> tuple[float, float]:
    """Runs the live mix and the baked adapter on the same tokens.

    Args:
        probe: token ids; empty draws `PROBE_TOKENS` random ones, always the same.
        exact: on an fp32 base without quantization, refuse differences beyond rounding.

    Returns:
        (largest difference of a logit, KL(mix || baked) in nats per token)

    Raises:
        AdapterError: an exact bake differs by more than `LOGIT_TOLERANCE`.
    """
    base = resident.base
    if probe:
        ids = torch.tensor([list(probe)])
    else:
        size = (1, min(PROBE_TOKENS, base.context))
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(base.model.config.vocab_size, size, generator=generator)
    mixes = [mix, Mix(weights={adapter.id: 1.0})]
    resident.load_adapters(mixes)
    with inference_mode_for(resident, resident.rows(mixes)):
        live, baked = all_logits(base.model, ids.repeat(2, 1).to(base.device)).float()
    difference = float((live - baked).abs().max())
    limit = LOGIT_TOLERANCE * max(1.0, float(live.abs().max()))
    full_precision = base.quantization == "none" and base.model.dtype == torch.float32
    if exact and full_precision and not difference <= limit:
        raise AdapterError(
            f"The logits of the baked adapter must be within {limit:.2g} of the mix's, "
            f"got a difference of {difference:.2g}.",
            "The adapter was removed; verify the adapters of the mix, then bake again.",
        )
    return difference, kl_divergence(live, baked) / ids.shape[1]
