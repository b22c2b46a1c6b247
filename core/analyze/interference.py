"""How adapters get on with each other: in their weights, and on real text.

Knows a resident base and a mix of adapters that hang on it. Knows no workspace and no pages. Python
generators that yield between steps, so that training and chatting go on beside them.

Two sides, because neither says it all. *Weights* (`meet`) compare updates, module by module: the cosine
tells whether they add up or cancel, the overlap of spaces whether they read and write the same places,
next to what chance would give. *Text* (`listen`) runs prompts through the base, each part alone and the
mix, in one batch, and tells how far apart they speak and how large each part's contribution is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from core.errors import NotFound, SpecError
from core.model.decoding import listened
from core.model.deltas import depth_of, layer_of, layers_of, resident_updates, short, weight_in
from core.model.generate import speaking
from core.model.low_rank import Pair, Spectrum, chance_cosine, chance_overlap, inner, ratio, spaces, spectrum
from core.model.resident import Resident
from core.model.scoring import divergence
from core.progress import Progress
from core.spec.mix import Mix
from core.store import adapters

# Two updates of one size with cosine c add up to 1 + c times the energy that orthogonal ones would: at 0.1 that is a tenth more, or less.
ALIKE = 0.1
CROWDED = 3.0  # an overlap of spaces is told when it is this many times what chance gives,
CROWDED_LEAST = 0.1  # and at least this
UNEQUAL = 3.0  # norms are told when one is this many times the other
CLOSE = 0.25  # a mix speaks like a part when it is this much nearer to it than to the other, in nats
SILENT = 0.001  # nats a token below which a mix hardly changes the base


@dataclass(frozen=True)
class Meeting:
    """How two updates meet in a module, in a layer (`module` is "") or in all (`layer` is -1 too).

    Attributes:
        cosine: of the updates as they are weighted in the mix; over several modules, of all of them as one long vector.
        columns, rows: overlap of the spaces they write to and read from, 0 to 1; over several modules, the
            mean over the modules that both change, each counted by the product of the norms.
        chance_cosine, chance_columns, chance_rows: what unrelated updates of these shapes and ranks would show.
        norms: Frobenius norms of the two, as weighted.
    """

    layer: int
    module: str
    cosine: float
    columns: float
    rows: float
    chance_cosine: float
    chance_columns: float
    chance_rows: float
    norms: tuple[float, float]


@dataclass(frozen=True)
class Interference:
    """Two adapters of a mix compared by their weights.

    Attributes:
        ids, names: of the two.
        modules, layers: rows of `Meeting`, in the model's order; modules that both change, layers that either changes.
        only: names of modules that only the first, and only the second, changes (inside a layer, each once).
    """

    ids: tuple[str, str]
    names: tuple[str, str]
    modules: tuple[Meeting, ...]
    layers: tuple[Meeting, ...]
    overall: Meeting
    only: tuple[tuple[str, ...], tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reading": self.reading()}

    def reading(self) -> str:
        """One to three plain sentences. Thresholds: `ALIKE`, `CROWDED`, `UNEQUAL` at the top of this room."""
        a, b = self.names
        if not min(self.overall.norms):
            zero = a if not self.overall.norms[0] else b
            return f"{zero} changes nothing: its update is zero."
        if not self.modules:
            return f"{a} and {b} change different modules, so their updates never meet in one; what one changes still reaches the other as input."
        return " ".join(
            s for s in (self._directions(), self._spaces(), self._sizes(), self._elsewhere()) if s
        )

    def _directions(self) -> str:
        a, b = self.names
        alike, opposed = ([m.layer for m in self.layers if sign * m.cosine >= ALIKE] for sign in (1, -1))
        if not alike and not opposed:
            return f"{a} and {b} are nearly orthogonal (cosine {self.overall.cosine:+.3f}); expect them to add up without disturbing each other."
        said = []
        if alike:
            said.append(
                f"push the same directions in {_listed(alike)}; expect them to amplify each other there"
            )
        if opposed:
            said.append(f"oppose each other in {_listed(opposed)}; expect them to cancel in part there")
        return f"{a} and {b} {', and they '.join(said)} (cosine {self.overall.cosine:+.2f} overall)."

    def _spaces(self) -> str:
        o = self.overall
        reads, writes = (
            found >= max(CROWDED_LEAST, CROWDED * chance)
            for found, chance in ((o.rows, o.chance_rows), (o.columns, o.chance_columns))
        )
        told_rows, told_columns = (
            f"overlap {o.rows:.2f}, by chance {o.chance_rows:.2f}",
            f"overlap {o.columns:.2f}, by chance {o.chance_columns:.2f}",
        )
        if reads and writes:
            return f"They read from the same inputs ({told_rows}) and write to the same outputs ({told_columns})."
        if reads:
            return f"They read from the same inputs ({told_rows}), as adapters do that began from one seed, and write to different outputs."
        if writes:
            return f"They write to the same outputs ({told_columns}), from different inputs."
        return ""

    def _sizes(self) -> str:
        large, small = max(self.overall.norms), min(self.overall.norms)
        if large < UNEQUAL * small:
            return ""
        return f"{self.names[self.overall.norms.index(large)]} is {large / small:.1f} times as large and will be heard more."

    def _elsewhere(self) -> str:
        said = [
            f"{', '.join(only)} only by {name}"
            for only, name in zip(self.only, self.names, strict=True)
            if only
        ]
        return f"Changed by one alone: {'; '.join(said)}." if said else ""


def meet(resident: Resident, mix: Mix) -> Iterator[Progress | list[Interference]]:
    """Compares the adapters of a mix two by two, by their weights as the mix plays them.

    Works for an adapter in training too, as it is at that moment.

    Yields:
        Progress after every layer; at the end a list, one Interference for every pair in the mix's order.

    Raises:
        SpecError: fewer than two adapters. NotFound, AdapterError.
    """
    ids = _two_or_more(mix)
    resident.ensure([mix])
    layers, names = depth_of(resident), _names(resident, ids)
    updates = {
        a: {m: p.scaled(weight_in(mix, a, m, layers)) for m, p in resident_updates(resident, a).items()}
        for a in ids
    }
    modules = sorted({m for u in updates.values() for m in u}, key=lambda m: (layer_of(m), m))
    pairs = list(itertools.combinations(ids, 2))
    found: dict[tuple[str, str], list[Meeting]] = {pair: [] for pair in pairs}
    norms: dict[str, dict[str, float]] = {a: {} for a in ids}
    for i, module in enumerate(modules):
        here: dict[str, tuple[Pair, Spectrum]] = {
            a: (u[module], spectrum(u[module])) for a, u in updates.items() if module in u
        }
        for a, (_, whole) in here.items():
            norms[a][module] = float(whole.s.norm())
        for a, b in pairs:
            if a in here and b in here:
                found[a, b].append(_meeting(module, here[a], here[b]))
        if i + 1 == len(modules) or layer_of(modules[i + 1]) != layer_of(module):
            yield Progress(
                i + 1,
                len(modules),
                f"Comparing layer {layer_of(module)}" if layer_of(module) >= 0 else "Comparing",
            )
    yield [_interference(pair, names, found[pair], norms[pair[0]], norms[pair[1]]) for pair in pairs]


def _two_or_more(mix: Mix) -> list[str]:
    if len(mix.weights) < 2:
        raise SpecError(
            f"The mix {mix.name or str(mix)!r} has {len(mix.weights)} adapters.",
            "Give two or more a weight, to see how they get on.",
        )
    return list(mix.weights)


def _names(resident: Resident, ids: Sequence[str]) -> dict[str, str]:
    found = {}
    for adapter_id in ids:
        try:
            found[adapter_id] = adapters.load(resident.workspace, adapter_id).name
        except NotFound:  # in training, not yet in the library
            found[adapter_id] = adapter_id
    twice = {n for n in found.values() if list(found.values()).count(n) > 1}
    return {a: a if n in twice else n for a, n in found.items()}


def _meeting(module: str, x: tuple[Pair, Spectrum], y: tuple[Pair, Spectrum]) -> Meeting:
    size = tuple(float(s.s.norm()) for _, s in (x, y))
    columns, rows = spaces(x[1], y[1])
    outputs, inputs = x[0].shape
    return Meeting(
        layer=layer_of(module),
        module=short(module),
        cosine=ratio(inner(x[0], y[0]), size[0] * size[1]),
        columns=columns,
        rows=rows,
        chance_cosine=chance_cosine((outputs, inputs)),
        chance_columns=chance_overlap(outputs, x[1].rank, y[1].rank),
        chance_rows=chance_overlap(inputs, x[1].rank, y[1].rank),
        norms=(size[0], size[1]),
    )


def _interference(
    pair: tuple[str, str],
    names: Mapping[str, str],
    meetings: Sequence[Meeting],
    a: Mapping[str, float],
    b: Mapping[str, float],
) -> Interference:
    layers = sorted({layer_of(m) for m in (*a, *b)})

    def layer(n: int) -> Meeting:
        return _together(
            n,
            [m for m in meetings if m.layer == n],
            *([size for m, size in sizes.items() if layer_of(m) == n] for sizes in (a, b)),
        )

    only = [
        tuple(sorted({short(m) for m in mine} - {short(m) for m in theirs}))
        for mine, theirs in ((a, b), (b, a))
    ]
    return Interference(
        pair,
        (names[pair[0]], names[pair[1]]),
        tuple(meetings),
        tuple(layer(n) for n in layers),
        _together(-1, meetings, list(a.values()), list(b.values())),
        (only[0], only[1]),
    )


def _together(layer: int, meetings: Sequence[Meeting], a: Sequence[float], b: Sequence[float]) -> Meeting:
    """Several modules as one. The cosine counts what only one of the two changes; spaces exist where both are."""
    size = (math.hypot(*a), math.hypot(*b))
    shares = [m.norms[0] * m.norms[1] for m in meetings]
    total = sum(shares)

    def mean(of: str) -> float:
        return (
            sum(s * getattr(m, of) for m, s in zip(meetings, shares, strict=True)) / total if total else 0.0
        )

    inside = sum(m.cosine * s for m, s in zip(meetings, shares, strict=True))
    chance = math.sqrt(sum((m.chance_cosine * s) ** 2 for m, s in zip(meetings, shares, strict=True)))
    whole = size[0] * size[1]
    return Meeting(
        layer,
        "",
        ratio(inside, whole),
        mean("columns"),
        mean("rows"),
        ratio(chance, whole),
        mean("chance_columns"),
        mean("chance_rows"),
        size,
    )


def _listed(layers: Sequence[int]) -> str:
    """Layers as people say them, counted from 1: `layers 2 to 4 and 7`."""
    runs: list[list[int]] = []
    for n in layers:
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    words = [
        w for r in runs for w in ([f"{r[0] + 1} to {r[-1] + 1}"] if len(r) > 2 else [str(n + 1) for n in r])
    ]
    if layers == [-1]:
        return "the modules outside the layers"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(words[:-1])}{' and ' if words[:-1] else ''}{words[-1]}"


@dataclass(frozen=True)
class Contribution:
    """What the parts of a mix put into a module's output, or a whole layer's (`module` is ""), on the prompts.

    Attributes:
        shares: size of each part's contribution as a share of the size of the outputs (root of summed squares).
        cosines: between the contributions of two parts, one for every pair in `Behaviour.pairs`.
    """

    layer: int
    module: str
    shares: tuple[float, ...]
    cosines: tuple[float, ...]


@dataclass(frozen=True)
class Behaviour:
    """How a mix and its parts speak on prompts. All divergences are nats a token: sums over positions, divided once.

    Attributes:
        ids, names: the parts, in the mix's order. pairs: of parts, in the order of `Contribution.cosines`.
        moved: KL(mix || base). to_parts: KL(mix || part alone), a part each. parts_moved: KL(part alone || base).
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    prompts: int
    positions: int
    moved: float
    to_parts: tuple[float, ...]
    parts_moved: tuple[float, ...]
    modules: tuple[Contribution, ...]
    layers: tuple[Contribution, ...]
    overall: Contribution

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reading": self.reading()}

    def reading(self) -> str:
        """Two or three plain sentences. Thresholds: `SILENT`, `CLOSE`, `ALIKE` at the top of this room."""
        if self.moved < SILENT:
            return f"On these {self.positions} tokens the mix hardly changes what the base says ({self.moved:.2g} nats a token)."
        near = min(range(len(self.ids)), key=lambda i: self.to_parts[i])
        others = min(d for i, d in enumerate(self.to_parts) if i != near)
        told = ", ".join(f"{n} {d:.2g}" for n, d in zip(self.names, self.to_parts, strict=True))
        like = (
            f"speaks most like {self.names[near]}"
            if self.to_parts[near] <= CLOSE * others
            else "speaks like none of its parts alone"
        )
        said = [
            f"On these {self.positions} tokens the mix moves the base by {self.moved:.2g} nats a token and {like} (distance: {told})."
        ]
        sizes = ", ".join(f"{n} {s:.0%}" for n, s in zip(self.names, self.overall.shares, strict=True))
        said.append(f"Size of what each adds, next to the layers' outputs: {sizes}.")
        for i, (a, b) in enumerate(self.pairs):
            names = dict(zip(self.ids, self.names, strict=True))
            opposed, alike = (
                [c.layer for c in self.layers if sign * c.cosines[i] >= ALIKE] for sign in (-1, 1)
            )
            if opposed:
                said.append(
                    f"What {names[a]} and {names[b]} add points against each other in {_listed(opposed)}."
                )
            if alike:
                said.append(f"What {names[a]} and {names[b]} add points the same way in {_listed(alike)}.")
        return " ".join(said)


def listen(resident: Resident, mix: Mix, prompts: Sequence[Sequence[int]]) -> Iterator[Progress | Behaviour]:
    """Runs each prompt under the base, every part alone and the mix, as rows of one batch.

        rows   base | part 1 | ... | part n | mix        KL at every position; contributions are read in the last row

    Args:
        prompts: token ids, one list a prompt.

    Yields:
        Progress after every prompt; at the end one Behaviour.

    Raises:
        SpecError: fewer than two adapters, no prompts, or one that the base cannot read at once. NotFound, AdapterError.
    """
    ids = _two_or_more(mix)
    context = resident.base.context
    if not prompts or not all(0 < len(p) <= context for p in prompts):
        raise SpecError(
            f"{len(prompts)} prompts were given, of {min(map(len, prompts), default=0)} to {max(map(len, prompts), default=0)} tokens.",
            f"Give one or more, of 1 to {context} tokens.",
        )
    mixes = [Mix(), *(_alone(mix, a) for a in ids), mix]
    moved, to_parts, parts_moved, positions = 0.0, [0.0] * len(ids), [0.0] * len(ids), 0
    sums: dict[str, torch.Tensor] = {}
    for done, prompt in enumerate(prompts, 1):
        resident.ensure([mix])
        tokens = torch.tensor([list(prompt)] * len(mixes), device=resident.base.device)
        with speaking(resident, resident.rows(mixes)), _contributions(resident, mix, ids, sums):
            logits = listened(resident.base.model, tokens)  # (parts + 2, T, V)
            moved += divergence(logits[-1], logits[0])
            for i in range(len(ids)):
                to_parts[i] += divergence(logits[-1], logits[i + 1])
                parts_moved[i] += divergence(logits[i + 1], logits[0])
        positions += len(prompt)
        yield Progress(done, len(prompts), "Listening")
    modules = tuple(_contribution(layer_of(m), short(m), [s], len(ids)) for m, s in sums.items())
    layers = tuple(
        _contribution(n, "", [s for m, s in sums.items() if layer_of(m) == n], len(ids))
        for n in sorted({layer_of(m) for m in sums})
    )
    names = _names(resident, ids)
    yield Behaviour(
        tuple(ids),
        tuple(names[a] for a in ids),
        tuple(itertools.combinations(ids, 2)),
        len(prompts),
        positions,
        moved / positions,
        tuple(n / positions for n in to_parts),
        tuple(n / positions for n in parts_moved),
        modules,
        layers,
        _contribution(-1, "", list(sums.values()), len(ids)),
    )


def _alone(mix: Mix, adapter_id: str) -> Mix:
    """One part of a mix as it is played there."""
    changes: dict[str, Any] = {"weights": {adapter_id: mix.weights[adapter_id]}}
    if hasattr(mix, "tilt"):
        changes["tilt"] = {a: t for a, t in mix.tilt.items() if a == adapter_id}
    return dataclasses.replace(mix, **changes)


@contextlib.contextmanager
def _contributions(
    resident: Resident, mix: Mix, ids: Sequence[str], sums: dict[str, torch.Tensor]
) -> Iterator[None]:
    """While open, every forward adds to `sums` what each part puts into a layer in the batch's last row.

    `sums[module]` is the (n + 1, n + 1) matrix of inner products of the n contributions and the layer's output.
    """
    depth, handles = depth_of(resident), []
    try:
        for module, layer in layers_of(resident).items():
            weights = [weight_in(mix, a, module, depth) for a in ids]
            if any(resident.peft_name(a) in layer.lora_A for a in ids):
                handles.append(
                    layer.register_forward_hook(
                        _reader(module, [resident.peft_name(a) for a in ids], weights, sums)
                    )
                )
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reader(
    module: str, names: Sequence[str], weights: Sequence[float], sums: dict[str, torch.Tensor]
) -> Any:
    def read(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """inputs[0]: (B, T, I), output: (B, T, O)."""
        y = output[-1].float()
        added = []
        for name, weight in zip(names, weights, strict=True):
            if name in layer.lora_A:
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
                added.append((inputs[0][-1].to(a.dtype) @ a.T @ b.T).float() * (weight * layer.scaling[name]))
            else:
                added.append(torch.zeros_like(y))
        flat = torch.stack([*added, y]).flatten(1).double()
        products = flat @ flat.T
        sums[module] = sums[module] + products if module in sums else products

    return read


def _contribution(layer: int, module: str, products: Sequence[torch.Tensor], parts: int) -> Contribution:
    total = torch.stack(list(products)).sum(0).cpu() if products else torch.zeros(parts + 1, parts + 1)
    sizes = total.diagonal().clamp(min=0).sqrt().tolist()
    shares = tuple(s / sizes[-1] if sizes[-1] else 0.0 for s in sizes[:-1])
    return Contribution(
        layer,
        module,
        shares,
        tuple(
            ratio(float(total[i, j]), sizes[i] * sizes[j]) for i, j in itertools.combinations(range(parts), 2)
        ),
    )
