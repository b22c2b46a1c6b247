"""Splits of many rows, from 64-bit hashes of what they ask: the rule of `splits` in a few passes of numpy.

From `split_rows.LARGE` rows on, a dataset is split like this, whatever its format:

    rows with one hash form a group ─┐  groups sorted by type, within a type by their hash mixed with the seed
                                     ▼
    each group goes to the split that is furthest below its share of rows

The rule differs from that of small data in two points: groups are ordered by what they ask rather than by
their whole content, and equal rows of a group count each. What `splits` promises holds: the result depends on
the rows and the seed and not on their order, every type is spread, and no question falls into two splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from core.data.splits import RATIOS, SPLITS, check_distinct, check_ratios
from core.spec.settings import SEED

if TYPE_CHECKING:
    from numpy.typing import NDArray

State = tuple[int, int, int]  # how far each split is below its share, times the sum of the shares

DENOMINATOR_LIMIT = 1000  # of the shares as fractions
_ODD = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio
_MASK = 2**64 - 1


def split_hashes(
    questions: NDArray[np.uint64],
    types: NDArray[np.int64] | None = None,
    seed: int = SEED,
    ratios: Sequence[float] = RATIOS,
    weights: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """Splits rows by the hashes of what they ask.

    Args:
        questions: (N,) see `question_hashes`.
        types: (N,) rank of the type of each row, if they have types.
        seed: another seed gives another split.
        ratios: shares of train, val and test.
        weights: (N,) what the shares are of; None counts every row once.

    Returns:
        (N,) for each row the index of its split in SPLITS.

    Raises:
        DataError: there are fewer than three different questions.
    """
    shares = _to_integers(check_ratios(ratios))
    mixed = _mix(questions, seed)
    order, mixed = _sort(mixed)
    begins = np.flatnonzero(np.concatenate((np.ones(min(1, len(mixed)), np.bool_), mixed[1:] != mixed[:-1])))
    del mixed
    check_distinct(len(begins))
    sizes = np.diff(begins, append=len(order))
    group_weights = sizes if weights is None else np.maximum(1, np.add.reduceat(weights[order], begins))
    if types is None:
        splits = assign(group_weights, shares)
    else:
        by_type = np.argsort(np.minimum.reduceat(types[order], begins), kind="stable")
        splits = np.empty(len(begins), np.uint8)
        splits[by_type] = assign(group_weights[by_type], shares)
    chosen = np.empty(len(order), np.uint8)
    chosen[order] = np.repeat(splits, sizes)
    return chosen


def _mix(questions: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Mixes the seed into hashes; different hashes stay different."""
    key = (seed * _ODD + (_ODD >> 1)) & _MASK
    mixed = questions ^ np.uint64(key)
    for shift in (32, 29):
        mixed *= np.uint64(0xD6E8FEB86659FD93)
        mixed ^= mixed >> np.uint64(shift)
    return mixed


def _sort(hashes: NDArray[np.uint64]) -> tuple[NDArray[Any], NDArray[np.uint64]]:
    """The order of hashes, and the hashes in this order, in less time than `np.argsort` takes.

    The index of each row takes the place of the low bits of its hash, so that the sorted values have the
    order. The few rows whose hashes differ only in these bits are sorted afterwards.
    """
    bits = np.uint64(len(hashes).bit_length())
    keys = hashes >> bits << bits
    keys |= np.arange(len(hashes), dtype=np.uint64)
    keys.sort()
    order = keys & ((np.uint64(1) << bits) - np.uint64(1))
    order = order.astype(np.int32 if len(hashes) < 2**31 else np.int64)
    keys >>= bits
    ordered = hashes[order]
    unsorted = np.unique(keys[1:][ordered[1:] < ordered[:-1]])
    for begin, end in zip(np.searchsorted(keys, unsorted), np.searchsorted(keys, unsorted, "right")):
        rows = order[begin:end]
        order[begin:end] = rows[np.argsort(hashes[rows], kind="stable")]
        ordered[begin:end] = hashes[order[begin:end]]
    return order, ordered


def _to_integers(shares: Sequence[float]) -> list[int]:
    """The shares as integers whose ratios they are: 0.7, 0.15 and 0.15 are 14, 3 and 3."""
    fractions = [Fraction(share).limit_denominator(DENOMINATOR_LIMIT) for share in shares]
    common = np.lcm.reduce([f.denominator for f in fractions])
    return [int(f * int(common)) for f in fractions]


def assign(weights: NDArray[np.int64], shares: Sequence[int]) -> NDArray[np.uint8]:
    """Assigns groups in turn to the split that is furthest below its share of the weights so far.

    Groups of weight 1 form long runs, in which the pattern repeats after as many groups as the shares have in
    all. It is computed once for each state.

    Args:
        weights: (G,) at least 1.
        shares: integers, for example 14, 3 and 3.
    """
    period, state, at = sum(shares), (0, 0, 0), 0
    heavy = np.flatnonzero(weights != 1)
    if len(heavy) * period > len(weights):
        return _run(state, shares, weights.tolist())[0]
    chosen = np.empty(len(weights), np.uint8)
    patterns: dict[State, tuple[NDArray[np.uint8], State]] = {}
    for place, weight in zip([*heavy.tolist(), len(weights)], [*weights[heavy].tolist(), 0]):
        while place - at >= period:  # whole periods of groups of weight 1
            if state not in patterns:
                patterns[state] = _run(state, shares, [1] * period)
            pattern, following = patterns[state]
            repeats = (place - at) // period if following == state else 1
            chosen[at : at + repeats * period] = np.tile(pattern, repeats)
            at, state = at + repeats * period, following
        rest = [1] * (place - at) + ([weight] if weight else [])
        if rest:
            chosen[at : at + len(rest)], state = _run(state, shares, rest)
            at += len(rest)
    return chosen


def _run(state: State, shares: Sequence[int], weights: Sequence[int]) -> tuple[NDArray[np.uint8], State]:
    """Assigns groups one by one; returns the index of the split of each, and the state after them."""
    (train, val, test), total = shares, sum(shares)
    a, b, c = state
    chosen = bytearray()
    for weight in weights:
        a, b, c = a + train * weight, b + val * weight, c + test * weight
        if a >= b and a >= c:
            a -= total * weight
            chosen.append(0)
        elif b >= c:
            b -= total * weight
            chosen.append(1)
        else:
            c -= total * weight
            chosen.append(2)
    return np.frombuffer(chosen, np.uint8), (a, b, c)


def count_equal(questions: NDArray[np.uint64]) -> int:
    """Counts the rows that ask what an earlier one asks."""
    ordered = np.sort(questions)
    return int(np.count_nonzero(ordered[1:] == ordered[:-1]))


def rank_types(types: Sequence[str]) -> NDArray[np.int64] | None:
    """For each row the place of its type in alphabetical order; None if no row has one."""
    rank = {label: place for place, label in enumerate(sorted(set(types)))}
    return np.array([rank[label] for label in types]) if len(rank) > 1 or "" not in rank else None


def count_splits(chosen: NDArray[np.uint8]) -> dict[str, int]:
    """The rows of each split."""
    return dict(zip(SPLITS, np.bincount(chosen, minlength=len(SPLITS)).tolist()))
