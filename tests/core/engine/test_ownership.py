"""One workspace in several processes, and on a disk that cannot be written: said in words, and usable."""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.crash_operations import make_workspace
from core.cli.main import main
from core.engine import Engine, ownership
from core.errors import StudioError
from studio.components.guide import poll


def forbid_writing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every call that would change something below `root` fail, as on a read-only disk."""

    def wrap(call: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def call_or_fail(path: Any, *args: Any, **kwargs: Any) -> Any:
            is_below = isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(root)
            if is_below and writes(*args, **kwargs):
                if call is mkdir and Path(path).is_dir():
                    raise FileExistsError(errno.EEXIST, "File exists")
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return call(path, *args, **kwargs)

        return call_or_fail

    mkdir = os.mkdir
    for name in ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link"):
        monkeypatch.setattr(os, name, wrap(getattr(os, name), lambda *args, **kwargs: True))
    opened = wrap(open, lambda mode="r", *args, **kwargs: any(letter in mode for letter in "wxa+"))
    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(io, "open", opened)


def digest_of(root: Path) -> str:
    """A checksum of all files below a folder."""
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(str(p).encode() + p.read_bytes() for p in files)).hexdigest()


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with items of every kind."""
    make_workspace(tmp_path)
    return tmp_path / "ws"


def test_a_second_studio_says_which_process_has_the_workspace(
    workspace: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with Engine(workspace, load=False) as first:
        assert first.notices == []
        with Engine(workspace, load=False) as second:
            (notice,) = second.notices
            assert f"Process {os.getpid()} on " in notice and "has this workspace open too" in notice
            assert "can be followed, paused, moved and cancelled, but not stopped" in notice
            assert notice in caplog.text
            assert notice in json.dumps(poll(second, {})["tree"], ensure_ascii=False)
            mix = second.library.save_mix("Shared", {second.library.adapters()[0].id: 0.5})
            assert first.library.mix(mix.id).name == "Shared", "both can write"
        caplog.clear()
        assert main(["adapters", "list", "--workspace", str(workspace), "--json"]) == 0
        assert "has this workspace open too" in caplog.text
        assert json.loads(capsys.readouterr().out.splitlines()[-1])
    with Engine(workspace, load=False) as alone:
        assert alone.notices == []


def test_a_damaged_owner_file_still_gives_a_sentence(workspace: Path) -> None:
    for content in (
        b"",
        b"[1]",
        b'{"process": "x"}',
        b"\xff\xfe",
        b'{"process": 1, "machine": 2, "started": 1e99}',
    ):
        with Engine(workspace, load=False):
            (workspace / "owner.lock").write_bytes(content)
            with Engine(workspace, load=False) as second:
                assert second.notices[0].startswith("Another process has this workspace open too.")


def test_a_read_only_workspace_can_be_read_and_refuses_changes_in_words(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest_of(workspace)
    (workspace / "maps").rmdir()  # a workspace of an older version
    with monkeypatch.context() as patch:
        forbid_writing(workspace, patch)
        with Engine(workspace, load=False) as engine:
            (notice,) = engine.notices
            assert "is read-only" in notice and "Read-only file system" in notice
            assert "can be mixed and asked" in notice and "deleting are not possible" in notice
            adapter, dataset = engine.library.adapters()[0], engine.datasets.list()[0]
            run, mix = engine.runs.list()[0], engine.library.mixes()[0]
            spec = replace(run.spec, dataset=dataset.id)
            assert len(engine.library.verify(adapter.id)) == 3 and engine.library.damaged() == []
            assert engine.evaluation.reports() and engine.votes.tally() and engine.library.trash()
            assert engine.datasets.rows(dataset.id, "train")
            changes: list[Callable[[], Any]] = [
                lambda: engine.library.rename("adapters", adapter.id, "X"),
                lambda: engine.library.rename("datasets", dataset.id, "X"),
                lambda: engine.library.save_mix("X", {adapter.id: 1.0}),
                lambda: engine.library.rename("mixes", mix.id, "X"),
                lambda: engine.library.delete("adapters", adapter.id),
                lambda: engine.library.archive(adapter.id),
                lambda: engine.datasets.import_files([workspace.parent / "corpus.txt"], "X", "domain"),
                lambda: engine.runs.start(spec),
                lambda: engine.runs.resume(run.id),
                lambda: engine.grids.start(spec, {"rank": [1, 2]}, "X"),
                lambda: engine.votes.cast("?", [{"weights": {}}, {"weights": {}}], 0),
            ]
            for change in changes:
                with pytest.raises(StudioError, match="Read-only file system"):
                    change()
            assert engine.queue.locks == {} and engine.queue.list() == []
    assert digest_of(workspace) == before


def test_a_repair_of_a_read_only_workspace_is_left_and_the_adapter_used(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = next((workspace / "adapters").glob("*/README.md"))
    card.write_text("half")
    with monkeypatch.context() as patch:
        forbid_writing(workspace, patch)
        with Engine(workspace, load=False) as engine:
            (said,) = engine.library.verify(card.parent.name)
            assert (
                "README.md and checksums.txt did not match" in said and "could not be written again" in said
            )
    assert card.read_text() == "half"


def test_a_full_disk_is_not_called_read_only(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)
        with Engine(workspace, load=False) as engine:
            assert engine.notices == []
            with Engine(workspace, load=False) as second:
                assert "has this workspace open too" in second.notices[0]
    with monkeypatch.context() as patch:
        patch.setattr(ownership, "FileLock", refuse)
        with Engine(workspace, load=False) as engine:
            assert engine.notices[0].startswith("The disk is full") and "read-only" not in engine.notices[0]
