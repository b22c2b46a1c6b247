"""A mock of the Hub on this machine: a few datasets at fixed commits, and range requests."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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
    "a/asked": {
        MAIN: {
            "links.jsonl": b"".join(
                json.dumps({"links": f"Where is dog {n}?", "rechts": f"At quay {n}.", "nr": n}).encode()
                + b"\n"
                for n in range(30)
            )
        }
    },
    "a/code": {MAIN: {"code.py": b"raise SystemExit"}},
}
REFS = {"": MAIN, "main": MAIN, "v1": OLD, OLD: OLD, "refs/convert/parquet": CONVERTED}


class Handler(BaseHTTPRequestHandler):
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
            begin, _, end = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            self.asked[-1] += f" {begin}-{end}" if end else ""
            if not begin:
                return self.say(200, data)
            return self.say(206, data[int(begin) : int(end) + 1 if end else None])
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


@contextlib.contextmanager
def serve_hub() -> Iterator[str]:
    """The address of the mock, while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
