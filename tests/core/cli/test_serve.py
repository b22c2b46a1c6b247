"""`serve` in the terminal: who may send requests, its address, and its end."""

from __future__ import annotations

import argparse
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from core.cli.main import build_parser, main
from core.cli.serve import choose_access, describe, write_address
from core.engine import Engine
from core.errors import SpecError
from core.server.access import KeyAccess, OpenAccess
from core.server.start_key import StartKeyAccess
from core.store.api_keys import ApiKeys

ROOT = Path(__file__).resolve().parents[3]
# Prints at the end of the process whether Gradio was imported.
PROGRAM = """
import atexit, sys
atexit.register(lambda: print("gradio imported:", "gradio" in sys.modules, flush=True))
from core.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def parse(*options: str) -> argparse.Namespace:
    return build_parser().parse_args(["serve", *options])


def test_loopback_needs_a_printed_key_or_none_on_request(tmp_path: Path) -> None:
    with Engine(tmp_path, load=False) as engine:
        access, note = choose_access(engine, parse())
        assert isinstance(access, StartKeyAccess) and re.search(r"as-[\w-]{32}$", note)
        access, note = choose_access(engine, parse("--no-token", "--host", "localhost"))
        assert isinstance(access, OpenAccess) and "need no key" in note
        ApiKeys(engine.workspace).create("bot", "viewer")
        access, note = choose_access(engine, parse())
        assert type(access) is KeyAccess and "as-" not in note


def test_beyond_loopback_nothing_is_served_without_keys(tmp_path: Path) -> None:
    with Engine(tmp_path / "ws", load=False) as engine:
        with pytest.raises(SpecError, match=r"can reach 0\.0\.0\.0, and this workspace has no key"):
            choose_access(engine, parse("--host", "0.0.0.0"))
        with pytest.raises(SpecError, match="--no-token accepts requests without a key"):
            choose_access(engine, parse("--host", "::", "--no-token"))
        (tmp_path / "key").write_text("a-key-of-32-characters-or-so-xyz\n", encoding="utf-8")
        access, note = choose_access(engine, parse("--host", "0.0.0.0", "--key-file", str(tmp_path / "key")))
        assert isinstance(access, StartKeyAccess) and "a-key-of" not in note
        ApiKeys(engine.workspace).create("bot", "viewer")
        assert type(choose_access(engine, parse("--host", "0.0.0.0"))[0]) is KeyAccess


def test_the_address_is_one_that_a_client_here_can_use() -> None:
    assert write_address("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert write_address("::", 80) == "http://[::1]:80" and write_address("::1", 5) == "http://[::1]:5"
    assert "http://x/v1" in describe("http://x", False) and "Bearer" in describe("http://x", False)
    assert "Bearer" not in describe("http://x", True)


@pytest.mark.slow
def test_a_port_in_use_and_an_impossible_one_are_refused(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--workspace", str(tmp_path), "--base", str(tiny_base), "--quantization", "none", "--no-token"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", *common, "--port", str(taken.getsockname()[1])]) == 1
    assert "another program uses it. Choose another --port" in capsys.readouterr().err
    assert main(["serve", *common, "--port", "70000"]) == 1
    assert "cannot listen on 127.0.0.1, port 70000" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGTERM")
def test_it_serves_without_gradio_until_sigterm(tiny_base: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "serve", "--port", "0", "--base", str(tiny_base)]
    command += ["--workspace", str(tmp_path / "ws"), "--quantization", "none", "--answers", "exact"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            key = process.stdout.readline().split()[-1]
            address = re.search(r"http://\S+?:\d+", process.stdout.readline())
            assert address, "the second line holds the address"
            check_answers(address[0], key)
        finally:
            process.send_signal(signal.SIGTERM)
            out, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "gradio imported: False" in out and "Traceback" not in errors
    assert key not in errors
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address[0]}/health")


def check_answers(address: str, key: str) -> None:
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    end = time.monotonic() + 60
    while httpx.get(f"{address}/ready").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.05)
    body = {"model": "base", "messages": [{"role": "user", "content": "Where?"}], "max_tokens": 3}
    url = f"{address}/v1/chat/completions"
    assert httpx.post(url, json=body).status_code == 401
    answer = httpx.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60)
    assert answer.status_code == 200 and answer.headers["x-adapter-studio-mix"] == "base"
    assert httpx.get(f"{address}/health", headers={"host": "evil.example"}).status_code == 400
