"""Cross entropy from hidden states, a block of positions at a time: the logits of all are never held.

    nats = sum over targets (p, t) of count * (logsumexp(W h_p) - W_t h_p)

The gradient of the hidden states is computed with the loss, while the logits of a block are there, so that
each product with the head is computed once. A position may have several targets, each with its count
(`core.data.tokens.prefix_tree`).

Letters: P positions, H hidden size, V vocabulary, K targets.

Source: the fused linear cross entropy of Liger Kernel, Hsu et al. 2024, arXiv 2410.10989.
"""

from __future__ import annotations

from typing import Any

import torch

from core.train.memory import BLOCK_BYTES

MIN_BLOCK = 32  # positions, so that the products stay efficient with large vocabularies


class HeadLoss(torch.autograd.Function):  # type: ignore[misc]
    """The summed nats of targets under a frozen head.

    Args of `apply`:
        hidden: (P, H).
        weight: (V, H). bias: (V,) or None.
        rows: (K,) the position of each target, ascending. tokens: (K,) its token. counts: (K,) floats.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        rows: torch.Tensor,
        tokens: torch.Tensor,
        counts: torch.Tensor,
    ) -> torch.Tensor:
        positions = len(hidden)
        size = max(MIN_BLOCK, BLOCK_BYTES // (weight.shape[0] * hidden.element_size()))
        total = hidden.new_zeros(positions).index_add_(0, rows, counts)  # (P,)
        bounds = torch.searchsorted(rows, torch.arange(0, positions + size, size)).tolist()
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        nats = hidden.new_zeros(())
        buffers = [hidden.new_empty(min(size, positions), len(weight)) for _ in range(2)]
        for i, start in enumerate(range(0, positions, size)):
            block = hidden[start : start + size]
            logits, probabilities = (buffer[: len(block)] for buffer in buffers)
            torch.mm(block, weight.t(), out=logits)
            if bias is not None:
                logits.add_(bias)
            own = slice(bounds[i], bounds[i + 1])
            at = rows[own] - start, tokens[own]
            count = total[start : start + size]
            torch.softmax(logits, dim=-1, out=probabilities)  # ten times as fast as torch.logsumexp
            # the largest probability is exp(largest logit - logsumexp), and never underflows
            norm = logits.amax(-1) - probabilities.amax(-1).log()
            nats += torch.dot(norm, count) - torch.dot(logits[at], counts[own])
            if gradient is not None:
                if not bool((count == 1).all()):
                    probabilities.mul_(count.unsqueeze(1))
                probabilities.index_put_(at, -counts[own], accumulate=True)
                torch.mm(probabilities, weight, out=gradient[start : start + size])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return nats

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (d_nats,) = outputs
        (gradient,) = ctx.saved_tensors
        return gradient * d_nats, None, None, None, None, None
