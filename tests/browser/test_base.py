"""The Base tab in a real browser: a base is downloaded with a progress bar, chosen, confirmed and changed."""

from __future__ import annotations

import re

import pytest

from core.spec.mix import Mix
from core.spec.training import TrainSpec
from tests.conftest import SENTENCES, build_tiny_llama
from tests.core.store.test_base_models import at, served  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow
SIZES = [(1440, 900, "light"), (390, 844, "dark")]


@pytest.mark.parametrize("visit", SIZES, ids=["desktop", "phone"], indirect=True)
def test_a_base_is_downloaded_chosen_and_confirmed(visit, served, tmp_path, monkeypatch) -> None:  # noqa: F811
    page, engine = visit.page, visit.engine
    at(monkeypatch, tmp_path / "cache", served.url)
    home = engine.bases.current(wait=True).name
    served.pause = 0.4
    page.locator("button.spec").click()
    page.get_by_label("Base", exact=True).fill("tiny/llama")
    page.get_by_label("Base", exact=True).press("Enter")
    page.get_by_role("button", name="Download from the Hub").click()
    bar = page.get_by_role("progressbar", name="Download of tiny/llama")
    bar.wait_for()
    page.get_by_text(re.compile(r"tiny/llama: [\d.]+ MB of 8\.\d+ MB \([1-9]\d*%")).wait_for()
    served.pause = 3.0
    page.get_by_role("button", name="Stop the download").click()
    page.get_by_text("was stopped. Start it again to continue it.").wait_for()
    served.pause = 0.0
    page.get_by_role("button", name="Download from the Hub").click()
    page.get_by_text(re.compile("tiny/llama is downloaded")).wait_for()

    file = tmp_path / "corpus.txt"
    file.write_text("\n\n---\n\n".join(SENTENCES[:24]), encoding="utf-8")
    text = engine.datasets.import_files([file], "text")
    run = engine.runs.wait(
        engine.runs.start(
            TrainSpec(
                name="Lamps",
                dataset=text.id,
                max_steps=1,
                batch_size=2,
                accumulation=1,
                max_length=32,
                rank=2,
            )
        ),
        60,
    )
    engine.chat.stream("Where?", [Mix(weights={run.adapter: 1.0})]).last()
    page.get_by_label("Base", exact=True).fill("tiny/llama")
    page.get_by_label("Base", exact=True).press("Enter")
    page.get_by_role("button", name="Use this base").click()
    page.get_by_text("1 adapter leaves the mixer: Lamps.").wait_for()
    assert engine.bases.current().name == home
    page.get_by_role("button", name="Keep this one").click()
    page.get_by_text("1 adapter leaves the mixer: Lamps.").wait_for(state="hidden")
    page.get_by_label("8-bit (int8)").check()
    page.get_by_role("button", name="Use this base").click()
    page.get_by_role("button", name="Yes, change the base").click()
    page.locator("#base-resident h2", has_text="tiny/llama").wait_for()
    page.locator("#base-resident").get_by_text("8-bit (int8)").wait_for()
    page.locator("button.spec", has_text="tiny/llama").wait_for()
    assert engine.bases.current(wait=True).quantization == "int8"
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, "nothing is wider than the page"
    engine.bases.switch(home, "none", confirmed=True)
    engine.bases.current(wait=True)
    engine.library.delete("adapters", run.adapter)


def test_a_gated_base_and_an_incomplete_folder_say_what_to_do(visit, served, tmp_path, monkeypatch) -> None:  # noqa: F811
    page = visit.page
    at(monkeypatch, tmp_path / "cache", served.url)
    page.locator("button.spec").click()
    page.get_by_label("Base", exact=True).fill("tiny/gated")
    page.get_by_label("Base", exact=True).press("Enter")
    page.get_by_role("button", name="Download from the Hub").click()
    page.get_by_text("Request access on its Hub page").wait_for()
    build_tiny_llama(tmp_path / "empty")
    (tmp_path / "empty" / "model.safetensors").unlink()
    page.get_by_label("Base", exact=True).fill(str(tmp_path / "empty"))
    page.get_by_label("Base", exact=True).press("Enter")
    page.get_by_role("button", name="Use this base").click()
    error = page.locator("#base-choice .field-error", has_text="no *.safetensors weights")
    error.wait_for()
    assert page.get_by_label("Base", exact=True).get_attribute("aria-invalid") == "true"
    page.get_by_label("Base", exact=True).fill("embedded")
    error.wait_for(state="detached")
