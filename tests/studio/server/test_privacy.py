"""Planted tokens and prompts appear in no log, and in no file of workspace and temp folder (T21)."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.engine import Engine
from core.store.redaction import protect_logs
from core.store.workspace import Workspace
from studio.app import serve
from studio.server.access import Login
from tests.browser.conftest import free_port

PROMPT, PASSWORD = "planted-prompt-5b1e", "planted-password-77aa"
KEY = "as-planted0planted0planted0planted0"


def read_all(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


def test_t21_planted_secrets_and_prompts_are_in_no_log_and_no_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    for name in ("httpx", "httpcore"):  # the client of this test, which the studio does not log
        logging.getLogger(name).setLevel(logging.ERROR)
    restore = protect_logs()
    try:
        with Engine(tmp_path / "w", load=False) as engine, caplog.at_level(logging.DEBUG):
            page = serve(engine, port=free_port(), logins=[Login("ann", PASSWORD)], block=False)
            with httpx.Client(base_url=page.local_url, timeout=60) as client:
                client.get("/config", headers={"authorization": f"Bearer {KEY}"})
                client.post("/login", data={"username": PROMPT, "password": f"{PASSWORD}x"})
                client.post("/login", data={"username": "ann", "password": PASSWORD})
                assert client.get("/config").status_code == 200
                index = next(
                    i for i, f in page.fns.items() if f.fn is not None and f.fn.__name__ == "measure_mixes"
                )
                for data in ([PROMPT], [PROMPT] * len(page.fns[index].inputs)):
                    body = {"data": data, "fn_index": index, "session_hash": "s1", "trigger_id": None}
                    assert client.post("/gradio_api/queue/join", json=body).status_code == 200
                    with client.stream("GET", "/gradio_api/queue/data?session_hash=s1") as events:
                        assert any("process_completed" in line for line in events.iter_lines())
                server: dict[str, Any] = {
                    "data": {"dataset": PROMPT},
                    "fn_name": "poll_inspection",
                    "session_hash": "s1",
                }
                inspection = next(
                    b for b in page.blocks.values() if getattr(b, "elem_id", "") == "inspection"
                )
                server["component_id"] = inspection._id
                assert "error" in client.post("/gradio_api/component_server", json=server).json()
                client.post("/v1/chat/completions", json={"model": PROMPT, "messages": PROMPT})
                cookie = client.cookies[f"adapter-studio-{page.server_port}"]
            page.close(verbose=False)
    finally:
        restore()
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.NOTSET)
    out, err = capfd.readouterr()
    written = (out + err + caplog.text).encode() + read_all(tmp_path / "w") + read_all(tmp_path / "temp")
    assert b"wrong API key" in written, "the log is the one that is searched"
    for secret in (PROMPT, PASSWORD, KEY[3:], cookie):
        assert secret.encode() not in written, secret


def test_workspace_files_and_folders_are_private(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        workspace = Workspace(tmp_path / "a" / "w")
        with workspace.build("reports", "Notes") as draft:
            (draft.path / "inner").mkdir()
            (draft.path / "inner" / "x.txt").write_text("x")
    finally:
        os.umask(old)
    modes = {
        p.relative_to(workspace.root).as_posix(): stat.S_IMODE(p.stat().st_mode)
        for p in [workspace.root, *workspace.root.rglob("*")]
    }
    files = {name for name, mode in modes.items() if name.endswith(".txt") and mode == 0o600}
    assert len(files) == 1 and all(m == 0o700 for n, m in modes.items() if n not in files)
