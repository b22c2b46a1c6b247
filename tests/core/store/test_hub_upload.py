"""Exports are uploaded to the Hub whole and private; every refusal is a sentence (against a local mock)."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.errors import AdapterError, SpecError
from core.store.exports import ExportedFile
from core.store.hub_upload import upload

CONTENT = {"README.md": b"# Card\n", "sub/Modelfile": b"FROM x\n"}


class Hub(BaseHTTPRequestHandler):
    """Creates repositories and takes commits of small files."""

    created: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "me/forbidden" in self.path or b"forbidden" in body:
            return self.say({"error": "no"}, 403)
        if "me/broken" in self.path or b'"broken"' in body:
            return self.say({"error": "down"}, 500)
        if self.path.endswith("/repos/create"):
            self.created.append(json.loads(body))
            return self.say({"url": "https://huggingface.co/me/x", "name": "x"})
        if self.path.endswith("/validate-yaml"):  # of a card
            return self.say({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            found = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(body)["files"]]  # fmt: skip
            return self.say({"files": found})
        assert "/commit/" in self.path and self.headers["Authorization"] == "Bearer hf_test"
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return self.say(
            {"commitUrl": "https://huggingface.co/me/x/commit/1", "commitOid": "1", "success": True}
        )

    def say(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    from huggingface_hub import constants, hf_api

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(hf_api.HfApi, "__init__", make_init(hf_api.HfApi.__init__, address))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    Hub.created, Hub.files = [], {}
    yield Hub
    server.shutdown()
    server.server_close()


def make_init(original: Any, address: str) -> Any:
    return lambda self, *args, **kwargs: original(self, endpoint=address, token="hf_test")


@pytest.fixture
def export(tmp_path: Path) -> tuple[Path, list[ExportedFile]]:
    files = []
    for name, content in CONTENT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
        files.append(ExportedFile(name, len(content), hashlib.sha256(content).hexdigest()))
    (tmp_path / "secret.txt").write_text("stays here")
    return tmp_path, files


def test_a_new_repository_is_private_and_gets_the_recorded_files(hub, export):
    assert upload(*export, "me/x") == "https://huggingface.co/me/x/commit/1"
    assert hub.created[0]["visibility"] == "private" and hub.files == CONTENT
    upload(*export, "me/y", is_private=False)
    assert hub.created[1].get("visibility", "public") == "public"


def test_a_file_that_has_changed_is_not_uploaded(hub, export):
    (export[0] / "README.md").write_text("changed")
    with pytest.raises(AdapterError, match="README.md is missing or has changed"):
        upload(*export, "me/x")
    assert hub.created == [] and hub.files == {}


def test_without_a_token_nothing_is_sent(hub, export, monkeypatch, tmp_path):
    from huggingface_hub import constants, hf_api

    monkeypatch.setattr(hf_api.HfApi, "__init__", lambda self: setattr(self, "token", None))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(AdapterError, match="No token of the Hub is known") as refused:
        upload(*export, "me/x")
    assert "hf auth login" in refused.value.fix and hub.created == []


@pytest.mark.parametrize("name", ["", "x", "me/x/y", "../x", "me/a--b", "me/x.git", "-/x"])
def test_other_names_are_refused_at_their_field(export, name):
    with pytest.raises(SpecError) as refused:
        upload(*export, name)
    assert refused.value.field == "repo"


@pytest.mark.parametrize(
    ("repo", "said"), [("me/forbidden", "does not let you write"), ("me/broken", "refused the upload")]
)
def test_a_refusal_of_the_hub_says_what_to_do(hub, export, repo, said):
    with pytest.raises(AdapterError, match=said) as refused:
        upload(*export, repo)
    assert refused.value.fix and "hf_test" not in str(refused.value)


def test_no_network_is_said(export, monkeypatch):
    from huggingface_hub import hf_api

    monkeypatch.setattr(hf_api.HfApi, "__init__", make_init(hf_api.HfApi.__init__, "http://127.0.0.1:9"))
    with pytest.raises(AdapterError, match="could not be reached"):
        upload(*export, "me/x")
