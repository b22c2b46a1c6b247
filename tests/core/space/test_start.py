"""A built Space starts as the Hub starts it, and an anonymous visitor sees what it shows and no more.

With ADAPTER_STUDIO_TEST_SPACE_INSTALL=1 its requirements are installed into a clean environment first, which
takes minutes; otherwise it runs in the Python of the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.cli.main import main
from tests.browser.conftest import CHROMIUM, FLAGS, free_port, is_foreign
from tests.core.space.conftest import Library

pytestmark = pytest.mark.slow
INSTALL = "ADAPTER_STUDIO_TEST_SPACE_INSTALL"
START_SECONDS = 300.0
# On a Space, Gradio requests fonts and the Space's record; the page's policy allows its own host only.
BLOCKED = ("https://fonts.googleapis.com/", "https://huggingface.co/api/spaces/", "Space not found")


@dataclass(frozen=True)
class Space:
    """A running Space."""

    url: str
    folder: Path
    log: Path


@pytest.fixture(scope="module")
def space(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    place = tmp_path_factory.mktemp("space")
    folder, log, port = place / "demo", place / "log.txt", free_port()
    workspace = str(library.workspace.root)
    arguments = ["--workspace", workspace, "--mix", library.mix, "--title", "Two adapters"]
    assert main(["space", "build", str(folder), *arguments]) == 0
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [str(choose_python(folder, place)), "app.py"],
            cwd=folder,
            env=space_environment(place, port),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(url, process, log)
            yield Space(url, folder, log)
        finally:
            process.terminate()
            process.wait(60)


def choose_python(folder: Path, place: Path) -> Path:
    """The Python that runs the Space: with its own requirements where the variable asks for it."""
    if os.environ.get(INSTALL) != "1":
        return Path(sys.executable)
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
    python = place / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "-r", str(folder / "requirements.txt")]
    subprocess.run(install, check=True)
    return python


def space_environment(place: Path, port: int) -> dict[str, str]:
    """The environment variables of a Space, without a volume and without a network."""
    kept = {
        k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
    }
    return {
        **kept,
        "HOME": str(place),
        "SYSTEM": "spaces",
        "SPACE_ID": "owner/demo",
        "SPACE_HOST": "owner-demo.hf.space",
        "SPACE_AUTHOR_NAME": "owner",
        "SPACE_REPO_NAME": "demo",
        "GRADIO_SERVER_NAME": "0.0.0.0",
        "GRADIO_SERVER_PORT": str(port),
        "HF_HUB_OFFLINE": "1",
        "ADAPTER_STUDIO_VOLUME": str(place / "no-volume"),
        "PYTHONUNBUFFERED": "1",
    }


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text(encoding="utf-8")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)


def test_an_anonymous_visitor_finds_the_adapters_and_the_mix(space: Space, library: Library) -> None:
    models = {m["id"] for m in httpx.get(f"{space.url}/v1/models", timeout=60).json()["data"]}
    assert {library.notes, library.answers} <= {m.removeprefix("adapter:") for m in models} | models
    assert library.mix in models or "Both at half" in models
    assert (space.folder / "workspace" / "adapters" / library.notes / "adapter_model.safetensors").is_file()


def test_an_anonymous_visitor_may_not_train_upload_or_download(space: Space) -> None:
    files = {"files": ("x.txt", b"text", "text/plain")}
    refused = [
        httpx.post(f"{space.url}/gradio_api/upload", files=files, timeout=60),
        httpx.post(f"{space.url}/fine-tuning/setup", json={}, timeout=60),
        httpx.get(f"{space.url}/gradio_api/studio/download/backup", timeout=60),
    ]
    assert [r.status_code for r in refused] == [403, 403, 403]
    assert "This needs the role trainer, and you are viewer." in refused[0].text
    foreign = httpx.get(f"{space.url}/health", headers={"Host": "evil.example"}, timeout=60)
    named = httpx.get(f"{space.url}/health", headers={"Host": "owner-demo.hf.space"}, timeout=60)
    assert (foreign.status_code, named.status_code) == (400, 200)


@pytest.mark.browser
def test_the_page_shows_the_lists_and_what_a_restart_loses(space: Space) -> None:
    api = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page, console = browser.new_page(), list[str]()
        page.set_default_timeout(120_000)
        page.on("console", lambda m: _note(console, m))
        page.goto(space.url)
        banner = page.locator(".guide .note", has_text="This Space has no persistent storage.")
        banner.wait_for()
        assert "is lost when the Space restarts" in banner.inner_text()
        page.get_by_role("tab", name="Mix", exact=True).click()
        for name in ("notes", "answers"):
            page.get_by_text(name, exact=True).first.wait_for()
        page.get_by_label("Saved mixes").click()
        page.get_by_role("option").filter(has_text="Both at half").first.wait_for()
        browser.close()
    assert console == [], "\n".join(console)
    log = space.log.read_text(encoding="utf-8")  # Gradio's hot reload wants a package that the Hub adds
    assert log.count("Traceback") == log.count("`spaces` package is required to run hot-reloading")


def _note(console: list[str], message: Any) -> None:
    """Keeps a warning or an error, except those about the hosts that Gradio requests and the page blocks."""
    is_blocked = any(text in message.text for text in BLOCKED)
    if message.type in ("error", "warning") and not is_foreign(message.text) and not is_blocked:
        console.append(message.text)
