"""Base models: on this machine, downloads from the Hub that stop and continue, and a change of the base."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.errors import BaseModelError, Busy, RunError, SpecError
from core.spec.mix import Mix
from core.spec.training import RunStatus, TrainSpec
from core.store import base_models
from tests.conftest import build_tiny_llama

ROOT = Path(__file__).resolve().parents[3]
COMMIT = "1" * 40
CHUNK = 64 * 1024


@dataclass
class Hub:
    """A tiny Hub on this machine with one model, "tiny/llama", and one that is gated.

    Attributes:
        asked: (method, path, Range header) of every request.
        pause: seconds between two chunks of a weight file.
    """

    folder: Path
    url: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    pause: float = 0.0

    def files(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted(self.folder.iterdir()) if p.is_file()}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, body: bool) -> None:
        hub_, path = self.hub, self.path.split("?")[0]
        hub_.asked.append((self.command, path, self.headers.get("Range") or ""))
        if "gated" in path:
            return self.say(403, {"error": "restricted"}, {"X-Error-Code": "GatedRepo"})
        if "tiny/llama" not in path:
            return self.say(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
        files = hub_.files()
        if path.startswith("/api/models/tiny/llama/tree"):
            return self.say(
                200,
                [
                    {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                    for n, b in files.items()
                ],
            )
        if path.startswith("/api/models/"):
            return self.say(
                200,
                {
                    "id": "tiny/llama",
                    "sha": COMMIT,
                    "siblings": [{"rfilename": n, "size": len(b)} for n, b in files.items()],
                },
            )
        return self.send_file(files[path.rpartition("/")[2]], body)

    def say(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for k, v in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(k, v)
        self.end_headers()
        self.wfile.write(data if self.command == "GET" else b"")

    def send_file(self, data: bytes, body: bool) -> None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(found[1]) if found else 0
        self.send_response(206 if found else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if found:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        for at in range(start, len(data) if body else start, CHUNK):
            try:
                self.wfile.write(data[at : at + CHUNK])
                self.wfile.flush()
            except OSError:
                return
            time.sleep(self.hub.pause if len(data) > 1 << 20 and at % (1 << 20) == 0 else 0)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub whose model is a Llama of some megabytes, beside files that must not be downloaded."""
    folder = build_tiny_llama(tmp_path_factory.mktemp("hub"), hidden_size=256, intermediate_size=1024)
    for name in ("pytorch_model.bin", "modeling_evil.py", "consolidated.safetensors"):
        (folder / name).write_bytes(b"x" * 100)
    made = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": made}))
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()


def terminal(cache: Path, endpoint: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "core", "bases", *words, "--json", "--workspace", str(cache.parent / "ws")]


def surroundings(cache: Path, endpoint: str, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return {
        **kept,
        "HF_HUB_CACHE": str(cache),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache.parent / "home"),
        **more,
    }


def run(cache: Path, endpoint: str, *words: str, **more: str) -> Any:
    out = subprocess.run(
        terminal(cache, endpoint, *words),
        env=surroundings(cache, endpoint, **more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return json.loads(out.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_killed_download_continues_and_downloads_no_code(served: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    served.pause = 0.2
    process = subprocess.Popen(
        terminal(cache, served.url, "download", "tiny/llama"),
        env=surroundings(cache, served.url),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    part: list[Path] = []
    end = time.monotonic() + 60
    while not part and time.monotonic() < end:  # until some of the weights lie on the disk
        part = [p for p in cache.rglob("*.part") if p.stat().st_size > 2 << 20]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    had = part[0].stat().st_size
    listed = run(cache, served.url, "list")
    assert all(o["why"] for o in listed if o["name"] == "tiny/llama"), "a half one is not offered as whole"
    served.pause, served.asked[:] = 0.0, []
    ended = run(cache, served.url, "download", "tiny/llama")
    weights = served.folder / "model.safetensors"
    assert ended["done"] == ended["total"] > weights.stat().st_size and ended["over"] and not ended["error"]
    assert [r for m, p, r in served.asked if m == "GET" and p.endswith("model.safetensors")] == [
        f"bytes={had}-"
    ], "only the rest was asked for"
    assert not [p for _, p, _ in served.asked if p.endswith((".bin", ".py")) or "consolidated" in p]
    snapshot = next(cache.rglob("snapshots/*"))
    assert (snapshot / "model.safetensors").read_bytes() == weights.read_bytes()
    refs = [p.relative_to(cache) for p in cache.rglob("refs/main")]
    assert refs == [Path("models--tiny--llama/refs/main")] and (cache / refs[0]).read_text() == COMMIT
    assert {p.name for p in snapshot.iterdir()} == {p.name for p in served.folder.iterdir()} - {
        "pytorch_model.bin",
        "modeling_evil.py",
        "consolidated.safetensors",
    }
    offer = next(o for o in run(cache, served.url, "list") if o["name"] == "tiny/llama")
    assert (
        not offer["why"]
        and offer["kind"] == "llama"
        and offer["bytes"] == weights.stat().st_size
        and offer["place"] == "cache"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "offline", "said"),
    [
        ("tiny/gated", False, "is gated. Request access on its Hub page"),
        ("tiny/nothing", False, "has no model 'tiny/nothing'"),
        ("tiny/llama", True, "HF_HUB_OFFLINE is set"),
        ("no id", False, "must have the form"),
    ],
)
def test_a_model_that_cannot_be_downloaded_says_what_to_do(
    name: str, offline: bool, said: str, served: Hub, tmp_path: Path
) -> None:
    answer = run(
        tmp_path / "cache", served.url, "download", name, **({"HF_HUB_OFFLINE": "1"} if offline else {})
    )
    assert said in f"{answer['error']} {answer['fix']}"


@pytest.mark.slow
def test_an_unreachable_hub_says_what_to_do(tmp_path: Path) -> None:
    answer = run(tmp_path / "cache", "http://127.0.0.1:9", "download", "tiny/llama")
    assert (
        "could not be reached" in answer["error"]
        and "the bytes that have arrived are kept" in answer["error"]
    )


def at(monkeypatch: pytest.MonkeyPatch, cache: Path, endpoint: str) -> None:
    """Points huggingface_hub, which reads the environment when it is imported, to another cache and Hub."""
    from huggingface_hub import _snapshot_download, constants, file_download
    from huggingface_hub.utils import _cache_manager

    for module in (constants, _snapshot_download, file_download, _cache_manager):
        for name, value in (("HF_HUB_CACHE", str(cache)), ("ENDPOINT", endpoint)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def engine(tiny_base: Path, tmp_path: Path, served: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    at(monkeypatch, tmp_path / "cache", served.url)
    served.pause = 0.0
    with Engine(tmp_path / "ws", str(tiny_base), "none", "cpu") as made:
        made.bases.current(wait=True)
        yield made


def test_a_download_reports_progress_stops_continues_and_can_be_used(
    engine: Engine, served: Hub, tmp_path: Path
) -> None:
    served.pause = 0.15
    engine.bases.download("tiny/llama")
    with pytest.raises(Busy, match="'tiny/llama' is being downloaded"):
        engine.bases.download("tiny/other")
    seen: list[int] = []
    while len(seen) < 4:
        state = engine.bases.download_state()
        assert state is not None and not state.over, state
        if state.done and state.done not in seen:
            seen.append(state.done)
        time.sleep(0.01)
    assert seen == sorted(seen) and state.total > state.done
    engine.bases.stop_download()
    with pytest.raises(BaseModelError, match="was stopped. Start it again to continue it"):
        engine.bases.wait_for_download(30)
    stopped = engine.bases.download_state()
    with pytest.raises(BaseModelError, match="is not complete on this machine. Download it first"):
        engine.bases.switch("tiny/llama")
    served.pause = 0.0
    engine.bases.download("tiny/llama")
    ended = engine.bases.wait_for_download(60)
    assert stopped is not None and 0 < stopped.done < ended.done == ended.total
    refs = [p.relative_to(tmp_path / "cache") for p in tmp_path.rglob("refs/main")]
    assert refs == [Path("models--tiny--llama/refs/main")], "transformers resolves the main branch there"
    assert engine.bases.switch("tiny/llama", "nf4") == []
    assert engine.bases.current(wait=True).name == "tiny/llama", engine.bases.current().failed
    assert engine.bases.current().quantization == "nf4" and not engine.bases.current().error


def test_folders_beside_the_base_are_listed_with_their_defects(
    engine: Engine, tiny_base: Path, tmp_path: Path
) -> None:
    home = tmp_path / "models"
    whole = Path(shutil.copytree(tiny_base, home / "whole"))
    pickled = Path(shutil.copytree(tiny_base, home / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    sharded = Path(shutil.copytree(tiny_base, home / "sharded"))
    (sharded / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})
    )
    bert = Path(shutil.copytree(tiny_base, home / "bert"))
    (bert / "config.json").write_text(
        json.dumps({**json.loads((bert / "config.json").read_text()), "architectures": ["BertModel"]})
    )
    engine.bases.switch(str(whole))
    engine.bases.current(wait=True)
    offers = {Path(o.name).name: o for o in engine.bases.list()}
    assert (
        offers["whole"].why == ""
        and offers["whole"].bytes == (whole / "model.safetensors").stat().st_size
        and offers["embedded"].place == "embedded"
    )
    for name, why in (
        ("pickled", "no *.safetensors weights"),
        ("sharded", "1 of its 2 weight files are missing"),
        ("bert", "not a text generation model (BertModel)"),
    ):
        assert why in offers[name].why
        with pytest.raises(BaseModelError, match="cannot be used"):
            engine.bases.switch(str(home / name))


def test_a_base_change_warns_of_adapters_and_is_refused_during_a_run(
    engine: Engine, tiny_base: Path, corpus: Path, tmp_path: Path
) -> None:
    other = build_tiny_llama(tmp_path / "other", seed=9)
    text = engine.datasets.import_files([corpus], "text")
    small: dict[str, Any] = {
        "dataset": text.id,
        "batch_size": 2,
        "accumulation": 1,
        "max_length": 32,
        "rank": 2,
    }
    done = engine.runs.wait(engine.runs.start(TrainSpec(name="Lamps", max_steps=1, **small)), 60)
    long = engine.runs.start(TrainSpec(name="Long", max_steps=4000, **small))
    while engine.runs.get(long).step < 1:
        time.sleep(0.02)
    with pytest.raises(
        Busy, match="The run 'Long' is running on the resident base. Wait until it ends, or stop it"
    ):
        engine.bases.switch(str(other), confirmed=True)
    engine.runs.stop(long)
    engine.runs.wait(long, 60)
    stream = engine.chat.stream("Where?", [Mix(weights={done.adapter: 1.0})])
    stream.last()
    warnings = engine.bases.switch(str(other))
    assert (
        "2 adapters leave the mixer: Lamps, Long." in warnings[0]
        and "can be resumed only on this base: Long" in warnings[1]
    )
    assert engine.bases.current().name == str(tiny_base), "nothing has happened yet"
    assert engine.bases.switch(str(other), confirmed=True) == [] and engine.bases.current(
        wait=True
    ).name == str(other)
    assert [a.fits for a in engine.library.mixable_adapters()] == [False, False]
    with pytest.raises(RunError, match="began on the base .* Switch back to that base"):
        engine.runs.resume(long)
    engine.bases.switch(str(tiny_base))
    assert [a.fits for a in engine.library.mixable_adapters() if engine.bases.current(wait=True)] == [
        True,
        True,
    ]
    engine.runs.resume(long)
    while engine.runs.get(long).status is not RunStatus.RUNNING:
        time.sleep(0.02)
    engine.runs.stop(long)
    assert engine.runs.wait(long, 60).status is RunStatus.STOPPED


def test_a_base_change_ends_an_answer_in_progress_with_a_message(engine: Engine, tmp_path: Path) -> None:
    other = build_tiny_llama(tmp_path / "other", seed=9)
    stream = engine.chat.stream("Where?", [Mix()] * 4, None)
    assert any("in progress will be stopped" in s for s in engine.bases.unload_warnings())
    engine.bases.switch(str(other), confirmed=True)
    try:
        stream.last()
    except BaseModelError as e:
        assert "was changed while the answer was generated" in str(e)
    assert (
        engine.bases.current(wait=True).name == str(other)
        and engine.chat.stream("Where?", [Mix()]).last().done
    )


def test_a_base_that_does_not_load_leaves_the_old_base_resident(
    engine: Engine, tiny_base: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(tiny_base, tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"no tensors")
    before = engine.bases.current().fingerprint
    engine.bases.switch(str(broken))
    after = engine.bases.current(wait=True)
    assert (
        after.name == str(tiny_base)
        and after.fingerprint == before
        and "broken" in after.failed
        and not after.error
    )
    assert engine.chat.stream("Where?", [Mix()]).last().done
    with pytest.raises(SpecError, match="must be one of auto, nf4, int8, none"):
        engine.bases.switch(str(tiny_base), "int3")


def test_a_restart_loads_the_chosen_base_or_says_that_it_is_gone(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, place = build_tiny_llama(tmp_path / "other", seed=9), engine.workspace.root
    engine.bases.switch(str(other), "none")
    chosen = engine.bases.current(wait=True)
    engine.close()
    with Engine(place, base="", device="cpu") as again:
        assert again.bases.current(wait=True) == chosen and chosen.name == str(other)
    with Engine(place, base="", load=False) as named:
        assert named.bases.current().name == str(other), "the page can say it before it is loaded"
    weights = (other / "model.safetensors").rename(tmp_path / "elsewhere")
    with Engine(place, base="", load=False) as half:
        assert half.bases.current().name == "embedded", "a folder without its weights is none"
    weights.rename(other / "model.safetensors")
    monkeypatch.setattr(
        base_models,
        "locate",
        lambda name: (_ for _ in ()).throw(PermissionError(13, "a mount that does not answer")),
    )
    with Engine(place, base="", load=False) as stale:
        assert stale.bases.current().name == "embedded"
    monkeypatch.undo()
    shutil.rmtree(other)
    with Engine(place, base="", device="cpu") as gone:
        now = gone.bases.current(wait=True)
        assert (
            now.name == "embedded"
            and not now.error
            and "other" in now.failed
            and "is not complete on this machine any more" in now.failed
        )


def test_paths_and_addresses_are_not_hub_ids() -> None:
    for name in ("https://evil.example/x", "../../etc", "a/b/c", "a b/c", ""):
        with pytest.raises(BaseModelError):
            base_models.locate(name)
