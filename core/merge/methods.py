"""The methods of baking a mix into one adapter, with their settings and limits.

This module does not import torch, so that the page can be shown before torch is loaded.

`concat` and `svd` combine the updates B A. peft's `ties`, `dare_ties` and `magnitude_prune` combine all A and
all B separately; the product of the two sums has cross terms that belong to none of the adapters, so their
outputs differ from the mix's. `ties_svd` combines the products, as the TIES paper does, and is slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import AdapterError
from core.spec.settings import SEED, Settings, setting

RANK_LIMIT = 1024  # largest rank of an adapter in the library


@dataclass(frozen=True)
class BakeMethod:
    """A method of baking.

    Attributes:
        name: value of `BakeSpec.method`; for peft's methods also peft's `combination_type`.
        label, help: the name that users see, and one sentence for the form.
        exact: the baked adapter equals the mix, except for rounding.
        chooses_rank: the rank is a setting, not determined by the mix.
        prunes: uses `density`.
        same_rank: all adapters must have the same rank.
        elects_signs: elects signs before weights are applied, so that a negative weight would act as
            positive.
    """

    name: str
    label: str
    help: str
    exact: bool = False
    chooses_rank: bool = False
    prunes: bool = False
    same_rank: bool = False
    elects_signs: bool = False


METHODS: dict[str, BakeMethod] = {
    m.name: m
    for m in (
        BakeMethod(
            "concat",
            "Concatenation (exact)",
            "Equals the mix exactly; its rank is the largest sum of ranks in any layer.",
            exact=True,
        ),
        BakeMethod(
            "svd",
            "Best approximation of a given rank (SVD)",
            "The closest adapter of the rank you choose; reports how much of the mix is lost.",
            chooses_rank=True,
        ),
        BakeMethod(
            "ties",
            "TIES",
            "Keeps the largest values of each adapter and elects each sign by majority "
            "(TIES, arXiv 2306.01708); works on the factors, as in peft.",
            prunes=True,
            same_rank=True,
            elects_signs=True,
        ),
        BakeMethod(
            "dare_ties",
            "DARE TIES",
            "Like TIES, but drops values at random and rescales the rest (DARE, arXiv 2311.03099).",
            prunes=True,
            same_rank=True,
            elects_signs=True,
        ),
        BakeMethod(
            "magnitude_prune",
            "Magnitude pruning",
            "Keeps the largest values of each adapter and adds the factors, as in peft.",
            prunes=True,
            same_rank=True,
        ),
        BakeMethod(
            "ties_svd",
            "TIES on full updates",
            "TIES on the full updates, then SVD to the rank you choose; slow on large layers.",
            chooses_rank=True,
            prunes=True,
            elects_signs=True,
        ),
    )
}


@dataclass(frozen=True)
class BakeSpec(Settings):
    """The settings of a bake."""

    name: str = setting("", "Name of the baked adapter in the Library.", high=120)
    method: str = setting("svd", "How the adapters of the mix are combined into one.", choices=tuple(METHODS))
    rank: int = setting(
        0,
        "Rank of the baked adapter for svd and ties_svd; 0 uses the largest rank in the mix.",
        low=0,
        high=RANK_LIMIT,
    )
    density: float = setting(
        0.5,
        "Share of each adapter's values that ties, dare_ties, magnitude_prune and ties_svd keep.",
        low=0.01,
        high=1.0,
    )
    seed: int = setting(SEED, "Seed for the values that dare_ties drops.", low=0, high=2**31 - 1)


def compute_rank(spec: BakeSpec, ranks: Mapping[str, Mapping[str, int]], weights: Mapping[str, float]) -> int:
    """The rank of the baked adapter.

    Args:
        ranks: display name of each adapter to its rank in each of its modules.
        weights: display name to the smallest weight that the mix gives the adapter in any module.

    Raises:
        AdapterError: the method cannot bake this mix; the message names methods that can.
    """
    method = METHODS[spec.method]
    if not ranks:
        raise AdapterError(
            "The mix is empty, so it is the base model.",
            "Give an adapter a weight other than 0, then bake.",
        )
    _check_method(method, ranks, weights)
    unique_ranks = sorted({rank for of_adapter in ranks.values() for rank in of_adapter.values()})
    if method.same_rank:
        return unique_ranks[0]
    modules = {m for of_adapter in ranks.values() for m in of_adapter}
    rank = max(sum(of_adapter.get(m, 0) for of_adapter in ranks.values()) for m in modules)
    if method.chooses_rank:
        rank = min(spec.rank or unique_ranks[-1], rank)
    if rank > RANK_LIMIT:
        raise AdapterError(
            f"The rank of the baked adapter must be at most {RANK_LIMIT}, got {rank}, the sum of the ranks.",
            "Use svd with a rank of your choice.",
        )
    return rank


def _check_method(
    method: BakeMethod, ranks: Mapping[str, Mapping[str, int]], weights: Mapping[str, float]
) -> None:
    if (method.same_rank or method.elects_signs) and len(ranks) < 2:
        raise AdapterError(f"{method.name} needs at least two adapters, got one.", "Use concat or svd.")
    by_adapter = {name: sorted(set(of_adapter.values())) for name, of_adapter in ranks.items()}
    if method.same_rank and len({r for unique in by_adapter.values() for r in unique}) > 1:
        listed = ", ".join(f"{name} {'/'.join(map(str, unique))}" for name, unique in by_adapter.items())
        raise AdapterError(
            f"{method.name} needs adapters of the same rank, got different ranks ({listed}).",
            "Use svd, concat or ties_svd.",
        )
    negative = [name for name in ranks if weights[name] < 0]
    if method.elects_signs and negative:
        raise AdapterError(
            f"{method.name} cannot subtract {negative[0]!r}: it elects signs before it applies weights, "
            "so the negative sign would be lost.",
            "Use concat or svd, which keep signs, or give a positive weight.",
        )
