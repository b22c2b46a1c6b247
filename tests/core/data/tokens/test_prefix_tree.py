"""Sequences as a tree: beginnings are shared, and nothing is read after the last trained token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.data.tokens.prefix_tree import build_tree


def test_beginnings_that_sequences_share_are_read_once() -> None:
    tree = build_tree(
        [([7, 7, 8, 1, 2], [False, False, False, True, True]), ([7, 7, 9, 3], [False, False, False, True])]
    )
    assert tree.ids == [7, 7, 8, 1, 9] and tree.positions == [0, 1, 2, 3, 2]
    assert [(b.start, b.end, b.path) for b in tree.branches] == [(0, 4, [0, 1, 2, 3]), (4, 5, [0, 1, 4])]
    assert tree.targets == {(2, 1): 1, (3, 2): 1, (4, 3): 1}


def test_what_follows_the_last_trained_token_is_left_out() -> None:
    tree = build_tree([([4, 5, 6, 0, 0], [False, True, False, False, False])])
    assert tree.ids == [4] and tree.targets == {(0, 5): 1}
    assert not build_tree([([4, 5], [False, False]), ([4], [True])]).ids  # nothing precedes a first token


def test_a_repeated_sequence_counts_twice_and_is_read_once() -> None:
    tree = build_tree([([4, 5, 6], [False, True, True])] * 2)
    assert tree.ids == [4, 5] and len(tree.branches) == 1
    assert tree.targets == {(0, 5): 2, (1, 6): 2}


SEQUENCE = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=7)


@given(st.lists(SEQUENCE, max_size=6))
def test_every_trained_token_is_predicted_from_all_tokens_before_it(
    sequences: list[list[tuple[int, bool]]],
) -> None:
    rows = [([i for i, _ in s], [t for _, t in s]) for s in sequences]
    tree = build_tree(rows)
    expected: dict[tuple[tuple[int, ...], int], int] = {}
    for ids, trained in rows:
        for end in range(1, len(ids)):
            if trained[end]:
                key = tuple(ids[:end]), ids[end]
                expected[key] = expected.get(key, 0) + 1
    text = {
        node: tuple(tree.ids[n] for n in b.path[: i + 1])
        for b in tree.branches
        for i, node in enumerate(b.path)
    }
    assert {(text[node], token): count for (node, token), count in tree.targets.items()} == expected
    assert all(len(text[node]) == tree.positions[node] + 1 for node in text)
