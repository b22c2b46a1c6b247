"""How the upload of an export is drawn: its form, what is done, the address, a refusal, the question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.engine.export_uploads import UploadStatus
from studio.views import exports as views
from tests.studio.exported import FAILED, put_export
from tests.studio.shown import actions, texts
from tests.studio.views.test_exports import find

FILES = {"README.md": b"# Card\n"}
ADDRESS = "https://huggingface.co/me/x/commit/1"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path, load=False) as opened:
        yield opened


def inputs(tree: Any) -> list[dict[str, str]]:
    return [n["attrs"] for n in find(tree, "input")]


def test_the_form_is_private_at_first_and_only_of_complete_exports(engine: Engine) -> None:
    export = put_export(engine, files=FILES)
    repo, private = inputs(views.render_export(export))
    assert repo["placeholder"] == "owner/name" and repo["value"] == "" and "disabled" not in repo
    assert private == {"type": "checkbox", "checked": ""}
    tree = views.render_export(export)
    assert [a["do"] for a in actions(tree)] == ["push", "resume", "ask"]
    assert "Uploaded" not in texts(tree)
    assert inputs(views.render_export(put_export(engine, "half-0000"))) == []


def test_a_running_upload_shows_what_is_done_and_can_only_be_stopped(engine: Engine) -> None:
    export = put_export(engine, files=FILES)
    upload = UploadStatus(export.id, "Answers", "me/x", False, "running", "Uploading 1 files to me/x")
    tree = views.render_export(export, upload=upload)
    assert "Uploading 1 files to me/x · 7 B" in texts(tree)
    repo, private = inputs(tree)
    assert repo["value"] == "me/x" and "disabled" in repo and "checked" not in private
    (send,) = [n for n in find(tree, "button") if n["act"]["do"] == "push"]
    assert "disabled" in send["attrs"]
    assert [a["do"] for a in actions(tree)] == ["push", "stop-upload"]


def test_the_address_is_a_link_only_where_it_is_one_of_the_hub(engine: Engine) -> None:
    export = put_export(engine, files=FILES)
    done = UploadStatus(export.id, "Answers", "me/x", state="done", address=ADDRESS)
    tree = views.render_export(replace(export, address=ADDRESS), upload=done)
    assert ADDRESS in [n["attrs"]["href"] for n in find(tree, "a")] and f"Uploaded:  {ADDRESS}" in texts(tree)
    for address in ("javascript:alert(1)", "https://huggingface.co.evil/x", f"{ADDRESS}\n", "http://x/y"):
        tree = views.render_export(replace(export, address=address))
        assert address in texts(tree) and address not in [n["attrs"]["href"] for n in find(tree, "a")]


def test_a_refused_upload_says_why_and_keeps_what_was_entered(engine: Engine) -> None:
    export = put_export(engine, files=FILES)
    failed = UploadStatus(export.id, "Answers", "me/x", state="failed", problem="No token. Log in.")
    tree = views.render_export(export, upload=failed)
    (problem,) = [n for n in find(tree, "p") if n.get("cls") == "problem"]
    assert texts(problem) == "No token. Log in." and problem["attrs"]["role"] == "alert"
    assert inputs(tree)[0]["value"] == "me/x" and "disabled" not in inputs(tree)[0]
    stopped = replace(failed, state="cancelled", problem="")
    assert "The upload was stopped." in texts(views.render_export(export, upload=stopped))


def test_the_question_about_a_failed_check_has_the_only_buttons(engine: Engine) -> None:
    export = put_export(engine, files=FILES, certificate=FAILED)
    tree = views.render_export(export, asks_upload=True)
    assert "Upload it although its check failed?" in texts(tree)
    assert actions(tree) == [
        {"do": "push", "export": export.id, "sure": True},
        {"do": "keep", "export": export.id},
    ]
    assert len(inputs(tree)) == 2, "what was entered stays"
