"""The adapters of the active mix, packed for `core.model.fast_decoding`.

Only ranks whose weight is not 0 in some row are packed, in 8 bits like the base. They are packed again when
another adapter is switched on; a change of weights alone replaces the rows `s`. The adapter in training is
not packed: its tensors change at every optimizer step, so its product is computed from them in fp32.

```
                     adapter 0       adapter 1
ranks of a group   | query: on | 0 | query: on | 0 | key: ... | value: ... |      A: one product for the group
segments             each adds its B (s ⊙ ranks) to the outputs of one projection
```

The ranks of each adapter are padded to whole blocks, which have one scale: what the adapters of a row add is
the same to the bit, whatever adapters its neighbours have.

Letters: B rows, N tokens, R packed ranks of a group, I inputs, O outputs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from core.model.fast_kernels import RANK_BLOCK, PackedWeight, pack_weight
from core.model.fast_layers import PackedBase, PackedGroup
from core.model.mixing import Mixer
from core.model.rank_space import ActiveMix, LoraBlock

KEPT = 4  # selections of adapters that stay packed, of each group of projections


@dataclass
class PackedAdapters:
    """The packed ranks of one group of projections.

    Attributes:
        down: A of all ranks, (R, I).
        up: B of all segments, one after the other. up_scales: their scales.
        segments: (segments, 5) int64, the kernels' table.
        ranks: R.
    """

    down: PackedWeight
    up: torch.Tensor
    up_scales: torch.Tensor
    segments: torch.Tensor
    ranks: int

    @functools.cached_property
    def down_addresses(self) -> tuple[int, int, int]:
        """R and the addresses of A."""
        return self.ranks, *self.down.addresses

    @functools.cached_property
    def up_addresses(self) -> tuple[int, int, int, int]:
        """The number of segments, and the addresses of their table and of B."""
        return (
            len(self.segments),
            self.segments.data_ptr(),
            self.up.data_ptr(),
            self.up_scales.data_ptr(),
        )


@dataclass
class LiveBlock:
    """A block of the adapter in training: its outputs begin at `start`."""

    block: LoraBlock
    start: int


@dataclass
class GroupAdapters:
    """What the active mix adds to one group.

    Attributes:
        packed: all other adapters, or None.
        rows: s, (B, R), or (1, R) where all rows are equal.
        by_token: s of the tokens of the newest call.
        live: blocks of the adapter in training with their rows s, (B, R) each.
    """

    packed: PackedAdapters | None = None
    rows: torch.Tensor | None = None
    by_token: torch.Tensor | None = None
    live: list[tuple[LiveBlock, torch.Tensor]] = field(default_factory=list)


def share_plan(base: PackedBase, mixer: Mixer) -> AdapterPlan:
    """The plan of a mixer: one for all decoders, so that a new answer packs no adapter again."""
    plan: AdapterPlan | None = mixer.packed_plan
    if plan is None or plan.base is not base:
        mixer.packed_plan = plan = AdapterPlan(base, mixer)
    return plan


class AdapterPlan:
    """Follows the active mix of a mixer.

    Decoders that take turns share it: a decoder whose mix is not the newest updates it before it computes.

    Attributes:
        groups: [layer][group] -> what the mix adds there, or None.
    """

    def __init__(self, base: PackedBase, mixer: Mixer) -> None:
        self.base, self._mixer = base, mixer
        self._mix: ActiveMix | None = None
        self._layout: Any = None  # the mixer's columns, which it replaces with every new layout
        # Layer and group -> which ranks are on -> these ranks, the newest last.
        self._packed: dict[tuple[int, int], dict[Any, PackedAdapters]] = {}
        self._modules: list[list[list[Any]]] = []
        self._unsupported_reason = ""
        self._checked: ActiveMix | None = None  # the mix that `_has_gains` was computed for
        self._has_gains = False
        self.groups: list[list[GroupAdapters | None]] = []

    def describe_obstacle(self) -> str:
        """Why the adapters of the active mix cannot be used here, or "".

        An adapter that is loaded may be on a layer that is not packed; a mix may have adapters that are more
        than products of two factors, and the kernels add such products only.
        """
        self._follow_layout()
        mix = self._mixer.active_mix
        if self._unsupported_reason or mix is None:
            return self._unsupported_reason
        if mix.alone:
            return "an adapter with an embedding, a head or norms of its own is active"
        if mix is not self._checked:
            self._checked, self._has_gains = mix, self._uses_gains(mix)
        return "a DoRA adapter is active, and it rescales the base's own output" if self._has_gains else ""

    def _uses_gains(self, mix: ActiveMix) -> bool:
        """Whether a DoRA adapter has a weight other than 0 in some layer."""
        return bool(self._mixer.gains) and any(
            layer.row_gain is not None and mix.rows[layer.row_gain.columns][layer.depth] is not None
            for layer in self._mixer.layers
        )

    def _follow_layout(self) -> None:
        if self._layout is not self._mixer.columns:
            self._layout, self._mix, self._packed = self._mixer.columns, None, {}
            self._modules = [[group.modules() for group in layer.groups] for layer in self.base.layers]
            known = {id(m) for layer in self._modules for group in layer for m in group}
            is_known = all(id(m) in known for m in self._mixer.layers)
            self._unsupported_reason = (
                "" if is_known else "an adapter is trained on a layer outside attention and feed-forward"
            )

    def update(self) -> bool:
        """Follows the active mix, after a change of weights, adapters or layout; returns whether it did."""
        self._follow_layout()
        mix = self._mixer.active_mix
        if mix is self._mix:
            return False
        assert mix is not None
        self._mix = mix
        rows: dict[Any, torch.Tensor] = {}  # layers with the same adapters share s
        self.groups = [
            [
                self._plan_group((i, j), group, self._modules[i][j], mix, rows)
                for j, group in enumerate(layer.groups)
            ]
            for i, layer in enumerate(self.base.layers)
        ]
        return True

    def _plan_group(
        self,
        key: tuple[int, int],
        group: PackedGroup,
        modules: list[Any],
        mix: ActiveMix,
        shared: dict[Any, torch.Tensor],
    ) -> GroupAdapters | None:
        resting: list[tuple[int, LoraBlock, torch.Tensor, Any]] = []
        plan, start = GroupAdapters(), 0
        for module, size in zip(modules, group.sizes, strict=True):
            for block in module.blocks if isinstance(module, LoraLayer) else ():
                rows = mix.rows[block.down.columns][module.depth]
                if rows is None:
                    continue
                part = rows[:, 0, block.start : block.end]
                if block.down.is_trainee:
                    plan.live.append((LiveBlock(block, start), part))
                else:
                    resting.append((start, block, part, (block.down.columns, id(rows), block.start)))
            start += size
        active = [(self._place(block, part), part, start, block, k) for start, block, part, k in resting]
        active = [entry for entry in active if entry[0]]
        if active:
            kept = self._packed.setdefault(key, {})
            which = tuple((s, id(b), places) for places, _, s, b, _ in active)
            packed = kept.pop(which, None) or _pack(group, [(p, s, b) for p, _, s, b, _ in active])
            kept[which] = plan.packed = packed
            if len(kept) > KEPT:
                del kept[next(iter(kept))]
            name = tuple((k, places) for places, *_, k in active)
            if name not in shared:
                parts = [_take(part.t(), places).t() for places, part, *_ in active]
                shared[name] = torch.cat(parts, dim=1).contiguous()
            plan.rows = shared[name]
        return plan if plan.packed is not None or plan.live else None

    def _place(self, block: LoraBlock, part: torch.Tensor) -> tuple[int, ...]:
        """Where the ranks lie that are on in some row of s, (B, R): see `_place_ranks`."""
        adapters = self._mixer.columns[block.down.columns].adapters[block.start : block.end]
        return _place_ranks(tuple((part != 0).any(0).tolist()), adapters)


@functools.lru_cache(maxsize=1024)
def _place_ranks(is_on: tuple[bool, ...], adapters: tuple[int, ...]) -> tuple[int, ...]:
    """The indices of the ranks that are on, adapter by adapter, each padded to whole blocks with -1."""
    places: list[int] = []
    for _, ranks in itertools.groupby(range(len(adapters)), lambda rank: adapters[rank]):
        on = [rank for rank in ranks if is_on[rank]]
        places += on + [-1] * (-len(on) % RANK_BLOCK)
    return tuple(places)


def _take(rows: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
    """The rows of a matrix at these places; zeros at -1."""
    return torch.nn.functional.pad(rows, (0, 0, 0, 1))[list(places)]


def _pack(group: PackedGroup, parts: list[tuple[tuple[int, ...], int, LoraBlock]]) -> PackedAdapters:
    """Packs the ranks of each (places, first output, block)."""
    downs, ups, segments = [], [], []
    first = offset = 0
    for places, start, block in parts:
        downs.append(_take(block.down.a[:, block.start : block.end].t(), places))
        up = pack_weight(_take(block.b, places).t(), RANK_BLOCK)
        ups.append(up)
        segments.append([first, len(places), start, up.outputs, offset])
        first += len(places)
        offset += up.values.numel()
    return PackedAdapters(
        down=pack_weight(torch.cat(downs), group.weight.block),
        up=torch.cat([up.values.flatten() for up in ups]),
        up_scales=torch.cat([up.scales.flatten() for up in ups]),
        segments=torch.tensor(segments, dtype=torch.int64),
        ranks=first,
    )
