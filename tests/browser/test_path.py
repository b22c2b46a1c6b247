"""The whole path in a real browser: sample data, two runs, mixing, comparing, evaluating, downloading."""

from __future__ import annotations

import csv
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def until(check: Callable[[], object], seconds: float = 120.0, what: str = "") -> object:
    """Waits until `check` returns a true value, and returns it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := check():
            return result
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:g} s for {what or check}")


def press(page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).first.click()


def advance(page, start: str) -> None:
    """Presses the button of the line at the top whose text begins with `start`; names follow there."""
    page.locator(".next").get_by_role("button", name=re.compile(f"^{start}")).first.click()


def tab(page, name: str) -> None:
    """Opens a tab."""
    page.get_by_role("tab", name=name, exact=True).click()


def points(page) -> int:
    return int(page.locator(".live-plot").get_attribute("data-points") or 0)


def columns(page) -> list[str]:
    return [c.inner_text() for c in page.locator(".board .col-body").all()]


def five_clicks(visit) -> None:
    """From an empty studio to the answers of four mixes."""
    page, engine = visit.page, visit.engine
    press(page, "Use the sample data")
    page.get_by_role("heading", name="Sample domain").wait_for()
    until(lambda: page.locator(".tok.trained").count() > 5, 60, "an example as tokens")
    advance(page, "Train the domain adapter")
    advance(page, "Train the task adapter")
    until(lambda: len(engine.library.adapters()) == 2, 300, "two adapters")
    advance(page, "Compare the mixes")
    until(lambda: len(columns(page)) == 4, 30, "four columns")
    press(page, "Answer")
    until(
        lambda: len(columns(page)) == 4 and all("tokens/s" in c for c in columns(page)), 120, "four answers"
    )


def watch_a_run_and_reload(visit) -> None:
    """The curve grows, and a reload in the middle shows all of it."""
    page, engine = visit.page, visit.engine
    tab(page, "Train")
    page.get_by_label("Domain", exact=True).check()
    until(
        lambda: page.get_by_label("Name", exact=True).first.input_value() == "Sample domain", 30, "the form"
    )
    page.get_by_label("Name", exact=True).first.fill("Long run")
    page.get_by_role("button", name="Advanced settings").click()
    for label, value in (
        ("Max steps", "300"),
        ("Epochs", "500"),
        ("Batch size", "4"),
        ("Gradient accumulation", "1"),
        ("Max length", "128"),
    ):
        page.get_by_label(re.compile(f"^{label}")).first.fill(value)
    page.get_by_role("button", name="Start training Long run", exact=True).click()
    until(lambda: engine.runs.list()[0].name == "Long run", 30, "the run")
    run = engine.runs.list()[0]
    assert run.spec.max_steps == 300 and run.spec.max_length == 128
    until(
        lambda: run.id in page.evaluate("location.search"), 30, "the page to watch the new run"
    )  # until then the chart shows the previous run
    first = until(lambda: points(page), 60, "the first points")
    assert first < 300, "the run ended before its curve was shown"
    until(lambda: points(page) > first, 60, "more points")
    visit.reload()
    page.locator(".run-title").wait_for()
    assert page.locator(".run-title strong").inner_text() == "Long run"
    until(lambda: points(page) >= first, 60, "the curve from before the reload")
    until(lambda: engine.runs.get(run.id).status.value == "finished", 400, "the end of the run")
    until(lambda: points(page) == 300, 30, "every point")
    losses = page.evaluate("document.querySelector('.live-plot').data[0].y")
    assert losses == [e["loss"] for e in engine.runs.events(run.id)[0] if e["kind"] == "step"]


def move_a_slider(visit) -> None:
    """The answer follows the mixer, moved by keyboard."""
    page = visit.page
    tab(page, "Mix")
    page.get_by_role("slider", name="Weight of Sample task").wait_for()
    until(lambda: page.locator("#mix-prompt textarea").input_value(), 30, "a question to ask")
    press(page, "Answer with this mix")
    until(lambda: "tokens/s" in page.locator("#mix-answer").inner_text(), 60, "an answer")
    before = page.locator("#mix-answer .stamp").inner_text()
    slider = page.get_by_role("slider", name="Weight of Sample task")
    slider.focus()
    for value in ("0.95", "0.9", "0.85"):
        page.keyboard.press("ArrowLeft")
        until(lambda value=value: slider.input_value() == value, 10, value)
    until(
        lambda: "+0.85" in page.locator("#mix-answer .stamp").inner_text() != before,
        60,
        "the answer of the new mix",
    )
    page.get_by_role("switch", name="Sample task on").click()
    until(
        lambda: "Sample task" not in page.locator("#mix-answer .stamp").inner_text(),
        60,
        "the answer without the task",
    )
    page.get_by_label("Save this mix as").fill("Only the domain")
    press(page, "Save mix")
    until(lambda: [m.name for m in visit.engine.library.mixes()] == ["Only the domain"], 30, "the saved mix")


def compare_four(visit, downloads: Path) -> None:
    """Four columns at once, each with its stamp, and an exported file."""
    page = visit.page
    tab(page, "Compare")
    until(lambda: len(columns(page)) == 4, 30, "four columns")
    page.locator("#compare-prompt textarea").fill("Where is the lamp kept?")
    press(page, "Answer")
    until(
        lambda: all("tokens/s" in c for c in columns(page)) and not page.locator(".board .writing").count(),
        120,
        "four answers",
    )
    stamps = page.locator(".board .stamp").all_inner_texts()
    assert stamps[0] == "base" and len(set(stamps)) == 4
    with page.expect_download() as download:
        press(page, "Export as Markdown")
    download.value.save_as(downloads / "comparison.md")
    assert (downloads / "comparison.md").read_text().count("\n## ") == 4


def measure_and_download(visit, downloads: Path) -> None:
    """A report with its metrics, its CSV file, and an adapter as a zip file."""
    page, engine = visit.page, visit.engine
    tab(page, "Evaluate")
    press(page, "Measure")
    link = page.get_by_role("link", name="Download as CSV")
    link.first.wait_for(timeout=240_000)
    with page.expect_download() as download:
        link.first.click()
    download.value.save_as(downloads / "report.csv")
    rows = list(csv.DictReader((downloads / "report.csv").open()))
    assert [r["name"] for r in rows][:4] == [
        "Base",
        "Sample domain (Only the domain)",
        "Sample task",
        "Sample domain + Sample task",
    ]
    assert all(float(r["perplexity"]) > 1 and 0 <= float(r["exact_match"]) <= 1 for r in rows)
    assert page.locator("#bars .js-plotly-plot").count() >= 3
    tab(page, "Library")
    page.locator(".shelf-item").first.click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as zip").click()
    download.value.save_as(downloads / "adapter.zip")
    with zipfile.ZipFile(downloads / "adapter.zip") as z:
        assert any(n.endswith("adapter_model.safetensors") for n in z.namelist()) and z.testzip() is None
    press(page, "Verify")
    page.get_by_text("values are finite").wait_for()
    assert len(engine.evaluation.reports()) == 1


def test_the_whole_path_from_data_to_a_download(visit, tmp_path):
    five_clicks(visit)
    watch_a_run_and_reload(visit)
    move_a_slider(visit)
    compare_four(visit, tmp_path)
    measure_and_download(visit, tmp_path)


SIZES = [(1440, 900, "light"), (390, 844, "dark")]


@pytest.mark.parametrize("visit", SIZES, indirect=True, ids=["desktop", "phone"])
def test_every_tab_fits_its_window(visit):
    page = visit.page
    for name in ("Data", "Train", "Mix", "Compare", "Evaluate", "Library"):
        tab(page, name)
        time.sleep(0.5)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name


def test_a_broken_file_is_refused_with_its_line(visit, tmp_path):
    page = visit.page
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "a", "answer": "b"}\n{"question": \n')
    page.locator("#files input[type=file]").set_input_files(str(broken))
    page.get_by_role("alert").filter(has_text="broken.jsonl, line").wait_for()
    assert page.get_by_role("button", name="Import the files").is_disabled()


def test_a_dataset_that_loads_late_does_not_hide_dropped_files(visit, tmp_path, monkeypatch):
    page, engine = visit.page, visit.engine
    for number in range(2):
        notes = tmp_path / f"notes{number}.txt"
        notes.write_text("\n\n---\n\n".join(f"Note {number} {i}." for i in range(12)))
        made = engine.datasets.import_files([str(notes)], f"Notes {number}", kind="domain")
    rows = engine.datasets.rows
    opened = []
    monkeypatch.setattr(
        engine.datasets, "rows", lambda *a, **k: (time.sleep(2), opened.append(a[0]), rows(*a, **k))[2]
    )
    visit.reload()
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": \n')
    page.locator("#files input[type=file]").set_input_files(str(broken))
    refusal = page.get_by_role("alert").filter(has_text="broken.jsonl, line")
    refusal.wait_for()
    until(lambda: made.id in opened, 60, "the dataset that the page loads first")
    time.sleep(1)
    assert refusal.is_visible() and not page.locator("#dataset").is_visible()
    page.locator("#files").get_by_role("button", name="Clear").first.click()
    shown = page.locator("#dataset").get_by_text("Note 1").filter(visible=True)  # also in a closed list
    shown.first.wait_for()


def test_the_theme_survives_a_reload(visit):
    page = visit.page
    press(page, "Theme")
    assert page.evaluate("document.body.classList.contains('dark')")
    visit.reload()
    assert page.evaluate("document.body.classList.contains('dark')")
