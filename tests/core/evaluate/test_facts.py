"""Facts, quantities, citations and refusals: values by hand, and properties of any number and text."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.evaluate.citations import read_sentences, score_citations
from core.evaluate.facts import measure_factuality, measure_support, read_facts, read_gold
from core.evaluate.quantities import Quantity, split_quantities
from core.evaluate.refusals import GROUNDED, HONEST, NEEDLESS, UNSUPPORTED, classify_answer, is_refusal

PROPERTIES = settings(max_examples=150, deadline=None)
EQUAL = [
    ("1,000 g", "1 kg"), ("1.000 g", "1000 g"), ("1\u202f000 g", "1'000 g"), ("1 000,5 m", "1000.5 m"),
    ("1.234.567,8", "1,234,567.8"), ("12,34,567", "1234567"), ("-5 °C", "−5°C"), ("–5", "-5"),
    ("5 %", "5 percent"), ("$5", "5 dollars"), ("1.50", "1.5"), ("3 × 10^8 m", "300 000 km"),
    ("5 μg", "5 µg"), ("three lamps", "3 lamps"), ("5", "5 kg"), ("٣٫٥", "3.5"), ("90 min", "1.5 hours"),
]  # fmt: skip
DIFFERENT = [
    ("1.5", "15"), ("-5", "5"), ("5 kg", "5 g"), ("5 mW", "5 MW"), ("$5", "€5"), ("$5", "-$5"),
    ("5 °C", "5 °F"), ("1e-5", "1e5"), ("1.5", "1,55"), ("0.125", "125"), ("10", "10000"), ("5 %", "5 kg"),
]  # fmt: skip
WORDS = ("12:30", "1.2.3", "5th", "1/2", "C3PO", "AB-12", "twelve thousand", "x10")


def read(text: str) -> Quantity:
    (quantity,), _ = split_quantities(text)
    return quantity


@pytest.mark.parametrize("pair", EQUAL, ids=" = ".join)
def test_one_quantity_in_two_notations_is_equal(pair: tuple[str, str]) -> None:
    assert read(pair[0]).matches(read(pair[1])) and read(pair[1]).matches(read(pair[0]))


@pytest.mark.parametrize("pair", DIFFERENT, ids=" is not ".join)
def test_other_quantities_are_not_equal(pair: tuple[str, str]) -> None:
    assert not read(pair[0]).matches(read(pair[1])) and not read(pair[1]).matches(read(pair[0]))


def test_times_versions_parts_and_fractions_stay_words() -> None:
    for text in WORDS:
        assert split_quantities(text) == ([], text), text
    assert [str(q) for q in split_quantities("10–20 of 2023, rooms 3, 4 and 5.")[0]] == [
        "10", "20", "2023", "3", "4", "5",
    ]  # fmt: skip


@PROPERTIES
@given(
    st.decimals(min_value=-(10**9), max_value=10**9, allow_nan=False, places=2),
    st.sampled_from([",", ".", "'", " "]),
)
def test_a_number_equals_itself_in_every_locale(value: Decimal, mark: str) -> None:
    point = "," if mark in ". " else "."
    whole, _, decimals = f"{value:,.2f}".partition(".")
    written = f"{whole.replace(',', mark)}{point}{decimals}"
    assert value in read(written).values and read(written).matches(read(f"{value:f}"))


@PROPERTIES
@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6), st.sampled_from(["", " kg", " %"]))
def test_whole_numbers_are_equal_only_to_themselves(a: int, b: int, unit: str) -> None:
    assert read(f"{a}{unit}").matches(read(f"{b}{unit}")) is (a == b)


@PROPERTIES
@given(st.text(max_size=60))
def test_an_answer_that_repeats_the_reference_states_all_its_facts(text: str) -> None:
    gold = read_gold("", text)
    assume(len(gold))
    assert measure_factuality(text, gold) == 1.0 and measure_factuality("", gold) == 0.0


@PROPERTIES
@given(st.text("ab1,. -", max_size=30), st.text("ab1,. -", max_size=30))
def test_factuality_and_support_are_shares(answer: str, reference: str) -> None:
    factuality = measure_factuality(answer, read_gold("b?", reference))
    support = measure_support(answer, "b?", [reference])
    assert all(share is None or 0 <= share <= 1 for share in (factuality, support))


def test_gold_facts_leave_out_what_the_question_gives() -> None:
    gold = read_gold("Where is the red lamp?", "The red lamp is kept 1,500 m north.")
    assert gold.words == ("kept", "north") and len(gold) == 3
    assert measure_factuality("It is 1.5 km north of the gate [1].", gold) == pytest.approx(2 / 3)
    assert measure_factuality("It is 15 km north.", gold) == pytest.approx(1 / 3)
    assert read_gold("Is it red or blue?", "Red.").words == ("red",)
    assert read_facts("C++") != read_facts("C") and read_facts("No.").words == ("no",)


def test_a_citation_counts_for_its_own_sentence_and_passage() -> None:
    passages = ["The red lamp is kept in the north room.", "The tank holds 15 litres."]
    assert [s.passages for s in read_sentences("Red. [1] Old [2, 3]. [4]\nNew.")] == [(1,), (2, 3, 4), ()]
    right = score_citations("The lamp is in the north room [1]. The tank holds 15 l [2].", passages)
    assert right.coverage == right.precision == 1.0
    wrong = score_citations("The lamp is in the north room [2]. The tank holds 1.5 l [2] [7].", passages)
    assert (wrong.sentences, wrong.supported, wrong.citations, wrong.right) == (2, 0, 3, 0)
    bare = score_citations("The lamp is in the north room. The tank holds 15 l [2].", passages)
    assert bare.coverage == 0.5 and bare.precision == 1.0
    assert score_citations("", passages).coverage is None
    assert score_citations("Red.", passages).precision is None


def test_answers_are_grounded_refusals_or_unsupported() -> None:
    question, gold = "Where is the lamp?", read_gold("Where is the lamp?", "In the north room.")
    passage = ["The lamp is kept in the north room."]
    assert classify_answer("In the north room [1].", question, gold, passage) == GROUNDED
    assert classify_answer("In the cellar of Bob.", question, gold, passage) == UNSUPPORTED
    assert classify_answer("I don't know.", question, gold, ["The bell is red."]) == HONEST
    assert classify_answer("The passages do not say where.", question, gold, passage) == NEEDLESS
    assert is_refusal(" ") and not is_refusal("It is not in the north room.")
