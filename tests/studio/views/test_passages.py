"""Passages below an answer: marks, what was left out, and citations that open them."""

from __future__ import annotations

from core.retrieve.passages import Passage
from core.retrieve.prompt import PassagePrompt
from studio.markdown import render_markdown
from studio.tree import node
from studio.views.passages import NO_PASSAGE, link_citations, mark_words, render_passages
from tests.studio.views.conftest import texts

LAMP = Passage("d", "Notes", "a.md", "North", 0, 12, "The <b>lamp</b>", 0.5, ("lamp",), ((7, 11),))
BELL = Passage("d", "Notes", "b.md", "", 5, 9, "bell", 0.4)


def buttons(tree) -> list[tuple[int, str]]:
    if not isinstance(tree, dict):
        return []
    own = [(tree["act"]["passage"], tree["attrs"]["aria-label"])] if tree.get("cls") == "cite" else []
    return own + [found for kid in tree.get("kids", []) for found in buttons(kid)]


def test_citations_of_existing_passages_become_buttons_outside_code():
    answer = node("div", *render_markdown("The **lamp [1]** is red [2, 1][7].\n\n`x[1]`\n\n- old [2]"))
    linked = link_citations(answer, 2)
    assert [number for number, _ in buttons(linked)] == [1, 2, 1, 2]
    assert buttons(linked)[0][1] == "Open passage 1"
    assert texts(linked) == texts(answer).replace("[2, 1]", "[2][1]")
    assert link_citations(answer, 0) == answer


def test_matched_words_are_marks_and_text_stays_text():
    assert mark_words(LAMP) == ["The <b>", node("mark", "lamp"), "</b>"]
    shown = texts(render_passages(PassagePrompt("", "Where?", (LAMP,), (BELL, BELL))))
    assert "[1] a.md, North" in shown and "Notes, characters 0 to 12" in shown
    assert "2 passages do not fit into this base's context and were left out: b.md." in shown


def test_nothing_found_is_said_and_no_documents_show_nothing():
    assert NO_PASSAGE in texts(render_passages(PassagePrompt("", "Where?")))
    assert render_passages(None) is None
