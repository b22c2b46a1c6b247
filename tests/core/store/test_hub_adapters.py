"""Adapters of the Hub: only the adapter of a repository is downloaded, and errors say what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import huggingface_hub.constants
import pytest

from core.errors import AdapterError, DiskFull
from core.importing.sources import is_read
from core.store import files, hub_adapters
from tests.core.store.test_base_models import Hub, _Handler

FILES = {
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": b"weights",
    "adapter_model.bin": b"pickled",
    "README.md": b"# About",
    "model.safetensors": b"a base",
    "config.json": b"{}",
    "training_args.bin": b"pickled",
    "code.py": b"raise SystemExit",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    made = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": made}))
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", made.url)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        made.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


def test_only_the_adapter_of_a_repository_is_downloaded(hub: Hub, tmp_path: Path) -> None:
    folder = hub_adapters.download("tiny/llama", "", tmp_path / "scratch", is_read)
    found = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    expected = ("adapter_config.json", "adapter_model.safetensors", "README.md")
    assert found == {name: FILES[name] for name in expected}
    fetched = {path.rpartition("/")[2] for _, path, _ in hub.asked if "/resolve/" in path}
    assert fetched == set(expected)


def test_a_gated_an_unknown_and_an_empty_repository_say_what_to_do(hub: Hub, tmp_path: Path) -> None:
    for name, words in (("x/gated", "is gated. Request access"), ("x/gone", "has no model 'x/gone'")):
        with pytest.raises(AdapterError, match=re.escape(words)):
            hub_adapters.download(name, "", tmp_path / "scratch", is_read)
    for file in hub.folder.iterdir():
        if "adapter" in file.name or file.name == "README.md":
            file.unlink()
    with pytest.raises(AdapterError, match="'tiny/llama' on the Hub has no adapter"):
        hub_adapters.download("tiny/llama", "", tmp_path / "scratch", is_read)


def test_a_full_disk_is_found_before_the_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MARGIN_BYTES", 1 << 62)
    with pytest.raises(DiskFull):
        hub_adapters.download("tiny/llama", "", tmp_path / "scratch", is_read)
    assert not [path for _, path, _ in hub.asked if "/resolve/" in path]
