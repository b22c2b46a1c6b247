"""Answers on the page: the thought folds away, cuts and rules are named, texts stay text nodes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from core.evaluate.suite import SuiteResult
from core.model.columns import Column
from core.store.reports import Conditions, Report, RowRecord
from studio import answers
from studio.components import board
from studio.views import blind, suite
from studio.views import report as report_view
from tests.studio.views.conftest import texts

STAMP = {"weights": {}, "mix": "Base"}
THOUGHT = "<b>North</b> or south?"
THINKING = Column("North.", 12, 1.0, True, "end", STAMP, (), THOUGHT, 9)
PLAIN = Column("South.", 3, 1.0, True, "end", STAMP)
INSIDE = Column("", 48, 1.0, True, "length", STAMP, (), THOUGHT, 48)


@dataclasses.dataclass
class Frame:
    columns: list[Column]
    done: bool = True
    prompts: tuple[()] = ()


def folds(node: Any) -> list[Any]:
    """All details of a tree."""
    if not isinstance(node, dict):
        return []
    found = [node] if node.get("tag") == "details" else []
    return found + [fold for kid in node.get("kids", []) for fold in folds(kid)]


def rows_of(kind: str, column: Column) -> Any:
    if kind == "board":
        return board.render_columns(Frame([PLAIN, column]), 0)[1]
    if kind == "blind":
        return blind.render_covered_board(Frame([PLAIN, column]), ["a", "b"], "1")["columns"][1]
    if kind == "suite":
        sheet = SuiteResult(("Where?",), ("One",), ((column.text,),), 1, ((column,),))
        return suite.render_answers(sheet)
    example = {"question": "Where?", "reference": "North.", "answer": column.text}
    example |= {"thought": column.thought, "thought_tokens": column.thought_tokens}
    return report_view.render_examples([{"name": "One", "examples": [example]}])


@pytest.mark.parametrize("kind", ["board", "blind", "suite", "examples"])
def test_a_thought_folds_away_everywhere_and_stays_plain_text(kind: str) -> None:
    shown = rows_of(kind, THINKING)
    (fold,) = (f for f in folds(shown) if f.get("cls") == "thought")
    assert texts(fold["kids"][0]) == "Thought for 9 tokens"
    assert fold["kids"][1]["kids"] == [THOUGHT], "one text node, never markup"
    assert "North." in texts(shown)
    assert all(f["cls"] != "thought" for f in folds(rows_of(kind, PLAIN)) if "cls" in f)


@pytest.mark.parametrize("kind", ["board", "blind", "suite", "examples"])
def test_an_answer_that_ends_inside_its_thought_says_so(kind: str) -> None:
    assert "The answer is empty: it ended inside its thought." in texts(rows_of(kind, INSIDE))


def test_a_thought_in_progress_counts_its_tokens() -> None:
    writing = dataclasses.replace(INSIDE, done=False, reason="")
    fold = answers.render_column_fold(writing)
    assert fold is not None and texts(fold["kids"][0]) == "Thinking, 48 tokens so far"
    assert answers.placeholder(writing) == "…"
    assert answers.format_speed(INSIDE) == "48 tokens, 48 of them a thought · 48 tokens/s, cut at the limit"


def report(conditions: Conditions, **figures: Any) -> Report:
    row = {
        "name": "Base",
        "mix": "base",
        "weights": {},
        "questions": 8,
        "exact_match": 0.5,
        "f1": 0.75,
        **figures,
    }
    return Report("r-1", 0.0, "d", "Data", "test", "embedded", 3.0, [row], conditions)


def test_the_report_shows_its_rule_its_length_and_its_rows() -> None:
    notes = tuple(RowRecord("", i, f"lamp {i} …", "left out", "it is too long") for i in range(1, 26))
    how = Conditions("words", 512, 33, 25, 2, notes)
    shown = texts(report_view.render_report(report(how, answers_cut=3, squad_f1=1.0)))
    assert "Answers were cut at 33 tokens. Answers that reached this length: Base 3." in shown
    assert "25 rows were left out and 2 rows were cut." in shown
    assert "Row 20 was left out: it is too long. “lamp 20 …”" in shown and "Row 21 was" not in shown
    assert "And 7 more" in shown and "SQuAD's own figures are in the CSV file." in shown
    assert "Exact match (SQuAD)" not in shown


def test_a_report_shows_the_figures_of_the_harness_without_their_errors() -> None:
    figures = {"arc_easy acc": 0.25, "arc_easy acc_stderr": 0.01, "wiki word_perplexity": None}
    shown = texts(report_view.render_report(report(Conditions(), **figures)))
    assert "arc_easy acc" in shown and "0.2500" in shown and "stderr" not in shown


def test_a_report_without_a_rule_is_shown_as_one_of_squads() -> None:
    shown = texts(report_view.render_report(report(Conditions())))
    assert "Exact match (SQuAD)" in shown and "F1 (SQuAD)" in shown and "50.0 %" in shown
    assert "1.5 equals 15" in shown and "were cut" not in shown


def test_a_figure_that_is_not_a_number_is_a_dash() -> None:
    shown = texts(report_view.render_report(report(Conditions("words"), perplexity=None, f1=float("nan"))))
    assert "nan" not in shown and "–" in shown
