"""Mixing in rank space: every row of a batch under its own weights, in one forward.

Letters: B rows, T tokens, R rank, O outputs, I inputs, D depths. For a layer with adapters j of rank r_j:

    y[b] = W x[b] + sum_j  weight[b, j] · scaling_j · B_j (A_j x[b])        A_j: (r_j, I)   B_j: (O, r_j)

Adapters at rest lie side by side, A_cat^T (I, R) and B_cat^T (R, O), and peft's own parameters are
views of them, so nothing is stored twice; the adapter in training keeps its own tensors (an optimizer
needs them contiguous) and is heard at once. Layers that read the same input (q, k and v) share one
A_cat^T, so that the first product is made once for all of them. Equal to peft's forward with the same
adapters and scales.

The layers are peft's, given one forward more: outside `engaged()` they are peft's to the letter, so
training never meets this room. peft's active adapters are never touched here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Conv1d, MultiheadAttention, ParamWrapper, _ConvNd
from torch import nn
from torch.nn.utils import parametrize

from core.errors import AdapterError
from core.model import experts
from core.model.families import SAME_INPUT

NUMBERED = re.compile(
    r"(?:(.*?)\.)?(\d+)(?:\.|$)"
)  # a module's stack and its place there: the first number of its path
ROUTED = re.compile(
    r"(?:^|\.)experts\.\d+\."
)  # a layer of one expert, which sees tokens of all rows, sorted out by the router
MIDDLE = 0.5  # the depth of a layer outside every stack


class MixRow(dict[str, float]):
    """One row's weights by peft name, and how they lean with depth (`core.spec.Mix.tilt`)."""

    def __init__(self, weights: Mapping[str, float], tilt: Mapping[str, float] | None = None) -> None:
        super().__init__(weights)
        self.tilt = dict(tilt or {})


class PeftForwardRow(MixRow):
    """No mix at all: peft's own forward, with what is active there. A batch is all of this, or nothing of it is."""


@dataclass(frozen=True, eq=False)
class Engagement:
    """One mix of a whole batch, ready to be multiplied by.

    Attributes:
        weights: (B, adapters), or (P, B, adapters): P points spread evenly from the first layer to the last.
        tilt: (B, adapters) or None; the weights of layer l of L are weights * (1 + tilt * (2 l/(L-1) - 1)).
        rows: [ranks][depth] -> (B, 1, R), or (1, 1, R) when all rows are the same; None where nothing is on.
        count: B, or 1 when all rows are the same.
    """

    weights: torch.Tensor
    tilt: torch.Tensor | None
    rows: list[list[torch.Tensor | None]]
    count: int


@dataclass(frozen=True)
class Ranks:
    """Which adapters the ranks of a block belong to. Layers with the same adapters share one of these.

    Attributes:
        columns: per rank, the column of the weights. scale: per rank, the adapter's own scaling.
    """

    columns: tuple[int, ...]
    scale: tuple[float, ...]

    def rows(self, weights: torch.Tensor, device: torch.device) -> list[torch.Tensor | None]:
        """(D, B, adapters) -> D times (B, 1, R), None where all of it is zero and nothing is to be learned."""
        chosen = weights[:, :, list(self.columns)]
        scaled = (chosen * chosen.new_tensor(self.scale)).unsqueeze(2)
        on = [True] * len(chosen) if weights.requires_grad else chosen.flatten(1).any(1).tolist()
        return [rows if yes else None for rows, yes in zip(scaled.to(device).unbind(), on, strict=True)]


@dataclass(eq=False)
class Down:
    """The first product of one layer, or of several that read the same input.

    Attributes:
        a: (I, R)   the ranks of all its layers, one layer after the other
        ranks: which of the mixer's `Ranks` they follow.
        routed: the layer is one of many experts, and sees tokens without their rows.
        readers: how many layers read each product. left: how many have yet to read `inner`, made of `x` under `live`.
    """

    a: torch.Tensor
    ranks: int
    routed: bool = False
    readers: int = 1
    left: int = 0
    x: torch.Tensor | None = None
    active_mix: Engagement | None = None
    inner: torch.Tensor | None = None

    def product(self, x: torch.Tensor, live: Engagement, rows: torch.Tensor) -> torch.Tensor:
        """weight · scaling · A x: (…, I) -> (rows and tokens, R)."""
        if self.routed and live.count > 1:
            raise AdapterError(
                "This model's experts are separate layers, which see tokens without their rows.",
                "Ask one mix at a time.",
            )
        if live.count > 1 and len(x) % live.count:
            raise AdapterError(
                f"A layer was given {tuple(x.shape[:-1])} rows and tokens, and the mix has {live.count} rows.",
                "Give a multiple of the mix's rows, or one mix for all.",
            )
        a, width = self.a, self.a.shape[1]
        inner = torch.mm((x if x.dtype is a.dtype else x.to(a.dtype)).reshape(-1, a.shape[0]), a)
        rows = rows if rows.dtype is inner.dtype else rows.to(inner.dtype)
        by_row = inner.view(
            live.count, len(inner) // live.count, width
        )  # each of the mix's rows with all of its tokens
        inner = (by_row * rows if inner.requires_grad or rows.requires_grad else by_row.mul_(rows)).view(
            -1, width
        )
        if self.readers > 1:
            self.x, self.active_mix, self.inner, self.left = x, live, inner, self.readers
        return inner


@dataclass(eq=False)
class Block:
    """Adapters of one layer that share one pair of products.

    Attributes:
        down: the first product; ranks `start` to `end` of it are this block's.
        b: (R, O)   training replaces nothing but its values, and those of `down.a`
    """

    down: Down
    start: int
    end: int
    b: torch.Tensor

    def add(self, y: torch.Tensor, x: torch.Tensor, live: Engagement, depth: int) -> torch.Tensor:
        """y + B (weight · scaling · A x); y (…, O) itself is written to where no gradient and no rounding forbids it."""
        down = self.down
        rows = live.rows[down.ranks][depth]
        if rows is None:
            return y
        inner = down.inner if down.left and down.x is x and down.active_mix is live else down.product(x, live, rows)
        assert inner is not None
        if down.readers > 1:
            inner = inner[:, self.start : self.end]
            down.left -= 1
            if not down.left:  # holds no tensor, and no graph, longer than needed
                down.x = down.active_mix = down.inner = None
        if y.dtype is not self.b.dtype or y.requires_grad or inner.requires_grad or not y.is_contiguous():
            return y + torch.mm(inner, self.b).view(y.shape)  # 16-bit sums are rounded once, at the end
        y.view(-1, y.shape[-1]).addmm_(inner, self.b)
        return y


@dataclass(eq=False)
class Mixer:
    """The weights of a batch and the layers that read them.

    Attributes:
        model: a PeftModel, or a plain model as long as no adapter is there.
        names: peft's names of the adapters, in the order of the weights' columns.
        depths: the relative depths, 0 to 1, that layers with adapters have.
        live: what is engaged; layers ask for nothing else.
    """

    model: nn.Module
    layers: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    depths: list[float] = field(default_factory=list)
    ranks: list[Ranks] = field(default_factory=list)
    active_mix: Engagement | None = None
    modules: list[nn.Module] = field(
        default_factory=list
    )  # of the model, as of `arrange`: walking a deep model takes milliseconds
    _latest: tuple[Any, Engagement] | None = (
        None  # what was last asked for: generation asks the same at every token
    )
    _experts: list[nn.Module] = field(default_factory=list)

    @property
    def weights(self) -> torch.Tensor | None:
        """The weights of the engaged mix, as `Engagement.weights`; None while nothing is engaged."""
        return self.active_mix.weights if self.active_mix else None

    def update_layout(self, trainee: str = "", apart: bool = False) -> None:
        """Reads which adapters hang on the model and lays those at rest side by side.

        Call after an adapter came, went, or ended training; never between a forward and its backward.

        Args:
            trainee: peft's name of the adapter in training, "" for none.
            apart: that one cannot be mixed (DoRA); it is left to peft's own forward, and mixes do not know it.

        Raises:
            AdapterError: an adapter hangs on a layer whose sum has no form in rank space.
        """
        while self._experts:
            experts.release(self._experts.pop())
        modules = dict(self.model.named_modules())
        found = {path: m for path, m in modules.items() if isinstance(m, LoraLayer)}
        aside = trainee if apart else ""
        for path, layer in found.items():
            if why := unmixable_reason(layer, aside):
                raise AdapterError(
                    f"The adapter on {path!r} cannot be mixed: {why}.",
                    "Convert it to plain LoRA on linear layers first.",
                )
        depth = _depths(list(modules), list(found))
        self.modules, self.layers = list(modules.values()), list(found.values())
        self.names = sorted({name for layer in self.layers for name in layer.lora_A} - {aside})
        self.depths = sorted(set(depth.values()))
        self.ranks, self._latest = [], None
        for path, layer in found.items():
            _adopt(layer)
            layer.mixer = experts.Reference(self)
            layer.depth = self.depths.index(depth[path])
            layer.blocks = []
        for team in _teams(found):
            self._share(
                [
                    (found[path], [n for n in self.names if n in found[path].lora_A and n != trainee])
                    for path in team
                ],
                _side_by_side,
                team[0],
            )
            for path in team:
                self._share(
                    [
                        (
                            found[path],
                            [trainee] if trainee in self.names and trainee in found[path].lora_A else [],
                        )
                    ],
                    _as_it_lies,
                    path,
                )
        for layer in self.layers:
            if isinstance(layer, ParamWrapper):
                self._hold(layer)

    def _share(self, team: Sequence[tuple[Any, list[str]]], lay: Callable[[Any], Any], path: str) -> None:
        """Gives layers that read the same input the block of these adapters each, with one first product for all."""
        parts = [(layer, names) for layer, names in team if names]
        if not parts:
            return
        ranks = self._ranks_of(parts)
        if isinstance(parts[0][0], ParamWrapper):
            layer, names = parts[0]
            layer.blocks.append(experts.lay_out(layer, names, ranks, lay is _as_it_lies))
            return
        a, bs = lay(parts)
        down, start = Down(a, ranks, bool(ROUTED.search(path)), len(parts)), 0
        for (layer, _), b in zip(parts, bs, strict=True):
            layer.blocks.append(Block(down, start, start + len(b), b))
            start += len(b)

    def _ranks_of(self, parts: Sequence[tuple[Any, list[str]]]) -> int:
        owners = [(layer, n) for layer, names in parts for n in names for _ in range(layer.r[n])]
        ranks = Ranks(
            tuple(self.names.index(n) for _, n in owners),
            tuple(float(layer.scaling[n]) for layer, n in owners),
        )
        if ranks not in self.ranks:
            self.ranks.append(ranks)
        return self.ranks.index(ranks)

    def _hold(self, layer: Any) -> None:
        module = layer.get_base_layer()
        if module not in self._experts:
            experts.hold(module, self, layer.depth)
            self._experts.append(module)
        module.hung.blocks[layer.parameter_name] = layer.blocks

    @contextlib.contextmanager
    def activate(self, rows: Sequence[Mapping[str, float]] | torch.Tensor) -> Iterator[Mixer]:
        """While open, row b of every forward is computed under `rows[b]`.

        A forward whose rows are k times as many (beams, several answers a prompt, flattened tokens) has
        each of ours k times, one after the other. A backward through a forward belongs inside too.

        Args:
            rows: peft name to weight, one mapping (or `MixRow`) a row; or the weights themselves with columns
                as `names`, which may need a gradient: (B, adapters), or (P, B, adapters) for P points
                from the first layer to the last, between which the layers interpolate.

        Raises:
            AdapterError: a name that does not hang on this model, or a tensor of another width.
        """
        before = self.active_mix
        own = not isinstance(rows, torch.Tensor) and any(isinstance(row, PeftForwardRow) for row in rows)
        self.active_mix = (
            None
            if own
            else self._from_tensor(rows)
            if isinstance(rows, torch.Tensor)
            else self._from_rows(rows)
        )
        try:
            yield self
        finally:
            self.active_mix = before

    def _from_rows(self, rows: Sequence[Mapping[str, float]]) -> Engagement:
        asked = [(dict(row), getattr(row, "tilt", None) or {}) for row in rows]
        if self._latest is None or self._latest[0] != asked:
            with (
                torch.inference_mode(False),
                torch.no_grad(),
            ):  # so that they serve a forward of training as well
                weights = self.tensor([row for row, _ in asked])
                tilt = self.tensor([{n: t for n, t in tilt.items() if row.get(n)} for row, tilt in asked])
                self._latest = asked, self._engagement(weights, tilt if bool(tilt.any()) else None)
        return self._latest[1]

    def _from_tensor(self, weights: torch.Tensor) -> Engagement:
        if weights.dim() not in (2, 3) or weights.shape[-1] != max(len(self.names), 1):
            raise AdapterError(
                f"The weights have the shape {tuple(weights.shape)}.",
                f"Give (rows, {len(self.names)}) or (points, rows, {len(self.names)}), one column an adapter.",
            )
        learned = weights.requires_grad and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(learned):
            return self._engagement(weights if learned else weights.detach().cpu(), None)

    def _engagement(self, weights: torch.Tensor, tilt: torch.Tensor | None) -> Engagement:
        points = (
            weights
            if weights.dim() == 3
            else weights[None]
            if tilt is None
            else torch.stack([weights * (1 - tilt), weights * (1 + tilt)])
        )
        if not points.requires_grad and bool((points == points[:, :1]).all()):
            points = points[:, :1]  # one row for all, however many rows or tokens a layer sees
        if len(points) > 1:
            points = torch.einsum("dp,pbn->dbn", _between(self.depths, len(points)).to(points), points)
        device = next(self.model.parameters()).device
        rows = [ranks.rows(points, device) for ranks in self.ranks]
        return Engagement(
            weights, tilt, [r * len(self.depths) if len(r) == 1 else r for r in rows], points.shape[1]
        )

    def tensor(self, rows: Sequence[Mapping[str, float]]) -> torch.Tensor:
        """The numbers of rows, peft name to number, as a (B, adapters) tensor on the CPU.

        Raises:
            AdapterError: a name that does not hang on this model.
        """
        column = {name: i for i, name in enumerate(self.names)}
        if strange := [name for row in rows for name, number in row.items() if number and name not in column]:
            raise AdapterError(f"The adapter {strange[0]!r} is not loaded.", "Load it before mixing.")
        table = [[float(row.get(name, 0.0)) for name in self.names] or [0.0] for row in rows]
        return torch.tensor(table, dtype=torch.float32).view(len(rows), max(len(self.names), 1))

    def active_weights(self, row: int) -> dict[str, float]:
        """The adapters that are really on in a row, read back from the tensor that the layers' rows are made of."""
        if self.active_mix is None or not self.names:
            return {}
        weights = self.active_mix.weights if self.active_mix.weights.dim() == 2 else self.active_mix.weights.mean(0)
        return {name: w for name, w in zip(self.names, weights[row].tolist(), strict=True) if w}

    def active_tilt(self, row: int) -> dict[str, float]:
        """The tilts that are really on in a row, read back likewise."""
        if self.active_mix is None or self.active_mix.tilt is None:
            return {}
        return {name: t for name, t in zip(self.names, self.active_mix.tilt[row].tolist(), strict=True) if t}


def unmixable_reason(layer: Any, aside: str = "") -> str:
    """Why a peft layer has no form in rank space, or ""; the adapter `aside` is not asked about."""
    if getattr(layer, "lora_embedding_A", None):
        return "it is trained on the embedding, where there is a look-up and no product"
    if isinstance(layer, (_ConvNd, Conv1d, MultiheadAttention)):
        return f"it is trained on a {type(layer.get_base_layer()).__name__}"
    if variants := [v for name, v in getattr(layer, "lora_variant", {}).items() if name != aside]:
        return f"it is {type(variants[0]).__name__}, not a plain sum"
    if any(getattr(layer, "lora_bias", {}).values()):
        return "it trains biases"
    return experts.unmixable_reason(layer) if isinstance(layer, ParamWrapper) else ""


def _depths(paths: Sequence[str], adapted: Sequence[str]) -> dict[str, float]:
    """The relative depth of each adapted layer, 0 for the first of its stack and 1 for the last."""
    last: dict[str, int] = {}
    for path in paths:
        if place := NUMBERED.match(path):
            last[place[1]] = max(last.get(place[1], 0), int(place[2]))
    places = {path: NUMBERED.match(path) for path in adapted}
    return {path: int(p[2]) / last[p[1]] if p and last[p[1]] else MIDDLE for path, p in places.items()}


def _between(depths: Sequence[float], points: int) -> torch.Tensor:
    """(D, P): how much of each of P evenly spread points a depth has, by linear interpolation."""
    share = torch.zeros(len(depths), points)
    for d, depth in enumerate(depths):
        low = min(int(depth * (points - 1)), points - 2)
        share[d, low + 1] = depth * (points - 1) - low
        share[d, low] = 1 - share[d, low + 1]
    return share


def _teams(found: Mapping[str, Any]) -> list[list[str]]:
    """Paths of the adapted layers, those that read the same input together."""
    teams: dict[Any, list[str]] = {}
    for path, layer in found.items():
        above, _, leaf = path.rpartition(".")
        same = next((i for i, leaves in enumerate(SAME_INPUT) if leaf in leaves), None)
        teams.setdefault(path if same is None else (above, same, layer.in_features), []).append(path)
    return list(teams.values())


def _as_it_lies(parts: Sequence[tuple[Any, list[str]]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A^T (I, R) and B^T (R, O) of the adapter in training, whose tensors are the optimizer's."""
    ((layer, (name,)),) = parts
    return layer.lora_A[name].weight.detach().t(), [layer.lora_B[name].weight.detach().t()]


def _side_by_side(parts: Sequence[tuple[Any, list[str]]]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A^T (I, R of all layers) and each layer's B^T (R, O); peft's parameters become views: one copy of every number."""
    with torch.no_grad():
        a = torch.cat([layer.lora_A[n].weight.t() for layer, names in parts for n in names], dim=1)
        bs = [torch.cat([layer.lora_B[n].weight.t() for n in names]) for layer, names in parts]
        start = 0
        for (layer, names), b in zip(parts, bs, strict=True):
            first = start
            for n in names:
                end = start + layer.r[n]
                layer.lora_A[n].weight.data = a[:, start:end].t()
                layer.lora_B[n].weight.data = b[start - first : end - first].t()
                start = end
    return a, bs


class _Mixed:
    """One forward more for a peft layer: rank space while a mix is engaged, peft's own otherwise."""

    mixer: experts.Reference
    depth: int
    blocks: list[Block]
    base_layer: Any

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x: (B, T, I) -> (B, T, O); also (k·B, T, I) and (B·T, I), each row k or T times."""
        live = self.mixer.mixer.active_mix
        if live is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc, no-any-return]
        y = self.base_layer(x, *args, **kwargs)
        kind = y.dtype
        for block in self.blocks:
            y = block.add(y, x, live, self.depth)
        return y if y.dtype is kind else y.to(kind)  # type: ignore[no-any-return]


class _Passing:
    """One forward more for a peft wrapper of experts: while a mix is engaged, the experts add what is due."""

    mixer: experts.Reference
    base_layer: Any

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.mixer.mixer.active_mix is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return self.base_layer(x, *args, **kwargs)

    @contextlib.contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        """In peft's own forward: lets the delta of packed weights be seen.

        While their delta is put on, the weights are unpacked and cached without it, if another parameter of the module is cached already.
        """
        with super()._activate_lora(active_adapters):  # type: ignore[misc]
            parametrize._cache.pop((id(self.get_base_layer()), self.parameter_name), None)  # type: ignore[attr-defined]
            yield

    def _remove_parametrizations(self) -> None:
        """After peft's own forward: takes its delta off again.

        On weights that are packed, and so parametrised already, peft 0.21 leaves that of a single adapter where it is, and they pile up.
        """
        parts = self.get_base_layer().parametrizations[self.parameter_name]  # type: ignore[attr-defined]
        if len(parts) > 1:
            del parts[-1]
        else:
            super()._remove_parametrizations()  # type: ignore[misc]


def _adopt(layer: Any) -> None:
    """Gives a peft layer the mixing forward, once."""
    if isinstance(layer, (_Mixed, _Passing)):
        return
    kind = type(layer)
    if isinstance(layer, ParamWrapper):  # keeps its name, by which peft knows that another adapter may come
        layer.__class__ = type(kind.__name__, (_Passing, kind), {"__module__": kind.__module__})
    else:
        layer.__class__ = type(f"Mixed{kind.__name__}", (_Mixed, kind), {"__module__": kind.__module__})
