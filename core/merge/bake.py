"""Bakes a mix into one ordinary adapter of the library, which plain peft can load.

Factors are read from disk and merged on the CPU, so that neither a run in training nor the resident adapters
are affected. Only the last step uses the resident base: it compares the baked adapter with the live mix.

    files of the mix -> factors -+- concat, svd    core.model.low_rank, exact
                                 +- ties, ...      core.merge.peft_merge, peft's own
                     -> pad the rank, alpha = rank (the scaling is 1) -> adapters.add -> read back -> compare
                     logits
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from safetensors.torch import save_file

from core.data.training_rows import join, read_training_rows
from core.errors import Busy
from core.merge.bake_checks import MixPart, check_files, compare_logits, concat_parts
from core.merge.bake_result import BakedModule, BakeResult, ModulePart, share_of_energy, sum_kept_energy
from core.merge.methods import METHODS, BakeSpec, compute_rank
from core.merge.peft_merge import LayerAdapter, merge_with_peft
from core.model.deltas import (
    PREFIX,
    WeightFunction,
    count_layers,
    layer_index,
    load_factors,
    make_weight_function,
    short_name,
)
from core.model.low_rank import Factors, distance, energy_share, norm, pad, svd, truncate
from core.model.resident import Resident
from core.progress import Progress
from core.spec.fixed_weights import require_numbers
from core.spec.mix import Mix
from core.store import adapters
from core.store.adapters import Adapter
from core.store.files import ensure_space
from core.store.workspace import check_name, make_id


def bake(
    resident: Resident,
    mix: Mix,
    spec: BakeSpec,
    weight_function: WeightFunction | None = None,
    probe: Sequence[int] = (),
) -> Iterator[Progress | BakeResult]:
    """Makes one adapter of a mix, adds it to the library, and checks it against the live mix.

    Args:
        mix: adapters of the library, on the resident base; their tilts are baked in.
        weight_function: (adapter id, module) -> weight, replaces the mix's weights; the comparison with the
            live mix is skipped then.
        probe: token ids for the comparison of logits; empty draws random ones, always the same.

    Yields:
        Progress after every module; last, one BakeResult.

    Raises:
        SpecError: a weight is on Auto.
        AdapterError: the method cannot bake this mix, an adapter is damaged or of another base, or the baked
            adapter fails a check; it is removed in that case.
        Busy: an adapter of the mix is in training.
        NotFound, InvalidName, StorageError.
    """
    name = check_name(spec.name)
    require_numbers(mix, "A baked adapter", {a: adapters.load(resident.workspace, a).name for a in mix.auto})
    exact = METHODS[spec.method].exact
    parts = _load_parts(resident, mix)
    weight = weight_function or make_weight_function(mix, count_layers(resident))
    modules = sorted({m for p in parts for m in p.stored.factors}, key=lambda m: (layer_index(m), m))
    rank = _compute_rank(spec, parts, weight)
    total = 2 * len(modules) + 2
    baked: dict[str, Factors] = {}
    report: list[BakedModule] = []
    for i, module in enumerate(modules):
        baked[module], figures = _bake_module(parts, module, weight, spec, rank)
        report.append(figures)
        yield Progress(i + 1, total, f"Baking {module}")
    adapter_id = _make_unused_id(resident, name)
    succeeded = False
    try:
        adapter = _save_adapter(resident, mix, spec, rank, parts, baked, adapter_id)
        for i, module in enumerate(check_files(resident, adapter, baked, parts, weight, exact)):
            yield Progress(len(modules) + i + 1, total, f"Checking {module}")
        yield Progress(total - 1, total, "Comparing with the mix")
        comparison: tuple[float | None, float | None] = (None, None)
        if weight_function is None:
            comparison = compare_logits(resident, mix, adapter, probe, exact)
        result = _record_result(resident, adapter, spec, rank, report, comparison)
        succeeded = True
    finally:
        if not succeeded and resident.workspace.path("adapters", adapter_id).exists():
            resident.unload(adapter_id)
            resident.workspace.delete("adapters", adapter_id)
    yield Progress(total, total, "Done", adapter_id)
    yield result


def _load_parts(resident: Resident, mix: Mix) -> list[MixPart]:
    parts = []
    for adapter_id in mix.weights:
        if adapter_id == resident.trainee_id:
            raise Busy(
                f"The adapter {adapter_id!r} is still in training.",
                "Wait until its run ends, or stop the run; its current state is saved and can be baked then.",
            )
        adapter = adapters.load(resident.workspace, adapter_id)
        resident.check_same_base(adapter)
        parts.append(MixPart(adapter, load_factors(resident.workspace, adapter_id)))
    return parts


def _compute_rank(spec: BakeSpec, parts: Sequence[MixPart], weight: WeightFunction) -> int:
    """The rank of the baked adapter; errors name adapters by their display names where these are unique."""
    all_names = [p.adapter.name for p in parts]
    names = [p.adapter.name if all_names.count(p.adapter.name) == 1 else p.adapter.id for p in parts]
    ranks = {n: p.stored.ranks for n, p in zip(names, parts, strict=True)}
    weights = [min(weight(p.adapter.id, m) for m in p.stored.factors) for p in parts]
    return compute_rank(spec, ranks, dict(zip(names, weights, strict=True)))


def _bake_module(
    parts: Sequence[MixPart], module: str, weight: WeightFunction, spec: BakeSpec, rank: int
) -> tuple[Factors, BakedModule]:
    exact = concat_parts(parts, module, weight)
    if spec.method == "concat":
        factors = pad(exact, rank)
    elif spec.method == "svd":
        factors = truncate(exact, rank)[0]
    else:
        factors = pad(_merge_module(parts, module, weight, spec, rank), rank)
    baked = Factors(factors.a.float().contiguous(), factors.b.float().contiguous())
    energy = norm(exact) ** 2
    changing = [p for p in parts if module in p.stored.factors]
    figures = BakedModule(
        layer=layer_index(module),
        module=short_name(module),
        energy=energy,
        changed=share_of_energy(distance(exact, baked) ** 2, energy),
        parts=tuple(_measure_part(p, module, weight(p.adapter.id, module), baked, spec) for p in changing),
    )
    return baked, figures


def _measure_part(part: MixPart, module: str, weight: float, baked: Factors, spec: BakeSpec) -> ModulePart:
    method = METHODS[spec.method]
    delta = part.stored.delta(module, weight)
    kept = None
    if method.chooses_rank:
        kept = energy_share(delta, svd(baked))
    elif method.exact:
        kept = 1.0
    return ModulePart(part.adapter.id, weight, norm(delta) ** 2, kept)


def _merge_module(
    parts: Sequence[MixPart], module: str, weight: WeightFunction, spec: BakeSpec, rank: int
) -> Factors:
    """Merges one module with peft."""
    layer_adapters = [
        LayerAdapter(
            factors=p.stored.factors.get(module),
            scaling=p.stored.scaling.get(module, 1.0),
            weight=weight(p.adapter.id, module),
        )
        for p in parts
    ]
    return merge_with_peft(
        layer_adapters,
        spec.method,
        spec.density,
        rank if METHODS[spec.method].chooses_rank else None,
        # A seed per module, so that layers of one shape do not drop the same elements.
        zlib.crc32(f"{spec.seed} {module}".encode()),
    )


def _make_unused_id(resident: Resident, name: str) -> str:
    while True:
        adapter_id = make_id(name)
        if not resident.workspace.path("adapters", adapter_id).exists():
            return adapter_id


def _save_adapter(
    resident: Resident,
    mix: Mix,
    spec: BakeSpec,
    rank: int,
    parts: Sequence[MixPart],
    baked: Mapping[str, Factors],
    adapter_id: str,
) -> Adapter:
    base = resident.base
    tensors = {
        f"{PREFIX}{m}.lora_{side}.weight": factor
        for m, factors in baked.items()
        for side, factor in (("A", factors.a), ("B", factors.b))
    }
    ensure_space(resident.workspace.root / "adapters", sum(t.nbytes for t in tensors.values()))
    config = {
        "peft_type": "LORA",
        "task_type": base.family.task_type,
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted({t for p in parts for t in p.adapter.target_modules}),
        "bias": "none",
        "fan_in_fan_out": base.family.fan_in_fan_out,
        "use_rslora": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    metadata = {
        "kind": "mix",
        "base": {
            "name": base.name,
            "fingerprint": base.fingerprint,
            "family": base.family.model_type,
            "parameters": base.parameters,
            "quantization": base.quantization,
        },
        "mix": {"name": mix.name, "weights": mix.weights, "tilt": mix.tilt},
        "baked_from": [
            {
                "id": p.adapter.id,
                "name": p.adapter.name,
                "kind": p.adapter.kind,
                "sha256": p.adapter.sha256,
                "weight": mix.weights[p.adapter.id],
                "tilt": mix.tilt.get(p.adapter.id, 0.0),
            }
            for p in parts
        ],
        "bake": {
            "method": spec.method,
            "rank": rank,
            **({"density": spec.density, "seed": spec.seed} if METHODS[spec.method].prunes else {}),
        },
        "learned_from": sorted(frozenset().union(*(p.adapter.training_data for p in parts))),
        "results": {},
    }
    return adapters.add(
        resident.workspace,
        adapter_id,
        spec.name,
        lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        config,
        metadata,
        join(read_training_rows(resident.workspace, p.adapter) for p in parts).to_files(),
    )


def _record_result(
    resident: Resident,
    adapter: Adapter,
    spec: BakeSpec,
    rank: int,
    modules: Sequence[BakedModule],
    comparison: tuple[float | None, float | None],
) -> BakeResult:
    """Writes the figures into the adapter's metadata and returns them."""
    energy = sum(m.energy for m in modules)
    changed = share_of_energy(sum(m.changed * m.energy for m in modules), energy)
    kept = sum_kept_energy(modules)
    figures: dict[str, Any] = {
        "discarded_energy" if spec.method in ("svd", "concat") else "changed_energy": changed,
        "rank": rank,
    }
    logit_difference, divergence = comparison
    if logit_difference is not None:
        figures |= {"max_logit_difference": logit_difference, "divergence_from_mix": divergence}
    adapter = adapters.add_results(
        resident.workspace, adapter.id, figures, {"baked_modules": [asdict(m) for m in modules], "kept": kept}
    )
    return BakeResult(
        adapter=adapter,
        method=spec.method,
        rank=rank,
        changed=changed,
        kept=kept,
        logit_difference=logit_difference,
        divergence=divergence,
        modules=tuple(modules),
    )
