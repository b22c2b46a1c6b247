"""What an export is made of: an adapter, or a mix with its weights and tilts, read from the library's files.

Nothing is read from the resident model, so that an export runs beside chats and training.

    parts of a mix ─ factors ─┬─ each part alone, its tilt folded in          adapter GGUFs of a bundle
                              └─ [B1 B2] [A1; A2], its weights folded in too   PEFT, merged, one GGUF
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core.errors import AdapterError, SpecError
from core.export.base_layout import BaseLayout
from core.export.own_forms import OwnForm, read_own_form
from core.model.deltas import StoredFactors, load_factors
from core.model.low_rank import Factors, concat
from core.spec.export import ExportSpec
from core.store import adapters
from core.store.adapters import Adapter
from core.store.workspace import Workspace


@dataclass(frozen=True)
class SourcePart:
    """One adapter of an export.

    Attributes:
        weight: in the mix.
        tilt: how the weight varies with depth.
        file_name: a name for its files, unlike that of every other part.
        stored: its factors and scalings.
        depths: module -> relative depth.
    """

    adapter: Adapter
    weight: float
    tilt: float
    file_name: str
    stored: StoredFactors = field(repr=False)
    depths: dict[str, float] = field(repr=False)

    @property
    def modules(self) -> list[str]:
        """The modules that it changes when its weight is not 0."""
        return [m for m in self.stored.factors if self._slope(m)]

    def factors(self, module: str) -> Factors:
        """The update of one module at weight 1, its scaling and tilt folded in, in fp64."""
        return self.stored.delta(module, self._slope(module))

    def factors_in_mix(self, module: str) -> Factors:
        """The update of one module in the mix."""
        return self.stored.delta(module, self.weight * self._slope(module))

    def _slope(self, module: str) -> float:
        """What the tilt multiplies the weight with."""
        return 1.0 + self.tilt * (2.0 * self.depths[module] - 1.0)


@dataclass(frozen=True)
class ExportSource:
    """An adapter or a mix that is exported.

    Attributes:
        name: as the user typed it.
        parts: its adapters; those with weight 0 only for a bundle.
        own_form: of an adapter that is more than products of two factors; it is then the only one.
    """

    name: str
    layout: BaseLayout
    parts: tuple[SourcePart, ...]
    own_form: OwnForm | None = None

    @property
    def modules(self) -> list[str]:
        """The modules that the mix changes, in the order of the model."""
        changed = {m for p in self.parts if p.weight for m in p.modules}
        return [m for m, _ in self.layout.model.named_modules() if m in changed]

    @property
    def rank(self) -> int:
        """The largest rank of a module, of all adapters together."""
        return max((self._rank_of(m) for m in self.modules), default=0)

    def _rank_of(self, module: str) -> int:
        return sum(p.stored.ranks[module] for p in self.parts if p.weight and module in p.modules)

    def factors(self, module: str) -> Factors:
        """The update of one module by the whole mix, as one pair of factors in fp64: exact."""
        return concat([p.factors_in_mix(module) for p in self.parts if p.weight and module in p.modules])

    @property
    def is_plain(self) -> bool:
        """Whether it is one adapter at weight 1, without a tilt."""
        return len(self.parts) == 1 and self.parts[0].weight == 1 and not self.parts[0].tilt

    @property
    def stop_tokens(self) -> tuple[str, ...]:
        """Tokens that end an answer beside those of the base, which imported adapters have brought."""
        texts: list[str] = []
        for part in self.parts:
            origin = part.adapter.metadata.get("imported")
            found = origin.get("stop_tokens") if isinstance(origin, dict) else None
            texts += [t for t in found or () if isinstance(t, str) and t not in texts]
        return tuple(texts)

    def describe(self) -> list[dict[str, Any]]:
        """What it is made of, for the record of the export: one entry per adapter."""
        return [
            {
                "id": p.adapter.id,
                "name": p.adapter.name,
                "kind": p.adapter.kind,
                "sha256": p.adapter.sha256,
                "weight": p.weight,
                "tilt": p.tilt,
                "dataset": p.adapter.dataset_name,
            }
            for p in self.parts
        ]


def read_source(workspace: Workspace, spec: ExportSpec, layout: BaseLayout) -> ExportSource:
    """Reads the adapters of an export.

    Raises:
        SpecError: no adapter has a weight.
        NotFound: an adapter is not in the library.
        AdapterError: an adapter is damaged, of another base, or of a kind that cannot be exported this way.
    """
    is_bundle = spec.form == "bundle"
    chosen = {a: w for a, w in spec.weights.items() if w or is_bundle}
    if not any(chosen.values()) and not (is_bundle and chosen):
        raise SpecError(
            "An export must have at least one adapter with a weight other than 0, got none.",
            "Choose an adapter, or set a weight in the mix.",
        ).at("weights")
    parts: list[SourcePart] = []
    own_form: OwnForm | None = None
    for adapter_id, weight in chosen.items():
        adapter = adapters.load(workspace, adapter_id)
        _check_base(adapter, layout)
        own_form = read_own_form(workspace, adapter, spec)
        stored = own_form.low_rank_part if own_form else load_factors(workspace, adapter_id)
        _check_layers(adapter, stored, layout)
        names = {p.file_name for p in parts}
        parts.append(
            SourcePart(
                adapter,
                weight,
                spec.tilt.get(adapter_id, 0.0),
                _choose_file_name(adapter, names),
                stored,
                layout.find_depths(stored.factors),
            )
        )
    return ExportSource(spec.name or parts[0].adapter.name, layout, tuple(parts), own_form)


def _check_base(adapter: Adapter, layout: BaseLayout) -> None:
    """Checks that an adapter belongs to the base, by fingerprint."""
    if adapter.base_fingerprint != layout.fingerprint:
        raise AdapterError(
            f"The adapter {adapter.name!r} was trained on {adapter.base!r}, and the export is of "
            f"{layout.name!r} (fingerprint {layout.fingerprint[:12]}, not {adapter.base_fingerprint[:12]}).",
            "Export it with its own base, or choose adapters of one base.",
        )


def _check_layers(adapter: Adapter, stored: StoredFactors, layout: BaseLayout) -> None:
    """Checks that every module of an adapter is a layer of the base with a matrix of its shape."""
    shapes = layout.parameters
    for module, factors in stored.factors.items():
        shape = shapes.get(f"{module}.weight")
        if shape is not None and layout.is_transposed(module):
            shape = shape[::-1]
        if shape != factors.shape:
            found = f"has the shape {list(shape)}" if shape else "is not a layer of the base"
            raise AdapterError(
                f"The adapter {adapter.name!r} changes {module} by {list(factors.shape)}, which {found}.",
                "Choose an adapter that was trained on this base.",
            )


def _choose_file_name(adapter: Adapter, names: set[str]) -> str:
    stem = ExportSpec(name=adapter.name[:60]).file_name
    candidates = (stem if n == 1 else f"{stem}-{n}" for n in range(1, len(names) + 2))
    lower = {n.lower() for n in names}
    return next(c for c in candidates if c.lower() not in lower)
