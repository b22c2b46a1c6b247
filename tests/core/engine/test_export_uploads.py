"""Uploads of exports in the background, in a process of their own, against a mock of the Hub."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.errors import Busy, SpecError
from tests.studio.exported import FAILED, put_export
from tests.upload_hub import SlowHub, serve_uploads

FILES = {"README.md": b"# Card\n", "ollama/answers/Modelfile": b"FROM x\n"}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path, load=False) as opened:
        yield opened


@pytest.fixture
def hub() -> Iterator[type[SlowHub]]:
    with serve_uploads() as served:
        yield served


def push(engine: Engine, export_id: str, repo: str, **settings: Any) -> Any:
    engine.exports.push(export_id, repo, **settings)
    return engine.exports.uploads.wait(export_id, 60)


def test_an_export_is_uploaded_private_and_its_record_keeps_the_address(engine, hub):
    export = put_export(engine, files=FILES)
    (engine.exports.folder(export.id) / "notes.txt").write_text("stays here")
    status = push(engine, export.id, " me/x ")
    assert (status.state, status.text, status.repo) == ("done", "Uploaded", "me/x"), status.problem
    assert status.address == "https://huggingface.co/me/x/commit/1"
    assert hub.created[0]["visibility"] == "private" and hub.files == FILES
    assert engine.exports.get(export.id).address == status.address, "also after a restart"
    assert push(engine, export.id, "me/y", private=False).state == "done"
    assert hub.created[1].get("visibility", "public") == "public"


@pytest.mark.parametrize(
    ("repo", "token", "said"),
    [
        ("me/forbidden", "hf_test", "The Hub does not let you write to 'me/forbidden'. Log in with"),
        ("me/broken", "hf_test", "The Hub refused the upload to 'me/broken'"),
        ("me/x", "", "No token of the Hub is known. Log in with `hf auth login`"),
    ],
)
def test_a_refusal_ends_the_upload_with_what_to_do(engine, hub, monkeypatch, tmp_path, repo, token, said):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-login"))
    status = push(engine, put_export(engine, files=FILES).id, repo)
    assert status.state == "failed" and status.problem.startswith(said), status.problem
    assert "hf_test" not in repr(status) and hub.files == {}


def test_a_changed_file_or_no_network_ends_the_upload(engine, hub, monkeypatch):
    export = put_export(engine, files=FILES)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = push(engine, export.id, "me/x")
    assert offline.problem == "HF_HUB_OFFLINE is set, so nothing can be uploaded. Unset it, and try again."
    (engine.exports.folder(export.id) / "README.md").write_text("changed")
    changed = push(engine, export.id, "me/x")
    assert changed.problem == "README.md is missing or has changed. Export it again."
    assert hub.created == [] and engine.exports.get(export.id).address == ""


def test_what_cannot_be_uploaded_is_refused_at_once(engine):
    export = put_export(engine, files=FILES)
    for repo in ("", "x", "me/x/y", "me/a--b", "me/x.git", "me/" + "x" * 97):
        with pytest.raises(SpecError) as refused:
            engine.exports.push(export.id, repo)
        assert refused.value.field == "repo" and refused.value.fix
    with pytest.raises(SpecError, match="is not complete. Continue it first"):
        engine.exports.push(put_export(engine, "half-0000").id, "me/x")
    assert engine.exports.uploads.statuses() == []


def test_an_export_whose_check_failed_is_uploaded_only_when_that_is_said(engine, hub):
    export = put_export(engine, files=FILES, certificate=FAILED)
    with pytest.raises(SpecError, match="The check of the export 'Answers' failed") as refused:
        engine.exports.push(export.id, "me/x")
    assert refused.value.field == "although_failed" and hub.created == []
    assert push(engine, export.id, "me/x", although_failed=True).state == "done"


def test_an_upload_is_stopped_and_its_export_cannot_change_meanwhile(engine, hub):
    export = put_export(engine, files=FILES)
    engine.exports.push(export.id, "me/slow")
    deadline = time.monotonic() + 60
    while not engine.exports.uploads.status(export.id).text.startswith("Uploading 2 files to me/slow"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for change in (
        lambda: engine.exports.delete(export.id),
        lambda: engine.exports.resume(export.id),
        lambda: engine.exports.push(export.id, "me/x"),
    ):
        with pytest.raises(Busy, match="is being uploaded"):
            change()
    engine.exports.uploads.cancel(export.id)
    assert engine.exports.uploads.wait(export.id, 30).state == "cancelled"
    assert hub.files == {} and engine.exports.get(export.id).address == ""
    engine.exports.delete(export.id)
