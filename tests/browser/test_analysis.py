"""The Mix tab in a real browser: a slider during an answer, the analysis card, and the presentation view."""

from __future__ import annotations

import re
import threading

import pytest

from core.spec.training import TrainSpec
from studio import samples
from tests.browser.test_path import press, tab, until

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture
def trained(visit):
    """A visit to a studio with a domain and a task adapter."""
    engine = visit.engine
    if not engine.library.adapters():
        samples.import_samples(engine)
        for kind in ("domain", "task"):
            data = next(d for d in engine.datasets.list() if d.kind == kind and d.name == samples.NAMES[kind])
            spec = TrainSpec(
                kind=kind,
                name=data.name,
                dataset=data.id,
                max_steps=6,
                max_length=128,
                batch_size=2,
                learning_rate=1e-3,
                rank=4,
            )
            engine.runs.wait(engine.runs.start(spec))
        visit.reload()
    tab(visit.page, "Mix")
    until(lambda: visit.page.get_by_role("slider").count() >= 2, 60, "the sliders")
    return visit


def exact(page) -> dict[str, str]:
    """What stands beside each slider, by adapter."""
    return {
        name: page.get_by_label(f"Exact weight of {name}").input_value()
        for name in ("Sample domain", "Sample task")
    }


def test_a_slider_moved_during_an_answer_marks_where_the_mix_changed(trained, monkeypatch):
    import core.model.generate as generate

    page, take, turned = trained.page, generate.append_token, threading.Event()

    def slowly(*values):
        turned.wait(0.3)  # as a larger model writes, so that the slider moves during the answer
        take(*values)

    monkeypatch.setattr(generate, "append_token", slowly)
    page.get_by_role("button", name="Sampling").first.click()
    page.locator("#answer-side").get_by_label("Continue the text", exact=True).check()
    for label, value in (("Longest answer", "150"), ("Temperature", "4"), ("Seed", "3")):
        page.get_by_label(re.compile(f"^{label}")).first.fill(value)
    page.locator("#mix-prompt textarea").fill("The lamp")
    press(page, "Answer with this mix")
    page.locator("#mix-answer .writing").wait_for()
    slider = page.get_by_role("slider", name="Weight of Sample task")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.locator("#mix-answer .turn").wait_for()
    turned.set()
    assert "0.95 · Sample task" in page.locator("#mix-answer .turn").inner_text()
    until(lambda: not page.locator("#mix-answer .writing").count(), 60, "the end of the answer")
    assert "+0.95" in page.locator("#mix-answer .stamp").inner_text()
    assert page.locator("#mix-answer .turn").count() == 1


def test_a_click_on_the_weight_map_sets_the_mixer_and_the_answer_follows(trained):
    page = trained.page
    page.locator("#mix-prompt textarea").fill("Where is the lamp kept?")
    press(page, "Answer with this mix")
    until(lambda: "tokens/s" in page.locator("#mix-answer").inner_text(), 60, "an answer")
    page.locator("#analysis").get_by_role("spinbutton", name="Rows").fill("4")
    press(page, "Draw the map")
    page.get_by_text("Show the map as a table").wait_for(timeout=240_000)
    assert page.locator("#map .contour").count() >= 1
    plot = page.locator("#map .plot")
    plot.scroll_into_view_if_needed()
    at = plot.evaluate(
        "(e) => { const { xaxis: x, yaxis: y } = e._fullLayout, b = e.getBoundingClientRect();"
        " return [b.left + x._offset + x.d2p(0.5), b.top + y._offset + y.d2p(-0.25)]; }"
    )
    page.mouse.move(at[0] - 2, at[1])
    page.mouse.move(*at)
    page.mouse.click(*at)
    until(lambda: exact(page) == {"Sample domain": "0.50", "Sample task": "-0.25"}, 60, "the mixer to follow")
    stamp = page.locator("#mix-answer .stamp")
    until(
        lambda: "+0.50" in stamp.inner_text() and "-0.25" in stamp.inner_text(),
        60,
        "the answer of the clicked mix",
    )
    press(page, "Use the best point")
    until(lambda: exact(page) != {"Sample domain": "0.50", "Sample task": "-0.25"}, 60, "the best mix")


def test_attribution_interference_and_baking_are_shown(trained):
    page, engine = trained.page, trained.engine
    page.locator("#mix-prompt textarea").fill("Where is the lamp kept?")
    tab(page, "Attribution")
    press(page, "Explain the answer")
    until(lambda: page.locator(".word-row").count() == 3, 60, "three rows of words")
    tab(page, "Interference")
    press(page, "Compare the adapters")
    page.locator("#overlap .reading").first.wait_for()
    page.locator("#cosines .heatmaplayer").wait_for()
    tab(page, "Bake")
    page.locator("#analysis").get_by_label("Name").first.fill("Both in one")
    press(page, "Bake this mix")
    result = page.locator("#bake-result")
    until(lambda: "Nothing baked yet" not in result.inner_text(), 120, "the beginning of the bake")
    until(lambda: "Both in one is baked" in result.inner_text(), 120, "the baked adapter")
    assert next(a for a in engine.library.adapters() if a.name == "Both in one").kind == "mix"


@pytest.mark.parametrize(
    "visit", [(1440, 900, "dark"), (390, 844, "light")], indirect=True, ids=["projector", "phone"]
)
def test_a_link_brings_the_mix_back_in_the_view_for_a_projector(trained):
    page, engine = trained.page, trained.engine
    domain = next(a.id for a in engine.library.adapters() if a.kind == "domain")
    trained.go(f"?mix={domain}%3D0.35&prompt=Where+is+the+lamp%3F&view=present")
    until(lambda: "+0.35" in page.locator("#mix-answer .stamp").text_content(), 90, "the shared answer")
    assert page.locator("#mix-answer .question p").text_content() == "Where is the lamp?"
    assert page.locator("#mix-prompt textarea").input_value() == "", "the prompt is in the conversation"
    page.get_by_role("slider", name="Weight of Sample domain").wait_for()
    assert (
        not page.get_by_role("button", name="Save mix").is_visible()
        and not page.locator("#analysis").is_visible()
    )
    assert (
        page.evaluate(
            "parseFloat(getComputedStyle(document.querySelector('#mix-answer .answer-text')).fontSize)"
        )
        >= 26
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    press(page, "Exit presentation")
    page.get_by_role("button", name="Save mix").wait_for()
