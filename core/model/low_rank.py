"""Algebra on low-rank matrices by their two factors, without forming the product.

A LoRA delta of one layer is B A. Everything is computed in fp64, whatever precision the factors are stored
in. Layers, adapters and files belong to `core.model.deltas`.

Letters: O outputs, I inputs, r width of the factors, k numerical rank (k <= r).

```
delta (O, I)  =  B (O, r) · A (r, I)

B = Q_b R_b,  A^T = Q_a R_a   (thin QR)        B A = Q_b (R_b R_a^T) Q_a^T
                                                    └ r x r: its SVD gives the SVD of the delta
```
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Singular values below this share of the largest are rounding of factors that were stored in fp32.
NOISE = 1e-6


@dataclass(frozen=True)
class Factors:
    """A low-rank delta as its two factors, with every scaling folded in.

    Attributes:
        a: (r, I).
        b: (O, r).
    """

    a: torch.Tensor
    b: torch.Tensor

    @property
    def rank(self) -> int:
        """r, the width of the factors; the rank of the product may be lower."""
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I) of the delta."""
        return self.b.shape[0], self.a.shape[1]

    def scale(self, weight: float) -> Factors:
        """Multiplies the delta by a number; A takes it, with its sign."""
        return Factors(self.a.double() * weight, self.b)


@dataclass(frozen=True)
class SVD:
    """The singular value decomposition of a delta: `u · diag(s) · v^T`, largest singular value first.

    Attributes:
        u: (O, r) orthonormal columns, a basis of the column space (what the delta writes).
        s: (r,) singular values; all three have min(r, O, I) directions where the layer is narrower than r.
        v: (I, r) orthonormal columns, a basis of the row space (what the delta reads).
    """

    u: torch.Tensor
    s: torch.Tensor
    v: torch.Tensor

    @property
    def rank(self) -> int:
        """k, the number of singular values above the rounding noise."""
        return int((self.s > NOISE * self.s.max()).sum()) if len(self.s) else 0


def svd(delta: Factors) -> SVD:
    """Computes the exact SVD of a delta from QR of its factors and an SVD of size r.

    Costs O((O + I) r^2), where the product would cost O(O I min(O, I)) (Golub & Van Loan, Matrix
    Computations, 5.4).
    """
    q_b, r_b = torch.linalg.qr(delta.b.double())
    q_a, r_a = torch.linalg.qr(delta.a.double().T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return SVD(q_b @ u, s, q_a @ vh.T)


def inner_product(x: Factors, y: Factors) -> float:
    """Returns the Frobenius inner product `<B_x A_x, B_y A_y>` = sum((A_x A_y^T) * (B_x^T B_y)).

    Raises:
        ValueError: the deltas have different shapes.
    """
    _check_same_shape(x, y)
    return float(((x.a.double() @ y.a.double().T) * (x.b.double().T @ y.b.double())).sum())


def norm(delta: Factors) -> float:
    """Returns the Frobenius norm of a delta, by QR, which stays accurate where parts of the delta cancel."""
    r_b = torch.linalg.qr(delta.b.double(), mode="r").R
    r_a = torch.linalg.qr(delta.a.double().T, mode="r").R
    return float(torch.linalg.matrix_norm(r_b @ r_a.T))


def cosine(x: Factors, y: Factors) -> float:
    """Returns the cosine between two deltas as flat vectors, -1 to 1; 0 where one of them is zero."""
    return ratio(inner_product(x, y), norm(x) * norm(y))


def ratio(numerator: float, denominator: float) -> float:
    """Divides, with the result clamped to [-1, 1] against rounding, and 0 where the denominator is 0."""
    return max(-1.0, min(1.0, numerator / denominator)) if denominator > 0 else 0.0


def chance_cosine(shape: tuple[int, int]) -> float:
    """Returns the chance level of `cosine`, its root mean square for unrelated deltas: 1 / sqrt(O I)."""
    return 1.0 / math.sqrt(shape[0] * shape[1])


def overlap(x: torch.Tensor, y: torch.Tensor) -> float:
    """Returns the mean squared cosine of the principal angles between two subspaces.

    It is 0 for orthogonal subspaces and 1 where one contains the other. The cosines are the singular values
    of `x^T y` (Björck & Golub 1973, "Numerical methods for computing angles between linear subspaces"). The
    mean of their squares is phi of the LoRA paper (Hu et al. 2021, arXiv 2106.09685, 7.2).

    Args:
        x: (n, p) orthonormal columns.
        y: (n, q) orthonormal columns.
    """
    dimensions = min(x.shape[1], y.shape[1])
    return float((x.T @ y).square().sum()) / dimensions if dimensions else 0.0


def chance_overlap(size: int, p: int, q: int) -> float:
    """Returns the chance level of `overlap`: its mean for random subspaces, max(p, q) / size.

    Args:
        size: the dimension of the space.
        p, q: the dimensions of the two subspaces.
    """
    return min(1.0, max(p, q) / size) if min(p, q) else 0.0


def space_overlaps(x: SVD, y: SVD) -> tuple[float, float]:
    """Returns the overlap of two deltas' column spaces (what they write) and row spaces (what they read)."""
    p, q = x.rank, y.rank
    return overlap(x.u[:, :p], y.u[:, :q]), overlap(x.v[:, :p], y.v[:, :q])


def concat(deltas: Sequence[Factors]) -> Factors:
    """Adds deltas exactly, as one pair of factors whose rank is the sum of the ranks.

    ```
    B_1 A_1 + B_2 A_2  =  [ B_1  B_2 ] · [ A_1 ]
                                         [ A_2 ]
    ```

    Raises:
        ValueError: the list is empty, or the deltas have different shapes.
    """
    if not deltas:
        raise ValueError("deltas must contain at least one delta, got none")
    for delta in deltas[1:]:
        _check_same_shape(deltas[0], delta)
    return Factors(
        torch.cat([d.a.double() for d in deltas]), torch.cat([d.b.double() for d in deltas], dim=1)
    )


def truncate(delta: Factors, rank: int) -> tuple[Factors, float]:
    """Approximates a delta at a lower rank, as well as possible (Eckart & Young 1936).

    Args:
        rank: the width of the result, which is padded with zeros where the delta has fewer directions.

    Returns:
        The factors, each scaled by the square roots of the singular values; and the discarded share of the
        squared Frobenius norm, 0 to 1.

    Raises:
        ValueError: rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be 1 or more, got {rank}")
    full = svd(delta)
    width = min(rank, len(full.s))
    root = full.s[:width].sqrt()
    total = float(full.s.square().sum())
    loss = float(full.s[width:].square().sum()) / total if total else 0.0
    return pad(Factors(root[:, None] * full.v[:, :width].T, full.u[:, :width] * root), rank), loss


def energy_share(part: Factors, whole: SVD) -> float:
    """Returns the share of a delta's energy in the column and row spaces of another delta.

    The share is `||U^T (B A) V||^2 / ||B A||^2`, from 0 to 1, and 1 for a zero delta. If `whole` is the
    truncated SVD of a sum, the projections `U U^T (B A) V V^T` of the sum's parts add up to it exactly. So
    the share shows which of the parts a truncation gives up.

    Args:
        part: one delta.
        whole: the SVD whose spaces are compared.
    """
    k = whole.rank
    energy = norm(part) ** 2
    inside = torch.linalg.matrix_norm(
        (whole.u[:, :k].T @ part.b.double()) @ (part.a.double() @ whole.v[:, :k])
    )
    return min(1.0, float(inside) ** 2 / energy) if energy else 1.0


def pad(delta: Factors, rank: int) -> Factors:
    """Widens the factors to `rank` with zeros; the delta stays the same.

    Raises:
        ValueError: the factors are wider than `rank`.
    """
    extra = rank - delta.rank
    if extra < 0:
        raise ValueError(f"rank must be {delta.rank} or more to pad factors of rank {delta.rank}, got {rank}")
    a = torch.nn.functional.pad(delta.a, (0, 0, 0, extra))
    return Factors(a, torch.nn.functional.pad(delta.b, (0, extra)))


def distance(x: Factors, y: Factors) -> float:
    """Returns the Frobenius norm of the difference of two deltas."""
    return norm(concat([x, y.scale(-1.0)]))


def _check_same_shape(x: Factors, y: Factors) -> None:
    if x.shape != y.shape:
        raise ValueError(
            f"deltas must have the same shape, got {x.shape} and {y.shape}: they belong to different layers"
        )
