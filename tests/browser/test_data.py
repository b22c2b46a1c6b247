"""The Data tab in a real browser with foreign files: folders, foreign columns, encodings, cancelling."""

from __future__ import annotations

import csv
import json
import time
from functools import partial
from pathlib import Path

import pytest
from gradio.utils import get_upload_folder

from core.data.formats import hub_datasets, hub_heads
from tests.browser.test_path import press, until
from tests.mock_hub import serve_hub

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def sentences(number: int, count: int) -> str:
    return " ".join(
        f"Quay {number}.{i} has a crane that lifts {number * 7 + i} tonnes." for i in range(count)
    )


def make_folder(folder: Path) -> Path:
    """A folder as users have them: in folders, with a picture and a hidden file beside the documents."""
    (folder / "harbour/guides").mkdir(parents=True)
    chapters = "\n\n".join(f"## Quay {i}\n\n{sentences(i, 4)}" for i in range(14))
    (folder / "harbour/handbook.md").write_text(f"# Handbook\n\n{chapters}")
    (folder / "harbour/guides/ferry.txt").write_text("\n\n".join(sentences(i + 50, 4) for i in range(8)))
    (folder / "harbour/photo.png").write_bytes(b"\x89PNG")
    (folder / "harbour/.secret.txt").write_text("hidden")
    return folder / "harbour"


def drops() -> set[str]:
    return {p.name for p in Path(get_upload_folder()).glob("drop-*")}


def choose(page, path: Path) -> None:
    page.locator("#files input[type=file]").set_input_files(str(path))


def wait_for_import(visit, name: str) -> object:
    return until(lambda: next((d for d in visit.engine.datasets.list() if d.name == name), None), 60, name)


def test_a_folder_of_documents_becomes_a_dataset_with_its_paths(visit, tmp_path):
    page, before = visit.page, drops()
    with page.expect_file_chooser() as chooser:
        press(page, "Choose a folder")
    chooser.value.set_files(str(make_folder(tmp_path)))
    page.get_by_role("heading", name="Preview").wait_for()
    assert page.locator("#files").get_by_text(".png (1)").is_visible()
    assert page.get_by_label("Dataset name").input_value() == "harbour"
    page.locator("#preview").get_by_text("harbour/handbook.md").first.wait_for()
    assert not page.get_by_text("hidden", exact=True).count()
    press(page, "Import the files")
    page.locator("#dataset").get_by_role("heading", name="harbour").wait_for()
    dataset = wait_for_import(visit, "harbour")
    assert [f["name"] for f in dataset.files] == ["harbour/guides/ferry.txt", "harbour/handbook.md"]
    assert all(dataset.splits.values()) and {c["document"] for c in dataset.cuts} >= {"harbour/handbook.md"}
    until(lambda: drops() <= before, 10, "the dropped files to be deleted")
    page.locator(".checklist").wait_for()
    assert "No e-mail addresses" in page.locator(".checklist").inner_text()
    assert page.locator(".histogram .bin").count() > 1


def test_foreign_columns_are_asked_and_one_click_swaps_them(visit, tmp_path):
    page = visit.page
    with open(tmp_path / "tabelle.csv", "w", newline="") as f:
        table = csv.writer(f, delimiter=";")
        table.writerow(["links", "rechts", "nr"])
        table.writerows([f"Wo liegt die Fähre {i}?", f"Am Kai {i % 7}.", i] for i in range(30))
    choose(page, tmp_path / "tabelle.csv")
    page.get_by_role("region", name="Roles of the columns").wait_for()
    assert page.get_by_role("button", name="Import the files").is_disabled()
    press(page, "Swap them")
    left = page.get_by_label("Role of the column links")
    until(lambda: left.input_value() == "answer", 20, "the swapped roles")
    left.select_option("question")
    right = page.get_by_label("Role of the column rechts")
    until(lambda: right.input_value() == "answer", 20, "the roles of before")
    page.get_by_label("For evaluation only").check()
    until(lambda: page.get_by_role("button", name="Import the files").is_enabled(), 20, "the button")
    page.get_by_label("Dataset name").fill("")
    press(page, "Import the files")
    page.get_by_role("alert").filter(has_text="The dataset has no name").wait_for()
    page.get_by_label("Dataset name").fill("Harbour questions")
    press(page, "Import the files")
    dataset = wait_for_import(visit, "Harbour questions")
    assert dataset.splits == {"train": 0, "val": 0, "test": 30} and dataset.unread == ["nr"]
    row = visit.engine.datasets.rows(dataset.id, "test", 1)[0]["messages"]
    assert row[0]["content"].startswith("Wo liegt") and row[1]["content"].startswith("Am Kai")


@pytest.mark.parametrize("visit", [(390, 844, "dark")], indirect=True, ids=["phone"])
def test_an_encoding_is_chosen_by_its_lines_on_a_phone(visit, tmp_path):
    page = visit.page
    text = "\n\n---\n\n".join(f"Die Fähre {i} fährt über den Fluß." for i in range(9))
    (tmp_path / "latin.txt").write_bytes(text.encode("latin-1"))
    choose(page, tmp_path / "latin.txt")
    page.get_by_role("button", name="Die Fähre 0 fährt über den Fluß.").first.click()
    page.get_by_role("heading", name="As it is learned").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    small = page.evaluate(
        "[...document.querySelectorAll('.card button, .card select, .card summary, .card a')].filter((e) => "
        "e.offsetParent && e.getBoundingClientRect().height < 24).map((e) => e.textContent)"
    )
    assert small == [], "touch targets of less than 24 px"
    press(page, "Import the files")
    page.locator("#dataset").get_by_text("Die Fähre").first.wait_for()


def test_a_cancelled_import_survives_a_reload_and_leaves_nothing(visit, tmp_path, monkeypatch):
    page, engine, before = visit.page, visit.engine, drops()
    import_files, stored = engine.datasets.import_files, len(engine.datasets.list())

    def import_slowly(*args, report=None, **kwargs):
        def wait_and_report(progress):
            time.sleep(0.2)
            report(progress)

        for _ in range(200):  # as a large file would
            wait_and_report(_progress())
        return import_files(*args, report=wait_and_report, **kwargs)

    monkeypatch.setattr(engine.datasets, "import_files", import_slowly)
    rows = [{"question": f"Crane {i}?", "answer": f"It lifts {i} tonnes."} for i in range(20)]
    (tmp_path / "big.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    choose(page, tmp_path / "big.jsonl")
    until(lambda: page.get_by_role("button", name="Import the files").is_enabled(), 30, "the preview")
    press(page, "Import the files")
    page.get_by_role("progressbar", name="Import of big").wait_for()
    assert page.locator("#files").get_by_text("Drop documents, spreadsheets or a folder here").is_visible()
    visit.reload()
    page.get_by_role("button", name="Cancel the import of big").click()
    page.get_by_text("big was cancelled. Nothing of it was stored.").wait_for()
    assert len(engine.datasets.list()) == stored
    assert not list((engine.workspace.root / "datasets").glob("*big*"))
    until(lambda: drops() <= before, 10, "the dropped files to be deleted")


def test_a_dataset_of_the_hub_is_previewed_asked_and_imported(visit, monkeypatch):
    page = visit.page
    with serve_hub() as hub:
        for module, name in (
            (hub_datasets, "list_splits"),
            (hub_datasets, "resolve"),
            (hub_datasets, "download"),
            (hub_heads, "read_head"),
        ):
            monkeypatch.setattr(module, name, partial(getattr(module, name), endpoint=hub))
        page.get_by_role("button", name="From the Hugging Face Hub").click()
        page.get_by_label("Id on the Hub").fill("a/none")
        press(page, "Show its first rows")
        page.locator(".field-error").get_by_text("The Hub has no dataset").wait_for()
        page.get_by_label("Id on the Hub").fill("a/script")
        press(page, "Show its first rows")
        page.get_by_label("Configuration").select_option("de")
        page.get_by_text("eins").first.wait_for()
        page.get_by_label("Id on the Hub").fill("a/asked")
        press(page, "Show its first rows")
        press(page, "Swap them")
        until(
            lambda: page.get_by_label("Role of the column links").input_value() == "answer", 30, "the roles"
        )
        press(page, "Import from the Hub")
        dataset = wait_for_import(visit, "asked")
    assert dataset.roles == {"question": "rechts", "answer": "links"} and dataset.unread == ["nr"]
    page.locator("#dataset").get_by_role("heading", name="asked").wait_for()
    assert page.locator("#hub-preview").get_by_role("heading").count() == 0


def _progress():
    from core.progress import ReadProgress

    return ReadProgress(10, 100, "Reading big.jsonl", rows=2)
