"""Splits: deterministic, stratified, without leaks, never empty."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.splits import RATIOS, split
from core.errors import DataError, SpecError
from core.spec.settings import SEED


def texts(n, prefix="row"):
    return [{"text": f"{prefix} {i}"} for i in range(n)]


def pairs(n, kind):
    return [
        {
            "messages": [{"role": "user", "content": f"{kind} {i}"}, {"role": "assistant", "content": "x"}],
            "type": kind,
        }
        for i in range(n)
    ]


ROWS = st.lists(
    st.one_of(
        st.text(max_size=6).map(lambda t: {"text": t}),
        st.tuples(st.text(max_size=3), st.text(max_size=3), st.sampled_from("abc")).map(
            lambda t: {
                "messages": [{"role": "user", "content": t[0]}, {"role": "assistant", "content": t[1]}],
                "type": t[2],
            }
        ),
    ),
    max_size=60,
)


def key(row):
    return row.get("text", tuple((m["role"], m["content"]) for m in row.get("messages", ())))


@given(rows=ROWS, seed=st.integers(0, 2**31 - 1))
@settings(max_examples=100, deadline=None)
def test_every_row_is_in_one_split_and_no_content_in_two(rows, seed):
    if len({key(r) for r in rows}) < 3:
        with pytest.raises(DataError):
            split(rows, seed)
        return
    parts = split(rows, seed)
    assert list(parts) == ["train", "val", "test"]
    assert sorted(i for part in parts.values() for i in part) == list(range(len(rows)))
    assert all(part == sorted(part) and part for part in parts.values())
    contents = [{key(rows[i]) for i in part} for part in parts.values()]
    assert not (contents[0] & contents[1] or contents[0] & contents[2] or contents[1] & contents[2])
    assert split(rows, seed) == parts


@given(order=st.permutations(list(range(30))))
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_files_does_not_matter(order):
    rows = texts(20) + pairs(10, "a")
    shuffled = [rows[i] for i in order]
    for name, part in split(rows).items():
        assert sorted(order[i] for i in split(shuffled)[name]) == part


@given(n=st.integers(3, 400), train=st.floats(0.2, 0.9), share=st.floats(0.1, 0.9), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_sizes_follow_the_ratios_within_two_rows(n, train, share, seed):
    ratios = (train, (1 - train) * share, (1 - train) * (1 - share))
    for part, ratio in zip(split(texts(n), seed, ratios).values(), ratios):
        assert abs(len(part) - ratio * n) < 2 or len(part) == 1


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_every_type_is_spread_by_the_ratios_within_three_rows(sizes, seed):
    rows = [row for k, n in enumerate(sizes) for row in pairs(n, f"type {k}")]
    if len(rows) < 3:
        return
    parts = split(rows, seed)
    for k, n in enumerate(sizes):
        for part, ratio in zip(parts.values(), RATIOS):
            assert abs(sum(rows[i]["type"] == f"type {k}" for i in part) - ratio * n) < 3


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (3, (1, 1, 1)),
        (4, (2, 1, 1)),
        (5, (3, 1, 1)),
        (10, (7, 2, 1)),
        (100, (70, 15, 15)),
        (1000, (700, 150, 150)),
    ],
)
def test_the_default_ratios_give_these_split_sizes(n, sizes):
    assert tuple(map(len, split(texts(n)).values())) == sizes


def test_the_default_seed_gives_the_same_split_on_every_machine():
    assert SEED == 20251101
    parts = split(texts(12))
    assert (parts["val"], parts["test"]) == ([5, 11], [0, 9])


def test_another_seed_gives_another_split():
    assert split(texts(100), 1) != split(texts(100), 2)


def test_duplicates_stay_together_even_when_their_types_differ():
    rows = texts(30) + texts(30) + pairs(1, "a") + [{**pairs(1, "a")[0], "type": "b"}]
    for part in split(rows).values():
        inside = set(part)
        assert all((i in inside) == (i + 30 in inside) for i in range(30))
        assert (60 in inside) == (61 in inside)


def test_messages_with_equal_joined_text_are_different_rows():
    def row(a, b):
        return {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}

    assert tuple(map(len, split([row("ab", "c"), row("a", "bc"), row("abc", "assistant:1:c")]).values())) == (
        1,
        1,
        1,
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least 3 different rows, one each for train, val and test, got 0."),
        (texts(1) * 50, "at least 3 different rows, one each for train, val and test, got 1."),
        (texts(2), "at least 3 different rows, one each for train, val and test, got 2."),
    ],
)
def test_fewer_than_three_different_rows_are_refused_with_a_remedy(rows, message):
    with pytest.raises(DataError) as caught:
        split(rows)
    assert message in caught.value.what and "lines of only `---`" in caught.value.fix


@pytest.mark.parametrize(
    "ratios", [(0.7, 0.3), (0.7, 0.15, 0.2), (1.0, 0.0, 0.0), (0.9, 0.3, -0.2), (float("nan"), 0.5, 0.5)]
)
def test_invalid_ratios_are_refused(ratios):
    with pytest.raises(SpecError, match="sum to 1"):
        split(texts(10), ratios=ratios)
