"""The layout of rank space: how A and B factors are concatenated, and which adapter each column belongs to.

Adapters that do not train are stored once, concatenated, and peft's own parameters become views of that:

```
            query layer               value layer
          | ad0, r=4 | ad1, r=7     | ad1, r=7     |
A_cat^T   | a a a a  | a a a a a a a| a a a a a a a|   (I, 18): one tensor, as both layers read the same input
columns   | 0 0 0 0  | 1 1 1 1 1 1 1| 1 1 1 1 1 1 1|   per rank, the column of the mix's weights
B_cat^T   | b b b b  | b b b b b b b|                  (11, O) of the query layer
B_cat^T                             | b b b b b b b|   ( 7, O) of the value layer
```

The adapter in training is a block of its own, which uses the optimizer's tensors as they are. A fused
optimizer needs contiguous tensors, and column slices of one large B are not contiguous. Its updates take
effect in mixes at once.

A weight can vary with the depth of a layer: 0 for the first layer of a stack, 1 for the last. A plain weight
is one point, a tilted weight two, fitted weights any number; layers between two points interpolate.

Letters: R total rank, I inputs, O outputs of a layer, B rows, D depths, P points.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.model.families import SAME_INPUT

# The stack of a layer and its index there: the first number in its path.
STACK_INDEX = re.compile(r"(?:(.*?)\.)?(\d+)(?:\.|$)")
# A layer of one expert. The router has sorted the tokens of all rows, so their rows are unknown there.
ROUTED = re.compile(r"(?:^|\.)experts\.\d+\.")
MIDDLE = 0.5  # the depth of a layer outside every stack

# LoRA layers that share a block, each with the names of its adapters in that block.
LayersWithAdapters = Sequence[tuple[Any, list[str]]]


@dataclass(frozen=True)
class RankColumns:
    """Which adapter each rank of a block belongs to. Layers with the same adapters share one of these.

    Attributes:
        adapters: per rank, the column of the mix's weights.
        scaling: per rank, the scaling of its adapter.
    """

    adapters: tuple[int, ...]
    scaling: tuple[float, ...]

    def expand(self, weights: torch.Tensor, device: torch.device) -> list[torch.Tensor | None]:
        """Repeats every adapter's weight over its ranks, times its scaling.

        Args:
            weights: (D, B, adapters).

        Returns:
            D times s, (B, 1, R); None where every weight is 0 and no gradient is needed, so the layer skips
            the block.
        """
        by_rank = weights[:, :, list(self.adapters)]
        scaled = (by_rank * by_rank.new_tensor(self.scaling)).unsqueeze(2)
        is_on = [True] * len(by_rank) if weights.requires_grad else by_rank.flatten(1).any(1).tolist()
        return [rows if on else None for rows, on in zip(scaled.to(device).unbind(), is_on, strict=True)]


def relative_depths(paths: Sequence[str], adapted: Sequence[str]) -> dict[str, float]:
    """Returns the relative depth of each layer with adapters: 0 for the first of its stack, 1 for the last.

    Args:
        paths: of all modules of the model.
        adapted: of the layers with adapters.
    """
    last: dict[str, int] = {}
    for path in paths:
        if match := STACK_INDEX.match(path):
            last[match[1]] = max(last.get(match[1], 0), int(match[2]))
    matches = {path: STACK_INDEX.match(path) for path in adapted}
    return {path: int(m[2]) / last[m[1]] if m and last[m[1]] else MIDDLE for path, m in matches.items()}


def interpolation_matrix(depths: Sequence[float], points: int) -> torch.Tensor:
    """Returns (D, P): the share of each of P evenly spread points in a depth, by linear interpolation."""
    share = torch.zeros(len(depths), points)
    for d, depth in enumerate(depths):
        low = min(int(depth * (points - 1)), points - 2)
        share[d, low + 1] = depth * (points - 1) - low
        share[d, low] = 1 - share[d, low + 1]
    return share


def group_by_input(layers: Mapping[str, Any]) -> list[list[str]]:
    """Groups the paths of LoRA layers; layers that may read the same input are in one group.

    The groups come from layer names (`families.SAME_INPUT`). `DownProjection` checks at every call whether
    the input really is the same tensor.
    """
    groups: dict[Any, list[str]] = {}
    for path, layer in layers.items():
        parent, _, leaf = path.rpartition(".")
        same = next((i for i, leaves in enumerate(SAME_INPUT) if leaf in leaves), None)
        groups.setdefault(path if same is None else (parent, same, layer.in_features), []).append(path)
    return list(groups.values())


def trainee_factors(parts: LayersWithAdapters) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Returns A^T (I, R) and [B^T (R, O)] of the adapter in training on one layer, as views."""
    ((layer, (name,)),) = parts
    return layer.lora_A[name].weight.detach().t(), [layer.lora_B[name].weight.detach().t()]


def concatenate_factors(parts: LayersWithAdapters) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Concatenates the factors of adapters that do not train; peft's parameters become views of the result.

    Returns:
        A_cat^T (I, R of all layers), and B_cat^T (R, O) of each layer.
    """
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
