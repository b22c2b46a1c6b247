"""The gradients of the functions that take the place of a model's modules, against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional

from core.data.tokens.prefix_tree import build_tree
from core.train.lean import head_loss, tree_attention
from core.train.lean.head_loss import HeadLoss
from core.train.lean.projections import GatedFeedForward, LoraProjection, Projection, RmsNorm
from core.train.lean.tree_attention import TreeAttention, make_buckets

torch.set_default_dtype(torch.float32)


def draw(*shape: int, trained: bool = True) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(trained)


def make_projection(size: int, out: int, frozen: bool = False, bias: bool = False) -> Projection:
    """A layer with one trained adapter, and with a frozen one before it."""
    ranks = [(2, False), (3, True)] if frozen else [(3, True)]
    factors = [
        t for r, trained in ranks for t in (draw(r, size, trained=trained), draw(out, r, trained=trained))
    ]
    scalings = (0.5, 2.0)[-len(ranks) :]
    offset = draw(out, trained=False) if bias else None
    return Projection(draw(out, size, trained=False), offset, tuple(factors), scalings, (0.0,) * len(ranks))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_of_a_layer_with_adapters_is_exact(frozen: bool) -> None:
    torch.manual_seed(0)
    layer = make_projection(4, 5, frozen, bias=True)
    x = draw(2, 3, 4)
    assert gradcheck(lambda x, *f: LoraProjection.apply(x, layer, *f), (x, *layer.factors))
    delta = sum(
        s * x @ layer.factors[2 * i].t() @ layer.factors[2 * i + 1].t() for i, s in enumerate(layer.scalings)
    )
    y = functional.linear(x, layer.weight, layer.bias) + delta
    assert torch.allclose(LoraProjection.apply(x, layer, *layer.factors), y)
    # inputs that need no gradient, as in a base's first layer
    assert gradcheck(lambda *f: LoraProjection.apply(x.detach(), layer, *f), layer.factors)


def test_dropout_applies_to_the_inputs_of_the_adapter_only() -> None:
    torch.manual_seed(0)
    plain = make_projection(40, 50)
    layer = Projection(plain.weight, None, plain.factors, plain.scalings, (0.5,))
    x = draw(30, 40)
    torch.manual_seed(1)
    y = LoraProjection.apply(x, layer, *layer.factors)
    torch.manual_seed(1)
    seen = functional.dropout(x, 0.5, training=True)
    a, b = layer.factors
    expected = functional.linear(x, layer.weight) + layer.scalings[0] * seen @ a.t() @ b.t()
    assert torch.allclose(y, expected)
    upstream = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, (x, a, b), upstream),
        torch.autograd.grad(expected, (x, a, b), upstream),
        strict=True,
    ):
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("activation", [functional.silu, lambda g: functional.gelu(g, approximate="tanh")])
def test_the_gradient_of_a_gated_feed_forward_is_exact(activation) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    layers = [make_projection(3, 4), make_projection(3, 4, True), make_projection(4, 3)]
    factors = [f for layer in layers for f in layer.factors]
    x = draw(2, 2, 3)
    assert gradcheck(lambda x, *f: GatedFeedForward.apply(x, layers, activation, *f), (x, *factors))
    gate, up = (LoraProjection.apply(x, layer, *layer.factors) for layer in layers[:2])
    y = LoraProjection.apply(activation(gate) * up, layers[2], *layers[2].factors)
    assert torch.allclose(GatedFeedForward.apply(x, layers, activation, *factors), y)


def test_the_gradient_of_rms_norm_is_exact() -> None:
    torch.manual_seed(0)
    x, weight = draw(2, 3, 5), draw(5, trained=False)
    assert gradcheck(lambda x: RmsNorm.apply(x, weight, 1e-3), (x,))
    assert torch.allclose(RmsNorm.apply(x, weight, 1e-3), functional.rms_norm(x, (5,), weight, 1e-3))


def test_the_loss_in_blocks_equals_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(head_loss, "BLOCK_BYTES", 0)
    monkeypatch.setattr(head_loss, "MIN_BLOCK", 2)
    hidden, weight, bias = draw(5, 4), draw(9, 4, trained=False), draw(9, trained=False)
    rows, tokens = torch.tensor([0, 0, 1, 2, 3, 4]), torch.tensor([1, 3, 8, 0, 3, 3])
    counts = torch.tensor([1.0, 3, 1, 2, 1, 1], dtype=torch.float64)
    logits = functional.linear(hidden, weight, bias)
    expected = torch.dot(functional.cross_entropy(logits[rows], tokens, reduction="none"), counts)
    nats = HeadLoss.apply(hidden, weight, bias, rows, tokens, counts)
    assert torch.allclose(nats, expected)
    assert torch.allclose(torch.autograd.grad(nats, hidden)[0], torch.autograd.grad(expected, hidden)[0])


SEQUENCES = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 9], [1, 2, 3, 9, 8, 7, 7], [5, 5], [1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("fused", [False, True])
def test_attention_in_a_tree_is_that_of_each_sequence(
    monkeypatch: pytest.MonkeyPatch, window: int | None, fused: bool
) -> None:
    torch.manual_seed(0)
    if fused:
        monkeypatch.setattr(tree_attention, "FUSED_SCORES", 0)
    tree = build_tree([([*ids, 0], [True] * (len(ids) + 1)) for ids in SEQUENCES])
    buckets = make_buckets(tree.branches)
    for bucket in buckets:
        object.__setattr__(bucket, "bias", bucket.bias.double())
    monkeypatch.setattr(tree_attention, "_bias", _double(tree_attention._bias))
    q, k, v = draw(4, len(tree.ids), 2), draw(2, len(tree.ids), 2), draw(2, len(tree.ids), 2)
    out = TreeAttention.apply(q, k, v, buckets, 0.7, window)
    for branch in tree.branches:
        steps = torch.arange(len(branch.path))
        distance = steps[:, None] - steps
        allowed = (distance >= 0) & (distance < (window or 99))
        alone = functional.scaled_dot_product_attention(
            q[:, branch.path],
            k[:, branch.path].repeat_interleave(2, 0),
            v[:, branch.path].repeat_interleave(2, 0),
            attn_mask=allowed,
            scale=0.7,
        )
        assert torch.allclose(out[branch.path], alone.transpose(0, 1))
    assert gradcheck(lambda q, k, v: TreeAttention.apply(q, k, v, buckets, 0.7, window), (q, k, v))


def _double(function):  # type: ignore[no-untyped-def]
    return lambda *args: function(*args).double()
