"""The ways of baking a mix into one adapter: what each is, and what it refuses.

Knows their names, limits and settings. Knows no tensors, so that a page can read it before torch is there.

`concat` and `svd` are about the updates B A themselves. peft's `ties`, `dare_ties` and `magnitude_prune`
combine all A and all B on their own, and the product of two sums has terms that nobody trained, so they
sound unlike the mix; `ties_svd` works on the products, as the paper does, and is slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import AdapterError
from core.spec.settings import SEED, Settings, setting

RANK_LIMIT = 1024  # of an adapter of the library


@dataclass(frozen=True)
class BakeMethod:
    """A way of baking.

    Attributes:
        label, help: what people call it, and one sentence for the form.
        exact: the baked adapter is the mix, but for rounding.
        chooses_rank: the rank is a setting, not a consequence.
        prunes: reads `density`.
        same_rank: refuses adapters of different ranks.
        elects: decides signs before it looks at weights, so that a negative weight would be counted as positive.
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
            "Exactly the mix; the rank is the sum of the ranks that meet in one layer.",
            exact=True,
        ),
        BakeMethod(
            "svd",
            "Best of a rank (SVD)",
            "The closest adapter of the rank you choose, and a figure for what it leaves out.",
            chooses_rank=True,
        ),
        BakeMethod(
            "ties",
            "TIES",
            "Keeps each adapter's largest numbers and lets the majority decide each sign (TIES, arXiv 2306.01708), on the factors as peft does.",
            prunes=True,
            same_rank=True,
            elects_signs=True,
        ),
        BakeMethod(
            "dare_ties",
            "DARE TIES",
            "Like ties, but drops numbers at random and scales up the rest (DARE, arXiv 2311.03099).",
            prunes=True,
            same_rank=True,
            elects_signs=True,
        ),
        BakeMethod(
            "magnitude_prune",
            "Magnitude pruning",
            "Keeps each adapter's largest numbers and adds the factors up, as peft does.",
            prunes=True,
            same_rank=True,
        ),
        BakeMethod(
            "ties_svd",
            "TIES on whole updates",
            "TIES on the whole updates, then the closest adapter of the rank you choose; slow on large layers.",
            chooses_rank=True,
            prunes=True,
            elects_signs=True,
        ),
    )
}


@dataclass(frozen=True)
class BakeSpec(Settings):
    """How a mix becomes one adapter."""

    name: str = setting("", "What the baked adapter is called in the Library.", high=120)
    method: str = setting("svd", "How the adapters of the mix become one.", choices=tuple(METHODS))
    rank: int = setting(
        0,
        "Rank of the baked adapter for svd and ties_svd; 0 takes the largest rank in the mix.",
        low=0,
        high=RANK_LIMIT,
    )
    density: float = setting(
        0.5,
        "Share of each adapter's numbers that ties, dare_ties and magnitude_prune keep.",
        low=0.01,
        high=1.0,
    )
    seed: int = setting(SEED, "Decides which numbers dare_ties drops.", low=0, high=2**31 - 1)


def compute_rank(spec: BakeSpec, ranks: Mapping[str, Mapping[str, int]], weights: Mapping[str, float]) -> int:
    """The rank that a baked adapter will have.

    Args:
        ranks: name of an adapter, as people know it, to its rank in each of its modules.
        weights: the same names to the smallest weight that the mix gives it anywhere.

    Raises:
        AdapterError: the method cannot do this mix; says which method can.
    """
    method = METHODS[spec.method]
    if not ranks:
        raise AdapterError(
            "The mix is empty: it is the base model itself.",
            "Give an adapter a weight other than 0, then bake.",
        )
    widest = max(
        sum(here.get(m, 0) for here in ranks.values()) for m in {m for here in ranks.values() for m in here}
    )
    if (method.same_rank or method.elects_signs) and len(ranks) < 2:
        raise AdapterError(
            f"{spec.method} needs two adapters or more, and this mix has one.", "Use concat or svd."
        )
    found = {name: sorted(set(here.values())) for name, here in ranks.items()}
    if method.same_rank and len({r for each in found.values() for r in each}) > 1:
        told = ", ".join(f"{name} {'/'.join(map(str, each))}" for name, each in found.items())
        raise AdapterError(
            f"{spec.method} needs adapters of one rank, and these have different ones ({told}).",
            "Use svd, concat or ties_svd.",
        )
    negative = [name for name in ranks if weights[name] < 0]
    if method.elects_signs and negative:
        raise AdapterError(
            f"{spec.method} cannot subtract {negative[0]!r}: it elects signs before it reads weights, so the sign would be lost in silence.",
            "Use concat or svd, which keep signs, or give a positive weight.",
        )
    if method.same_rank:
        return next(iter(found.values()))[0]
    rank = (
        min(spec.rank or max(r for each in found.values() for r in each), widest)
        if method.chooses_rank
        else widest
    )
    if rank > RANK_LIMIT:
        raise AdapterError(
            f"The ranks add up to {rank}, and an adapter has at most {RANK_LIMIT}.",
            "Use svd with a rank of your choice.",
        )
    return rank
