"""The rank-space product: what a layer's adapters add to its output, under a different mix in every row.

For a layer with adapters j of rank r_j, and B rows of a batch:

```
y[b] = W x[b] + sum_j weight[b, j] · scaling_j · B_j (A_j x[b])             A_j: (r_j, I)   B_j: (O, r_j)

     = W x[b] + B_cat · (s[b] ⊙ (A_cat x[b]))                               A_cat: (R, I)   B_cat: (O, R)
```

A_cat x[b] lies in *rank space*: one number per rank of every adapter. There a mix is a diagonal, s[b], so all
rows share two matrix products, whatever their mixes, and changing a mix changes B x R numbers.

```
                 adapter 0    adapter 1          adapter 2
rank space    | r0 r0 r0 r0 | r1 r1 r1 r1 r1 | r2 r2 |          R = sum of the ranks
s[b]          | w0 w0 w0 w0 | w1 w1 w1 w1 w1 | w2 w2 |          each weight times its adapter's scaling
```

The result equals peft's forward with the same adapters active and scaled. Which rank belongs to which adapter
is `core.model.mix_layout`; where the product enters a layer's forward is `core.model.peft_patch`.

Letters: B rows, T tokens, R total rank of a block, I inputs, O outputs of a layer, D depths (of layers), P
points.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from core.errors import AdapterError


@dataclass(frozen=True, eq=False)
class ActiveMix:
    """The mixes of a whole batch, expanded to rank space.

    Attributes:
        weights: (B, adapters), or (P, B, adapters) for P points spread evenly from the first layer to the
            last.
        tilt: (B, adapters) or None; the weights of layer l of L are weights * (1 + tilt * (2 l/(L-1) - 1)).
        rows: [columns][depth] -> s, (B, 1, R), or (1, 1, R) when all rows are equal; None where every weight
            is 0.
        count: B, or 1 when all rows are equal.
        alone: peft's name of an adapter with weights of its own (`core.model.own_weights`) -> its rows.
    """

    weights: torch.Tensor
    tilt: torch.Tensor | None
    rows: list[list[torch.Tensor | None]]
    count: int
    alone: dict[str, list[int]] = field(default_factory=dict)


@dataclass(eq=False)
class DownProjection:
    """The first product, A_cat x, of one layer or of several layers that read the same input.

    Attributes:
        a: A_cat^T, (I, R), the ranks of all its layers, one layer after the other.
        columns: the index of its `RankColumns` in the mixer.
        is_routed: the layer belongs to one expert of many, and gets tokens without their rows.
        readers: how many layers read each product.
        is_trainee: its adapter is in training, so `a` changes with every optimizer step.
        pending: how many of them have yet to read `inner`, which was computed from `x` under `mix`.
    """

    a: torch.Tensor
    columns: int
    is_routed: bool = False
    readers: int = 1
    is_trainee: bool = False
    pending: int = 0
    x: torch.Tensor | None = None
    mix: ActiveMix | None = None
    inner: torch.Tensor | None = None

    def project(self, x: torch.Tensor, mix: ActiveMix, rows: torch.Tensor) -> torch.Tensor:
        """Computes s ⊙ (A_cat x).

        Args:
            x: (…, I). Its first dimension is a multiple of `mix.count`: with k times as many rows (beams,
                several answers per prompt, flattened tokens), each row of the mix applies to k consecutive
                rows of x.
            rows: s, (B, 1, R) or (1, 1, R).

        Returns:
            (rows x tokens, R)

        Raises:
            AdapterError: the rows of the mix cannot be assigned to the rows of x. They are never broadcast.
        """
        if self.is_routed and mix.count > 1:
            raise AdapterError(
                "The experts of this model are separate layers, which get tokens without their rows.",
                "Use one mix at a time.",
            )
        if mix.count > 1 and len(x) % mix.count:
            raise AdapterError(
                f"A layer got {tuple(x.shape[:-1])} rows and tokens, and the mix has {mix.count} rows.",
                "Give a multiple of the mix's rows, or one mix for all.",
            )
        a, width = self.a, self.a.shape[1]
        inner = torch.mm((x if x.dtype is a.dtype else x.to(a.dtype)).reshape(-1, a.shape[0]), a)
        rows = rows if rows.dtype is inner.dtype else rows.to(inner.dtype)
        by_row = inner.view(mix.count, len(inner) // mix.count, width)  # (rows of the mix, their tokens, R)
        inner = by_row * rows if inner.requires_grad or rows.requires_grad else by_row.mul_(rows)
        inner = inner.view(-1, width)
        if self.readers > 1:
            self.x, self.mix, self.inner, self.pending = x, mix, inner, self.readers
        return inner


@dataclass(eq=False)
class LoraBlock:
    """The adapters of one layer that share one pair of products.

    Attributes:
        down: the first product; columns `start` to `end` of it are this block's.
        b: B_cat^T, (R, O). Training changes the values of `b` and of `down.a`, and never replaces the
            tensors.
    """

    down: DownProjection
    start: int
    end: int
    b: torch.Tensor

    def add(self, y: torch.Tensor, x: torch.Tensor, mix: ActiveMix, depth: int) -> torch.Tensor:
        """Computes y + B_cat (s ⊙ (A_cat x)).

        Args:
            y: (…, O) the base layer's output. It is written in place where neither a gradient nor rounding
                forbids it.
            x: (…, I) the layer's input.
            depth: the index of the layer's depth in the mixer.

        Returns:
            (…, O)
        """
        down = self.down
        rows = mix.rows[down.columns][depth]
        if rows is None:
            return y
        inner = down.inner if down.pending and down.x is x and down.mix is mix else down.project(x, mix, rows)
        assert inner is not None
        if down.readers > 1:
            inner = inner[:, self.start : self.end]
            down.pending -= 1
            if not down.pending:  # release the tensors, and their graph, after the last reader
                down.x = down.mix = down.inner = None
        if y.dtype is not self.b.dtype or y.requires_grad or inner.requires_grad or not y.is_contiguous():
            return y + torch.mm(inner, self.b).view(y.shape)  # 16-bit sums are rounded once, at the end
        y.view(-1, y.shape[-1]).addmm_(inner, self.b)
        return y
