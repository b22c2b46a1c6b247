"""Mixing in rank space: every row of a batch under its own weights, in one forward.

Letters: B rows, T tokens, R rank, O outputs, I inputs, D depths. For a layer with adapters j of rank r_j:

    y[b] = W x[b] + sum_j  weight[b, j] · scaling_j · B_j (A_j x[b])        A_j: (r_j, I)   B_j: (O, r_j)

Adapters at rest lie side by side, A_cat (R, I) and B_cat (O, R), and peft's own parameters are views
of them, so nothing is stored twice; the adapter in training keeps its own tensors (an optimizer needs
them contiguous) and is heard at once. Equal to peft's forward with the same adapters and scales.

The layers are peft's, given one forward more: outside `engaged()` they are peft's to the letter, so
training never meets this room. peft's active adapters are never touched here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Conv1d, MultiheadAttention, ParamWrapper, _ConvNd
from torch import nn

from core.errors import AdapterError
from core.model import experts

NUMBERED = re.compile(r"(?:(.*?)\.)?(\d+)(?:\.|$)")  # a module's stack and its place there: the first number of its path
ROUTED = re.compile(r"(?:^|\.)experts\.\d+\.")  # a layer of one expert, which sees tokens of all rows, sorted out by the router
MIDDLE = 0.5  # the depth of a layer outside every stack


class Row(dict[str, float]):
    """One row's weights by peft name, and how they lean with depth (`core.spec.Mix.tilt`)."""

    def __init__(self, weights: Mapping[str, float], tilt: Mapping[str, float] | None = None) -> None:
        super().__init__(weights)
        self.tilt = dict(tilt or {})


@dataclass(frozen=True, eq=False)
class Engagement:
    """One mix of a whole batch, ready to be multiplied by.

    Attributes:
        weights: (B, adapters), or (P, B, adapters): P points spread evenly from the first layer to the last.
        tilt: (B, adapters) or None; the weights of layer l of L are weights * (1 + tilt * (2 l/(L-1) - 1)).
        rows: [ranks][depth] -> (B, 1, R), or (1, 1, R) when all rows are the same; None where nothing is on.
    """

    weights: torch.Tensor
    tilt: torch.Tensor | None
    rows: list[list[torch.Tensor | None]]


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
class Block:
    """Adapters of one layer that share one pair of products.

    Attributes:
        a: (R, I); b: (O, R)   training replaces nothing but their values
        ranks: which of the mixer's `Ranks` they follow.
    """

    a: torch.Tensor
    b: torch.Tensor
    ranks: int


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
    live: Engagement | None = None
    modules: list[nn.Module] = field(default_factory=list)  # of the model, as of `arrange`: walking a deep model takes milliseconds
    _latest: tuple[Any, Engagement] | None = None  # what was last asked for: generation asks the same at every token
    _experts: list[nn.Module] = field(default_factory=list)

    @property
    def weights(self) -> torch.Tensor | None:
        """The weights of the engaged mix, as `Engagement.weights`; None while nothing is engaged."""
        return self.live.weights if self.live else None

    def arrange(self, trainee: str = "") -> None:
        """Reads which adapters hang on the model and lays those at rest side by side.

        Call after an adapter came, went, or ended training; never between a forward and its backward.

        Args:
            trainee: peft's name of the adapter in training, "" for none.

        Raises:
            AdapterError: an adapter hangs on a layer whose sum has no form in rank space.
        """
        while self._experts:
            experts.release(self._experts.pop())
        modules = dict(self.model.named_modules())
        found = {path: m for path, m in modules.items() if isinstance(m, LoraLayer)}
        for path, layer in found.items():
            if why := unmixable(layer):
                raise AdapterError(f"The adapter on {path!r} cannot be mixed: {why}.", "Convert it to plain LoRA on linear layers first.")
        depth = _depths(list(modules), list(found))
        self.modules, self.layers = list(modules.values()), list(found.values())
        self.names = sorted({name for layer in self.layers for name in layer.lora_A})
        self.depths = sorted(set(depth.values()))
        self.ranks, self._latest = [], None
        for path, layer in found.items():
            _adopt(layer)
            layer.mixer = experts.Reference(self)
            layer.depth = self.depths.index(depth[path])
            layer.routed = bool(ROUTED.search(path))
            layer.blocks = self._blocks(layer, trainee)
            if isinstance(layer, ParamWrapper):
                self._hold(layer)

    def _blocks(self, layer: Any, trainee: str) -> list[Any]:
        here = [n for n in self.names if n in layer.lora_A]
        lay = experts.lay_out if isinstance(layer, ParamWrapper) else _lay_out
        groups = {False: [n for n in here if n != trainee], True: [n for n in here if n == trainee]}
        return [lay(layer, group, self._ranks_of(layer, group), training) for training, group in groups.items() if group]

    def _ranks_of(self, layer: Any, group: Sequence[str]) -> int:
        columns = tuple(self.names.index(n) for n in group for _ in range(layer.r[n]))
        ranks = Ranks(columns, tuple(float(layer.scaling[n]) for n in group for _ in range(layer.r[n])))
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
    def engaged(self, rows: Sequence[Mapping[str, float]] | torch.Tensor) -> Iterator[Mixer]:
        """While open, row b of every forward is computed under `rows[b]`.

        A forward whose rows are k times as many (beams, several answers a prompt, flattened tokens) has
        each of ours k times, one after the other. A backward through a forward belongs inside too.

        Args:
            rows: peft name to weight, one mapping (or `Row`) a row; or the weights themselves with columns
                as `names`, which may need a gradient: (B, adapters), or (P, B, adapters) for P points
                from the first layer to the last, between which the layers interpolate.

        Raises:
            AdapterError: a name that does not hang on this model, or a tensor of another width.
        """
        before = self.live
        self.live = self._from_tensor(rows) if isinstance(rows, torch.Tensor) else self._from_rows(rows)
        try:
            yield self
        finally:
            self.live = before

    def _from_rows(self, rows: Sequence[Mapping[str, float]]) -> Engagement:
        asked = [(dict(row), getattr(row, "tilt", None) or {}) for row in rows]
        if self._latest is None or self._latest[0] != asked:
            with torch.inference_mode(False), torch.no_grad():  # so that they serve a forward of training as well
                weights = self.tensor([row for row, _ in asked])
                tilt = self.tensor([{n: t for n, t in tilt.items() if row.get(n)} for row, tilt in asked])
                self._latest = asked, self._engagement(weights, tilt if bool(tilt.any()) else None)
        return self._latest[1]

    def _from_tensor(self, weights: torch.Tensor) -> Engagement:
        if weights.dim() not in (2, 3) or weights.shape[-1] != max(len(self.names), 1):
            raise AdapterError(
                f"The weights have the shape {tuple(weights.shape)}.", f"Give (rows, {len(self.names)}) or (points, rows, {len(self.names)}), one column an adapter."
            )
        learned = weights.requires_grad and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(learned):
            return self._engagement(weights if learned else weights.detach().cpu(), None)

    def _engagement(self, weights: torch.Tensor, tilt: torch.Tensor | None) -> Engagement:
        points = weights if weights.dim() == 3 else weights[None] if tilt is None else torch.stack([weights * (1 - tilt), weights * (1 + tilt)])
        if not points.requires_grad and bool((points == points[:, :1]).all()):
            points = points[:, :1]  # one row for all, however many rows or tokens a layer sees
        if len(points) > 1:
            points = torch.einsum("dp,pbn->dbn", _between(self.depths, len(points)).to(points), points)
        device = next(self.model.parameters()).device
        rows = [ranks.rows(points, device) for ranks in self.ranks]
        return Engagement(weights, tilt, [r * len(self.depths) if len(r) == 1 else r for r in rows])

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

    def active(self, row: int) -> dict[str, float]:
        """The adapters that are really on in a row, read back from the tensor that the layers' rows are made of."""
        if self.live is None or not self.names:
            return {}
        weights = self.live.weights if self.live.weights.dim() == 2 else self.live.weights.mean(0)
        return {name: w for name, w in zip(self.names, weights[row].tolist(), strict=True) if w}

    def leaning(self, row: int) -> dict[str, float]:
        """The tilts that are really on in a row, read back likewise."""
        if self.live is None or self.live.tilt is None:
            return {}
        return {name: t for name, t in zip(self.names, self.live.tilt[row].tolist(), strict=True) if t}


def unmixable(layer: Any) -> str:
    """Why a peft layer has no form in rank space, or ""."""
    if getattr(layer, "lora_embedding_A", None):
        return "it is trained on the embedding, where there is a look-up and no product"
    if isinstance(layer, (_ConvNd, Conv1d, MultiheadAttention)):
        return f"it is trained on a {type(layer.get_base_layer()).__name__}"
    if getattr(layer, "lora_variant", None):
        return f"it is {type(next(iter(layer.lora_variant.values()))).__name__}, not a plain sum"
    if any(getattr(layer, "lora_bias", {}).values()):
        return "it trains biases"
    return experts.unmixable(layer) if isinstance(layer, ParamWrapper) else ""


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


def _lay_out(layer: Any, group: Sequence[str], ranks: int, training: bool) -> Block:
    if training or len(group) == 1:  # as it lies; the tensors of the one in training are the optimizer's
        return Block(layer.lora_A[group[0]].weight, layer.lora_B[group[0]].weight, ranks)
    with torch.no_grad():
        a = torch.cat([layer.lora_A[n].weight for n in group])
        b = torch.cat([layer.lora_B[n].weight for n in group], dim=1)
        start = 0
        for n in group:  # peft's parameters become views: one copy of every number
            end = start + layer.r[n]
            layer.lora_A[n].weight.data = a[start:end]
            layer.lora_B[n].weight.data = b[:, start:end]
            start = end
    return Block(a, b, ranks)


def _scaled(inner: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """inner (…, R), whose leading size is a multiple of B, times rows (B, 1, R) of the right row each."""
    if inner.dim() == 3 and len(rows) in (1, len(inner)):
        return inner * rows
    count, rest = divmod(inner.numel() // max(inner.shape[-1], 1), len(rows))
    if rest or len(inner) % len(rows):
        raise AdapterError(
            f"A layer was given {tuple(inner.shape[:-1])} rows and tokens, and the mix has {len(rows)} rows.", "Give a multiple of the mix's rows, or one mix for all."
        )
    return (inner.reshape(len(rows), count, inner.shape[-1]) * rows).view(inner.shape)


class _Mixed:
    """One forward more for a peft layer: rank space while a mix is engaged, peft's own otherwise."""

    mixer: experts.Reference
    depth: int
    routed: bool
    blocks: list[Block]
    base_layer: Any

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x: (B, T, I) -> (B, T, O); also (k·B, T, I) and (B·T, I), each row k or T times."""
        live = self.mixer.mixer.live
        if live is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc, no-any-return]
        y = self.base_layer(x, *args, **kwargs)
        kind = y.dtype
        for block in self.blocks:
            rows = live.rows[block.ranks][self.depth]
            if rows is not None:
                if self.routed and len(rows) > 1:
                    raise AdapterError("This model's experts are separate layers, which see tokens without their rows.", "Ask one mix at a time.")
                inner = _scaled(nn.functional.linear(x.to(block.a.dtype), block.a), rows.to(block.a.dtype))
                y = y + nn.functional.linear(inner, block.b)  # 16-bit sums are rounded once, at the end
        return y.to(kind)  # type: ignore[no-any-return]


class _Passing:
    """One forward more for a peft wrapper of experts: while a mix is engaged, the experts add what is due."""

    mixer: experts.Reference
    base_layer: Any

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.mixer.mixer.live is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return self.base_layer(x, *args, **kwargs)


def _adopt(layer: Any) -> None:
    """Gives a peft layer the mixing forward, once."""
    if isinstance(layer, (_Mixed, _Passing)):
        return
    kind = type(layer)
    if isinstance(layer, ParamWrapper):  # keeps its name, by which peft knows that another adapter may come
        layer.__class__ = type(kind.__name__, (_Passing, kind), {"__module__": kind.__module__})
    else:
        layer.__class__ = type(f"Mixed{kind.__name__}", (_Mixed, kind), {"__module__": kind.__module__})
