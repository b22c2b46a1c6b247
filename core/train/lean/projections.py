"""Frozen linear layers with LoRA, gated feed-forwards and RMSNorm, each as one autograd function.

For a frozen layer W with adapters j, u_j = A_j x and s_j the scaling:

    y  = W x + sum_j s_j B_j u_j
    dx = W^T dy + sum_j s_j A_j^T (B_j^T dy)        dB_j = s_j dy u_j^T        dA_j = s_j (B_j^T dy) x^T

All products with A and B are in rank space, the sums are accumulated by the products themselves, and only x,
u_j and the masks of dropout are kept for the backward. A gated feed-forward keeps its two inner products;
the activation and the product of both are computed again. RMSNorm keeps one number for each token beside its
input.

Letters: T tokens, I inputs, O outputs of a layer, r rank.

Source: LoRA, Hu et al. 2021, arXiv 2106.09685; RMSNorm, Zhang and Sennrich 2019, arXiv 1910.07467.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Gradients = list[torch.Tensor | None]


@dataclass(frozen=True, eq=False)
class Projection:
    """A frozen linear layer and the adapters that are active on it.

    Attributes:
        weight: (O, I). bias: (O,) or None.
        factors: A (r, I) and B (O, r) of every adapter, one after the other.
        scalings: of every adapter.
        dropouts: the dropout probability of the inputs of every adapter.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    factors: tuple[torch.Tensor, ...]
    scalings: tuple[float, ...]
    dropouts: tuple[float, ...]

    @property
    def inner_count(self) -> int:
        """How many tensors of a pass the backward needs beside x."""
        return len(self.scalings) + sum(p > 0 for p in self.dropouts)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """x (T, I) -> y (T, O), and of every adapter u (T, r), after its mask if it has dropout."""
        transposed = self.weight.t()
        y = torch.mm(x, transposed) if self.bias is None else torch.addmm(self.bias, x, transposed)
        inner = []
        for i, (scaling, dropout) in enumerate(zip(self.scalings, self.dropouts, strict=True)):
            seen = x
            if dropout:
                seen, mask = torch.native_dropout(x, dropout, True)
                inner.append(mask)
            u = torch.mm(seen, self.factors[2 * i].t())
            y.addmm_(u, self.factors[2 * i + 1].t(), alpha=scaling)
            inner.append(u)
        return y, inner

    def backward(
        self,
        dy: torch.Tensor,
        x: torch.Tensor,
        inner: Sequence[torch.Tensor],
        dx: torch.Tensor | None = None,
        needs_dx: bool = True,
    ) -> tuple[torch.Tensor | None, Gradients]:
        """The gradients of x and of the factors; None for factors that are frozen.

        Args:
            dy: (T, O).
            x, inner: the input of `forward`, and what it returned.
            dx: (T, I) to which the gradient of x is added in place; None starts from zero.
            needs_dx: whether the gradient of x is needed.
        """
        if needs_dx:
            dx = torch.mm(dy, self.weight) if dx is None else dx.addmm_(dy, self.weight)
        gradients: Gradients = []
        rest = iter(inner)
        for i, (scaling, dropout) in enumerate(zip(self.scalings, self.dropouts, strict=True)):
            a, b = self.factors[2 * i : 2 * i + 2]
            mask = next(rest) if dropout else None
            u = next(rest)
            if not needs_dx and not a.requires_grad and not b.requires_grad:
                gradients += [None, None]
                continue
            du = torch.mm(dy, b).mul_(scaling)  # (T, r)
            if needs_dx and dx is not None:
                if mask is None:
                    dx.addmm_(du, a)
                else:
                    dx.addcmul_(torch.mm(du, a), mask.to(du.dtype), value=1 / (1 - dropout))
            of_a = of_b = None
            if a.requires_grad:
                seen = x if mask is None else (x * mask).mul_(1 / (1 - dropout))
                of_a = torch.mm(du.t(), seen)
            if b.requires_grad:
                of_b = torch.mm(dy.t(), u).mul_(scaling)
            gradients += [of_a, of_b]
        return dx, gradients


class LoraProjection(torch.autograd.Function):  # type: ignore[misc]
    """y = W x + sum of the adapters; x (..., I) -> (..., O)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Projection, *factors: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y, inner = layer.forward(flat)
        ctx.layer = layer
        ctx.save_for_backward(flat, *inner)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (dy,) = outputs
        x, *inner = ctx.saved_tensors
        needs_dx = ctx.needs_input_grad[0]
        dx, gradients = ctx.layer.backward(dy.reshape(-1, dy.shape[-1]), x, inner, needs_dx=needs_dx)
        return (dx.view(*dy.shape[:-1], -1) if needs_dx else None, None, *gradients)


class GatedFeedForward(torch.autograd.Function):  # type: ignore[misc]
    """down(activation(gate x) * up x); x (..., I) -> (..., O)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        layers: Sequence[Projection],
        activation: Callable[[torch.Tensor], torch.Tensor],
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        gate, up, down = layers
        flat = x.reshape(-1, x.shape[-1])
        g, inner_gate = gate.forward(flat)
        u, inner_up = up.forward(flat)
        product = activation(g).mul_(u)
        y, inner_down = down.forward(product)
        ctx.layers, ctx.activation = layers, activation
        ctx.save_for_backward(flat, g, u, *inner_gate, *inner_up, *inner_down)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (dy,) = outputs
        x, g, u, *inner = ctx.saved_tensors
        gate, up, down = ctx.layers
        first, second = gate.inner_count, gate.inner_count + up.inner_count
        needs_dx = ctx.needs_input_grad[0]
        with torch.enable_grad():
            g = g.detach().requires_grad_()
            active = ctx.activation(g)
        product = active.detach() * u
        dp, of_down = down.backward(dy.reshape(-1, dy.shape[-1]), product, inner[second:])
        assert dp is not None
        du = torch.mul(dp, active.detach(), out=product)
        dx, of_up = up.backward(du, x, inner[first:second], needs_dx=needs_dx)
        (dg,) = torch.autograd.grad(active, g, dp.mul_(u))
        dx, of_gate = gate.backward(dg, x, inner[:first], dx=dx, needs_dx=needs_dx)
        dx = dx.view(*dy.shape[:-1], -1) if needs_dx and dx is not None else None
        return (dx, None, None, *of_gate, *of_up, *of_down)


class RmsNorm(torch.autograd.Function):  # type: ignore[misc]
    """x / sqrt(mean(x^2) + eps) * weight, for a frozen weight; x (..., I)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        size = x.shape[-1]
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(size).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (dy,) = outputs
        x, weight, scale = ctx.saved_tensors
        dx = dy * weight
        # the share of the gradient along x, which the norm removes
        along = torch.linalg.vecdot(dx, x).unsqueeze(-1).mul_(scale.pow(3)).div_(x.shape[-1])
        return dx.mul_(scale).sub_(x * along), None, None
