"""The Runs tab in a real browser: the queue, a grid, and its settings in the Train form."""

from __future__ import annotations

import re
import threading

import pytest

from core.spec.training import RunStatus, TrainSpec
from tests.browser.test_path import press, tab, until

pytestmark = [pytest.mark.slow, pytest.mark.browser]
FAST = {
    "max_steps": 4,
    "max_length": 48,
    "batch_size": 2,
    "accumulation": 1,
    "learning_rate": 5e-3,
    "dropout": 0.0,
    "alpha": 8,
}


def names(page) -> list[str]:
    return page.locator("#queue .queue-item strong").all_inner_texts()


def choose(page, label: str, option: str) -> None:
    """Takes an option of a dropdown by its text."""
    box = page.get_by_label(label, exact=True).first
    box.click()
    page.get_by_role("option", name=option, exact=True).first.click()


def test_runs_are_queued_and_moved_and_the_settings_of_a_grid_are_used(visit, corpus):
    page, engine = visit.page, visit.engine
    data = engine.datasets.import_files([corpus], "Corpus", "domain")
    gate = threading.Event()
    engine.worker.run(lambda: gate.wait(90) and None)
    ids = {
        n: engine.runs.start(TrainSpec(kind="domain", name=n, dataset=data.id, rank=2, **FAST))
        for n in ("One", "Two", "Three")
    }
    tab(page, "Runs")
    until(lambda: names(page) == ["One", "Two", "Three"], 30, "the queue")
    press(page, "Move Three to the front")
    until(lambda: names(page) == ["Three", "One", "Two"], 30, "the new order")
    press(page, "Cancel: One")
    until(lambda: names(page) == ["Three", "Two"], 30, "the cancelled run to leave")
    gate.set()
    assert [engine.runs.wait(ids[n], 60).status for n in ("Three", "Two", "One")] == [
        RunStatus.DONE,
        RunStatus.DONE,
        RunStatus.STOPPED,
    ]
    page.get_by_text("The queue is empty").wait_for()

    press_tab(page, "Side by side")
    until(lambda: page.locator("#curves .scatterlayer .trace").count() >= 2, 30, "two curves")
    page.get_by_text("All settings are the same.").wait_for()
    page.get_by_label("Show differences only").uncheck()
    until(
        lambda: page.locator("#side-by-side table").nth(1).locator("tbody tr").count() > 20,
        30,
        "all settings",
    )

    tab(page, "Train")
    page.get_by_role("button", name="Advanced settings").first.click()
    for label, value in (("Max steps", "4"), ("Batch size", "2"), ("Gradient accumulation", "1")):
        page.get_by_label(label, exact=True).first.fill(value)
    tab(page, "Runs")
    press_tab(page, "Grid")
    page.get_by_label("Grid name").fill("Two ranks")
    choose(page, "Vary 1", "Rank")
    page.get_by_label("Values 1", exact=True).fill("2, 300")
    page.get_by_text("Rank must be between 1 and 256, got 300.").wait_for()
    page.get_by_label("Values 1", exact=True).fill("2, 4")
    page.locator("#grid-estimate").get_by_text("2 cells").wait_for()
    press(page, "Queue 2 runs")
    rows = page.locator("#grid-results tbody tr:visible")
    until(lambda: rows.count() == 2 and rows.get_by_text("best", exact=True).count() == 1, 240, "both cells")
    page.locator("#parallel .parcoords").first.wait_for()
    assert {e.text_content() for e in page.locator("#parallel .axis-title").all()} == {
        "Rank",
        "Validation loss",
        "Seconds",
    }
    page.evaluate(
        """() => {
          const react = Plotly.react;
          Plotly.react = (...args) => {
            window.drawings = (window.drawings ?? 0) + 1;
            return react(...args);
          };
        }"""
    )

    def count_drawings() -> int:
        return page.evaluate("window.drawings ?? 0")

    def is_settled() -> bool:
        before = count_drawings()
        page.wait_for_timeout(1500)
        return count_drawings() == before

    until(is_settled, 30, "the lists to have shown the end of the grid")
    settled = count_drawings()
    engine.library.rename("datasets", data.id, "Corpus of lamps")  # every list is asked for again
    page.get_by_text("All cells: domain run on Corpus of lamps").wait_for()
    page.wait_for_timeout(1000)
    assert count_drawings() == settled, "a chart that is there already is left alone"
    made = engine.grids.list()[0]
    with page.expect_download() as caught:
        page.get_by_text("Download as CSV").first.click()
    assert caught.value.suggested_filename == f"{made.id}.csv" and "best" in caught.value.path().read_text(
        encoding="utf-8"
    )

    press(page, "Use these settings: Two ranks: rank 4")
    until(
        lambda: page.get_by_label("Name", exact=True).first.input_value() == "Two ranks: rank 4",
        30,
        "the Train form",
    )
    page.get_by_role("button", name=re.compile("^Adapter")).first.click()
    assert (
        page.get_by_label("Rank", exact=True).first.input_value() == "4"
        and page.get_by_role("tab", name="Train", exact=True).get_attribute("aria-selected") == "true"
    )


def press_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


@pytest.mark.parametrize("visit", [(390, 844, "dark")], indirect=True, ids=["phone"])
def test_nothing_is_wider_than_a_phone_and_all_tabs_are_in_the_bar(visit):
    page = visit.page
    for name in ("Data", "Train", "Runs", "Mix", "Compare", "Evaluate", "Library", "Base"):
        page.get_by_role("tab", name=name, exact=True).wait_for()
    tab(page, "Runs")
    for name in ("Queue", "Grid", "Side by side"):
        press_tab(page, name)
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
