"""Splits: deterministic, stratified, without leaks, never empty."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.splits import RATIOS, count_repeats, normalize_text, question_key, split
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
    """What a row asks, or how its text reads."""
    question = row["messages"][0]["content"] if "messages" in row else row["text"]
    return "messages" in row, normalize_text(question)


@given(rows=ROWS, seed=st.integers(0, 2**31 - 1))
@settings(max_examples=100, deadline=None)
def test_every_row_is_in_one_split_and_no_question_in_two(rows, seed):
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


# ------------------------------------------------------------ questions


def chat(*turns):
    """A row of messages; "a0" marks an assistant turn that is context."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "a0": "assistant"}
    return {
        "messages": [
            {"role": roles[r], "content": c, **({"weight": 0} if r == "a0" else {})} for r, c in turns
        ]
    }


def spell(word, style):
    """Writes a question in another way that reads the same."""
    return {
        "as it is": word,
        "upper": word.upper(),
        "blanks": "  " + word.replace(" ", " \t\n ") + " ",
        "wide": "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in word),
        "no-break": word.replace(" ", "\u00a0"),
        "soft hyphen": word[:2] + "\u00ad" + word[2:],
    }[style]


STYLES = ("as it is", "upper", "blanks", "wide", "no-break", "soft hyphen")
WORDS = st.sampled_from(
    [f"where is the {w} lamp" for w in ("red", "blue", "straße", "ﬁne", "old", "dry", "wet")]
)
NEAR_EQUAL = st.lists(
    st.tuples(WORDS, st.sampled_from(STYLES), st.text(max_size=4), st.sampled_from("ab"), st.booleans()),
    max_size=60,
)


def build_near_equal(drawn):
    rows = []
    for word, style, answer, kind, is_text in drawn:
        text = spell(word, style)
        row = {"text": text} if is_text else chat(("u", text), ("a", answer))
        rows.append({**row, "type": kind})
    return rows


@given(drawn=NEAR_EQUAL, seed=st.integers(0, 2**31 - 1), order=st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_questions_that_read_the_same_never_fall_into_two_splits(drawn, seed, order):
    rows = build_near_equal(drawn)
    groups = [(word, is_text) for word, _, _, _, is_text in drawn]
    if len(set(groups)) < 3:
        with pytest.raises(DataError, match="ask the same question count as one"):
            split(rows, seed)
        return
    parts = split(rows, seed)
    asked = [{groups[i] for i in part} for part in parts.values()]
    assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
    assert all(parts.values())
    largest = max(groups.count(g) for g in groups)
    for part, ratio in zip(parts.values(), RATIOS):
        assert abs(len(part) - ratio * len(rows)) <= largest + 1
    assert count_repeats(rows) == len(rows) - len(set(groups))
    positions = list(range(len(rows)))
    order.shuffle(positions)
    shuffled = split([rows[i] for i in positions], seed)
    assert {name: sorted(positions[i] for i in part) for name, part in shuffled.items()} == parts


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (chat(("u", "Where?"), ("a", "Here.")), chat(("u", " where? "), ("a", "There."))),
        (
            chat(("u", "Where?"), ("a", "Here."), ("u", "Sure?"), ("a", "Yes.")),
            chat(("u", "Where?"), ("a", "No idea.")),
        ),
        (
            chat(("u", "Where?"), ("a0", "Who knows."), ("u", "Look."), ("a", "Here.")),
            chat(("u", "where?"), ("a0", "Hm."), ("u", "look."), ("a", "There.")),
        ),
        (
            chat(("a", "Hello."), ("u", "Where?"), ("a", "Here.")),
            chat(("a", "Good day."), ("u", "Where?"), ("a", "Here.")),
        ),
        ({"text": "One  line.\n"}, {"text": "one line."}),
        (chat(("u", "Where is it?"), ("a", "x")), chat(("u", "where is it"), ("a", "x"))),
        (chat(("u", "¿Dónde está?"), ("a", "x")), chat(("u", "dónde está ？"), ("a", "x"))),
        (chat(("u", "“What’s new?”"), ("a", "x")), chat(("u", "what's new"), ("a", "x"))),
    ],
)
def test_rows_that_ask_the_same_have_one_key(one, two):
    assert question_key(one) == question_key(two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (chat(("u", "Where?"), ("a", "Here.")), chat(("u", "When?"), ("a", "Here."))),
        (
            chat(("s", "To German."), ("u", "Hi"), ("a", "x")),
            chat(("s", "To French."), ("u", "Hi"), ("a", "x")),
        ),
        (
            chat(("u", "Where?"), ("a0", "Hm."), ("u", "Look."), ("a", "Here.")),
            chat(("u", "Where?"), ("a0", "Hm."), ("u", "Think."), ("a", "Here.")),
        ),
        (chat(("u", "is 5"), ("a", "x")), chat(("u", "is -5"), ("a", "x"))),
        (chat(("u", ".5?"), ("a", "x")), chat(("u", "5?"), ("a", "x"))),
        (chat(("u", "What is C#?"), ("a", "x")), chat(("u", "What is C?"), ("a", "x"))),
        (chat(("u", "?"), ("a", "x")), chat(("u", "!"), ("a", "x"))),
        (chat(("u", "ab"), ("u", "c"), ("a", "x")), chat(("u", "a"), ("u", "bc"), ("a", "x"))),
        ({"text": "one"}, {"text": "on e"}),
    ],
)
def test_rows_that_ask_something_else_have_two_keys(one, two):
    assert question_key(one) != question_key(two)


def test_many_equal_rows_do_not_pull_the_sizes_off_their_shares():
    rows = texts(200) + [{"text": "the same"}] * 100
    sizes = {name: len(part) for name, part in split(rows).items()}
    assert sizes["train"] == pytest.approx(210, abs=101) and sum(sizes.values()) == 300
    several = [chat(("u", f"q {i % 50}"), ("a", str(i))) for i in range(1000)]
    assert [len(p) for p in split(several).values()] == pytest.approx([700, 150, 150], abs=21)
