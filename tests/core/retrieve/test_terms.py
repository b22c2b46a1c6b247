from __future__ import annotations

from core.retrieve.function_words import drop_function_words
from core.retrieve.terms import find_matches, list_terms


def test_words_count_with_their_beginnings_and_chinese_as_pairs() -> None:
    assert list_terms("The Ferries") == ["the", "ferries", "ferri*"]
    assert list_terms("渡轮时刻") == ["渡轮", "轮时", "时刻"]
    assert list_terms("Ｆｅｒｒｙ") == ["ferry", "ferry*"]


def test_a_part_number_counts_as_a_whole_however_it_is_written() -> None:
    assert "ax4711b" in list_terms("AX-4711-B")
    assert "ax4711b" in list_terms("(ax4711b)")
    assert list_terms("2026-11-29")[-1] == "2026-11-29"
    assert list_terms("3.5") != list_terms("35")


def test_a_question_is_searched_without_its_function_words() -> None:
    assert drop_function_words(list_terms("What is the fog brush used for?")) == [
        "fog",
        "brush",
        "brush*",
        "used",
    ]
    assert drop_function_words(["what", "is"]) == ["what", "is"]
    assert drop_function_words(list_terms("Wo ist das Boot?")) == ["boot"]


def test_matches_are_marked_where_they_stand_in_the_text() -> None:
    text = "Ferry AX-4711-B: the FERRIES leave. 渡轮时刻表"
    marks = find_matches(text, list_terms("ferries ax4711b 时刻"))
    assert [text[a:b] for a, b in marks] == ["AX-4711-B", "FERRIES", "时刻"]
