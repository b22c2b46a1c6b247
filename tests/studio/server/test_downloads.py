"""Downloads of exported files: only those of the record, whole or in ranges, and small exports as one zip."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from core.engine import Engine
from core.spec.access import Role
from core.store import exports
from core.store.exports import ExportedFile
from studio.server import routes as served
from tests.studio.caller import Caller
from tests.studio.exported import put_export

WEIGHTS = bytes(range(256)) * 64
FILES = {"adapter_model.safetensors": WEIGHTS, "ollama/answers/Modelfile": b"FROM x"}
PLACE = "/gradio_api/studio/download/export/answers-0a1b"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "w", load=False) as opened:
        put_export(opened, files=FILES)
        yield opened


@pytest.fixture
def client(engine: Engine) -> TestClient:
    return TestClient(Starlette(routes=served.routes(engine), middleware=[Middleware(Caller)]))


def test_a_file_arrives_whole_and_under_its_name(client: TestClient) -> None:
    response = client.get(f"{PLACE}/adapter_model.safetensors")
    assert (response.status_code, response.content) == (200, WEIGHTS)
    assert 'filename="adapter_model.safetensors"' in response.headers["content-disposition"]
    nested = client.get(f"{PLACE}/ollama/answers/Modelfile")
    assert nested.content == b"FROM x" and 'filename="Modelfile"' in nested.headers["content-disposition"]


def test_a_download_that_was_cut_short_continues_at_its_byte(client: TestClient) -> None:
    url = f"{PLACE}/adapter_model.safetensors"
    rest = client.get(url, headers={"range": "bytes=16000-"})
    assert (rest.status_code, rest.content) == (206, WEIGHTS[16000:])
    assert rest.headers["content-range"] == f"bytes 16000-16383/{len(WEIGHTS)}"
    other = client.get(url, headers={"range": "bytes=16000-", "if-range": '"another file"'})
    assert (other.status_code, other.content) == (200, WEIGHTS)
    assert client.get(url, headers={"range": "bytes=99999-"}).status_code == 416


@pytest.mark.parametrize(
    "name",
    [
        "export.json",
        "../export.json",
        "..%2Fexport.json",
        "%2e%2e/export.json",
        "ollama/../../export.json",
        "/etc/passwd",
        "%2Fetc%2Fpasswd",
        "adapter_model.safetensors%00",
        "ollama",
        "",
    ],
)
def test_no_other_file_is_served(client: TestClient, name: str) -> None:
    response = client.get(f"{PLACE}/{name}")
    assert response.status_code in (400, 404) and "{" not in response.text, response.text


def test_a_record_or_a_link_that_leads_elsewhere_serves_nothing(engine: Engine, client: TestClient) -> None:
    outside = engine.workspace.root / "secret.txt"
    outside.write_text("secret")
    folder = engine.exports.folder("answers-0a1b")
    (folder / "link.txt").symlink_to(outside)
    named = ["../export.json", "nul\0", "../../../secret.txt", str(outside), "link.txt", "gone.txt"]
    listed = [ExportedFile(name, 6, "0" * 64) for name in named]
    exports.change(engine.workspace, "answers-0a1b", files=listed)
    for name in named:
        response = client.get(f"{PLACE}/{quote(name, safe='')}")
        assert response.status_code == 404 and "secret" not in response.text.replace(name, "")
    assert client.get(f"{PLACE}.zip").status_code == 404


def test_a_small_export_is_one_zip_with_its_folder(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.tempfile, "tempdir", str(tmp_path))
    response = client.get(f"{PLACE}.zip")
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert {n: archive.read(n) for n in archive.namelist()} == {
            f"answers-0a1b/{name}": content for name, content in FILES.items()
        }
    assert not list(tmp_path.glob("*.zip")), "the temporary file is removed"
    monkeypatch.setattr(served, "ZIP_BYTES", len(WEIGHTS))
    refused = client.get(f"{PLACE}.zip")
    assert (
        refused.status_code == 400 and "at most 16,384 bytes to be one zip file, got 16,390" in refused.text
    )


def test_unknown_exports_and_callers_who_are_not_owners_get_nothing(
    engine: Engine, client: TestClient
) -> None:
    assert client.get("/gradio_api/studio/download/export/gone-0000.zip").status_code == 404
    assert client.get("/gradio_api/studio/download/export/GONE/x").status_code == 400
    for role, status in ((Role.NONE, 401), (Role.VIEWER, 403), (Role.TRAINER, 403)):
        app = Starlette(routes=served.routes(engine), middleware=[Middleware(Caller, role=role)])
        for url in (f"{PLACE}.zip", f"{PLACE}/adapter_model.safetensors"):
            assert TestClient(app).get(url).status_code == status
