"""Mix and Compare in a real browser, with data that is not the sample's."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from studio.tabs import suggestions
from tests.browser.test_path import press, tab, until
from tests.conftest import SENTENCES

pytestmark = [pytest.mark.slow, pytest.mark.browser]
LINE = "Enter sends, Shift+Enter starts a new line."


@pytest.fixture
def own(studio, tmp_path):
    """Texts and questions of a user, an adapter on each, and a second one with the name of the first."""
    engine, _ = studio
    if engine.library.adapters():
        return
    engine.bases.current(wait=True)
    (tmp_path / "notes.txt").write_text("\n\n---\n\n".join(f"{s} {s}" for s in SENTENCES[:40]))
    rows = [{"question": f"Where is it: {s}", "answer": s} for s in SENTENCES[:40]]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    notes = engine.datasets.import_files([tmp_path / "notes.txt"], "Own notes", "domain")
    pairs = engine.datasets.import_files([tmp_path / "own.jsonl"], "Own pairs", "task")
    for data, name, kind in (
        (notes, "Notes", "domain"),
        (pairs, "Answers", "task"),
        (notes, "Notes", "domain"),
    ):
        spec = dataclasses.replace(
            suggestions.suggest_run(engine, kind),
            dataset=data.id,
            name=name,
            stack_on="",
            max_steps=2,
            batch_size=2,
            accumulation=1,
            max_length=64,
            rank=2,
        )
        engine.runs.wait(engine.runs.start(spec), 600)


def open_tab(visit, name, prompt):
    visit.reload()
    tab(visit.page, name)
    until(lambda: visit.page.locator(prompt).input_value(), 60, "a prompt to begin with")


def answered(page, count):
    return page.locator(".exchange .answer-foot").count() == count and not page.locator(".writing").count()


def test_a_conversation_is_held_by_keyboard(visit, own):
    page, box = visit.page, visit.page.locator("#mix-prompt textarea")
    open_tab(visit, "Mix", "#mix-prompt textarea")
    assert page.get_by_text(LINE).first.is_visible()
    until(lambda: box.input_value().startswith("Where is it:"), 30, "a question of the user's own test split")
    box.fill("First")
    box.press("Shift+Enter")
    box.type("second line")
    assert box.input_value() == "First\nsecond line" and page.locator(".exchange").count() == 0
    box.press("Enter")
    until(lambda: answered(page, 1), 60, "an answer")
    assert box.input_value() == "" and page.locator(".question p").inner_text() == "First\nsecond line"
    box.fill("And then?")
    press(page, "Answer with this mix")
    until(lambda: answered(page, 2), 60, "a second answer")
    assert "Notes" in page.locator("#mix-answer .stamp").last.inner_text()
    # the second answer follows the mixer, the first one stays
    stays = page.locator("#mix-answer .stamp").first.inner_text()
    page.get_by_role("switch", name="Answers on").press("Space")
    until(lambda: "Answers" not in page.locator("#mix-answer .stamp").last.inner_text(), 60, "the new mix")
    assert page.locator("#mix-answer .stamp").first.inner_text() == stays and "Answers" in stays
    ids = [a.id for a in visit.engine.library.adapters()]
    assert not any(i in page.locator("#mix-answer").inner_html() for i in ids)
    press(page, "Clear")
    page.get_by_text("No answer yet").first.wait_for()


def test_chips_fill_the_prompt_and_the_mode_follows_the_mix(visit, own):
    page, box = visit.page, visit.page.locator("#mix-prompt textarea")
    open_tab(visit, "Mix", "#mix-prompt textarea")
    chat, text = (
        page.locator("#answer-side").get_by_label(n, exact=True) for n in ("Chat", "Continue the text")
    )
    assert chat.is_checked()
    page.locator("#mix-chips button").nth(1).click()
    wanted = page.locator("#mix-chips button").nth(1).inner_text()
    until(lambda: box.input_value() == wanted, 30, "the prompt of the chip")
    until(lambda: page.evaluate("document.activeElement.tagName") == "TEXTAREA", 30, "the focus")
    page.get_by_role("switch", name="Answers on").press("Space")
    until(text.is_checked, 30, "the mode of a domain adapter")
    page.get_by_text("Continue a held-out text:").first.wait_for()
    text.focus()
    page.keyboard.press("ArrowLeft")
    until(chat.is_checked, 30, "the mode that the user chose")
    page.get_by_role("switch", name="Answers on").press("Space")
    page.get_by_role("switch", name="Answers on").press("Space")
    page.wait_for_timeout(1500)
    assert chat.is_checked(), "a choice of the user stays"


def test_an_error_stands_below_its_prompt_until_it_is_corrected(visit, own):
    page, box = visit.page, visit.page.locator("#mix-prompt textarea")
    open_tab(visit, "Mix", "#mix-prompt textarea")
    long = "lamp " * 400
    box.fill(long)
    box.press("Enter")
    problem = page.locator("#mix-prompt").get_by_role("alert")
    problem.get_by_text("at most 256 tokens").wait_for()
    assert box.input_value() == long and page.locator(".exchange").count() == 0
    assert page.get_by_test_id("toast-body").count() == 0
    page.wait_for_timeout(2000)
    assert problem.is_visible()
    box.fill("Where?")
    until(lambda: problem.count() == 0, 30, "the error to go away")


def test_columns_are_adapters_by_name_and_say_when_one_is_gone(visit, own):
    page, engine = visit.page, visit.engine
    open_tab(visit, "Compare", "#compare-prompt textarea")
    until(lambda: page.locator(".board select").count() == 4, 30, "four columns")
    picker = page.get_by_label("Mix of column 2")
    options = picker.locator("option").all_inner_texts()
    notes = [o for o in options if re.fullmatch(r"Notes \(.*2 steps\)( #\d)?", o)]
    assert len(notes) == 2 and "Answers" in options
    assert not any(a.id in o for a in engine.library.adapters() for o in options)
    newest = engine.library.adapters()[0]
    picker.select_option(newest.id)
    page.locator("#compare-prompt textarea").press("Enter")
    until(lambda: page.locator(".board .stamp-fold").count() == 4, 60, "answers")
    engine.library.delete("adapters", newest.id)
    page.evaluate("window.studio.refresh()")
    until(lambda: "(gone)" in page.get_by_label("Mix of column 2").inner_text(), 30, "the column to say so")
    press(page, "Answer")
    page.locator("#board > .field-error").get_by_text("not in the library any more").wait_for()
    assert page.locator(".board .stamp-fold").count() == 0, "no stale answers"
    page.locator(".board .problem").get_by_text("is gone").first.wait_for()
    engine.library.restore(engine.library.trash()[0].entry)
    page.evaluate("window.studio.refresh()")
    until(lambda: "(gone)" not in page.get_by_label("Mix of column 2").inner_text(), 30, "the column back")
    assert page.get_by_label("Mix of column 2").input_value() == newest.id, "the pick survived"


def test_a_renamed_adapter_is_renamed_on_the_open_page(visit, own):
    page, engine = visit.page, visit.engine
    open_tab(visit, "Mix", "#mix-prompt textarea")
    answers = next(a for a in engine.library.adapters() if a.name == "Answers")
    engine.library.rename("adapters", answers.id, "Replies")
    try:
        page.evaluate("window.studio.refresh()")
        page.get_by_role("slider", name="Weight of Replies").wait_for()
        until(lambda: "Replies" in page.locator(".formula").inner_text(), 30, "the formula")
        tab(page, "Compare")
        until(lambda: "Replies" in page.get_by_label("Mix of column 3").inner_text(), 30, "the column")
    finally:
        engine.library.rename("adapters", answers.id, "Answers")


@pytest.mark.parametrize("visit", [(390, 844, "light")], indirect=True, ids=["phone"])
def test_prompt_and_answer_are_on_one_screen_of_a_phone(visit, own):
    page = visit.page

    def on_screen(selector):
        box = page.locator(selector).bounding_box()
        return box["y"] >= 0 and box["y"] + min(box["height"], 60) <= 844 and box["x"] >= 0

    for name, prompt, answer in (
        ("Mix", "#mix-prompt textarea", ".exchange:last-child .answer-text, .exchange .answer-text"),
        ("Compare", "#compare-prompt textarea", ".board .answer-text"),
    ):
        open_tab(visit, name, prompt)
        page.locator(prompt).press("Enter")
        until(
            lambda: page.locator(".stamp-fold").count() and not page.locator(".writing").count(),
            60,
            "answers",
        )
        page.wait_for_timeout(300)
        assert on_screen(prompt), f"the prompt of {name}"
        assert on_screen(f":nth-match({answer.split(',')[-1]}, 1)"), f"the answer of {name}"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        sizes = page.evaluate(
            """(selector) => {
              const size = (e) => parseFloat(getComputedStyle(e).fontSize);
              const others = [...document.querySelectorAll("body *")].filter((e) =>
                e.offsetParent && !e.closest(".answer-text, .hidden-text, .icon") &&
                [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()));
              return [size(document.querySelector(selector)), Math.max(...others.map(size))];
            }""",
            answer.split(",")[-1].strip(),
        )
        assert sizes[0] > sizes[1], f"the answer is the largest text of {name}"
