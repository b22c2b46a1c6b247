"""Which tokens a long sequence keeps: the answer's beginning, the question's end, the system text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.data.tokens.truncation import Cut, Head, choose_tokens, take


def keep(prompt: int, answer: int, max_length: int, head: Head | None = None) -> tuple[list[int], Cut]:
    ranges, cut = choose_tokens(prompt, answer, max_length, head or Head())
    return take(range(prompt + answer), ranges), cut


def test_a_long_answer_loses_its_end() -> None:
    assert keep(10, 50, 32) == (list(range(32)), Cut(answer=28))
    assert keep(28, 50, 32) == (list(range(32)), Cut(answer=46)), "an eighth of the length stays at least"


def test_a_long_question_loses_its_beginning_and_a_short_answer_nothing() -> None:
    assert keep(100, 6, 32) == (list(range(74, 106)), Cut(question=74))
    assert keep(100, 50, 32) == (list(range(84, 116)), Cut(answer=34, question=84)), "half for each"


def test_a_system_text_is_kept_where_it_fits() -> None:
    head = Head(system_end=6, size=8, fixed=1)
    assert keep(100, 6, 32, head) == ([*range(8), *range(82, 106)], Cut(question=74))
    large = Head(system_end=40, size=44, fixed=1)
    kept, cut = keep(50, 6, 32, large)
    assert kept == [*range(16), *range(40, 44), *range(44, 56)] and cut == Cut(system=24)


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(2, 70),
    st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(0, 2)),
)
def test_what_is_kept_fits_is_in_order_and_is_counted(
    prompt: int, answer: int, max_length: int, sizes: tuple[int, int, int]
) -> None:
    size = min(max(sizes[:2]), prompt)
    head = Head(min(*sizes[:2], size), size, min(sizes[2], *sizes[:2], size))
    kept, cut = keep(prompt, answer, max_length, head)
    assert kept == sorted(set(kept)) and len(kept) <= max_length
    assert len(kept) + cut.total == prompt + answer and min(cut) >= 0
    assert prompt in kept, "the answer keeps its beginning"
    if prompt + answer <= max_length:
        assert cut.total == 0
