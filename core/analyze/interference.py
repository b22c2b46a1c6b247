"""Compares the adapters of a mix by their weights.

The cosine of two updates tells whether they add up or cancel; the overlap of their column and row spaces
tells whether they write to and read from the same directions, next to the overlap that unrelated updates
would show. The effect on text is measured in `core.analyze.output_comparison`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core.errors import NotFound, SpecError
from core.model.deltas import count_layers, layer_index, read_deltas, short_name, weight_at
from core.model.low_rank import (
    SVD,
    Factors,
    chance_cosine,
    chance_overlap,
    inner_product,
    ratio,
    space_overlaps,
    svd,
)
from core.model.resident import Resident
from core.progress import Progress
from core.spec.fixed_weights import require_numbers
from core.spec.mix import Mix
from core.store import adapters

# Two updates of equal norm with cosine c have a sum of 1 + c times the energy of an orthogonal pair: 0.1 is a
# tenth more or less.
COSINE_MIN = 0.1
OVERLAP_FACTOR = 3.0  # an overlap is reported when it is at least this many times the chance level
OVERLAP_MIN = 0.1  # and at least this large
NORM_FACTOR = 3.0  # a difference in size is reported when one norm is at least this many times the other


@dataclass(frozen=True)
class Overlap:
    """How two updates relate in one module, in a layer (`module` is ""), or overall (`layer` is -1 too).

    Attributes:
        cosine: between the two updates with the weights of the mix. Over several modules: between the
            concatenations of all their updates.
        output_overlap, input_overlap: overlap of the column spaces (outputs) and of the row spaces (inputs),
            0 to 1. Over several modules: the mean over the modules that both adapters change, weighted by the
            product of the norms.
        chance_cosine, chance_output_overlap, chance_input_overlap: the values that unrelated updates of these
            shapes and ranks would show.
        norms: Frobenius norms of the two weighted updates.
    """

    layer: int
    module: str
    cosine: float
    output_overlap: float
    input_overlap: float
    chance_cosine: float
    chance_output_overlap: float
    chance_input_overlap: float
    norms: tuple[float, float]


@dataclass(frozen=True)
class WeightComparison:
    """Two adapters of a mix, compared by their weights.

    Attributes:
        ids, names: of the two adapters.
        modules: one Overlap per module that both adapters change, in the model's order.
        layers: one Overlap per layer that either adapter changes.
        exclusive_modules: names of the modules that only the first and only the second adapter changes,
            without the layer's path, each name once.
    """

    ids: tuple[str, str]
    names: tuple[str, str]
    modules: tuple[Overlap, ...]
    layers: tuple[Overlap, ...]
    overall: Overlap
    exclusive_modules: tuple[tuple[str, ...], tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the summary."""
        return {**asdict(self), "summary": self.summary()}

    def summary(self) -> str:
        """One to four sentences; the thresholds are the constants at the top of this module."""
        a, b = self.names
        if not min(self.overall.norms):
            zero = a if not self.overall.norms[0] else b
            return f"{zero} changes nothing: its update is zero."
        if not self.modules:
            return (
                f"{a} and {b} change different modules, so their updates never add up in the same module. "
                "Each one still sees the effect of the other in its inputs."
            )
        sentences = (
            self._describe_directions(),
            self._describe_spaces(),
            self._describe_norms(),
            self._describe_exclusive_modules(),
        )
        return " ".join(s for s in sentences if s)

    def _describe_directions(self) -> str:
        a, b = self.names
        aligned = [m.layer for m in self.layers if m.cosine >= COSINE_MIN]
        opposed = [m.layer for m in self.layers if m.cosine <= -COSINE_MIN]
        if not aligned and not opposed:
            return (
                f"{a} and {b} are nearly orthogonal (cosine {self.overall.cosine:+.3f}), "
                "so expect them to add up without interfering."
            )
        effects = []
        if aligned:
            effects.append(
                f"point the same way in {describe_layers(aligned)}, where they should amplify each other"
            )
        if opposed:
            effects.append(
                f"oppose each other in {describe_layers(opposed)}, where they should partly cancel"
            )
        return f"{a} and {b} {', and '.join(effects)} (cosine {self.overall.cosine:+.2f} overall)."

    def _describe_spaces(self) -> str:
        o = self.overall
        same_inputs = o.input_overlap >= max(OVERLAP_MIN, OVERLAP_FACTOR * o.chance_input_overlap)
        same_outputs = o.output_overlap >= max(OVERLAP_MIN, OVERLAP_FACTOR * o.chance_output_overlap)
        inputs = f"overlap {o.input_overlap:.2f}, chance level {o.chance_input_overlap:.2f}"
        outputs = f"overlap {o.output_overlap:.2f}, chance level {o.chance_output_overlap:.2f}"
        if same_inputs and same_outputs:
            return f"They read from the same inputs ({inputs}) and write to the same outputs ({outputs})."
        if same_inputs:
            return (
                f"They read from the same inputs ({inputs}), as adapters trained from the same seed do, "
                "but write to different outputs."
            )
        if same_outputs:
            return f"They write to the same outputs ({outputs}), but read from different inputs."
        return ""

    def _describe_norms(self) -> str:
        large, small = max(self.overall.norms), min(self.overall.norms)
        if large < NORM_FACTOR * small:
            return ""
        name = self.names[self.overall.norms.index(large)]
        return f"{name} is {large / small:.1f} times as large and has the stronger effect."

    def _describe_exclusive_modules(self) -> str:
        pairs = zip(self.exclusive_modules, self.names, strict=True)
        lists = [f"{', '.join(modules)} ({name})" for modules, name in pairs if modules]
        return f"Modules that only one adapter changes: {'; '.join(lists)}." if lists else ""


def compare_weights(resident: Resident, mix: Mix) -> Iterator[Progress | list[WeightComparison]]:
    """Compares the adapters of a mix pairwise by their updates, with the weights that the mix gives them.

    An adapter in training is compared in its current state.

    Yields:
        Progress after every layer; last, a list with one WeightComparison per pair, in the mix's order.

    Raises:
        SpecError: the mix has fewer than two adapters.
        NotFound, AdapterError: an adapter cannot be loaded.
    """
    ids = require_two(mix)
    resident.load_adapters([mix])
    layers, names = count_layers(resident), adapter_names(resident, ids)
    deltas = {
        a: {m: d.scale(weight_at(mix, a, m, layers)) for m, d in read_deltas(resident, a).items()}
        for a in ids
    }
    modules = sorted(
        {m for of_adapter in deltas.values() for m in of_adapter}, key=lambda m: (layer_index(m), m)
    )
    pairs = list(itertools.combinations(ids, 2))
    overlaps: dict[tuple[str, str], list[Overlap]] = {pair: [] for pair in pairs}
    norms: dict[str, dict[str, float]] = {a: {} for a in ids}
    for i, module in enumerate(modules):
        present: dict[str, tuple[Factors, SVD]] = {
            a: (of_adapter[module], svd(of_adapter[module]))
            for a, of_adapter in deltas.items()
            if module in of_adapter
        }
        for a, (_, spectrum) in present.items():
            norms[a][module] = float(spectrum.s.norm())
        for a, b in pairs:
            if a in present and b in present:
                overlaps[a, b].append(_compare_module(module, present[a], present[b]))
        layer = layer_index(module)
        if i + 1 == len(modules) or layer_index(modules[i + 1]) != layer:
            text = f"Comparing layer {layer}" if layer >= 0 else "Comparing"
            yield Progress(i + 1, len(modules), text)
    yield [_combine_pair(pair, names, overlaps[pair], norms[pair[0]], norms[pair[1]]) for pair in pairs]


def require_two(mix: Mix) -> list[str]:
    """The adapter ids of a mix.

    Raises:
        SpecError: there are fewer than two, or a weight is on Auto.
    """
    require_numbers(mix, "A comparison")
    if len(mix.weights) < 2:
        raise SpecError(
            f"A comparison needs at least two adapters, got {len(mix.weights)} in {mix.name or str(mix)!r}.",
            "Give two or more adapters a weight.",
        )
    return list(mix.weights)


def adapter_names(resident: Resident, ids: Sequence[str]) -> dict[str, str]:
    """Adapter id to display name; the id where a name is not unique, or not in the library yet."""
    names = {}
    for adapter_id in ids:
        try:
            names[adapter_id] = adapters.load(resident.workspace, adapter_id).name
        except NotFound:  # in training, not in the library yet
            names[adapter_id] = adapter_id
    duplicates = {n for n in names.values() if list(names.values()).count(n) > 1}
    return {a: a if n in duplicates else n for a, n in names.items()}


def _compare_module(module: str, x: tuple[Factors, SVD], y: tuple[Factors, SVD]) -> Overlap:
    norms = float(x[1].s.norm()), float(y[1].s.norm())
    output_overlap, input_overlap = space_overlaps(x[1], y[1])
    outputs, inputs = x[0].shape
    return Overlap(
        layer=layer_index(module),
        module=short_name(module),
        cosine=ratio(inner_product(x[0], y[0]), norms[0] * norms[1]),
        output_overlap=output_overlap,
        input_overlap=input_overlap,
        chance_cosine=chance_cosine((outputs, inputs)),
        chance_output_overlap=chance_overlap(outputs, x[1].rank, y[1].rank),
        chance_input_overlap=chance_overlap(inputs, x[1].rank, y[1].rank),
        norms=norms,
    )


def _combine_pair(
    pair: tuple[str, str],
    names: Mapping[str, str],
    overlaps: Sequence[Overlap],
    a: Mapping[str, float],
    b: Mapping[str, float],
) -> WeightComparison:
    """Combines the modules of a pair by layer and overall; `a` and `b` map modules to norms."""

    def combine_layer(n: int) -> Overlap:
        norms = [[norm for m, norm in of_adapter.items() if layer_index(m) == n] for of_adapter in (a, b)]
        return _combine_overlaps(n, [o for o in overlaps if o.layer == n], norms[0], norms[1])

    short_a, short_b = {short_name(m) for m in a}, {short_name(m) for m in b}
    return WeightComparison(
        pair,
        (names[pair[0]], names[pair[1]]),
        tuple(overlaps),
        tuple(combine_layer(n) for n in sorted({layer_index(m) for m in (*a, *b)})),
        _combine_overlaps(-1, overlaps, list(a.values()), list(b.values())),
        (tuple(sorted(short_a - short_b)), tuple(sorted(short_b - short_a))),
    )


def _combine_overlaps(
    layer: int, overlaps: Sequence[Overlap], a: Sequence[float], b: Sequence[float]
) -> Overlap:
    """Combines several modules into one Overlap.

    The cosine counts the modules that only one adapter changes; the overlap of spaces is a mean over the
    modules that both change.

    Args:
        a, b: norms of each adapter in all of its modules.
    """
    norms = (math.hypot(*a), math.hypot(*b))
    products = [o.norms[0] * o.norms[1] for o in overlaps]
    total = sum(products)

    def mean(values: Sequence[float]) -> float:
        return sum(p * v for p, v in zip(products, values, strict=True)) / total if total else 0.0

    inner = sum(o.cosine * p for o, p in zip(overlaps, products, strict=True))
    chance = math.sqrt(sum((o.chance_cosine * p) ** 2 for o, p in zip(overlaps, products, strict=True)))
    return Overlap(
        layer=layer,
        module="",
        cosine=ratio(inner, norms[0] * norms[1]),
        output_overlap=mean([o.output_overlap for o in overlaps]),
        input_overlap=mean([o.input_overlap for o in overlaps]),
        chance_cosine=ratio(chance, norms[0] * norms[1]),
        chance_output_overlap=mean([o.chance_output_overlap for o in overlaps]),
        chance_input_overlap=mean([o.chance_input_overlap for o in overlaps]),
        norms=norms,
    )


def describe_layers(layers: Sequence[int]) -> str:
    """Layers counted from 1, with ranges: `layers 2 to 4 and 7`."""
    if layers == [-1]:
        return "the modules outside the layers"
    ranges: list[list[int]] = []
    for n in layers:
        if ranges and ranges[-1][-1] == n - 1:
            ranges[-1].append(n)
        else:
            ranges.append([n])
    words: list[str] = []
    for numbers in ranges:
        if len(numbers) > 2:
            words.append(f"{numbers[0] + 1} to {numbers[-1] + 1}")
        else:
            words.extend(str(n + 1) for n in numbers)
    plural = "s" if len(layers) > 1 else ""
    first = f"{', '.join(words[:-1])} and " if len(words) > 1 else ""
    return f"layer{plural} {first}{words[-1]}"
