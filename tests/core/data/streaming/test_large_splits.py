"""The split of many rows keeps the promises of the split of few."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.splits import RATIOS, _assign, question_key
from core.data.streaming.large_splits import _sort, assign, rank_types, split_hashes
from core.data.streaming.question_hashes import hash_questions
from core.errors import DataError

hashes = st.lists(st.integers(0, 60), min_size=1, max_size=200).map(lambda xs: np.array(xs, np.uint64))


@given(weights=st.lists(st.integers(1, 9), max_size=300))
def test_patterns_give_what_groups_one_by_one_give(weights):
    expected, state = [], [0, 0, 0]
    for weight in weights:
        state = [s + share * weight for s, share in zip(state, (14, 3, 3))]
        best = state.index(max(state))
        state[best] -= 20 * weight
        expected.append(best)
    assert assign(np.array(weights, np.int64), [14, 3, 3]).tolist() == expected


@pytest.mark.parametrize("count", [3, 20, 777])
def test_groups_of_one_row_are_assigned_as_in_small_data(count):
    parts = _assign([[i] for i in range(count)], RATIOS, [1] * count)
    chosen = assign(np.ones(count, np.int64), [14, 3, 3])
    if count >= 20:  # with fewer, small data moves a row into an empty split
        assert [np.flatnonzero(chosen == s).tolist() for s in range(3)] == [
            [i for group in part for i in group] for part in parts
        ]


@settings(max_examples=60, deadline=None)
@given(questions=hashes, seed=st.integers(0, 5), draw=st.randoms(use_true_random=False))
def test_no_question_is_in_two_splits_and_the_order_does_not_matter(questions, seed, draw):
    if len(set(questions.tolist())) < 3:
        with pytest.raises(DataError, match="at least 3 different rows"):
            split_hashes(questions, seed=seed)
        return
    types = rank_types([str(q % 4) for q in questions.tolist()])
    chosen = split_hashes(questions, types, seed)
    places: dict[int, set[int]] = {}
    for question, split in zip(questions.tolist(), chosen.tolist()):
        places.setdefault(question, set()).add(split)
    assert all(len(splits) == 1 for splits in places.values())
    order = list(range(len(questions)))
    draw.shuffle(order)
    assert (split_hashes(questions[order], types[order], seed) == chosen[order]).all()


def test_every_type_is_spread_and_the_shares_hold():
    questions = np.arange(40_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    types = np.arange(40_000) % 5
    chosen = split_hashes(questions, types)
    for kind in range(5):
        counts = np.bincount(chosen[types == kind], minlength=3)
        assert abs(counts - np.array([5600, 1200, 1200])).max() <= 2
    assert (split_hashes(questions, types, seed=1) != chosen).mean() > 0.3


def test_rows_of_one_question_have_one_hash():
    def ask(text, **more):
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]
        return {"messages": [*more.get("before", ()), *messages]}

    system = [{"role": "system", "content": "Be brief."}]
    rows = [
        ask("Where is it?"),
        ask("where  IS it"),
        ask("Where is it now?"),
        ask("Where is it?", before=system),
        {"text": "Where is it?"},
    ]
    keys = [question_key(row) for row in rows[:4]]
    found = hash_questions(rows).tolist()
    assert [[a == b for b in keys] for a in keys] == [[a == b for b in found[:4]] for a in found[:4]]


def test_hashes_that_differ_in_low_bits_are_sorted_too():
    """The index of a row takes the place of low bits of its hash."""
    draw = np.random.default_rng(1)
    hashes = draw.integers(0, 2**64, 1 << 16, dtype=np.uint64)
    near = hashes[:5000] ^ draw.integers(1, 16, 5000, dtype=np.uint64)
    hashes = draw.permutation(np.concatenate((hashes, near, hashes[:300])))
    order, ordered = _sort(hashes)
    assert (order == np.argsort(hashes, kind="stable")).all() and (ordered == np.sort(hashes)).all()
