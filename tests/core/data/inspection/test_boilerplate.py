"""Instructions that many prompts share are left out before prompts are compared."""

from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.inspection.boilerplate import LEAST_TEXTS, strip_instructions
from core.data.inspection.near_duplicates import list_words
from core.data.inspection.row_checks import from_splits, inspect_rows

RULES = " ".join(f"rule{i}" for i in range(150))


def test_a_shared_beginning_and_end_are_left_out():
    texts = [f"{RULES} Review: dish number {i} is good. Answer:" for i in range(LEAST_TEXTS)]
    assert strip_instructions(texts) == [str(i) for i in range(LEAST_TEXTS)]


def test_too_few_texts_have_no_instruction():
    texts = [f"{RULES} dish {i}" for i in range(LEAST_TEXTS - 1)]
    assert strip_instructions(texts) == [" ".join(list_words(text)) for text in texts]


def test_several_instructions_are_each_left_out():
    texts = [f"{kind} this text now: word{i}{kind}" for kind in ("Translate", "Shorten") for i in range(12)]
    assert strip_instructions(texts) == [
        f"word{i}{kind}".lower() for kind in ("Translate", "Shorten") for i in range(12)
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from("ab"), max_size=4).map(" ".join), max_size=40))
def test_the_rest_is_what_stands_between_shared_words(texts):
    words = [list_words(text) for text in texts]
    for own, rest in zip(words, strip_instructions(texts), strict=True):
        start = max(
            n for n in range(len(own) + 1) if n == 0 or sum(w[:n] == own[:n] for w in words) >= LEAST_TEXTS
        )
        end = max(
            n for n in range(len(own) + 1) if n == 0 or sum(w[-n:] == own[-n:] for w in words) >= LEAST_TEXTS
        )
        assert rest == " ".join(own[start : len(own) - end] or own)


def test_prompts_with_one_long_instruction_are_not_nearly_equal():
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{RULES} Review: dish {i}"},
                {"role": "assistant", "content": "good"},
            ]
        }
        for i in range(40)
    ]
    assert inspect_rows(from_splits("task", {"train": rows})).near.rows == 0
