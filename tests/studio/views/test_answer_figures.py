"""The table of the answers of the last days: names of mixes, days as bars, and what to do without answers."""

from __future__ import annotations

from core.store.answer_log import MixFigures
from studio.views.answer_figures import COLUMNS, render_figures
from tests.studio.shown import texts

DAYS = {"2026-11-28": 1, "2026-11-29": 4}


def walk(node: object) -> list[dict]:
    kids = node.get("kids", []) if isinstance(node, dict) else []
    return [*([node] if isinstance(node, dict) else []), *(found for kid in kids for found in walk(kid))]


def test_a_row_names_its_mix_and_draws_its_days() -> None:
    mine = MixFigures("law-1f3a=0.7", "", "tiny", 5, DAYS, 41.6, 0.25, 1.5, empty=1, good=2)
    base = MixFigures("", "", "tiny", 2, DAYS)
    shown = render_figures([mine, base], {"law-1f3a": "Law"})
    cells = [texts(n) for n in walk(shown) if n["tag"] == "td"]
    assert len(cells) == 2 * len(COLUMNS)
    assert cells[0] == "Law=0.7" and cells[len(COLUMNS)] == "Base"
    assert cells[4:8] == ["0.25 s", "1.50 s", "42", "1"]
    days = next(n for n in walk(shown) if n.get("cls") == "days")
    assert days["attrs"]["aria-label"] == "2026-11-28: 1, 2026-11-29: 4"
    assert [n["vars"]["share"] for n in days["kids"]] == ["25%", "100%"]


def test_without_answers_the_table_says_where_to_ask() -> None:
    assert "Ask something on the Mix tab, or through the API." in texts(render_figures([], {}))
