"""The adapters of the active mix, packed for `core.model.fast_decoding`.

Only ranks whose weight is not 0 in some row are packed, in 8 bits like the base. They are packed again when
another adapter is switched on; a change of weights alone replaces the rows `s`. The adapter in training is
not packed: its tensors change at every optimizer step, so its product is computed from them in fp32.

```
ranks of a group   | query: on, padded to 16 | key: ... | value: ... |      A: one product for the group
segments             each adds its B (s ⊙ ranks) to the outputs of one projection
```

Letters: B rows, N tokens, R packed ranks of a group, I inputs, O outputs.
"""

from __future__ import annotations

import functools
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
        active = [((part != 0).any(0), part, start, block, k) for start, block, part, k in resting]
        active = [entry for entry in active if bool(entry[0].any())]
        if active:
            signature = tuple(bytes(mask.to(torch.uint8).tolist()) for mask, *_ in active)
            kept = self._packed.setdefault(key, {})
            which = tuple((s, id(b), mask) for (_, _, s, b, _), mask in zip(active, signature, strict=True))
            packed = kept.pop(which, None) or _pack(group, [(m, s, b) for m, _, s, b, _ in active])
            kept[which] = plan.packed = packed
            if len(kept) > KEPT:
                del kept[next(iter(kept))]
            name = tuple((k, s) for (*_, k), s in zip(active, signature, strict=True))
            if name not in shared:
                shared[name] = torch.cat(
                    [
                        torch.nn.functional.pad(part[:, mask], (0, -int(mask.sum()) % RANK_BLOCK))
                        for mask, part, *_ in active
                    ],
                    dim=1,
                ).contiguous()
            plan.rows = shared[name]
        return plan if plan.packed is not None or plan.live else None


def _pack(group: PackedGroup, parts: list[tuple[torch.Tensor, int, LoraBlock]]) -> PackedAdapters:
    """Packs the ranks of each (mask, first output, block)."""
    downs, ups, segments = [], [], []
    first = offset = 0
    for mask, start, block in parts:
        count = int(mask.sum())
        padding = -count % RANK_BLOCK
        a = block.down.a[:, block.start : block.end][:, mask].t()
        downs.append(torch.nn.functional.pad(a, (0, 0, 0, padding)))
        up = pack_weight(torch.nn.functional.pad(block.b[mask].t(), (0, padding)), RANK_BLOCK)
        ups.append(up)
        segments.append([first, count + padding, start, up.outputs, offset])
        first += count + padding
        offset += up.values.numel()
    return PackedAdapters(
        down=pack_weight(torch.cat(downs), group.weight.block),
        up=torch.cat([up.values.flatten() for up in ups]),
        up_scales=torch.cat([up.scales.flatten() for up in ups]),
        segments=torch.tensor(segments, dtype=torch.int64),
        ranks=first,
    )
