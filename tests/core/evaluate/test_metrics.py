"""Exact match and F1 by the studio's rule and by SQuAD's: values by hand, and properties of any text."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.evaluate.metrics import exact_match, f1, normalise, squad_exact_match, squad_f1, squad_normalise
from core.evaluate.words import split_words
from core.store.csv_tables import escape_cell
from core.store.reports import format_report

PROPERTIES = settings(max_examples=400, deadline=None)

EQUAL = [
    ("The dial is red.", "dial is  red"),
    (" The Cold-Rack, an  Apple! ", "coldrack apple"),
    ("“Red”", "red"),
    ("‚rot‘ … «bleu» 「赤」", "rot bleu 赤"),
    ("ＡＢＣ！", "abc"),
    ("ﬁne", "FINE"),
    ("Straße", "STRASSE"),
    ("naïve", "nai\u0308ve"),
    ("don’t", "don't"),
    ("U.S.", "us"),
    ("A", "a."),
    ("−5 °C", "-5°C"),
    ("–5", "-5"),
    ("１．５", "1.5"),
    ("٣٫٥", "3.5"),
    ("1,000", "1000"),
    ("1'000", "1000"),
    ("1,000,000.5", "1000000.5"),
    ("1,2,3", "1, 2, 3"),
    ("5%", "5 %"),
    ("$5", "＄ 5"),
    ("½", "1/2"),
    ("10–20", "10-20"),
    ("東京都。", "東京 都"),
    ("2024年", "2024 年"),
    ("❤\ufe0f", "❤"),
    ("**bold**", "bold"),
    ("`x`", "x"),
    ("**-5**", "-5"),
    ("»-5«", "-5"),
    ("¿-5?", "-5"),
    ("1e+5", "1e5"),
]
DIFFERENT = [
    ("A", ""),
    ("the", ""),
    ("?", ""),
    ("\u200b", ""),
    ("the", "a"),
    ("?", "!"),
    ("Vitamin A", "Vitamin"),
    ("A. The red lamp", "B. The red lamp"),
    ("5", "-5"),
    ("5", "−5"),
    ("+5", "5"),
    ("$5", "-$5"),
    ("$5", "$-5"),
    ("$5", "5"),
    ("$5", "€5"),
    ("5%", "5"),
    ("1.5", "15"),
    (".5", "5"),
    ("1,5", "15"),
    ("1-2", "12"),
    ("1/2", "12"),
    ("12:30", "1230"),
    ("3½", "31/2"),
    ("10²", "102"),
    ("10⁻³", "10³"),
    ("1e-5", "1e5"),
    ("1e-5", "1e 5"),
    ("3、-5", "3、5"),
    ("-∞", "∞"),
    ("v1.5", "v15"),
    ("5'10", "510"),
    ("C++", "C#"),
    ("C++", "C"),
    ("C#", "C"),
    (".NET", "NET"),
    ("A-", "A"),
    ("O+", "O-"),
    ("x+y", "xy"),
    ("x-y", "xy"),
    ("a < b", "a > b"),
    ("気温は-5度", "気温は5度"),
    ("東京", "京東"),
    ("か", "が"),
]


@pytest.mark.parametrize(("answer", "reference"), EQUAL)
def test_writings_of_one_answer_are_equal(answer: str, reference: str) -> None:
    assert split_words(answer) == split_words(reference)
    assert (exact_match(answer, reference), f1(answer, reference)) == (1.0, 1.0)


@pytest.mark.parametrize(("answer", "reference"), DIFFERENT)
def test_other_answers_are_not_equal(answer: str, reference: str) -> None:
    assert exact_match(answer, reference) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("red", "the red dial", 2 / 3),
        ("blue", "red", 0.0),
        ("", "red", 0.0),
        ("", "", 1.0),
        ("red red", "red", 2 / 3),
        ("C++", "C#", 0.0),
        ("東京", "東京都", 4 / 5),
        ("กขค", "กขง", 2 / 3),
        ("ກຂ", "ກຄ", 1 / 2),
        ("កខ", "កគ", 1 / 2),
        ("ကခ", "ကဂ", 1 / 2),
        ("カナ", "カキ", 1 / 2),
        ("서울 시", "서울", 2 / 3),
        ("5 apples", "-5 apples", 1 / 2),
        ("$5", "5", 2 / 3),
    ],
)
def test_f1_counts_words_and_characters_of_unspaced_scripts(
    answer: str, reference: str, score: float
) -> None:
    assert f1(answer, reference) == pytest.approx(score)


@PROPERTIES
@given(st.text())
def test_any_text_equals_itself_and_only_blanks_are_nothing(text: str) -> None:
    assert (exact_match(text, text), f1(text, text)) == (1.0, 1.0)
    assert bool(normalise(text)) == bool(text.strip())
    assert normalise(text).split() == split_words(text)


@PROPERTIES
@given(st.text("aA the,.-5東?", max_size=8), st.text("aA the,.-5東?", max_size=8))
def test_f1_is_symmetric_and_one_for_equal_multisets_only(one: str, two: str) -> None:
    score = f1(one, two)
    assert 0.0 <= score <= 1.0 and score == f1(two, one)
    assert (score == 1.0) == (Counter(split_words(one)) == Counter(split_words(two)))
    assert score == 1.0 or not exact_match(one, two)


@PROPERTIES
@given(
    before=st.sampled_from(["", "It is ", "about ", "(", "“", "約"]),
    after=st.sampled_from(["", ".", " kg", ")", "%", "度"]),
    whole=st.integers(0, 99_999),
    decimals=st.sampled_from(["", ".5", ".25", ".075"]),
    sign=st.sampled_from(["", "-", "+", "−"]),
)
def test_another_sign_digit_or_point_is_another_number(
    before: str, after: str, whole: int, decimals: str, sign: str
) -> None:
    number = f"{sign}{whole}{decimals}"
    bare = f"{whole}{decimals}"
    others = {f"{s}{bare}" for s in ("", "-", "+")}
    others |= {f"{sign}{bare}7", f"{sign}{whole + 1}{decimals}", f"{sign}{bare.replace('.', '')}"}
    others -= {number, number.replace("−", "-")}
    for other in others:
        assert exact_match(f"{before}{number}{after}", f"{before}{other}{after}") == 0.0, other


# --- SQuAD


@pytest.mark.parametrize(
    ("answer", "reference", "em", "score"),
    [
        ("The dial is red.", "dial is  red", 1.0, 1.0),
        ("red", "the red dial", 0.0, 2 * 1 / 3),
        ("blue", "red", 0.0, 0.0),
        ("", "red", 0.0, 0.0),
        ("the", "a", 1.0, 1.0),
        ("red red", "red", 0.0, 2 / 3),
        ("1.5", "15", 1.0, 1.0),
        ("-5", "5", 1.0, 1.0),
        ("C++", "C#", 1.0, 1.0),
        ("“red”", "red", 0.0, 0.0),
        ("Denver Broncos", "The Denver Broncos won", 0.0, 0.8),
        ("a-b c", "ab C!", 1.0, 1.0),
    ],
)
def test_squad_scores_equal_those_of_the_published_script(
    answer: str, reference: str, em: float, score: float
) -> None:
    assert squad_exact_match(answer, reference) == em
    assert squad_f1(answer, reference) == pytest.approx(score)


def test_squad_normalise_drops_case_punctuation_and_articles() -> None:
    assert squad_normalise(" The Cold-Rack, an  Apple! ") == "coldrack apple"
    assert squad_normalise("A") == squad_normalise("?") == ""


def test_t5_csv_values_are_never_formulas() -> None:
    assert [escape_cell(v) for v in ("=1+1", "+x", "-2", "@a", "\tb", "plain", -2.0)] == [
        "'=1+1",
        "'+x",
        "'-2",
        "'@a",
        "'\tb",
        "plain",
        -2.0,
    ]
    text = format_report(
        [{"name": "=cmd()", "mix": "base", "perplexity": 2.5, "weights": {"a": 1}, "examples": []}]
    )
    assert text == "name,mix,perplexity\n'=cmd(),base,2.5\n"
