"""Importing an adapter in a real browser: drop a zip file, answer a finding, import, compare."""

from __future__ import annotations

import zipfile

import pytest
import torch

from tests.browser.test_path import press, tab, until
from tests.core.importing.test_refusals import factors, put

pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_a_dropped_zip_file_becomes_an_adapter(visit, tmp_path):
    page, engine = visit.page, visit.engine
    folder = put(tmp_path / "made", {**factors(), "base_model.model.lm_head.weight": torch.ones(384, 64)})
    with zipfile.ZipFile(tmp_path / "my tone.zip", "w") as z:
        for file in folder.iterdir():
            z.write(file, f"run/{file.name}")
    tab(page, "Library")
    page.get_by_role("button", name="Import an adapter").click()
    page.locator("#adapter-files input[type=file]").set_input_files(str(tmp_path / "my tone.zip"))
    card = page.locator("#adapter-card")
    card.get_by_text("needs a choice").wait_for()
    assert "trained weights of lm_head" in card.text_content()
    press(card, "Import the LoRA part alone")
    card.get_by_text("answered").wait_for()
    name = page.get_by_label("Name in the library")
    until(lambda: name.input_value() == "my tone", 30, "the name of the file")
    page.get_by_role("button", name="Import", exact=True).click()
    card.get_by_text("my tone is in the library").wait_for()
    assert [a.name for a in engine.library.adapters()] == ["my tone"]
    page.locator("#shelf").get_by_text("my tone").wait_for()
    page.get_by_label("A question that the adapter was trained for").fill("Where is the red lamp?")
    page.get_by_role("button", name="Compare with the base").click()
    page.locator("#adapter-proof").get_by_text("nats a token on this line").wait_for()


def test_a_source_that_is_not_there_is_named_at_its_field(visit, tmp_path):
    page = visit.page
    tab(page, "Library")
    page.get_by_role("button", name="Import an adapter").click()
    page.get_by_label("Folder, file or Hub id").fill(str(tmp_path / "gone"))
    page.get_by_role("button", name="Examine").click()
    page.get_by_text("There is nothing at").first.wait_for()
