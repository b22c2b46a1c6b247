"""Datasets of the Hub, from a mock on this machine: commit, configuration, split, only data files."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data import hub_datasets
from core.data.hub_datasets import download, resolve
from core.data.readers import read_files
from core.engine.datasets import Datasets
from core.engine.imports import Imports
from core.errors import DataError
from core.store.workspace import Workspace

MAIN, OLD, CONVERTED = "1" * 40, "2" * 40, "3" * 40
README = b"""---
configs:
- config_name: plain
  default: true
  data_files:
  - split: train
    path: plain/train-*.jsonl
  - split: test
    path: ["plain/test.jsonl"]
- config_name: other
  data_files: other/*.csv
---
# About
"""


def parquet(**columns: list[str]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


REPOS: dict[str, dict[str, dict[str, bytes]]] = {
    "a/configs": {
        MAIN: {
            "README.md": README,
            "plain/train-0.jsonl": b'{"text": "one"}\n',
            "plain/train-1.jsonl": b'{"text": "two"}\n',
            "plain/test.jsonl": b'{"text": "three"}\n',
            "other/x.csv": b"text\nfour\n",
            "configs.py": b"raise SystemExit",
        },
        OLD: {"data/train.jsonl": b'{"text": "old"}\n'},
    },
    "a/names": {
        MAIN: {
            "data/train-00000-of-00001.parquet": parquet(text=["one"]),
            "data/validation-00000-of-00001.parquet": parquet(text=["two"]),
            ".gitattributes": b"x",
            "dataset_infos.json": b"{}",
        }
    },
    "a/script": {
        MAIN: {"script.py": b"raise SystemExit", "README.md": b"# About"},
        CONVERTED: {
            "de/train/0000.parquet": parquet(text=["eins"]),
            "en/train/0000.parquet": parquet(text=["1"]),
        },
    },
    "a/rows": {
        MAIN: {
            "train.jsonl": b"".join(
                json.dumps({"question": f"Where is dog {n}?", "answer": f"It is {n}."}).encode() + b"\n"
                for n in range(30)
            )
        }
    },
    "a/code": {MAIN: {"code.py": b"raise SystemExit"}},
}
REFS = {"": MAIN, "main": MAIN, "v1": OLD, OLD: OLD, "refs/convert/parquet": CONVERTED}


class _Handler(BaseHTTPRequestHandler):
    asked: list[str] = []

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].replace("%2F", "/")
        self.asked.append(path)
        words = path.removeprefix("/api").removeprefix("/datasets/").split("/")
        repo, rest = "/".join(words[:2]), words[2:]
        if repo == "a/gated":
            return self.say(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if repo not in REPOS:
            return self.say(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["resolve"]:
            files = REPOS[repo][rest[1]]
            data = files["/".join(rest[2:])]
            return self.say(200, data[:-1] if "broken" in self.headers.get("Range", "") else data)
        verb, ref = (rest or ["revision"])[0], "/".join(rest[1:])
        commit = REFS.get(ref, ref)
        if commit not in REPOS[repo]:
            return self.say(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if verb == "tree":
            entries = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest(),
                 "lfs": {"oid": hashlib.sha256(b).hexdigest(), "size": len(b), "pointerSize": 1}}
                for n, b in REPOS[repo][commit].items()
            ]  # fmt: skip
            return self.say(200, json.dumps(entries).encode())
        return self.say(200, json.dumps({"id": repo, "sha": commit, "siblings": []}).encode())

    def say(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for k, v in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def texts(found, folder, hub):
    folder.mkdir(exist_ok=True)
    return [r.values["text"] for r in read_files(download(found, folder, endpoint=hub))]


def test_the_readme_names_configurations_and_splits(hub, tmp_path):
    found = resolve("a/configs", endpoint=hub)
    assert (found.config, found.split, found.commit) == ("plain", "train", MAIN)
    assert texts(found, tmp_path / "a", hub) == ["one", "two"]
    assert texts(resolve("a/configs", split="test", endpoint=hub), tmp_path / "b", hub) == ["three"]
    assert texts(resolve("a/configs", "other", endpoint=hub), tmp_path / "c", hub) == ["four"]
    assert not [p for p in _Handler.asked if p.endswith(".py")], "code is never downloaded"


def test_a_revision_is_pinned_to_its_commit_and_said(hub, tmp_path):
    found = resolve("a/configs", revision="v1", endpoint=hub)
    assert found.commit == OLD and texts(found, tmp_path / "a", hub) == ["old"]
    assert found.describe() == f"From the Hub: a/configs, configuration default, split train, commit {OLD}."


def test_names_of_files_give_the_splits_without_a_readme(hub, tmp_path):
    found = resolve("a/names", split="validation", endpoint=hub)
    assert texts(found, tmp_path / "a", hub) == ["two"]
    assert resolve("a/names", endpoint=hub).split == "train"


def test_a_dataset_with_a_script_is_read_from_its_converted_files(hub, tmp_path):
    with pytest.raises(DataError, match="several configurations.*--config: de, en"):
        resolve("a/script", endpoint=hub)
    found = resolve("a/script", "de", endpoint=hub)
    assert found.commit == CONVERTED and texts(found, tmp_path / "a", hub) == ["eins"]


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (("a/none",), "has no dataset 'a/none', or it is private"),
        (("a/gated",), "'a/gated' is gated"),
        (("a/code",), "no parquet, JSONL or CSV files, and its code is never run"),
        (("a/configs", "no"), "no configuration 'no'. It has: plain, other"),
        (("a/configs", "", "dev"), "no split 'dev'. It has: train, test"),
        (("a/configs", "", "", "v9"), "no revision 'v9'"),
        (("http://x/y",), 'must be "owner/name"'),
        (("../x",), 'must be "owner/name"'),
        (("a/b/c",), 'must be "owner/name"'),
        (("",), 'must be "owner/name"'),
        (("a/configs", "../x"), "A configuration must be"),
        (("a/configs", "", "", "../../x"), "A revision must be"),
    ],
)
def test_what_cannot_be_downloaded_is_said_in_words(hub, args, what):
    with pytest.raises(DataError) as caught:
        resolve(*args, endpoint=hub)
    assert what in str(caught.value) and caught.value.fix


def test_without_a_network_the_message_says_so_and_shows_no_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(DataError, match="The Hub could not be reached for 'a/b'") as caught:
        resolve("a/b", endpoint="http://127.0.0.1:9")
    assert "hf_secret" not in str(caught.value)


def test_a_file_with_a_wrong_checksum_is_deleted(hub, tmp_path):
    found = resolve("a/names", endpoint=hub)
    name, size, _ = found.files[0]
    wrong = hub_datasets.HubFiles(
        found.id, found.config, found.split, found.commit, ((name, size, "0" * 64),)
    )
    with pytest.raises(DataError, match="failed its checksum"):
        download(wrong, tmp_path, endpoint=hub)
    assert not list(tmp_path.glob("*.parquet"))


def test_an_import_follows_the_download_and_notes_the_commit(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_datasets, "resolve", partial(resolve, endpoint=hub))
    monkeypatch.setattr(hub_datasets, "download", partial(download, endpoint=hub))
    monkeypatch.setattr(Datasets, "_make_check", lambda self, seconds: None)  # needs no base
    datasets = Datasets(Workspace(tmp_path / "ws"), None, None)
    imports = Imports(datasets)

    def finish(job):
        while not imports.status(job).has_ended:
            time.sleep(0.02)
        return imports.status(job)

    status = finish(imports.start_hub("a/rows", revision=MAIN))
    assert (status.state, status.problem) == ("done", "")
    dataset = datasets.get(status.dataset_id)
    assert (dataset.name, dataset.kind, dataset.rows) == ("rows", "task", 30)
    assert f"From the Hub: a/rows, configuration default, split train, commit {MAIN}." in dataset.notes
    status = finish(imports.start_hub("a/none"))
    assert status.state == "failed" and "has no dataset 'a/none'" in status.problem


def test_patterns_of_paths_are_those_of_the_hub():
    matches = [
        p for p in ("a.csv", "d/a.csv", "d/e/a.csv") if hub_datasets._compile_pattern("d/*.csv").fullmatch(p)
    ]
    assert matches == ["d/a.csv"]
    assert hub_datasets._compile_pattern("**/*.csv").fullmatch("a.csv")
    assert hub_datasets._compile_pattern("d/**").fullmatch("d/e/a.csv")


def test_caps_are_checked_before_the_download(hub, monkeypatch):
    monkeypatch.setattr(hub_datasets, "TOTAL_LIMIT_BYTES", 10)
    with pytest.raises(DataError, match="2 files of 32 bytes; at most"):
        resolve("a/configs", endpoint=hub)
