"""The result of a bake: the change per module and overall, and the distance from the live mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core.merge.methods import METHODS
from core.store.adapters import Adapter

CHANGED_LIMIT = 1e3  # larger shares of changed energy are reported as this: the mix is close to zero there


@dataclass(frozen=True)
class ModulePart:
    """One adapter of the mix in one module.

    Attributes:
        id: of the adapter. weight: the weight that it was baked with in this module.
        energy: squared Frobenius norm of its weighted update.
        kept: share of that energy inside the spaces of the baked update, for svd and ties_svd; 1 for an exact
            method, None for methods that do not add up the updates.
    """

    id: str
    weight: float
    energy: float
    kept: float | None


@dataclass(frozen=True)
class BakedModule:
    """The effect of baking on one module.

    Attributes:
        energy: squared Frobenius norm of the mix's update.
        changed: squared Frobenius norm of the difference between the baked update and the mix's, as a share
            of `energy`; for svd this is the discarded energy.
        parts: the adapters of the mix that change this module.
    """

    layer: int
    module: str
    energy: float
    changed: float
    parts: tuple[ModulePart, ...]


@dataclass(frozen=True)
class BakeResult:
    """A baked adapter, and how close it is to the mix.

    Attributes:
        changed: as in `BakedModule`, over all modules.
        kept: adapter id to the share of its own energy that the baked adapter keeps; empty for methods that
            do not add up the updates. A small adapter may lose much while the mix as a whole loses little.
        logit_difference: largest difference of a logit from the live mix on the probe; None if the weights
            were given as a function, which no live mix can apply.
        divergence: KL(mix || baked) on the probe, in nats per token; None likewise.
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
        """Plain JSON values, with the adapter's id."""
        return {**asdict(self), "adapter": self.adapter.id}

    def summary(self) -> str:
        """The rank, and how the baked adapter differs from the mix."""
        head = f"{self.adapter.name} has rank {self.rank}"
        if METHODS[self.method].exact:
            return f"{head} and equals the mix, except for rounding."
        if METHODS[self.method].prunes:
            return (
                f"{head}. Its updates differ from those of the mix by {self.changed:.1%} of their energy, "
                f"because {self.method} combines adapters in another way."
            )
        divergence = ""
        if self.divergence is not None:
            divergence = f" ({self.divergence:.3g} nats per token on the probe)"
        names = {p["id"]: p["name"] for p in self.adapter.metadata["baked_from"]}
        shares = ", ".join(f"{share:.1%} of {names[a]}" for a, share in self.kept.items())
        return f"{head} and loses {self.changed:.2%} of the mix's energy{divergence}. It keeps {shares}."


def share_of_energy(changed: float, energy: float) -> float:
    """Changed energy as a share of the mix's energy, at most `CHANGED_LIMIT`."""
    if energy > 0:
        return min(changed / energy, CHANGED_LIMIT)
    return CHANGED_LIMIT if changed > 0 else 0.0


def sum_kept_energy(modules: Sequence[BakedModule]) -> dict[str, float]:
    """Adapter id to the share of its energy that is kept over all modules."""
    inside: dict[str, float] = {}
    energy: dict[str, float] = {}
    for module in modules:
        for part in module.parts:
            if part.kept is not None:
                inside[part.id] = inside.get(part.id, 0.0) + part.energy * part.kept
                energy[part.id] = energy.get(part.id, 0.0) + part.energy
    return {a: inside[a] / energy[a] if energy[a] else 1.0 for a in inside}
