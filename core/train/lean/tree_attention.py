"""Attention in a prefix tree: every node attends to the nodes on its path.

The nodes that a branch added ask; the nodes on its path answer. Branches of similar length are computed
together, padded to the longest, with a mask:

    branch with 4 own nodes, path of 7        keys  0 1 2 | 6 7 8 9
                                   query 6          x x x | x . . .
                                   query 7          x x x | x x . .
                                   query 8          x x x | x x x .
                                   query 9          x x x | x x x x

The backward computes the attention again from queries, keys and values, so that nothing else is kept. Short
branches take plain batched products, which cost a third of the fused attention there; long ones the fused
attention, which never holds their scores.

Letters: N nodes, H heads, G heads of keys and values, D size of a head, n branches of a bucket, Q own nodes
and K nodes on the path of the longest one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from core.data.tokens.prefix_tree import Branch

NAME = "studio_prefix_tree"  # among transformers' attention functions
SIMILAR = 0.7  # the shortest branch of a bucket, as a share of the longest
BUCKET_SCORES = 1 << 17  # n x Q x K of a bucket of several branches, so that its scores stay small
FUSED_SCORES = 1 << 16  # Q x K from which the fused attention takes over
WITHOUT_EFFECT = ("position_ids", "past_key_values", "use_cache", "output_attentions", "cache_position")


@dataclass(frozen=True, eq=False)
class Bucket:
    """Branches of similar length.

    Attributes:
        queries: (n, Q) nodes. keys: (n, K) nodes.
        own: (n, Q) whether a query is one, and not padding.
        distance: (n, Q, K) positions from a key to a query; negative where the key comes later.
        bias: (n, 1, 1, Q, K) 0 where a query attends to a key, and minus infinity elsewhere.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    own: torch.Tensor
    distance: torch.Tensor
    bias: torch.Tensor


def make_buckets(branches: Sequence[Branch]) -> list[Bucket]:
    """Buckets of branches of similar length."""
    order = sorted(branches, key=lambda b: (-(b.end - b.start), -len(b.path)))
    buckets: list[Bucket] = []
    members: list[Branch] = []
    for branch in order:
        if members and not _fits(members, branch):
            buckets.append(_make_bucket(members))
            members = []
        members.append(branch)
    return [*buckets, _make_bucket(members)] if members else buckets


def _fits(members: Sequence[Branch], branch: Branch) -> bool:
    """Whether a branch, not longer than the members, joins their bucket."""
    queries = members[0].end - members[0].start
    shortest, longest = (f(len(b.path) for b in (*members, branch)) for f in (min, max))
    is_similar = branch.end - branch.start >= SIMILAR * queries and shortest >= SIMILAR * longest
    return is_similar and (len(members) + 1) * queries * longest <= BUCKET_SCORES


def _make_bucket(members: Sequence[Branch]) -> Bucket:
    own = torch.tensor([b.end - b.start for b in members])
    lengths = torch.tensor([len(b.path) for b in members])
    size, longest = int(own.max()), int(lengths.max())
    keys = torch.tensor([[*b.path, *[b.path[0]] * (longest - len(b.path))] for b in members])
    steps = torch.arange(size)
    is_own = steps < own[:, None]
    queries = torch.where(is_own, torch.tensor([b.start for b in members])[:, None] + steps, 0)
    # padded queries stand at the end of the path, so that each of them attends to something
    places = torch.minimum((lengths - own)[:, None] + steps, lengths[:, None] - 1)
    distance = places[:, :, None] - torch.arange(longest)
    return Bucket(queries, keys, is_own, distance, _to_bias(distance >= 0))


def _to_bias(allowed: torch.Tensor) -> torch.Tensor:
    """allowed (n, Q, K) -> (n, 1, 1, Q, K)."""
    return torch.zeros(allowed.shape).masked_fill_(~allowed, -torch.inf)[:, None, None]


_buckets: ContextVar[Sequence[Bucket]] = ContextVar("buckets")


@contextmanager
def attend_to(buckets: Sequence[Bucket]) -> Iterator[None]:
    """Gives the attention of all layers the buckets of a batch, for a forward inside."""
    token = _buckets.set(buckets)
    try:
        yield
    finally:
        _buckets.reset(token)


class TreeAttention(torch.autograd.Function):  # type: ignore[misc]
    """q (H, N, D), k and v (G, N, D) -> (N, H, D)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        buckets: Sequence[Bucket],
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        q, k, v = (t.transpose(0, 1).contiguous() for t in (q, k, v))
        ctx.buckets, ctx.scaling, ctx.window = buckets, scaling, window
        ctx.save_for_backward(q, k, v)
        out = torch.empty_like(q)
        for bucket in buckets:
            parts = q[bucket.queries], k[bucket.keys], v[bucket.keys]
            attend = _attend if _is_short(bucket) else _fuse_attention
            out[bucket.queries[bucket.own]] = attend(*parts, _bias(bucket, window), scaling)[bucket.own]
        return out

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (d_out,) = outputs
        q, k, v = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for bucket in ctx.buckets:
            queries, keys = bucket.queries, bucket.keys
            d_part = d_out[queries].mul_(bucket.own[:, :, None, None])
            differentiate = _differentiate if _is_short(bucket) else _differentiate_fusion
            of_q, of_k, of_v = differentiate(
                q[queries], k[keys], v[keys], _bias(bucket, ctx.window), ctx.scaling, d_part
            )
            dq[queries[bucket.own]] = of_q[bucket.own]
            dk.index_add_(0, keys.flatten(), of_k.flatten(0, 1))
            dv.index_add_(0, keys.flatten(), of_v.flatten(0, 1))
        return (*(t.transpose(0, 1) for t in (dq, dk, dv)), None, None, None)


def _is_short(bucket: Bucket) -> bool:
    return bool(bucket.queries.shape[1] * bucket.keys.shape[1] < FUSED_SCORES)


def _bias(bucket: Bucket, window: int | None) -> torch.Tensor:
    """The bias of a bucket, in a layer that sees `window` positions back, or all."""
    if window is None or window >= bucket.keys.shape[1]:
        return bucket.bias
    return _to_bias((bucket.distance >= 0) & (bucket.distance < window))


def _stack_heads(q: torch.Tensor, groups: int) -> torch.Tensor:
    """(n, Q, H, D) -> (n G, H/G Q, D): the heads that share keys and values stand below each other."""
    n, length, heads, size = q.shape
    return (
        q.view(n, length, groups, heads // groups, size).permute(0, 2, 3, 1, 4).reshape(n * groups, -1, size)
    )


def _unstack_heads(stacked: torch.Tensor, n: int, length: int) -> torch.Tensor:
    """(n G, H/G Q, D) -> (n, Q, H, D)."""
    size = stacked.shape[-1]
    by_head = stacked.view(n, stacked.shape[0] // n, -1, length, size)
    return by_head.permute(0, 3, 1, 2, 4).reshape(n, length, -1, size)


def _probabilities(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor, scaling: float) -> torch.Tensor:
    """q (n G, H/G Q, D), k (n G, K, D) -> (n G, H/G Q, K)."""
    scores = torch.bmm(q, k.transpose(1, 2)).mul_(scaling)
    n, _, _, queries, keys = bias.shape
    scores.view(n, len(q) // n, -1, queries, keys).add_(bias)
    return torch.softmax(scores, dim=-1)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scaling: float
) -> torch.Tensor:
    """q (n, Q, H, D), k and v (n, K, G, D) -> (n, Q, H, D)."""
    n, length, groups = len(q), q.shape[1], k.shape[2]
    q, k, v = (_stack_heads(t, groups) for t in (q, k, v))
    return _unstack_heads(torch.bmm(_probabilities(q, k, bias, scaling), v), n, length)


def _differentiate(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scaling: float, d_out: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The gradients of q, k and v, in the shapes of `_attend`."""
    n, queries, keys, groups = len(q), q.shape[1], k.shape[1], k.shape[2]
    q, k, v, d_out = (_stack_heads(t, groups) for t in (q, k, v, d_out))
    p = _probabilities(q, k, bias, scaling)
    dv = torch.bmm(p.transpose(1, 2), d_out)
    ds = torch.bmm(d_out, v.transpose(1, 2)).mul_(p)  # p * dp
    ds.sub_(p.mul_(ds.sum(-1, keepdim=True))).mul_(scaling)
    dq, dk = torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q)
    return _unstack_heads(dq, n, queries), _unstack_heads(dk, n, keys), _unstack_heads(dv, n, keys)


def _fuse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scaling: float
) -> torch.Tensor:
    """As `_attend`, by the fused attention of torch."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if (repeats := q.shape[1] // k.shape[1]) > 1:
        k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, :, 0], scale=scaling)
    return out.transpose(1, 2)


def _differentiate_fusion(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, scaling: float, d_out: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    parts = q, k, v
    with torch.enable_grad():
        for part in parts:
            part.requires_grad_()
        out = _fuse_attention(q, k, v, bias, scaling)
    return tuple(torch.autograd.grad(out, parts, d_out))


def _attention_function(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' models call it: (1, H, N, D) -> (1, N, H, D).

    Raises:
        NotImplementedError: the model wants something that is not computed here.
    """
    others = {k: v for k, v in others.items() if k != "output_router_logits" or v}  # of a mixture of experts
    unknown = [k for k, value in others.items() if value is not None and k not in WITHOUT_EFFECT]
    if unknown or dropout or attention_mask is not None or not getattr(module, "is_causal", True):
        raise NotImplementedError(f"attention with {', '.join(unknown) or 'dropout, a mask or no order'}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = TreeAttention.apply(query[0], key[0], value[0], _buckets.get(), scaling, sliding_window)
    return out[None], None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention_function)
