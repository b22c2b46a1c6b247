"""Results from low-rank factors equal those of the dense product, at any shapes and ranks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.model.low_rank import (
    Factors,
    chance_cosine,
    chance_overlap,
    concat,
    cosine,
    distance,
    inner_product,
    norm,
    overlap,
    pad,
    space_overlaps,
    svd,
    truncate,
)


def random_delta(outputs: int, inputs: int, rank: int, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
    )


def dense(pair: Factors) -> torch.Tensor:
    return pair.b.double() @ pair.a.double()


SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24))
RANKS = st.lists(st.integers(1, 30), min_size=1, max_size=4)  # a rank may be larger than the layer
CHECKED = settings(max_examples=80, deadline=None)


@CHECKED
@given(shape=SHAPES, ranks=st.tuples(st.integers(1, 30), st.integers(1, 30)), seed=st.integers(0, 999))
def test_inner_product_norm_cosine_and_distance_equal_the_dense_ones(
    shape: tuple[int, int], ranks: tuple[int, int], seed: int
) -> None:
    x, y = random_delta(*shape, ranks[0], seed), random_delta(*shape, ranks[1], seed + 1)
    size = float(dense(x).norm() * dense(y).norm())
    assert abs(inner_product(x, y) - float((dense(x) * dense(y)).sum())) <= 1e-9 * size
    assert norm(x) == pytest.approx(float(dense(x).norm()), rel=1e-10)
    assert cosine(x, y) == pytest.approx(float((dense(x) * dense(y)).sum()) / size, abs=1e-9)
    assert distance(x, y) == pytest.approx(float((dense(x) - dense(y)).norm()), rel=1e-10)


@CHECKED
@given(
    shape=SHAPES,
    ranks=RANKS,
    seed=st.integers(0, 999),
    weights=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
)
def test_concat_is_the_signed_weighted_sum(
    shape: tuple[int, int], ranks: list[int], seed: int, weights: list[float]
) -> None:
    parts = [random_delta(*shape, r, seed + i) for i, r in enumerate(ranks)]
    whole = concat([p.scale(w) for p, w in zip(parts, weights)])
    expected = sum(w * dense(p) for p, w in zip(parts, weights))
    assert whole.rank == sum(ranks)
    assert (dense(whole) - expected).abs().max() <= 1e-10


@CHECKED
@given(shape=SHAPES, ranks=RANKS, rank=st.integers(1, 30), seed=st.integers(0, 999))
def test_truncate_is_the_best_approximation_and_reports_its_loss(
    shape: tuple[int, int], ranks: list[int], rank: int, seed: int
) -> None:
    whole = concat([random_delta(*shape, r, seed + i) for i, r in enumerate(ranks)])
    small, lost = truncate(whole, rank)
    u, s, vh = torch.linalg.svd(dense(whole), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    assert small.rank == rank
    assert (dense(small) - best).norm() <= 1e-8 * s.norm()
    assert lost == pytest.approx(float(s[rank:].square().sum() / s.square().sum()), abs=1e-12)
    assert distance(whole, small) ** 2 == pytest.approx(
        lost * norm(whole) ** 2, abs=1e-9 * float(s.norm()) ** 2
    )


@CHECKED
@given(shape=SHAPES, ranks=st.tuples(st.integers(1, 8), st.integers(1, 8)), seed=st.integers(0, 999))
def test_space_overlaps_equal_those_of_dense_projections(
    shape: tuple[int, int], ranks: tuple[int, int], seed: int
) -> None:
    x, y = random_delta(*shape, ranks[0], seed), random_delta(*shape, ranks[1], seed + 1)
    columns, rows = space_overlaps(svd(x), svd(y))
    few = min(svd(x).rank, svd(y).rank)
    for share, (m, n) in ((columns, (dense(x), dense(y))), (rows, (dense(x).T, dense(y).T))):
        # Of two projectors P and Q, trace(P Q) is the sum of squared cosines.
        p, q = (k @ torch.linalg.pinv(k, rtol=1e-6) for k in (m, n))
        assert share == pytest.approx(float((p @ q).trace()) / few, abs=1e-6)


def test_overlap_of_nested_orthogonal_and_45_degree_subspaces() -> None:
    e = torch.eye(4, dtype=torch.float64)
    half = ((e[0] + e[2]) / math.sqrt(2))[:, None]
    assert overlap(e[:, :1], e[:, :3]) == 1.0
    assert overlap(e[:, :2], e[:, 2:]) == 0.0
    assert overlap(e[:, :1], half) == pytest.approx(0.5)


def test_zero_padding_does_not_count_as_directions() -> None:
    x = random_delta(12, 9, 3, 0)
    wide = pad(x, 8)
    assert svd(wide).rank == 3
    assert space_overlaps(svd(wide), svd(x)) == pytest.approx((1.0, 1.0))


def test_chance_levels_match_random_deltas() -> None:
    overlaps = [
        space_overlaps(svd(random_delta(64, 40, 4, s)), svd(random_delta(64, 40, 6, s + 10_000)))
        for s in range(300)
    ]
    columns, rows = (sum(o[i] for o in overlaps) / len(overlaps) for i in (0, 1))
    assert columns == pytest.approx(chance_overlap(64, 4, 6), rel=0.05)
    assert rows == pytest.approx(chance_overlap(40, 4, 6), rel=0.05)
    cosines = [cosine(random_delta(64, 40, 4, s), random_delta(64, 40, 6, s + 10_000)) for s in range(300)]
    assert math.sqrt(sum(c * c for c in cosines) / 300) == pytest.approx(chance_cosine((64, 40)), rel=0.15)


def test_a_zero_delta_has_rank_0_and_no_division_by_zero() -> None:
    x, zero = random_delta(6, 5, 2, 0), Factors(torch.randn(2, 5), torch.zeros(6, 2))
    assert cosine(x, zero) == 0.0
    assert svd(zero).rank == 0
    assert space_overlaps(svd(x), svd(zero)) == (0.0, 0.0)
    assert truncate(zero, 2)[1] == 0.0


def test_deltas_of_different_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="belong to different layers"):
        inner_product(random_delta(4, 5, 2, 0), random_delta(5, 4, 2, 0))
    with pytest.raises(ValueError, match="at least one"):
        concat([])
