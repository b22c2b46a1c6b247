"""A disk that fills up at any moment: the error says so, what was there stays, and no partial file is left.

Where the tests may mount a small disk in memory, they really fill it; elsewhere the system's calls fail.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.data import datasets
from core.errors import DiskFull, StudioError
from core.spec.training import TrainSpec
from core.store import adapters, archives, backup, files, grids, mixes, reports, run_order, runs
from core.store.event_log import EventLog, read_all
from core.store.files import ensure_space, write_json
from core.store.hub import convert_error
from core.store.workspace import Workspace

DISK_BYTES = 4 << 20
TENSOR = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
}
Work = Callable[[Workspace], Any]


def add_adapter(workspace: Workspace, fill: float, width: int = 4000) -> Any:
    tensors = {
        TENSOR.format("A"): torch.full((2, width), fill),
        TENSOR.format("B"): torch.full((width, 2), fill),
    }
    meta = {"kind": "domain", "base": {"name": "tiny", "fingerprint": "f" * 64}}
    return adapters.add(workspace, "law-0001", "law", lambda p: save_file(tensors, p), CONFIG, meta)


def import_rows(workspace: Workspace) -> Any:
    path = workspace.root.parent / "rows.txt"
    return datasets.import_dataset(workspace, [path], "Rows")


def unpack_beside(workspace: Workspace) -> Any:
    target = workspace.root.parent / "copy"
    shutil.rmtree(target, ignore_errors=True)
    return backup.unpack(workspace.root.parent / "b.zip", target)


def write_archive(workspace: Workspace) -> Any:
    return backup.pack(workspace.root, workspace.root.parent / "c.zip")


def update_run(workspace: Workspace) -> Any:
    run = runs.load(workspace, workspace.ids("runs")[0])
    return runs.update(workspace, run, error="x" * 3000)


def save_report(workspace: Workspace) -> Any:
    rows = [{"name": "Base", "mix": "base", "weights": {}, "f1": 0.5, "note": "x" * 9000}]
    return reports.save(workspace, "d", "Notes", "test", "tiny", 1.0, rows)


def save_mix(workspace: Workspace) -> Any:
    return mixes.save(workspace, f"Mix {os.urandom(3).hex()}", {"law-0001": 0.5})


def write_order(workspace: Workspace) -> Any:
    write_json(workspace.run_order_path, {"order": ["x" * 3000], "cancelled": []})
    return run_order.read(workspace)


WORK: dict[str, Work] = {
    "an import": import_rows,
    "an adapter that is replaced": lambda w: add_adapter(w, 0.25),
    "a renamed adapter": lambda w: adapters.rename(w, "law-0001", "Law"),
    "results of an adapter": lambda w: adapters.add_results(w, "law-0001", {"f1": 0.5}),
    "an export": lambda w: adapters.export_zip(w, "law-0001"),
    "a mix": save_mix,
    "a renamed mix": lambda w: mixes.rename(w, w.ids("mixes")[0], f"Other {os.urandom(3).hex()}"),
    "a report": save_report,
    "a map": lambda w: write_json(w.path("maps", "a" * 64, "map.json"), {"cells": [0.5] * 2000}),
    "a grid": lambda w: grids.create(w, TrainSpec(), {"rank": [8, 16]}, "Ranks"),
    "a run": lambda w: runs.create(w, TrainSpec(name="Run"), "embedded", "0" * 64),
    "the state of a run": update_run,
    "the order of the queue": write_order,
    "a backup": write_archive,
    "an unpacked backup": unpack_beside,
}


def prepare(folder: Path) -> Workspace:
    workspace = Workspace(folder / "w")
    (folder / "rows.txt").write_text("\n\n---\n\n".join(f"Row {i} of the notes. " * 30 for i in range(60)))
    add_adapter(workspace, 0.5)
    mixes.save(workspace, "First", {"law-0001": 1.0})
    runs.create(workspace, TrainSpec(name="Old"), "embedded", "0" * 64)
    backup.pack(workspace.root, folder / "b.zip")
    return workspace


def check_state(workspace: Workspace) -> None:
    """No partial file is left, and what was there can be read and verified."""
    left = [p for p in workspace.root.parent.rglob("*") if p.name.endswith((".partial", ".ready"))]
    assert left == []
    assert len(adapters.verify(workspace, "law-0001")) == 3
    for load, kind in ((mixes.load, "mixes"), (runs.load, "runs"), (reports.load, "reports")):
        for item_id in workspace.ids(kind):
            load(workspace, item_id)  # type: ignore[operator]
    for item_id in workspace.ids("datasets"):
        datasets.verify_dataset(workspace, item_id)
    for run_id in workspace.ids("runs"):
        assert read_all(runs.events_path(workspace, run_id))[0]["kind"] == "status"


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of 4 MB in memory."""
    folder = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def leave(folder: Path, free_bytes: int) -> Iterator[None]:
    """Fills the disk up to `free_bytes`."""
    ballast = folder / "ballast"
    space = shutil.disk_usage(folder).free
    with open(ballast, "wb") as f:
        for size in (max(0, space - free_bytes),):
            os.posix_fallocate(f.fileno(), 0, max(size, 1))
    try:
        yield
    finally:
        ballast.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", WORK)
def test_a_disk_that_is_really_full_costs_nothing(
    disk: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MARGIN_BYTES", 0)  # the check before a write does not help here
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    workspace = prepare(disk)
    failures, successes = 0, 0
    for free in [*range(0, 100_000, 4096), *range(100_000, 1_200_000, 90_000)]:
        with leave(disk, free):
            try:
                WORK[name](workspace)
                successes += 1
            except DiskFull as e:
                failures += 1
                assert e.what.startswith("The disk is full") and e.fix
            check_state(workspace)
    assert failures >= 1 and successes >= 1, (failures, successes)
    WORK[name](workspace)
    check_state(workspace)


@pytest.mark.parametrize("name", WORK)
def test_every_call_of_the_system_may_fail(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = prepare(tmp_path)
    calls: list[str] = []
    fail_at = [-1]

    def inject(function: str) -> None:
        original = getattr(os, function)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(function)
            if len(calls) == fail_at[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*args, **kwargs)

        monkeypatch.setattr(os, function, call)

    for function in ("fsync", "replace", "rename", "mkdir"):
        inject(function)
    WORK[name](workspace)
    count = len(calls)
    assert count >= 1
    for number in range(1, count + 1):
        calls.clear()
        fail_at[0] = number
        try:
            WORK[name](workspace)
        except StudioError as e:
            assert isinstance(e, DiskFull) and e.what.startswith("The disk is full"), (number, e)
        fail_at[0] = -1
        check_state(workspace)


def test_the_numbers_of_the_message_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    for free in (0, 1, 999_999, 60_000_000, 67_108_864, 100_400_000, 5_000_000_000):
        for missing in (1, 400_000, 1_000_000, 50_000_000, 10**10):
            need = free - files.MARGIN_BYTES + missing
            if need < 0:
                continue
            monkeypatch.setattr(files.shutil, "disk_usage", lambda _, free=free: usage(1, 1, free))
            ensure_space(tmp_path, need - missing)
            with pytest.raises(DiskFull) as caught:
                ensure_space(tmp_path, need)
            text = caught.value.what
            all_bytes, shown_free, write, margin = (int(n) for n in re.findall(r"(\d+) MB", text))
            assert all_bytes > shown_free and all_bytes == write + margin, text
            assert shown_free * 1e6 <= free and write * 1e6 >= need and margin * 1e6 >= files.MARGIN_BYTES


def test_the_message_names_the_trash_if_it_holds_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path / "w")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(1, 1, 1_000_000))
    for folder in (workspace.root, workspace.root / "runs"):
        with pytest.raises(DiskFull, match="delete unused items under Library, and empty the trash"):
            ensure_space(folder, 1)
    with workspace.build("datasets", "Big", "big") as draft:
        (draft.path / "rows.jsonl").write_bytes(b"x" * 3_400_000)
    workspace.remove("datasets", "big")
    for folder in (workspace.root, workspace.root / "runs", workspace.path("runs", "r", "checkpoints")):
        with pytest.raises(DiskFull, match=r"Empty the trash under Library \(4 MB\) and try again"):
            ensure_space(folder, 1)
    with pytest.raises(DiskFull, match="Free some space"):
        ensure_space(tmp_path / "elsewhere", 1)


def test_an_event_that_does_not_fit_costs_only_itself(disk: Path) -> None:
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    log = EventLog(disk / "events.jsonl")
    log.append("note", text="first")
    with leave(disk, 0), pytest.raises(DiskFull, match="The disk is full: events.jsonl"):
        for _ in range(100):
            log.append("note", text="x" * 4000)
    log.append("note", text="last")
    texts = [e.get("text", e["kind"])[:10] for e in read_all(log.path)]
    assert texts[0] == "first" and texts[-1] == "last" and texts.count("unreadable") <= 1


def test_a_download_that_does_not_fit_says_what_to_do() -> None:
    error = convert_error("owner/name", OSError(errno.ENOSPC, "No space left on device"))
    assert isinstance(error, DiskFull)
    assert error.what == "The disk is full: the download of 'owner/name' stopped."
    assert "the bytes that have arrived are kept" in error.fix


def test_an_archive_that_does_not_fit_leaves_nothing(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MARGIN_BYTES", 0)
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setattr(archives, "ensure_space", lambda *_: None)
    with leave(disk, 500_000), pytest.raises(DiskFull, match="The disk is full: a.zip"):
        archives.write(disk / "a.zip", {"a": os.urandom(1_000_000)})
    assert list(disk.iterdir()) == []
