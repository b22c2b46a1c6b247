"""Mixing: every row of a batch under its own mix of adapters, in one forward.

A mix is a row of weights, one per adapter; the base is the row of zeros. `Mixer.activate` makes rows the
active mix, and while it is open every LoRA layer computes in rank space. Outside of it the layers are peft's,
and training runs on them. peft's active adapters are never changed here.

```
mixing.Mixer          which adapters there are, and the active mix
├── mix_layout        how their factors are concatenated; which adapter each column belongs to
├── rank_space        the product y + B_cat (s ⊙ (A_cat x))
├── dora              the row gains of DoRA adapters
├── own_weights       adapters that replace embeddings, heads or norms: alone in their row, at weight 1
├── peft_patch        the forward of peft's layers; what cannot be mixed, and why
└── experts           the same for adapters on the experts of a mixture
```

Activating a mix expands its weights to rank space once, and layers with the same adapters share the result.
Activating equal rows again, as generation does at every token, costs one comparison.

Letters: B rows of the batch, P points from the first layer to the last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from core.errors import AdapterError
from core.model import experts, mix_layout
from core.model.dora import RowGain
from core.model.mix_layout import LayersWithAdapters, RankColumns
from core.model.own_weights import OwnWeights, find_alone_rows, replace_rows
from core.model.peft_patch import patch_layer, unmixable_reason
from core.model.rank_space import ActiveMix, DownProjection, LoraBlock


class MixRow(dict[str, float]):
    """The mix of one row: peft's adapter name -> weight.

    Attributes:
        tilt: peft's adapter name -> how its weight changes with depth (`core.spec.mix.Mix.tilt`).
    """

    def __init__(self, weights: Mapping[str, float], tilt: Mapping[str, float] | None = None) -> None:
        super().__init__(weights)
        self.tilt = dict(tilt or {})


class PeftForwardRow(MixRow):
    """A row that peft's own forward computes, with peft's active adapters. It applies to the whole batch."""


@dataclass(eq=False)
class Mixer:
    """The adapters of a model and the mix that is active on them.

    Attributes:
        model: a PeftModel, or a plain model while it has no adapter.
        layers: the LoRA layers.
        names: peft's adapter names, in the order of the weights' columns.
        depths: the relative depths, 0 to 1, of the layers; `layer.depth` is an index into them.
        columns: the distinct assignments of ranks to adapters; blocks hold an index into them.
        active_mix: what the layers multiply by; None outside of `activate`.
        gains: peft's name of a DoRA adapter -> path of a layer -> g - 1 (`core.model.dora`).
        own_weights: peft's name of an adapter -> what it replaces (`core.model.own_weights`).
        modules: all modules of the model as of `update_layout`; walking a deep model takes milliseconds.

    Example:
        >>> mixer = Mixer(peft_model)
        >>> mixer.update_layout()
        >>> with torch.inference_mode(), mixer.activate([{}, {"domain": 1.0}, {"domain": 0.5, "task": 1.0}]):
        ...     logits = peft_model.get_base_model()(input_ids=ids.repeat(3, 1)).logits  # three mixes at once
    """

    model: nn.Module
    layers: list[Any] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    depths: list[float] = field(default_factory=list)
    columns: list[RankColumns] = field(default_factory=list)
    active_mix: ActiveMix | None = None
    modules: list[nn.Module] = field(default_factory=list)
    gains: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    own_weights: dict[str, OwnWeights] = field(default_factory=dict)
    _latest: tuple[Any, ActiveMix] | None = None  # the rows that were activated last: generation repeats them
    packed_plan: Any = None  # its packed adapters, of `core.model.fast_adapters`
    _experts: list[nn.Module] = field(default_factory=list)

    @property
    def weights(self) -> torch.Tensor | None:
        """The weights of the active mix, as `ActiveMix.weights`; None while no mix is active."""
        return self.active_mix.weights if self.active_mix else None

    def update_layout(self, trainee: str = "", exclude_trainee: bool = False) -> None:
        """Reads which adapters the model has, and concatenates the factors of those that do not train.

        Call it after an adapter was added or deleted, or ended its training; never between a forward and its
        backward.

        Args:
            trainee: peft's name of the adapter in training, or "".
            exclude_trainee: that adapter cannot be mixed (DoRA); mixes cannot use it, and peft's own
                forward runs it.

        Raises:
            AdapterError: a layer with an adapter has no form in rank space.
        """
        while self._experts:
            experts.detach(self._experts.pop())
        modules = dict(self.model.named_modules())
        layers = {path: m for path, m in modules.items() if isinstance(m, LoraLayer)}
        excluded = trainee if exclude_trainee else ""
        for path, layer in layers.items():
            if reason := unmixable_reason(layer, excluded):
                raise AdapterError(
                    f"The adapter on {path!r} cannot be mixed: {reason}.",
                    "Convert it to plain LoRA on linear layers first.",
                )
        depths = mix_layout.relative_depths(list(modules), list(layers))
        self.modules, self.layers = list(modules.values()), list(layers.values())
        self.names = sorted({name for layer in self.layers for name in layer.lora_A} - {excluded})
        self.depths = sorted(set(depths.values()))
        self.columns, self._latest = [], None
        for path, layer in layers.items():
            patch_layer(layer)
            layer.mixer = experts.MixerReference(self)
            layer.depth = self.depths.index(depths[path])
            layer.blocks = []
            layer.row_gain = self._make_row_gain(path, layer)
        for group in mix_layout.group_by_input(layers):
            fixed = [
                (layers[path], [n for n in self.names if n in layers[path].lora_A and n != trainee])
                for path in group
            ]
            self._add_blocks(fixed, group[0], is_trainee=False)
            for path in group:
                if trainee in self.names and trainee in layers[path].lora_A:
                    self._add_blocks([(layers[path], [trainee])], path, is_trainee=True)
        for layer in self.layers:
            if isinstance(layer, ParamWrapper):
                self._attach_experts(layer)

    def _make_row_gain(self, path: str, layer: Any) -> RowGain | None:
        """The gains of the DoRA adapters on a layer; None without any."""
        names = [n for n in self.names if n in layer.lora_A and path in self.gains.get(n, {})]
        if not names:
            return None
        columns = RankColumns(tuple(self.names.index(n) for n in names), (1.0,) * len(names))
        values = torch.stack([self.gains[n][path] for n in names])
        return RowGain(values, self._index_of(columns), getattr(layer.get_base_layer(), "bias", None))

    def _add_blocks(self, group: LayersWithAdapters, path: str, is_trainee: bool) -> None:
        """Adds one block of these adapters to each layer of a group; the blocks share their first product."""
        parts = [(layer, names) for layer, names in group if names]
        if not parts:
            return
        columns = self._columns_of(parts)
        if isinstance(parts[0][0], ParamWrapper):
            layer, names = parts[0]
            layer.blocks.append(experts.make_block(layer, names, columns, is_trainee))
            return
        a, bs = mix_layout.trainee_factors(parts) if is_trainee else mix_layout.concatenate_factors(parts)
        is_routed, start = bool(mix_layout.ROUTED.search(path)), 0
        down = DownProjection(a, columns, is_routed, len(parts), is_trainee)
        for (layer, _), b in zip(parts, bs, strict=True):
            layer.blocks.append(LoraBlock(down, start, start + len(b), b))
            start += len(b)

    def _columns_of(self, parts: LayersWithAdapters) -> int:
        """Returns the index, in `self.columns`, of the ranks of these layers and adapters."""
        ranks = [(layer, n) for layer, names in parts for n in names for _ in range(layer.r[n])]
        columns = RankColumns(
            tuple(self.names.index(n) for _, n in ranks),
            tuple(float(layer.scaling[n]) for layer, n in ranks),
        )
        return self._index_of(columns)

    def _index_of(self, columns: RankColumns) -> int:
        if columns not in self.columns:
            self.columns.append(columns)
        return self.columns.index(columns)

    def _attach_experts(self, layer: Any) -> None:
        module = layer.get_base_layer()
        if module not in self._experts:
            experts.attach(module, self, layer.depth)
            self._experts.append(module)
        module.expert_adapters.blocks[layer.parameter_name] = layer.blocks

    @contextlib.contextmanager
    def activate(self, rows: Sequence[Mapping[str, float]] | torch.Tensor) -> Iterator[Mixer]:
        """Makes `rows` the active mix: while open, row b of every forward is computed under `rows[b]`.

        A forward with k times as many rows (beams, several answers per prompt, flattened tokens) has each row
        k times, consecutively. A backward belongs inside too: layers that activation checkpointing computes
        again then find the same rows, and outside torch raises an error.

        Args:
            rows: one mapping from peft's adapter name to weight (or `MixRow`) per row. Or the weights
                themselves, with one column per name in `names`; they may require a gradient. Their shape is
                (B, adapters), or (P, B, adapters) for P points from the first layer to the last, between
                which layers interpolate.

        Raises:
            AdapterError: an adapter is not loaded, the tensor has another number of columns, or an adapter
                with weights of its own is not alone in its row at weight 1.
        """
        before = self.active_mix
        if isinstance(rows, torch.Tensor):
            self.active_mix = self._from_tensor(rows)
        elif any(isinstance(row, PeftForwardRow) for row in rows):
            self.active_mix = None
        else:
            self.active_mix = self._from_rows(rows)
        try:
            if self.active_mix is not None and self.active_mix.alone:
                mix = self.active_mix
                with replace_rows(
                    self.model, self.own_weights, mix.alone, mix.count, lambda: self.active_mix is mix
                ):
                    yield self
            else:
                yield self
        finally:
            self.active_mix = before

    def _from_rows(self, rows: Sequence[Mapping[str, float]]) -> ActiveMix:
        key = [(dict(row), getattr(row, "tilt", None) or {}) for row in rows]
        if self._latest is None or self._latest[0] != key:
            # No inference tensors, because a forward of training may use them too.
            with torch.inference_mode(False), torch.no_grad():
                weights = self.to_tensor([row for row, _ in key])
                tilt = self.to_tensor([{n: t for n, t in tilt.items() if row.get(n)} for row, tilt in key])
                self._latest = key, self._expand(weights, tilt if bool(tilt.any()) else None)
        return self._latest[1]

    def _from_tensor(self, weights: torch.Tensor) -> ActiveMix:
        if weights.dim() not in (2, 3) or weights.shape[-1] != max(len(self.names), 1):
            count = len(self.names)
            raise AdapterError(
                f"The weights must have the shape (rows, {count}) or (points, rows, {count}), "
                f"got {tuple(weights.shape)}.",
                "Give one column per adapter.",
            )
        needs_gradient = weights.requires_grad and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(needs_gradient):
            return self._expand(weights if needs_gradient else weights.detach().cpu(), None)

    def _expand(self, weights: torch.Tensor, tilt: torch.Tensor | None) -> ActiveMix:
        """Expands weights to every depth and rank."""
        if weights.dim() == 3:
            points = weights
        elif tilt is None:
            points = weights[None]
        else:
            points = torch.stack([weights * (1 - tilt), weights * (1 + tilt)])
        if not points.requires_grad and bool((points == points[:, :1]).all()):
            points = points[:, :1]  # all rows are equal: one row serves any number of rows or tokens
        alone = find_alone_rows(points, self.names, self.own_weights) if self.own_weights else {}
        if len(points) > 1:
            shares = mix_layout.interpolation_matrix(self.depths, len(points)).to(points)
            points = torch.einsum("dp,pbn->dbn", shares, points)
        device = next(self.model.parameters()).device
        rows = [columns.expand(points, device) for columns in self.columns]
        by_depth = [r * len(self.depths) if len(r) == 1 else r for r in rows]
        return ActiveMix(weights, tilt, by_depth, points.shape[1], alone)

    def to_tensor(self, rows: Sequence[Mapping[str, float]]) -> torch.Tensor:
        """Returns rows of adapter name -> number as a (B, adapters) tensor on the CPU.

        Raises:
            AdapterError: an adapter with a number other than 0 is not loaded.
        """
        column = {name: i for i, name in enumerate(self.names)}
        unknown = [name for row in rows for name, number in row.items() if number and name not in column]
        if unknown:
            raise AdapterError(f"The adapter {unknown[0]!r} is not loaded.", "Load it before mixing.")
        table = [[float(row.get(name, 0.0)) for name in self.names] or [0.0] for row in rows]
        return torch.tensor(table, dtype=torch.float32).view(len(rows), max(len(self.names), 1))

    def active_weights(self, row: int) -> dict[str, float]:
        """Returns the adapters that are active in a row with their weights.

        They are read back from the tensor that the layers' rows were expanded from.
        """
        if self.active_mix is None or not self.names:
            return {}
        weights = self.active_mix.weights
        by_row = weights if weights.dim() == 2 else weights.mean(0)
        return {name: w for name, w in zip(self.names, by_row[row].tolist(), strict=True) if w}

    def active_tilt(self, row: int) -> dict[str, float]:
        """Returns the tilts that are active in a row, read back like `active_weights`."""
        if self.active_mix is None or self.active_mix.tilt is None:
            return {}
        tilt = self.active_mix.tilt[row].tolist()
        return {name: t for name, t in zip(self.names, tilt, strict=True) if t}
