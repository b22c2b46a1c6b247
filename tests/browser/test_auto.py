"""Weights on Auto in a real browser: the slider moves by itself, and the page says why."""

from __future__ import annotations

import dataclasses
import json
from urllib.parse import parse_qs, urlsplit

import pytest

from core.spec.gate import GateCalibration
from core.spec.mix import Mix
from core.store import adapters as adapter_store
from core.store.gate_records import make_gate
from studio.tabs import suggestions
from tests.browser.test_mix import answered, open_tab
from tests.browser.test_path import press, tab, until
from tests.conftest import SENTENCES

pytestmark = [pytest.mark.slow, pytest.mark.browser]
PROMPTS = ("Where is it: The red lamp is kept in the north room.", "Bananas, quanta and 12345?")


@pytest.fixture(scope="module")
def gated(studio, tmp_path_factory):
    """Two adapters, and for each the prompt that opens its gate and the one that closes it."""
    engine, _ = studio
    engine.bases.current(wait=True)
    folder = tmp_path_factory.mktemp("own")
    (folder / "notes.txt").write_text("\n\n---\n\n".join(f"{s} {s}" for s in SENTENCES[:40]))
    rows = [{"question": f"Where is it: {s}", "answer": s} for s in SENTENCES[:40]]
    (folder / "own.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    made = {}
    for file, name, kind in (("notes.txt", "Papers", "domain"), ("own.jsonl", "Answers", "task")):
        data = engine.datasets.import_files([folder / file], name, kind)
        spec = dataclasses.replace(
            suggestions.suggest_run(engine, kind),
            dataset=data.id,
            name=name,
            stack_on="",
            max_steps=4,
            batch_size=2,
            accumulation=1,
            max_length=64,
            rank=4,
            learning_rate=5e-3,
        )
        made[name] = engine.runs.wait(engine.runs.start(spec), 600).adapter
    engine.calibration.wait_for_all(120)
    evidence = measure(engine, list(made.values()))
    found = {}
    for name, adapter in made.items():
        first, second = (of_prompt[adapter] for of_prompt in evidence)
        set_threshold(engine, adapter, (first + second) / 2)
        found[name] = PROMPTS if first > second else PROMPTS[::-1]
    return {"prompts": found, "ids": made}


def measure(engine, ids):
    """The evidence of every adapter on both prompts, as the gates read it."""

    def work():
        from core.model.gating import measure_evidence
        from core.model.generate import encode_prompt

        resident = engine.resident_base.get()
        resident.load_adapters([Mix(weights=dict.fromkeys(ids, 1.0))])
        encoded = [encode_prompt(resident, prompt, True, 8) for prompt in PROMPTS]
        *_, last = measure_evidence(resident, encoded, ids)
        return last

    return engine.worker.call(work)


def set_threshold(engine, adapter_id, threshold):
    made = GateCalibration(
        threshold,
        0.02,
        1.0,
        (threshold + 0.1, 0.05),
        (threshold - 0.1, 0.05),
        (8, 8),
        base_fingerprint=engine.bases.current().fingerprint,
    )

    def store():
        adapter_store.set_gate(engine.workspace, adapter_id, make_gate(made, "its own data"))
        engine.resident_base.get().set_calibration(adapter_id, made)

    engine.worker.call(store)


def open_mixer(visit):
    """Opens the Mix tab; on a busy machine the page may still be starting when its tab is pressed."""
    open_tab(visit, "Mix", "#mix-prompt textarea")
    switch = visit.page.get_by_role("switch", name="Papers on")
    until(lambda: switch.is_visible() or tab(visit.page, "Mix"), 60, "the rows of the mixer")


def row(page, name):
    return page.locator(".mix-row", has=page.get_by_role("switch", name=f"{name} on"))


def slider(page, name):
    return float(page.get_by_label(f"Weight of {name}", exact=True).input_value())


def reason(page, name):
    return row(page, name).locator(".gate-why").inner_text()


def put_on_auto(page, name):
    switch = page.get_by_role("switch", name=f"{name} on")
    if not switch.is_checked():
        switch.press("Space")
    button = page.get_by_role("button", name=f"Auto for {name}")
    if button.get_attribute("aria-pressed") != "true":
        button.click()
    until(lambda: button.get_attribute("aria-pressed") == "true", 30, "the weight on Auto")


def ask(page, prompt):
    """Asks in a new conversation, as the evidence was measured."""
    press(page, "Clear")
    page.get_by_text("No answer yet").first.wait_for()
    page.locator("#mix-prompt textarea").fill(prompt)
    page.locator("#mix-prompt textarea").press("Enter")
    until(lambda: answered(page, 1), 60, "an answer")


def test_the_slider_follows_the_prompt_and_the_page_says_why(visit, gated):
    page = visit.page
    open_mixer(visit)
    for name in gated["prompts"]:
        put_on_auto(page, name)
        assert reason(page, name) == "Follows the next prompt."
        assert page.get_by_label(f"Exact weight of {name}").input_value() == "auto"
    for prompt in PROMPTS:
        ask(page, prompt)
        for name, (opening, _) in gated["prompts"].items():
            wanted = 1.0 if prompt == opening else 0.0
            until(lambda n=name, w=wanted: slider(page, n) == w, 20, f"the slider of {name} at {wanted}")
            ending = ": on." if wanted else ": off."
            assert reason(page, name).endswith(ending) and name in reason(page, name)
            stamp = page.locator("#mix-answer .exchange").last.inner_text()
            assert f"{name} auto {wanted:.2f}" in stamp and reason(page, name) in stamp
    assert row(page, "Papers").locator(".gate-now").inner_text() == f"{slider(page, 'Papers'):.2f}"
    assert not visit.console


def test_a_gate_that_follows_each_token_answers_and_is_in_the_stamp(visit, gated):
    page = visit.page
    open_mixer(visit)
    for name in gated["ids"]:
        put_on_auto(page, name)
        page.get_by_label(f"How Auto sets {name}").select_option("token")
    for prompt in PROMPTS:
        ask(page, prompt)
        stamp = page.locator("#mix-answer .exchange").last.inner_text()
        for name in gated["ids"]:
            until(lambda n=name: reason(page, n).endswith((": on.", ": off.")), 20, "a reason")
            weight = 1.0 if reason(page, name).endswith(": on.") else 0.0
            until(lambda n=name, w=weight: slider(page, n) == w, 20, f"the slider of {name} at {weight}")
            assert f"{name} auto {weight:.2f}" in stamp and reason(page, name) in stamp, stamp
        assert "auto, each token" in page.locator(".formula").inner_text()
    assert not visit.console


def test_a_link_keeps_auto_and_a_moved_slider_ends_it(visit, gated):
    page, (papers, answers) = visit.page, gated["ids"].values()
    open_mixer(visit)
    for name in gated["ids"]:
        put_on_auto(page, name)
    page.get_by_label("How Auto sets Answers").select_option("soft")
    page.get_by_label("How Auto sets Papers").select_option("token")
    assert page.get_by_label("How Auto sets Answers").input_value() == "token", "one mix has one of the two"
    until(lambda: "auto, each token · Papers" in page.locator(".formula").inner_text(), 30, "the formula")
    press(page, "Copy link")
    until(lambda: "mix=" in page.url, 30, "the link")
    linked = Mix.parse(parse_qs(urlsplit(page.url).query)["mix"][0])
    assert linked.auto == {papers: "token", answers: "token"} and linked.weights[papers] == 1.0
    visit.reload()
    auto = page.get_by_role("button", name="Auto for Papers")
    until(lambda: auto.get_attribute("aria-pressed") == "true", 30, "the mix of the link")
    assert page.get_by_label("How Auto sets Papers").input_value() == "token"
    page.get_by_label("Weight of Papers", exact=True).press("ArrowRight")
    assert auto.get_attribute("aria-pressed") == "false"
    # From what the gate chose: 0 before an answer, then 0 or 1.
    assert page.get_by_label("Exact weight of Papers").input_value() in ("0.05", "1.05")
    exact = page.get_by_label("Exact weight of Papers")
    exact.fill("auto")
    exact.press("Enter")
    until(lambda: auto.get_attribute("aria-pressed") == "true", 30, "Auto by its name")
    assert not visit.console


def test_a_weight_that_is_being_typed_outlives_changes_of_the_library(visit, gated):
    page, papers = visit.page, gated["ids"]["Papers"]
    open_mixer(visit)
    exact = page.get_by_label("Exact weight of Papers")
    exact.fill("0.35")
    try:
        visit.engine.library.rename("adapters", papers, "Papers renamed")
        option = page.locator("[aria-label='Papers renamed'], [aria-label='Papers renamed on']")
        page.evaluate("window.dispatchEvent(new Event('studio:gates'))")
        page.wait_for_timeout(2500)  # the change reaches the page meanwhile
        assert exact.input_value() == "0.35" and not option.count()
        exact.press("Enter")
        until(lambda: "+ 0.35 · Papers renamed" in page.locator(".formula").inner_text(), 30, "both changes")
        assert page.get_by_label("Exact weight of Papers renamed").input_value() == "0.35"
    finally:
        visit.engine.library.rename("adapters", papers, "Papers")
    assert not visit.console


def test_a_key_moves_from_what_the_gate_chose_not_from_the_way_to_it(visit, gated):
    page = visit.page
    open_mixer(visit)
    page.get_by_label("Exact weight of Papers").fill("1.5")
    page.get_by_label("Exact weight of Papers").press("Enter")
    weight = page.get_by_label("Weight of Papers", exact=True)
    until(lambda: slider(page, "Papers") == 1.5, 20, "the slider")
    # In one task of the page: on Auto the slider begins its way to 0, and the key comes at once.
    page.evaluate(
        """() => {
            document.querySelector('[aria-label="Auto for Papers"]').click();
            const range = document.querySelector('[aria-label="Weight of Papers"]');
            range.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
            range.stepUp();
            range.dispatchEvent(new Event("input"));
        }"""
    )
    until(lambda: page.get_by_label("Exact weight of Papers").input_value() != "auto", 20, "a weight")
    chosen = page.get_by_label("Exact weight of Papers").input_value()
    assert chosen in ("0.05", "1.05") and weight.input_value() == chosen
    assert not visit.console


@pytest.mark.parametrize("visit", [(390, 844, "dark")], indirect=True)
def test_an_adapter_without_a_calibration_says_so_and_its_button_helps(visit, gated):
    page, papers = visit.page, gated["ids"]["Papers"]
    engine = visit.engine
    before = engine.library.adapter(papers).metadata["gate"]
    adapter_store.set_gate(engine.workspace, papers, {})
    try:
        open_mixer(visit)
        put_on_auto(page, "Papers")
        assert reason(page, "Papers") == "Stays off: it is not calibrated yet."
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1"), "no sideways scroll"
        page.get_by_role("button", name="Calibrate Papers").click()
        until(lambda: "it is not calibrated yet" not in reason(page, "Papers"), 60, "a calibration")
        assert engine.calibration.get(papers) is not None
    finally:
        engine.calibration.wait_for_all(60)
        adapter_store.set_gate(engine.workspace, papers, before)
    assert not visit.console
