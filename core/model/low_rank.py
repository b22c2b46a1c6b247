"""Algebra on low-rank updates by their two small factors; the product is never formed.

Knows pairs of matrices. Knows nothing of layers, adapters or files. Everything is computed in fp64,
whatever the factors are stored in.

Letters: O outputs, I inputs, r rank of a pair, k rank that is really there.

    update (O, I)  =  B (O, r) · A (r, I)

    B = Q_b R_b,  A^T = Q_a R_a   (thin QR)        B A = Q_b (R_b R_a^T) Q_a^T
                                                        └ r x r: its SVD is the update's SVD
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

NOISE = 1e-6  # singular values below this share of the largest are rounding of factors stored in fp32, not directions


@dataclass(frozen=True)
class Factors:
    """One low-rank update, with every scaling folded in.

    Attributes:
        a: (r, I). b: (O, r).
    """

    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        """The width of the factors; the rank that is really there may be lower."""
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I) of the update."""
        return self.b.shape[0], self.a.shape[1]

    def scale(self, weight: float) -> Factors:
        """The update times a number; its sign goes with A."""
        return Factors(self.a.double() * weight, self.b)


@dataclass(frozen=True)
class SVD:
    """The singular value decomposition of an update: `u · diag(s) · v^T`, largest first.

    Attributes:
        u: (O, r) orthonormal. s: (r,). v: (I, r) orthonormal. All fp64.
    """

    u: torch.Tensor
    s: torch.Tensor
    v: torch.Tensor

    @property
    def rank(self) -> int:
        """k: how many directions are more than rounding."""
        return int((self.s > NOISE * self.s.max()).sum()) if len(self.s) else 0


def svd(pair: Factors) -> SVD:
    """The exact SVD of an update from QR of its factors and an SVD of size r.

    Cost O((O + I) r^2), against O(O I min(O, I)) for the product (Golub & Van Loan, Matrix Computations, 5.4).
    """
    q_b, r_b = torch.linalg.qr(pair.b.double())
    q_a, r_a = torch.linalg.qr(pair.a.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return SVD(q_b @ u, s, q_a @ vh.T)


def inner_product(x: Factors, y: Factors) -> float:
    """`<B_x A_x, B_y A_y>` = sum((A_x A_y^T) * (B_x^T B_y)): the Frobenius inner product of two updates.

    Raises:
        ValueError: the updates have different shapes.
    """
    _same(x, y)
    return float(((x.a.double() @ y.a.double().T) * (x.b.double().T @ y.b.double())).sum())


def norm(pair: Factors) -> float:
    """The Frobenius norm of an update. By QR, so that parts that cancel are not drowned by rounding."""
    r_b = torch.linalg.qr(pair.b.double(), mode="r").R
    r_a = torch.linalg.qr(pair.a.double().T, mode="r").R
    return float(torch.linalg.matrix_norm(r_b @ r_a.T))


def cosine(x: Factors, y: Factors) -> float:
    """The cosine between two updates seen as long vectors, -1 to 1; 0 where one of them is zero."""
    return ratio(inner_product(x, y), norm(x) * norm(y))


def ratio(above: float, below: float) -> float:
    """A cosine's quotient, clamped to [-1, 1] against the last bit, 0 where there is nothing."""
    return max(-1.0, min(1.0, above / below)) if below > 0 else 0.0


def chance_cosine(shape: tuple[int, int]) -> float:
    """How large the cosine of two unrelated updates usually is: 1 / sqrt(O I), whatever their ranks."""
    return 1.0 / math.sqrt(shape[0] * shape[1])


def overlap(x: torch.Tensor, y: torch.Tensor) -> float:
    """Mean squared cosine of the principal angles between two subspaces: 0 orthogonal, 1 one within the other.

    The cosines are the singular values of `x^T y` (Björck & Golub 1973, "Numerical methods for computing
    angles between linear subspaces"); the mean of their squares is phi of LoRA (arXiv 2106.09685, 7.2).

    Args:
        x: (n, p) orthonormal columns. y: (n, q) orthonormal columns.
    """
    few = min(x.shape[1], y.shape[1])
    return float((x.T @ y).square().sum()) / few if few else 0.0


def chance_overlap(size: int, p: int, q: int) -> float:
    """The expected `overlap` of random subspaces of dimensions p and q in `size` dimensions: max(p, q) / size."""
    return min(1.0, max(p, q) / size) if min(p, q) else 0.0


def space_overlaps(x: SVD, y: SVD) -> tuple[float, float]:
    """Overlap of two updates' (column, row) spaces: where they write to, and what they read from."""
    p, q = x.rank, y.rank
    return overlap(x.u[:, :p], y.u[:, :q]), overlap(x.v[:, :p], y.v[:, :q])


def concat(pairs: Sequence[Factors]) -> Factors:
    """The sum of updates as one pair, losslessly: A over A, B beside B; the rank is the sum of ranks.

    Raises:
        ValueError: none were given, or they have different shapes.
    """
    if not pairs:
        raise ValueError("no pairs to concatenate: give at least one")
    for pair in pairs[1:]:
        _same(pairs[0], pair)
    return Factors(torch.cat([p.a.double() for p in pairs]), torch.cat([p.b.double() for p in pairs], dim=1))


def truncate(pair: Factors, rank: int) -> tuple[Factors, float]:
    """The best approximation of an update by one of rank `rank` (Eckart & Young 1936), and what it loses.

    Returns:
        (pair of width `rank`, pad with zeros where the update has fewer directions, with the singular
        values shared evenly by both factors; discarded share of the squared Frobenius norm, 0 to 1)

    Raises:
        ValueError: rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}: give 1 or more")
    full = svd(pair)
    keep = min(rank, len(full.s))
    root = full.s[:keep].sqrt()
    total = float(full.s.square().sum())
    lost = float(full.s[keep:].square().sum()) / total if total else 0.0
    return pad(Factors(root[:, None] * full.v[:, :keep].T, full.u[:, :keep] * root), rank), lost


def energy_share(part: Factors, whole: SVD) -> float:
    """How much of an update's energy lies in the spaces of another: `||U^T (B A) V||^2 / ||B A||^2`, 0 to 1; 1 for a zero update.

    If `whole` is the truncated SVD of a sum, the projected parts `U U^T (B A) V V^T` add up to it exactly, so
    this tells which of the parts a truncation gives up.
    """
    k = whole.rank
    energy = norm(part) ** 2
    inside = torch.linalg.matrix_norm(
        (whole.u[:, :k].T @ part.b.double()) @ (part.a.double() @ whole.v[:, :k])
    )
    return min(1.0, float(inside) ** 2 / energy) if energy else 1.0


def pad(pair: Factors, rank: int) -> Factors:
    """The same update with factors of width `rank`, by zeros.

    Raises:
        ValueError: the pair is wider already.
    """
    more = rank - pair.rank
    if more < 0:
        raise ValueError(f"a pair of rank {pair.rank} cannot be pad to {rank}")
    return Factors(torch.nn.functional.pad(pair.a, (0, 0, 0, more)), torch.nn.functional.pad(pair.b, (0, more)))


def distance(x: Factors, y: Factors) -> float:
    """The Frobenius norm of the difference of two updates."""
    return norm(concat([x, y.scale(-1.0)]))


def _same(x: Factors, y: Factors) -> None:
    if x.shape != y.shape:
        raise ValueError(
            f"updates of {x.shape} and {y.shape} belong to different layers: compare updates of one layer"
        )
