"""The Compare tab in a real browser: the blind test from letters to names, and four columns at once."""

from __future__ import annotations

import csv
import dataclasses
import json
import time

import pytest

from core.engine.worker import Stream
from studio import samples
from studio.tabs import suggestions
from tests.browser.test_path import columns, press, tab, until

pytestmark = [pytest.mark.slow, pytest.mark.browser]

# Keeps what the server streams to the page, as it came over the wire.
RECORD = """
window.received = [];
const real = window.fetch;
window.fetch = async (...request) => {
  const answer = await real(...request);
  if (!answer.body) return answer;
  const copy = answer.clone().body.getReader(), decoder = new TextDecoder();
  const record = async () => {
    for (;;) {
      const { value, done } = await copy.read();
      if (done) return;
      window.received.push(decoder.decode(value, { stream: true }));
    }
  };
  record().catch(() => {});
  return answer;
};
"""


def two_adapters(engine) -> None:
    """The sample data and two adapters of two steps each, unless they are there already."""
    engine.bases.current(wait=True)
    samples.import_samples(engine)
    for kind in ("domain", "task"):
        if not any(a.kind == kind for a in engine.library.adapters()):
            spec = dataclasses.replace(
                suggestions.suggest_run(engine, kind),
                max_steps=2,
                batch_size=2,
                accumulation=1,
                max_length=64,
                rank=4,
            )
            engine.runs.wait(engine.runs.start(spec), 600)


def ask_blind(page, button: str, prompt: str) -> None:
    page.locator("#compare-prompt textarea").fill(prompt)
    press(page, button)


def unfold(page, name: str) -> None:
    page.get_by_role("button", name=name).first.click()  # the arrow is part of its name


def names(page) -> list[str]:
    return [h.inner_text() for h in page.locator(".board .letter-name").all()]


def at_compare(visit) -> None:
    two_adapters(visit.engine)
    visit.reload()
    tab(visit.page, "Compare")
    until(lambda: len(columns(visit.page)) == 4, 30, "four columns")


def vote_once(page, engine) -> None:
    """Votes for the second answer, whose name was not sent before."""
    votes = page.get_by_role("button", name="is best")
    before = votes.first.get_attribute("data-act") if votes.count() else ""
    ask_blind(page, "Blind test", "Where is the lamp kept?")
    until(
        lambda: votes.count() == 4 and votes.first.get_attribute("data-act") != before,
        120,
        "the vote buttons of this test",
    )
    assert page.locator(".board .letter").all_inner_texts() == ["A", "B", "C", "D"]
    assert page.locator(".board :is(select, .stamp, mark, .letter-name)").count() == 0
    assert engine.votes.tally() == []
    page.get_by_role("button", name="Answer B is best").click()
    until(lambda: len(names(page)) == 4, 30, "the names")


def test_a_blind_test_covers_the_names_until_the_vote_and_counts_it(visit, tmp_path, monkeypatch):
    page, engine = visit.page, visit.engine
    # Gradio sends the last frame once more when the generator is through, here after the vote.
    closed = Stream.close
    monkeypatch.setattr(Stream, "close", lambda self: time.sleep(2) or closed(self))
    page.add_init_script(RECORD)
    at_compare(visit)
    page.evaluate("window.received.length = 0")
    ask_blind(page, "Blind test", "Where is the bell kept?")
    until(lambda: page.get_by_role("button", name="is best").count() == 4, 120, "vote buttons")
    received = page.evaluate("window.received.join('')")
    assert "This one" in received, "the stream was recorded"
    assert (
        all(a.sha256[:8] not in received for a in engine.library.adapters())
        and "tokens/s" not in received
        and "stamp" not in received
    )
    ids = [
        c.strip()
        for c in page.evaluate(
            "Array.from(new Set(window.received.join('').match(/\"picks\", ?\\[.*?\\]/g) || []))"
        )
    ]
    assert len(ids) <= 1, "the order of the picks is one and the same all along"

    vote_once(page, engine)
    page.wait_for_timeout(3000)
    assert sorted(names(page)) == ["Base", "Sample domain", "Sample domain + Sample task", "Sample task"]
    assert page.locator(".board .col").nth(1).locator(".chip.good").inner_text() == "Your vote"
    best = engine.votes.tally()[0]
    assert best.wins == 1 and best.name == names(page)[1]
    told = page.locator(".blind-foot tbody tr").first.inner_text()
    assert best.name in told and "100.0 %" in told

    page.locator("#compare-prompt textarea").fill("Where is the pump?")
    press(page, "Test again")
    until(lambda: page.locator(".board .letter-name").count() == 0, 60, "covered names")
    until(lambda: page.get_by_role("button", name="No difference", exact=True).count(), 120, "the buttons")
    press(page, "No difference")
    until(lambda: len(names(page)) == 4, 30, "the names")
    assert {(s.votes, s.ties) for s in engine.votes.tally()} == {(2, 1)}
    press(page, "Take my vote back")
    until(lambda: {s.votes for s in engine.votes.tally()} == {1}, 30, "one vote less")

    unfold(page, "Votes so far")
    until(lambda: page.locator("#votes tbody tr").count() == 4, 30, "the table")
    with page.expect_download() as got:
        press(page, "Download the votes as CSV")
    got.value.save_as(tmp_path / got.value.suggested_filename)
    rows = list(csv.DictReader((tmp_path / "votes.csv").open()))
    assert [r["chosen"] for r in rows] == ["no", "yes", "no", "no"] and rows[1]["mix"] == best.name
    press(page, "Delete all votes")
    press(page, "Yes, delete all votes")
    page.get_by_text("No votes yet").wait_for()
    assert engine.votes.tally() == []

    press(page, "Change the mixes")
    until(lambda: page.locator(".board select").count() == 4, 30, "the pickers")
    press(page, "Answer")
    until(
        lambda: all("tokens/s" in c for c in columns(page)) and len(columns(page)) == 4,
        120,
        "answers with names",
    )


def test_a_suite_runs_through_all_columns_and_is_downloaded(visit, tmp_path):
    page = visit.page
    at_compare(visit)
    unfold(page, "Prompt suite")
    page.locator("#suite textarea").first.fill("Where is the lamp?\n<b>Where</b> is the bell?")
    file = tmp_path / "more.jsonl"
    file.write_text(json.dumps({"prompt": "Who keeps the pump?"}) + "\n")
    page.locator("#suite input[type=file]").set_input_files(str(file))
    page.locator("#suite").get_by_text("more.jsonl").wait_for()
    press(page, "Run the suite")
    until(lambda: page.locator("#suite-answers tbody tr").count() == 3, 120, "the table")
    assert (
        page.locator("#suite-answers tbody tr").nth(1).locator("td").first.inner_text()
        == "<b>Where</b> is the bell?"
    )
    save = page.get_by_role("button", name="Download as CSV", exact=True)
    until(save.is_enabled, 30, "the download")
    with page.expect_download() as got:
        save.click()
    got.value.save_as(tmp_path / got.value.suggested_filename)
    rows = list(csv.reader((tmp_path / "suite.csv").open()))
    assert (
        rows[0] == ["prompt", "Base", "Sample domain", "Sample task", "Sample domain + Sample task"]
        and rows[3][0] == "Who keeps the pump?"
        and len(rows) == 4
    )


@pytest.mark.parametrize(
    "visit", [(1440, 900, "dark"), (390, 844, "light")], indirect=True, ids=["desktop", "phone"]
)
def test_the_blind_test_fits_its_window(visit):
    page, engine = visit.page, visit.engine
    engine.votes.reset()
    at_compare(visit)
    vote_once(page, engine)
    unfold(page, "Votes so far")
    unfold(page, "Prompt suite")
    until(lambda: page.locator("#votes tbody tr").count() == 4, 30, "the table")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("visit", [(390, 844, "dark")], indirect=True, ids=["phone"])
def test_one_key_asks_base_and_mix_without_and_with_documents(visit):
    page = visit.page
    at_compare(visit)
    page.locator("#compare-prompt textarea").fill("Where is the lamp kept?")
    page.get_by_role("button", name="Does training help, does retrieval help?").focus()
    page.keyboard.press("Enter")
    mix = "Sample domain + Sample task"
    titles = [f"{name} {how} documents" for name in ("Base", mix) for how in ("without", "with")]
    until(lambda: page.locator(".board h3").all_inner_texts() == titles, 30, "the titles of four columns")
    until(lambda: all("tokens/s" in text for text in columns(page)), 120, "four answers")
    switches = page.locator(".board .documents-switch input")
    assert [switches.nth(i).is_checked() for i in range(4)] == [False, True] * 2
    assert ["passage" in text.lower() for text in columns(page)] == [False, True] * 2
    assert page.get_by_role("region", name=f"Column 4: {titles[3]}").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
