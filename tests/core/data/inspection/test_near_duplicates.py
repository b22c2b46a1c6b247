"""Near-duplicates: every pair above the threshold, no pair below it, in a few seconds for many texts."""

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.inspection.near_duplicates import (
    compute_jaccard,
    count_shingles,
    find_near_duplicates,
    list_words,
)
from core.errors import SpecError

WORDS = st.lists(st.sampled_from(["ant", "bee", "cat", "dog", "elk"]), max_size=12).map(" ".join)


def compare_all(texts, threshold):
    """The connected components of all pairs above the threshold, by comparing every pair."""
    shingles = [count_shingles(text) for text in texts]
    groups = [{i} for i in range(len(texts))]
    for a, b in itertools.combinations(range(len(texts)), 2):
        if compute_jaccard(shingles[a], shingles[b]) >= threshold and groups[a] is not groups[b]:
            groups[a] |= groups[b]
            for i in groups[b]:
                groups[i] = groups[a]
    return sorted(sorted(g) for g in {id(g): g for g in groups}.values() if len(g) > 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(WORDS, max_size=30), st.sampled_from([0.6, 0.8, 1.0]))
def test_the_groups_are_those_of_comparing_all_pairs(texts, threshold):
    assert find_near_duplicates(texts, threshold) == compare_all(texts, threshold)


def test_long_texts_with_a_few_changed_words_are_grouped():
    rng = random.Random(0)
    vocabulary = [f"word{i}" for i in range(3000)]
    texts = [" ".join(rng.choices(vocabulary, k=100)) for _ in range(200)]
    changed = texts[7].split()
    changed[20], changed[60] = "other", "another"  # 6 of 98 shingles: 92 / 104 = 0.88
    far = texts[8].split()
    far[10::15] = ["other"] * len(far[10::15])  # 6 words, 18 shingles: 80 / 116 = 0.69
    assert find_near_duplicates([*texts, " ".join(changed), " ".join(far)]) == [[7, 200]]


@pytest.mark.parametrize(
    ("a", "b", "is_one"),
    [
        ("one two three", "One,  two three.", True),
        ("one two three", "one two four", False),
        ("one two three", "one two three four", False),
        ("la la la", "la la la la", False),
        ("What is C", "What is C++", False),
        ("42", "43", False),
        ("", " ", True),
        ("渡轮九点出发晚上返回码头边上的小屋里", "渡轮九点出发晚上返回码头边上的小屋里。", True),
        ("渡轮九点出发", "渡轮八点出发", False),
        ("“Quoted” text here now", '"quoted" text here now', True),
    ],
)
def test_short_texts_only_group_with_the_same_words(a, b, is_one):
    assert find_near_duplicates([a, b]) == ([[0, 1]] if is_one else [])


def test_characters_of_scripts_without_spaces_are_words():
    assert list_words("红灯 lamp，ไฟ") == ["红", "灯", "lamp", "ไ", "ฟ"]
    text = (
        "渡轮每天早上九点从北码头出发，晚上六点返回，星期日不开，"
        "狗可以免费乘坐，自行车需要买票，请提前十分钟到达"
    )
    near = text.replace("星期日", "星期六")
    assert len(list_words(text)) == 47
    assert find_near_duplicates([text, near]) == [[0, 1]]


def test_twenty_thousand_texts_would_take_under_twenty_seconds():
    rng = random.Random(1)
    vocabulary = [f"{rng.randrange(16**6):x}" for _ in range(5000)]
    texts = [" ".join(rng.choices(vocabulary, k=100)) for _ in range(2000)]
    started = time.process_time()
    groups = find_near_duplicates([*texts, *(f"{text} more" for text in texts[:500])])
    assert groups == [[i, 2000 + i] for i in range(500)]
    assert time.process_time() - started < 2.5  # an eighth of the texts


def test_thousands_of_copies_of_one_text_are_one_group():
    base = [f"word{i}" for i in range(60)]
    texts = [" ".join([*base[: i % 60], f"x{i}", *base[i % 60 + 1 :]]) for i in range(400)]
    assert find_near_duplicates(texts) == [list(range(400))]


@pytest.mark.parametrize("threshold", [0.5, 1.1, 0.0])
def test_a_threshold_outside_the_limits_is_refused(threshold):
    with pytest.raises(SpecError, match="above 0.5 and at most 1"):
        find_near_duplicates(["a"], threshold)


def test_no_texts_have_no_groups():
    assert find_near_duplicates([]) == []
