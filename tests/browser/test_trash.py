"""Delete, undo, restore and empty on the Library tab, and the backup as a download."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from core.store.backup import unpack
from tests.browser.conftest import Visit

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("visit", [(1440, 900, "light"), (390, 844, "dark")], indirect=True)
def test_a_deletion_is_undone_restored_and_emptied(visit: Visit, tmp_path: Path) -> None:
    page, library = visit.page, visit.engine.library
    for mix in library.mixes():
        library.delete("mixes", mix.id)
    library.empty_trash()
    for name in ("First", "Second"):
        library.save_mix(name, {})
    page.get_by_role("tab", name="Library", exact=True).click()
    page.get_by_label("Mixes", exact=True).check()
    page.locator("#shelf .shelf-item", has_text="First").click()
    page.locator("#details h2", has_text="First").wait_for()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_text("It can be restored from the trash.").wait_for()
    library.save_mix("Third", {})  # by someone else
    page.locator("#shelf .shelf-item", has_text="Third").wait_for()
    page.get_by_role("button", name="Yes, delete it").click()
    page.get_by_text("First is in the trash").wait_for()
    assert {m.name for m in library.mixes()} == {"Second", "Third"}
    page.get_by_role("button", name="Undo").click()
    page.locator("#details h2", has_text="First").wait_for()
    assert {m.name for m in library.mixes()} == {"First", "Second", "Third"}

    library.delete("mixes", next(m.id for m in library.mixes() if m.name == "Second"))
    page.get_by_label("Trash", exact=True).check()
    page.locator("#shelf .shelf-item", has_text="Second").click()
    page.locator("#details h2", has_text="Second").wait_for()
    page.get_by_role("button", name="Restore", exact=True).click()
    page.get_by_text("Second is restored").wait_for()
    for mix in library.mixes():
        library.delete("mixes", mix.id)
    page.get_by_label("Mixes", exact=True).check()
    page.get_by_text("No saved mixes yet").wait_for()
    page.get_by_label("Trash", exact=True).check()
    page.get_by_role("button", name="Empty the trash").click()
    page.get_by_role("button", name="Yes, empty it").click()
    page.get_by_text("The trash is empty").wait_for()
    assert library.trash() == []

    page.get_by_label("Mixes", exact=True).check()
    with page.expect_download() as download:
        page.get_by_role("link", name="Back up").click()
    download.value.save_as(tmp_path / "b.zip")
    assert zipfile.is_zipfile(tmp_path / "b.zip")
    assert unpack(tmp_path / "b.zip", tmp_path / "copy").items["mixes"] == []
