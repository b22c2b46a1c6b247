"""Baking: a mix becomes one ordinary adapter of the library, which plain peft can load.

Knows the library's files, factors and peft's own merging. The resident base is only listened to at the
end, to compare the baked adapter with the live mix; merging happens on the CPU, on factors read from
disk, so a run in training and the adapters that hang on the base notice nothing.

    files of the mix ─ factors ─┬─ concat, svd      core.model.low_rank, exact
                                └─ ties, ...        core.merge.peft_merge, peft's own
                     ─ rank padded, alpha = rank (so the scaling is 1) ─ library.add ─ read back ─ heard beside the mix
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import save_file

from core.errors import AdapterError, Busy
from core.merge.methods import METHODS, BakeSpec, BakeMethod, compute_rank
from core.merge.peft_merge import LayerAdapter, merged
from core.model.decoding import all_logits
from core.model.deltas import PREFIX, StoredFactors, WeightFunction, count_layers, layer_index, short_name, load_factors, make_weight_function
from core.model.generate import inference_mode_for
from core.model.low_rank import Factors, concat, distance, energy_share, norm, pad, svd, truncate
from core.model.resident import Resident
from core.model.scoring import kl_divergence
from core.progress import Progress
from core.spec.mix import Mix
from core.store import adapters
from core.store.adapters import Adapter
from core.store.workspace import check_name, ensure_space, make_id

FILE_LIMIT = (
    1e-6  # how far factors read back may be from those computed, as a share of the parts' norm: fp32 rounding
)
LOGIT_LIMIT = 1e-4  # how far an exact bake's logits may be from the live mix's on an fp32 base, as a share of the largest (at least 1)
PROBE_TOKENS = 48
CHANGED_LIMIT = 1e3  # shares of energy beyond this are told as this: the mix is next to nothing there


@dataclass(frozen=True)
class MixPart:
    """One adapter of the mix, as read from its files."""

    adapter: Adapter
    stored: StoredFactors


@dataclass(frozen=True)
class ModulePart:
    """One adapter of the mix in one module.

    Attributes:
        weight: that it was baked with here. energy: squared Frobenius norm of its update, weighted.
        kept: share of that energy inside the spaces of the baked update, for svd and ties_svd; 1 where
            nothing is cut off, None for the methods that combine otherwise.
    """

    id: str
    weight: float
    energy: float
    kept: float | None


@dataclass(frozen=True)
class BakedModule:
    """What baking did to one module.

    Attributes:
        energy: squared Frobenius norm of the mix's update there.
        changed: squared Frobenius norm of what the baked update lacks or adds, as a share of `energy`;
            for svd this is the discarded energy.
        parts: the adapters of the mix that change this module.
    """

    layer: int
    module: str
    energy: float
    changed: float
    parts: tuple[ModulePart, ...]


@dataclass(frozen=True)
class BakeResult:
    """A baked adapter and how faithful it is.

    Attributes:
        changed: as of `BakedModule`, over all modules: the discarded energy of svd.
        kept: adapter id to the share of its own energy that the baked adapter has room for; empty for methods
            that combine otherwise. A small adapter may lose much where the mix as a whole loses little.
        logit_difference: largest difference of any logit to the live mix on the probe; None where
            weights were given that a mix cannot say.
        divergence: KL(mix || baked) on the probe, nats per token; None likewise.
    """

    adapter: Adapter
    method: str
    rank: int
    changed: float
    kept: dict[str, float]
    logit_difference: float | None
    divergence: float | None
    modules: tuple[BakedModule, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "adapter": self.adapter.id}

    def summary(self) -> str:
        """One honest sentence."""
        head = f"{self.adapter.name} has rank {self.rank}"
        if METHODS[self.method].exact:
            return f"{head} and is the mix itself, but for rounding."
        if METHODS[self.method].prunes:
            return f"{head}; its updates differ from the mix's by {self.changed:.1%} of their energy, because {self.method} is another way of combining, not the mix."
        heard = "" if self.divergence is None else f" ({self.divergence:.3g} nats per token on the probe)"
        names = {p["id"]: p["name"] for p in self.adapter.metadata["baked_from"]}
        shares = ", ".join(f"{share:.1%} of {names[a]}" for a, share in self.kept.items())
        return (
            f"{head} and leaves out {self.changed:.2%} of the mix's energy{heard}; it has room for {shares}."
        )


def bake(
    resident: Resident, mix: Mix, spec: BakeSpec, weigh: WeightFunction | None = None, probe: Sequence[int] = ()
) -> Iterator[Progress | BakeResult]:
    """Makes one adapter of a mix, puts it into the library and checks it against the live mix.

    Args:
        mix: adapters of the library, on the resident base; a tilt over the depth is baked in.
        weigh: (adapter id, module) -> weight, instead of what the mix says; for mixes that a Mix cannot say.
        probe: token ids to compare on; empty draws some from the vocabulary, always the same.

    Yields:
        Progress after every module; at the end one Baked.

    Raises:
        AdapterError: the method cannot do this mix, an adapter is damaged or of another base, or the
            baked adapter is not what was computed (it is not kept then).
        Busy: an adapter of the mix is in training. NotFound, InvalidName, StorageError.
    """
    name = check_name(spec.name)
    parts = _read(resident, mix)
    weight = weigh or make_weight_function(mix, count_layers(resident))
    modules = sorted({m for p in parts for m in p.stored.factors}, key=lambda m: (layer_index(m), m))
    names = [p.adapter.name for p in parts]
    known = [n if names.count(n) == 1 else p.adapter.id for n, p in zip(names, parts, strict=True)]
    lowest = [min(weight(p.adapter.id, m) for m in p.stored.factors) for p in parts]
    rank = compute_rank(
        spec,
        {n: p.stored.ranks for n, p in zip(known, parts, strict=True)},
        dict(zip(known, lowest, strict=True)),
    )
    total = 2 * len(modules) + 2
    made: dict[str, Factors] = {}
    report: list[BakedModule] = []
    for i, module in enumerate(modules):
        pair, figures = _module(parts, module, weight, spec, rank)
        made[module] = pair
        report.append(figures)
        yield Progress(i + 1, total, f"Baking {module}")
    adapter_id = _new_id(resident, name)
    good = False
    try:
        adapter = _keep(resident, mix, spec, rank, parts, made, adapter_id)
        for i, module in enumerate(
            _checked(resident, adapter, made, parts, weight, METHODS[spec.method].exact)
        ):
            yield Progress(len(modules) + i + 1, total, f"Reading back {module}")
        yield Progress(total - 1, total, "Comparing with the mix")
        heard = (
            _heard(resident, mix, adapter, probe, METHODS[spec.method].exact)
            if weigh is None
            else (None, None)
        )
        baked = _result(resident, adapter, spec, rank, report, heard)
        good = True
    finally:
        if not good and resident.workspace.path("adapters", adapter_id).exists():
            resident.unload(adapter_id)
            resident.workspace.remove("adapters", adapter_id)
    yield Progress(total, total, "Done", adapter_id)
    yield baked


def _read(resident: Resident, mix: Mix) -> list[MixPart]:
    parts = []
    for adapter_id in mix.weights:
        if adapter_id == resident.trainee_id:
            raise Busy(
                f"The adapter {adapter_id!r} is still in training.",
                "Wait for its run, or stop it: what it learned is kept, and can be baked then.",
            )
        adapter = adapters.load(resident.workspace, adapter_id)
        resident.check_same_base(adapter)
        parts.append(MixPart(adapter, load_factors(resident.workspace, adapter_id)))
    return parts


def _exact(parts: Sequence[MixPart], module: str, weight: WeightFunction) -> Factors:
    """The mix's update of one module, losslessly."""
    return concat(
        [p.stored.delta(module, weight(p.adapter.id, module)) for p in parts if module in p.stored.factors]
    )


def _module(
    parts: Sequence[MixPart], module: str, weight: WeightFunction, spec: BakeSpec, rank: int
) -> tuple[Factors, BakedModule]:
    exact = _exact(parts, module, weight)
    if spec.method == "concat":
        pair = pad(exact, rank)
    elif spec.method == "svd":
        pair = truncate(exact, rank)[0]
    else:
        pair = pad(_by_peft(parts, module, weight, spec, rank), rank)
    pair = Factors(pair.a.float().contiguous(), pair.b.float().contiguous())
    energy = norm(exact) ** 2
    here = tuple(
        _part_here(p, module, weight(p.adapter.id, module), pair, METHODS[spec.method])
        for p in parts
        if module in p.stored.factors
    )
    return pair, BakedModule(
        layer_index(module), short_name(module), energy, _share(distance(exact, pair) ** 2, energy), here
    )


def _part_here(part: MixPart, module: str, weight: float, made: Factors, method: BakeMethod) -> ModulePart:
    update = part.stored.delta(module, weight)
    share = energy_share(update, svd(made)) if method.chooses_rank else 1.0 if method.exact else None
    return ModulePart(part.adapter.id, weight, norm(update) ** 2, share)


def _share(changed: float, energy: float) -> float:
    if energy > 0:
        return min(changed / energy, CHANGED_LIMIT)
    return CHANGED_LIMIT if changed > 0 else 0.0


def _by_peft(parts: Sequence[MixPart], module: str, weight: WeightFunction, spec: BakeSpec, rank: int) -> Factors:
    """What peft makes of one module of the mix."""
    method = METHODS[spec.method]
    return merged(
        [
            LayerAdapter(
                p.stored.factors.get(module), p.stored.scaling.get(module, 1.0), weight(p.adapter.id, module)
            )
            for p in parts
        ],
        spec.method,
        spec.density,
        rank if method.chooses_rank else None,
        zlib.crc32(f"{spec.seed} {module}".encode()),  # layers of one shape do not drop the same numbers
    )


def _new_id(resident: Resident, name: str) -> str:
    while True:
        chosen = make_id(name)
        if not resident.workspace.path("adapters", chosen).exists():
            return chosen


def _keep(
    resident: Resident,
    mix: Mix,
    spec: BakeSpec,
    rank: int,
    parts: Sequence[MixPart],
    made: Mapping[str, Factors],
    adapter_id: str,
) -> Adapter:
    base = resident.base
    tensors = {
        f"{PREFIX}{m}.lora_{side}.weight": factor
        for m, pair in made.items()
        for side, factor in (("A", pair.a), ("B", pair.b))
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
    tilt = getattr(mix, "tilt", None) or {}
    metadata = {
        "kind": "mix",
        "base": {
            "name": base.name,
            "fingerprint": base.fingerprint,
            "family": base.family.model_type,
            "parameters": base.parameters,
            "quantization": base.quantization,
        },
        "mix": {"name": mix.name, "weights": mix.weights, "tilt": tilt},
        "baked_from": [
            {
                "id": p.adapter.id,
                "name": p.adapter.name,
                "kind": p.adapter.kind,
                "sha256": p.adapter.sha256,
                "weight": mix.weights[p.adapter.id],
                "tilt": tilt.get(p.adapter.id, 0.0),
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
    )


def _checked(
    resident: Resident,
    adapter: Adapter,
    made: Mapping[str, Factors],
    parts: Sequence[MixPart],
    weight: WeightFunction,
    exact: bool,
) -> Iterator[str]:
    """Reads the saved folder again; yields its modules as each turns out to be what was computed, and for an exact method the mix itself."""
    found = load_factors(resident.workspace, adapter.id)
    if found.factors.keys() != made.keys():
        raise AdapterError(
            f"{adapter.name!r} was saved with other layers than were baked.",
            "Nothing was kept; report this with the adapters it was made of.",
        )
    for module in found.factors:
        pair = found.delta(module)
        size = math.hypot(
            *(
                norm(p.stored.delta(module, weight(p.adapter.id, module)))
                for p in parts
                if module in p.stored.factors
            ),
            norm(pair),
        )
        wrong = distance(_exact(parts, module, weight) if exact else made[module], pair)
        if not wrong <= FILE_LIMIT * size:
            raise AdapterError(
                f"The baked update of {module} is {wrong:.2g} away from what it has to be (norm {size:.2g}).",
                "Nothing was kept; verify the adapters of the mix, then bake again.",
            )
        yield module


def _heard(
    resident: Resident, mix: Mix, adapter: Adapter, probe: Sequence[int], exact: bool
) -> tuple[float, float]:
    """The live mix and the baked adapter side by side: (largest difference of a logit, KL in nats per token)."""
    base = resident.base
    length = min(PROBE_TOKENS, base.context)
    ids = (
        torch.tensor([list(probe)])
        if probe
        else torch.randint(
            base.model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0)
        )
    )
    mixes = [mix, Mix(weights={adapter.id: 1.0})]
    resident.load_adapters(mixes)
    with inference_mode_for(resident, resident.rows(mixes)):
        live, baked = all_logits(base.model, ids.repeat(2, 1).to(base.device)).float()
    difference, largest = float((live - baked).abs().max()), float(live.abs().max())
    full_precision = base.quantization == "none" and base.model.dtype == torch.float32
    if exact and full_precision and not difference <= LOGIT_LIMIT * max(1.0, largest):
        raise AdapterError(
            f"The baked adapter's logits differ from the mix's by {difference:.2g}, and at most {LOGIT_LIMIT * max(1.0, largest):.2g} is rounding.",
            "Nothing was kept; verify the adapters of the mix, then bake again.",
        )
    return difference, kl_divergence(live, baked) / ids.shape[1]


def _result(
    resident: Resident,
    adapter: Adapter,
    spec: BakeSpec,
    rank: int,
    report: Sequence[BakedModule],
    heard: tuple[float | None, float | None],
) -> BakeResult:
    energy = sum(m.energy for m in report)
    changed = _share(sum(m.changed * m.energy for m in report), energy)
    figures: dict[str, Any] = {
        "discarded_energy" if spec.method in ("svd", "concat") else "changed_energy": changed,
        "rank": rank,
    }
    share = _kept(report)
    if heard[0] is not None:
        figures |= {"max_logit_difference": heard[0], "divergence_from_mix": heard[1]}
    adapter = adapters.add_results(
        resident.workspace, adapter.id, figures, {"baked_modules": [asdict(m) for m in report], "kept": share}
    )
    return BakeResult(adapter, spec.method, rank, changed, share, heard[0], heard[1], tuple(report))


def _kept(report: Sequence[BakedModule]) -> dict[str, float]:
    """Over all modules, a share an adapter."""
    inside: dict[str, float] = {}
    energy: dict[str, float] = {}
    for part in (p for m in report for p in m.parts if p.kept is not None):
        inside[part.id] = inside.get(part.id, 0.0) + part.energy * (part.kept or 0.0)
        energy[part.id] = energy.get(part.id, 0.0) + part.energy
    return {a: inside[a] / energy[a] if energy[a] else 1.0 for a in inside}
