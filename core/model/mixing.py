"""Mixing in rank space: every row of a batch under its own weights, in one forward.

Letters: B rows, T tokens, R rank, O outputs, I inputs. For a layer with adapters j of rank r_j:

    y[b] = W x[b] + sum_j  weight[b, j] · scaling_j · B_j (A_j x[b])        A_j: (r_j, I)   B_j: (O, r_j)

Adapters at rest lie side by side, A_cat (R, I) and B_cat (O, R), and peft's own parameters are views
of them, so nothing is stored twice; the adapter in training keeps its own tensors (an optimizer needs
them contiguous) and is heard at once. Equal to peft's forward with the same adapters and scales.

The layers are peft's, given one forward more: outside `engaged()` they are peft's to the letter, so
training never meets this room. peft's active adapters are never touched here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from core.errors import AdapterError


class Mixer:
    """The weights of a batch and the layers that read them.

    Args:
        model: a PeftModel, or a plain model as long as no adapter is there.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers: list[Any] = []
        self.names: list[str] = []  # peft's names of the adapters, in the order of `weights`' columns
        self.setting: _Setting | None = None  # what is engaged; another object for every other mix
        self.modules: list[nn.Module] = []  # of the model, as of `arrange`: walking a deep model takes milliseconds
        self._recent: tuple[Any, _Setting] | None = None  # the rows that were engaged last

    @property
    def weights(self) -> torch.Tensor | None:
        """(B, adapters) while engaged."""
        return self.setting and self.setting.weights

    def arrange(self, trainee: str = "") -> None:
        """Reads which adapters hang on the model and lays those at rest side by side.

        Call after an adapter came, went, or ended training; never between a forward and its backward.

        Args:
            trainee: peft's name of the adapter in training, "" for none.
        """
        self.modules = list(self.model.modules())
        self.layers = [m for m in self.modules if isinstance(m, LoraLayer)]
        self.names = sorted({name for layer in self.layers for name in layer.lora_A})
        kinds: dict[Any, int] = {}
        for layer in self.layers:
            _adopt(layer)
            layer.mixer = _Reference(self)
            layer.blocks = _blocks(layer, self.names, trainee)
            for block in layer.blocks:
                block.kind = kinds.setdefault(block.signature, len(kinds))
            layer.seen = None
        self._recent = None

    @contextlib.contextmanager
    def engaged(self, rows: Sequence[Mapping[str, float]] | torch.Tensor) -> Iterator[Mixer]:
        """While open, row b of every forward is computed under `rows[b]`.

        Args:
            rows: peft name to weight, one mapping a row; or the weights themselves, (B, adapters) with
                columns as `names`, which may need a gradient.

        Raises:
            AdapterError: a name that does not hang on this model.
        """
        before = self.setting
        self.setting = _Setting(rows) if isinstance(rows, torch.Tensor) else self._recall(rows)
        try:
            yield self
        finally:
            self.setting = before

    def _recall(self, rows: Sequence[Mapping[str, float]]) -> _Setting:
        """The same rows again, token after token, are the same setting again: nothing is worked out twice."""
        key = (torch.is_inference_mode_enabled(), [dict(row) for row in rows])
        if self._recent is None or self._recent[0] != key:
            self._recent = (key, _Setting(self.tensor(rows)))
        return self._recent[1]

    def tensor(self, rows: Sequence[Mapping[str, float]]) -> torch.Tensor:
        """The weights of rows as a (B, adapters) tensor."""
        column = {name: i for i, name in enumerate(self.names)}
        weights = torch.zeros(len(rows), max(len(self.names), 1), dtype=torch.float32)
        for b, row in enumerate(rows):
            for name, weight in row.items():
                if weight and name not in column:
                    raise AdapterError(f"The adapter {name!r} is not loaded.", "Load it before mixing.")
                if weight:
                    weights[b, column[name]] = weight
        return weights.to(next(self.model.parameters()).device)

    def active(self, row: int) -> dict[str, float]:
        """The adapters that are really on in a row, read back from the tensor the layers multiply by."""
        if self.weights is None or not self.names:
            return {}
        values = self.weights[row].tolist()
        return {name: w for name, w in zip(self.names, values, strict=True) if w}

    def keep(self, rows: torch.Tensor) -> None:
        """Narrows the batch to some of its rows (indices), when the others have ended."""
        if self.setting is not None:
            self.setting = _Setting(self.setting.weights[rows])


class _Setting:
    """Weights that are engaged, and what the layers have worked out from them.

    Layers with the same adapters share one row tensor, and the device is asked once which adapters are on.
    """

    __slots__ = ("weights", "_on", "_rows")

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights = weights  # (B, adapters)
        self._on: list[bool] | None = None  # a column each: is it on in any row
        self._rows: dict[int, torch.Tensor | None] = {}  # by kind of block

    def rows(self, block: _Block) -> torch.Tensor | None:
        """What a block's ranks are multiplied by: (B, 1, R), or None where it is off in every row."""
        if self._on is None:
            self._on = [True] * self.weights.shape[1] if self.weights.requires_grad else self.weights.any(0).tolist()
        if block.kind not in self._rows:
            on = any(self._on[c] for c in block.members)
            self._rows[block.kind] = (self.weights[:, block.columns] * block.scale).to(block.a.dtype).unsqueeze(1) if on else None
        return self._rows[block.kind]


class _Reference:
    """Holds the mixer without becoming a submodule or a part of the state dict."""

    __slots__ = ("mixer",)

    def __init__(self, mixer: Mixer) -> None:
        self.mixer = mixer


class _Block:
    """Adapters of one layer that share one pair of products.

    Attributes:
        a: () -> (R, I); b: () -> (O, R)   read at every call, because training replaces nothing but values
        columns: (R,) long: which column of the weights each rank belongs to
        scale: (R,) the adapters' own scaling
        kind: blocks of the same columns and scales have the same number
    """

    __slots__ = ("a", "b", "columns", "scale", "rows", "signature", "members", "kind")

    def __init__(self, a: torch.Tensor, b: torch.Tensor, columns: Sequence[int], scale: Sequence[float]) -> None:
        self.a, self.b = a, b
        self.columns = torch.tensor(columns, device=a.device)
        self.scale = torch.tensor(scale, device=a.device, dtype=torch.float32)
        self.signature = (tuple(columns), tuple(scale), a.dtype, a.device)
        self.members = sorted(set(columns))
        self.kind = -1
        self.rows: torch.Tensor | None = None  # (B, 1, R) of the present mix; None when the block is off


def _blocks(layer: Any, names: Sequence[str], trainee: str) -> list[_Block]:
    here = [n for n in names if n in layer.lora_A]
    resting = [n for n in here if n != trainee]
    blocks = []
    if resting:
        with torch.no_grad():
            a = torch.cat([layer.lora_A[n].weight for n in resting])
            b = torch.cat([layer.lora_B[n].weight for n in resting], dim=1)
            start = 0
            for n in resting:  # peft's parameters become views: one copy of every number
                end = start + layer.lora_A[n].weight.shape[0]
                layer.lora_A[n].weight.data = a[start:end]
                layer.lora_B[n].weight.data = b[:, start:end]
                start = end
        blocks.append(_block(layer, names, resting, a, b))
    if trainee in here:
        blocks.append(_block(layer, names, [trainee], layer.lora_A[trainee].weight, layer.lora_B[trainee].weight))
    return blocks


def _block(layer: Any, names: Sequence[str], members: Sequence[str], a: torch.Tensor, b: torch.Tensor) -> _Block:
    ranks = [layer.lora_A[n].weight.shape[0] for n in members]
    columns = [names.index(n) for n, r in zip(members, ranks, strict=True) for _ in range(r)]
    scale = [float(layer.scaling[n]) for n, r in zip(members, ranks, strict=True) for _ in range(r)]
    return _Block(a, b, columns, scale)


class _Mixed:
    """One forward more for a peft layer: rank space while a mix is engaged, peft's own otherwise."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x: (B, T, I) -> (B, T, O)."""
        setting = self.mixer.mixer.setting  # type: ignore[attr-defined]
        if setting is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        if self.seen is not setting:  # type: ignore[has-type]
            for block in self.blocks:  # type: ignore[attr-defined]
                block.rows = setting.rows(block)
            self.seen = setting
        y = self.base_layer(x, *args, **kwargs)  # type: ignore[attr-defined]
        for block in self.blocks:  # type: ignore[attr-defined]
            if block.rows is not None:
                y = _added(y, x, block)
        return y


def _added(y: torch.Tensor, x: torch.Tensor, block: _Block) -> torch.Tensor:
    """y + B (s * (A x)): in place, which halves a small layer's extra time, where no gradient is asked for."""
    inner = nn.functional.linear(x if x.dtype is block.a.dtype else x.to(block.a.dtype), block.a)  # (B, T, R)
    if torch.is_grad_enabled():
        return y + nn.functional.linear(inner * block.rows, block.b).to(y.dtype)
    return y.add_(nn.functional.linear(inner.mul_(block.rows), block.b))  # add_ keeps y's dtype


def _adopt(layer: Any) -> None:
    """Gives a peft layer the mixing forward, once."""
    if not isinstance(layer, _Mixed):
        kind = type(layer)
        layer.__class__ = type(f"Mixed{kind.__name__}", (_Mixed, kind), {"__module__": kind.__module__})
