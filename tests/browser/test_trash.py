"""Delete, undo, restore and empty on the Library tab, and the backup as a download."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import TimeoutError

from core.store.backup import unpack
from tests.browser.conftest import Visit

pytestmark = pytest.mark.slow


def press_until(page, name: str, text: str) -> None:
    """Presses a button until a text appears, as a person does whose click met a list that was drawn again."""
    for _ in range(3):
        page.get_by_role("button", name=name, exact=True).click()
        try:
            page.get_by_text(text).wait_for(timeout=20_000)
            return
        except TimeoutError:
            continue
    raise AssertionError(f"{name} was pressed three times, without {text!r}")


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
    press_until(page, "Delete", "It can be restored from the trash.")
    page.get_by_role("button", name="Yes, delete it").click()
    page.get_by_text("First is in the trash").wait_for()
    assert [m.name for m in library.mixes()] == ["Second"]
    page.get_by_role("button", name="Undo").click()
    page.locator("#details h2", has_text="First").wait_for()
    assert {m.name for m in library.mixes()} == {"First", "Second"}

    library.delete("mixes", next(m.id for m in library.mixes() if m.name == "Second"))
    page.get_by_label("Trash", exact=True).check()
    page.locator("#shelf .shelf-item", has_text="Second").click()
    page.locator("#details h2", has_text="Second").wait_for()
    press_until(page, "Restore", "Second is restored")
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
