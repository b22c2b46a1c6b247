"""Exact match and F1 as SQuAD defines them."""

from __future__ import annotations

import pytest

from core.evaluate.metrics import exact_match, f1, normalise
from core.store.csv_tables import escape_cell
from core.store.reports import format_report


@pytest.mark.parametrize(
    ("answer", "reference", "em", "score"),
    [
        ("The dial is red.", "dial is  red", 1.0, 1.0),
        ("red", "the red dial", 0.0, 2 * 1 / 3),
        ("blue", "red", 0.0, 0.0),
        ("", "red", 0.0, 0.0),
        ("the", "a", 1.0, 1.0),
        ("red red", "red", 0.0, 2 / 3),
    ],
)
def test_scores_equal_those_of_the_squad_script(answer: str, reference: str, em: float, score: float) -> None:
    assert exact_match(answer, reference) == em
    assert f1(answer, reference) == pytest.approx(score)


def test_normalise_drops_case_punctuation_and_articles() -> None:
    assert normalise(" The Cold-Rack, an  Apple! ") == "coldrack apple"


def test_csv_values_are_never_formulas() -> None:
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
