"""Exporting in a real browser: files, certificate and download, a mix from the mixer, an upload, a bundle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.engine import Engine
from core.spec.export import ExportSpec
from core.spec.mix import Mix
from core.store import adapters
from core.store.workspace import make_id
from studio import samples
from studio.tabs.suggestions import suggest_run
from tests.browser.conftest import free_port, small_samples
from tests.browser.test_path import tab, until
from tests.studio.exported import FAILED, put_export
from tests.upload_hub import SlowHub, serve_uploads

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, str]]:
    """A studio with the embedded base and a task adapter that was trained for two steps."""
    import torch

    from studio.app import serve

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with Engine(tmp_path_factory.mktemp("exports"), quantization="none", device="cpu") as engine:
        engine.samples = small_samples(tmp_path_factory.mktemp("samples"))
        engine.bases.current(wait=True)
        samples.import_samples(engine)
        spec = suggest_run(engine, "task")
        changes = {"max_steps": 2, "batch_size": 2, "accumulation": 1, "max_length": 64, "rank": 4}
        spec = dataclasses.replace(spec, **changes, name="Sample task", stack_on="")
        engine.runs.wait(engine.runs.start(spec), 600)
        page = serve(engine, port=free_port(), block=False)
        yield engine, page.local_url
        page.close(verbose=False)
    torch.set_num_threads(threads)


def test_an_adapter_leaves_as_peft_with_a_certificate_and_a_mix_opens_the_form(visit) -> None:
    page, engine = visit.page, visit.engine
    (adapter,) = engine.library.adapters()
    export_an_adapter(page, engine)
    visit.reload()
    tab(page, "Library")
    download_a_file(page, engine)
    check_width(page)
    open_the_form_from_the_mixer(page, engine, adapter.id)


def export_an_adapter(page, engine: Engine) -> None:
    tab(page, "Library")
    page.locator(".shelf-item", has_text="Sample task").click()
    page.locator("#details").get_by_role("button", name="Export…").click()
    form = page.locator("#export-fold")
    form.get_by_text(re.compile("About .* on the disk")).wait_for()
    assert form.get_by_label("What", exact=True).input_value() == "Sample task"
    form.get_by_role("button", name="More settings").click()
    prompts = form.get_by_label(re.compile("^Prompts"))
    start = form.get_by_role("button", name="Export", exact=True).last
    prompts.fill("300")
    start.click()
    page.locator(".field-error").filter(has_text="between 0 and 200, got 300").wait_for()
    prompts.fill("2")
    page.locator(".field-error").wait_for(state="detached")
    start.click()
    row = page.locator(".exports .import-job")
    row.get_by_role("progressbar").wait_for()
    until(lambda: row.locator(".chip.good").count(), 240, "the certificate")


def download_a_file(page, engine: Engine) -> None:
    """The page shows the certificate after a reload, and the file that arrives has its checksum."""
    (export,) = engine.exports.list()
    row = page.locator(".exports .import-job")
    row.get_by_text("says the same as the studio: 100.0 %").wait_for()
    row.locator("summary", has_text="Certificate").click()
    assert "Largest difference of logits" in row.get_by_role("table").inner_text()
    row.locator("summary", has_text="Files").click()
    with page.expect_download() as arrived:
        row.get_by_role("link", name="adapter_model.safetensors").click()
    content = Path(arrived.value.path()).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert digest == next(f.sha256 for f in export.files if f.name == "adapter_model.safetensors")
    assert f"{digest}  adapter_model.safetensors" in row.locator("pre").text_content()


def check_width(page) -> None:
    page.evaluate("document.querySelectorAll('.exports details').forEach((e) => { e.open = true; })")
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(150)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.set_viewport_size({"width": 1440, "height": 900})


def open_the_form_from_the_mixer(page, engine: Engine, adapter_id: str) -> None:
    """The mixer's weight arrives in the form; the export of before is deleted after a question."""
    tab(page, "Mix")
    weight = page.get_by_role("slider", name="Weight of Sample task")
    weight.focus()
    for value in ("0.95", "0.9"):
        page.keyboard.press("ArrowLeft")
        until(lambda value=value: weight.input_value() == value, 10, value)
    page.get_by_role("button", name="Export…").first.click()
    what = page.locator("#export-fold").get_by_label("What", exact=True)
    until(lambda: what.is_visible() and what.input_value().startswith("Mixer: "), 30, "the mix in the form")
    assert "0.90 · Sample task" in what.input_value()
    assert str(Mix(weights={adapter_id: 0.9})) == f"{adapter_id}=0.9"
    row = page.locator(".exports .import-job")
    row.get_by_role("button", name=re.compile("^Delete the export")).click()
    row.get_by_text("They do not go to the trash").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Yes, delete it"
    page.keyboard.press("Enter")
    until(lambda: not engine.exports.list(), 10, "the deletion")
    row.wait_for(state="detached")


def test_an_export_is_uploaded_from_its_row_and_a_bundle_holds_weight_0(visit) -> None:
    page, engine = visit.page, visit.engine
    other = copy_adapter(engine, "The other one")
    files = {"README.md": b"# Card\n", "adapter_config.json": b"{}"}
    with serve_uploads() as hub:
        put_export(engine, "good-0000", files=files)
        put_export(engine, "failed-0000", files=files, certificate=FAILED)
        tab(page, "Library")
        upload_an_export(page, engine, hub)
        upload_a_failed_export(page, engine, hub)
    for export_id in ("good-0000", "failed-0000"):
        engine.exports.delete(export_id)
    choose_adapters_at_weight_0(page, engine)
    engine.library.delete("adapters", other)


def upload_an_export(page, engine: Engine, hub: type[SlowHub]) -> None:
    """A wrong name and a refusal stand at the row; the form keeps what was entered; the address is a link."""
    row = page.locator(".exports .import-job", has_text="says the same")
    row.locator("summary", has_text="Upload to the Hub").click()
    repo, private = row.get_by_label("Repository"), row.get_by_label("Private")
    assert private.is_checked()
    repo.fill("me")
    repo.press("Enter")
    row.get_by_role("alert").filter(has_text='is "owner/name", got').wait_for()
    repo.fill("me/forbidden")
    private.uncheck()
    repo.press("Enter")
    row.get_by_role("alert").filter(has_text="does not let you write to 'me/forbidden'").wait_for()
    assert repo.input_value() == "me/forbidden" and not private.is_checked()
    assert "hf_test" not in page.content()
    private.check()
    repo.fill("me/slow")
    row.get_by_role("button", name="Upload the export Answers").click()
    row.get_by_text("Uploading 2 files to me/slow").wait_for()
    assert repo.is_disabled() and not row.get_by_role("button", name=re.compile("^Delete")).count()
    assert page.evaluate("document.activeElement.textContent") == "Upload to the Hub"
    hub.go.set()
    link = row.get_by_role("link", name="https://huggingface.co/me/x/commit/1")
    link.wait_for()
    assert link.get_attribute("href") == "https://huggingface.co/me/x/commit/1"
    assert link.get_attribute("rel") == "noopener noreferrer" and link.get_attribute("target") == "_blank"
    assert hub.created[-1]["visibility"] == "private" and len(hub.files) == 2


def upload_a_failed_export(page, engine: Engine, hub: type[SlowHub]) -> None:
    row = page.locator(".exports .import-job", has_text="FAILED")
    row.locator("summary", has_text="Upload to the Hub").click()
    row.get_by_label("Repository").fill("me/failed")
    uploads, known = engine.exports.uploads, len(hub.created)
    row.get_by_role("button", name=re.compile("^Upload the export")).click()
    row.get_by_text("Upload it although its check failed?").wait_for()
    row.get_by_role("button", name="Do not upload it").click()
    row.get_by_role("button", name=re.compile("^Upload the export")).click()
    row.get_by_role("button", name="Yes, upload it").wait_for()
    assert uploads.status("failed-0000") is None and len(hub.created) == known
    assert page.evaluate("document.activeElement.textContent") == "Yes, upload it"
    page.keyboard.press("Enter")
    row.get_by_role("link", name="https://huggingface.co/me/x/commit/1").wait_for()
    assert uploads.status("failed-0000").repo == "me/failed"


def choose_adapters_at_weight_0(page, engine: Engine) -> None:
    """A bundle offers the adapters that its mix does not hold; no other form does."""
    specs: list[ExportSpec] = []
    ids = {a.name: a.id for a in engine.library.adapters()}
    form = page.locator("#export-fold")
    form.locator(".label-wrap").first.click()
    what = form.get_by_label("What", exact=True)
    until(lambda: what.input_value() in ids, 30, "an adapter in the form")
    held = what.input_value()
    (other,) = set(ids) - {held}
    also = form.get_by_label("Also include, at weight 0")
    assert not also.is_visible()
    form.get_by_text("Base and adapters as GGUF: a mix").click()
    also.wait_for()
    also.click()
    option = page.get_by_role("option")
    option.wait_for()
    assert other in option.text_content()
    option.click()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.exports, "start", lambda spec: specs.append(spec) or "started-0000")
        form.get_by_role("button", name="Export", exact=True).last.click()
        until(lambda: specs, 30, "the start")
    assert specs[0].form == "bundle" and specs[0].weights == {ids[held]: 1.0, ids[other]: 0.0}


def copy_adapter(engine: Engine, name: str) -> str:
    """Adds the only adapter once more, by another name; returns its id."""
    (adapter,) = engine.library.adapters()
    folder = engine.workspace.path("adapters", adapter.id)
    config = json.loads((folder / adapters.CONFIG).read_text())
    base = {"name": adapter.base, "fingerprint": adapter.base_fingerprint}
    return adapters.add(
        engine.workspace,
        make_id(name),
        name,
        lambda path: shutil.copyfile(folder / adapters.WEIGHTS, path),
        config,
        {"kind": "domain", "base": base},
    ).id
