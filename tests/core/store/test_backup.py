"""Backups: what is unpacked equals what was packed, and nothing else appears."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from core.errors import Busy, DataError, DiskFull, InvalidName, NotFound, StudioError
from core.spec.training import TrainSpec
from core.store import adapters, archives, backup, mixes, reports, runs, snapshot
from core.store.backup import RECORD, pack, unpack
from core.store.event_log import EventLog, read_all
from core.store.files import sha256_of, write_json
from core.store.locks import FileLock
from core.store.workspace import KINDS, Workspace

ROOT = Path(__file__).resolve().parents[3]
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 4,
    "bias": "none",
}


def add_adapter(workspace: Workspace, name: str, fill: float = 0.5) -> str:
    path = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {path.format("A"): torch.full((2, 8), fill), path.format("B"): torch.full((8, 2), fill)}
    config = {**CONFIG, "target_modules": ["q_proj"]}
    meta = {"kind": "domain", "base": {"name": "tiny", "fingerprint": "f" * 64}}
    adapter_id = f"{name}-0001"
    adapters.add(workspace, adapter_id, name, lambda p: save_file(tensors, p), config, meta)
    return adapter_id


def add_dataset(workspace: Workspace, rows: bytes) -> str:
    with workspace.build("datasets", "Notes") as draft:
        (draft.path / "source").mkdir()
        (draft.path / "source" / "0001.jsonl").write_bytes(rows)
        write_json(draft.path / "dataset.json", {"id": draft.id, "name": "Notes"})
    return draft.id


def add_run(workspace: Workspace, name: str = "Run", events: int = 3) -> str:
    run = runs.create(workspace, TrainSpec(name=name, dataset="d"), "embedded", "0" * 64)
    for i in range(events):
        runs.log(workspace, run.id).append("step", step=i)
    return run.id


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """One item of every kind that the store writes, a vote, answers of a day, a queue and a base."""
    made = Workspace(tmp_path / "w")
    adapter = add_adapter(made, "law")
    mixes.save(made, "Law only", {adapter: 1.0})
    add_dataset(made, b'{"text": "no newline at the end"}')
    add_run(made)
    rows = [{"name": "Base", "mix": "base", "weights": {}, "f1": 0.5}]
    reports.save(made, "d", "Notes", "test", "tiny", 1.0, rows)
    EventLog(made.votes_path).append("vote", id="v")
    EventLog(made.answers_path("2026-11-29")).append("rating", answer="a-0", good=True)
    write_json(made.run_order_path, {"order": [], "cancelled": []})
    write_json(made.base_path, {"name": "embedded"})
    return made


def digests(root: Path) -> dict[str, str]:
    """Name -> sha256 of every file that belongs to a workspace."""
    return {
        p.relative_to(root).as_posix(): sha256_of(p)
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.suffix != ".lock" and not p.name.startswith(".") and "trash" not in p.parts
    }


def order(root: Path) -> dict[str, list[str]]:
    workspace = Workspace(root)
    return {kind: workspace.ids(kind) for kind in KINDS}


# ------------------------------------------------------------ round trips


def test_an_unpacked_workspace_equals_the_packed_one(workspace: Workspace, tmp_path: Path) -> None:
    seen: list[archives.ArchiveProgress] = []
    packed = pack(workspace.root, tmp_path / "b.zip", report=seen.append)
    unpacked = unpack(tmp_path / "b.zip", tmp_path / "copy")
    assert packed == unpacked and packed.damaged == {} == packed.left_out
    assert digests(tmp_path / "copy") == digests(workspace.root) and packed.files == len(
        digests(workspace.root)
    )
    assert order(tmp_path / "copy") == order(workspace.root)
    copy = Workspace(tmp_path / "copy")
    for kind, load in snapshot.LOADERS.items():
        assert [load(copy, i) for i in copy.ids(kind)] == [load(workspace, i) for i in workspace.ids(kind)]
    assert len(adapters.verify(copy, "law-0001")) == 3
    assert [p.done for p in seen] == sorted(p.done for p in seen) and seen[-1].total >= packed.bytes
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith((".partial", ".claim", "WORKSPACE.json"))]


NAMES = st.text(min_size=1, max_size=20).filter(lambda n: n.strip() and not set("/\\") & set(n))


@given(
    mix_names=st.lists(NAMES, max_size=4, unique_by=lambda n: n.strip()),
    datasets=st.lists(st.binary(max_size=3000), max_size=4),
    events=st.lists(st.integers(0, 4), max_size=3),
    ages=st.lists(st.integers(0, 10**18), min_size=12, max_size=12),
    with_trash=st.booleans(),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_workspace_survives_the_round_trip(
    tmp_path: Path,
    mix_names: list[str],
    datasets: list[bytes],
    events: list[int],
    ages: list[int],
    with_trash: bool,
) -> None:
    folder = tmp_path / os.urandom(4).hex()
    workspace = Workspace(folder / "w")
    for name in mix_names:
        try:
            mixes.save(workspace, name, {})
        except StudioError:  # a name that is not allowed
            continue
    made = [add_dataset(workspace, rows) for rows in datasets]
    for count in events:
        add_run(workspace, events=count)
    for kind in KINDS:  # the order of the lists does not follow the order of the names
        for item_id, age in zip(workspace.ids(kind), ages, strict=False):
            os.utime(workspace.path(kind, item_id), ns=(age, age))
    if made:
        workspace.remove("datasets", made[0])
    record = pack(workspace.root, folder / "b.zip", with_trash)
    assert unpack(folder / "b.zip", folder / "copy") == record
    assert digests(folder / "copy") == digests(workspace.root) and order(folder / "copy") == order(
        workspace.root
    )
    copy = Workspace(folder / "copy")
    assert copy.trash() == (workspace.trash() if with_trash else [])
    for item in copy.trash():
        copy.restore(item.entry)
        assert (copy.find("datasets", item.id) / "source" / "0001.jsonl").read_bytes() == datasets[0]


def test_the_order_survives_a_disk_with_coarse_times(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, name in enumerate(("zebra", "apple", "mango")):
        write_json(workspace.path("grids", name), {"n": i})
        os.utime(workspace.path("grids", name), ns=(10**18 + i * 10**8, 10**18 + i * 10**8))
    pack(workspace.root, tmp_path / "b.zip")
    exact = os.utime
    monkeypatch.setattr(os, "utime", lambda p, ns: exact(p, ns=tuple(t - t % 2_000_000_000 for t in ns)))
    unpack(tmp_path / "b.zip", tmp_path / "copy")
    assert Workspace(tmp_path / "copy").ids("grids") == ["zebra", "apple", "mango"]


def test_a_backup_of_a_backup_is_the_same(workspace: Workspace, tmp_path: Path) -> None:
    first = pack(workspace.root, tmp_path / "1.zip")
    unpack(tmp_path / "1.zip", tmp_path / "copy")
    second = pack(tmp_path / "copy", tmp_path / "2.zip")
    assert second.items == first.items and second.modified == first.modified
    (tmp_path / "empty").mkdir()
    unpack(tmp_path / "2.zip", tmp_path / "empty")  # an empty folder may exist already
    assert digests(tmp_path / "empty") == digests(workspace.root)


# ------------------------------------------------------------ while a studio runs


def test_a_log_that_grows_is_packed_up_to_a_complete_line(workspace: Workspace, tmp_path: Path) -> None:
    run_id = workspace.ids("runs")[0]
    with open(runs.events_path(workspace, run_id), "ab") as f:
        f.write(b'{"kind": "step", "st')
    pack(workspace.root, tmp_path / "b.zip")
    unpack(tmp_path / "b.zip", tmp_path / "copy")
    events = read_all(runs.events_path(Workspace(tmp_path / "copy"), run_id))
    assert [e["kind"] for e in events] == ["status", "step", "step", "step"]
    source = next((tmp_path / "copy" / "datasets").glob("*/source/0001.jsonl"))
    assert source.read_bytes() == b'{"text": "no newline at the end"}', "only logs are cut"


def test_only_committed_checkpoints_are_packed(workspace: Workspace, tmp_path: Path) -> None:
    folder = runs.checkpoints_folder(workspace, workspace.ids("runs")[0])
    for step, is_committed in ((2, True), (4, False)):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"x" * step)
        if is_committed:
            write_json(folder / f"checkpoint-{step}" / "MANIFEST.json", {})
    pack(workspace.root, tmp_path / "b.zip")
    unpack(tmp_path / "b.zip", tmp_path / "copy")
    found = sorted(p.name for p in (tmp_path / "copy" / "runs").rglob("checkpoint-*"))
    assert found == ["checkpoint-2"]


def test_a_checkpoint_that_rotates_away_is_packed_whole_or_not_at_all(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs.checkpoints_folder(workspace, workspace.ids("runs")[0]) / "checkpoint-2"
    folder.mkdir(parents=True)
    for name in ("MANIFEST.json", "a.pt", "b.pt"):
        (folder / name).write_text("{}")
    link = snapshot._link

    def rotate(source: Path, target: Path, is_appended: bool) -> None:
        if source.name == "a.pt":
            (folder / "MANIFEST.json").unlink()
            source.unlink()
        link(source, target, is_appended)

    monkeypatch.setattr(snapshot, "_link", rotate)
    pack(workspace.root, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as z:
        assert not [n for n in z.namelist() if "checkpoint-2" in n]


def test_an_adapter_that_is_renamed_meanwhile_is_packed_in_one_state(
    workspace: Workspace, tmp_path: Path
) -> None:
    is_over = threading.Event()

    def rename() -> None:
        for i in range(10**6):
            if is_over.is_set():
                return
            adapters.rename(workspace, "law-0001", f"Law {i}")

    thread = threading.Thread(target=rename)
    thread.start()
    try:
        for i in range(12):
            pack(workspace.root, tmp_path / f"{i}.zip")
    finally:
        is_over.set()
        thread.join()
    for i in range(12):
        unpack(tmp_path / f"{i}.zip", tmp_path / f"copy{i}")
        copy = Workspace(tmp_path / f"copy{i}")
        assert len(adapters.verify(copy, "law-0001")) == 3
        assert adapters.load(copy, "law-0001").name.startswith(("Law ", "law"))


def test_partial_files_and_locks_are_not_packed(workspace: Workspace, tmp_path: Path) -> None:
    lock = FileLock(workspace.root / "owner.lock")
    with workspace.build("datasets", "Half") as draft:
        (draft.path / "rows.jsonl").write_text("{}")
        (workspace.root / "datasets" / ".DS_Store").write_text("x")
        pack(workspace.root, tmp_path / "b.zip")
        assert (draft.path / "rows.jsonl").exists(), "a draft of another thread stays"
    lock.release()
    with zipfile.ZipFile(tmp_path / "b.zip") as z:
        assert not [n for n in z.namelist() if "lock" in n or "/." in n or draft.id in n]


def test_a_process_that_is_killed_while_it_packs_leaves_the_old_backup(
    workspace: Workspace, tmp_path: Path
) -> None:
    pack(workspace.root, tmp_path / "b.zip")
    before = sha256_of(tmp_path / "b.zip")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom core.store import backup\n"
        "seen = []\n"
        "def report(p):\n    seen.append(p)\n    len(seen) == 8 and os._exit(9)\n"
        "backup.pack(Path(sys.argv[1]), Path(sys.argv[2]), report=report)"
    )
    arguments = [sys.executable, "-c", code, str(workspace.root), str(tmp_path / "b.zip")]
    assert subprocess.run(arguments, cwd=ROOT, check=False).returncode == 9
    assert sha256_of(tmp_path / "b.zip") == before
    pack(workspace.root, tmp_path / "b.zip")  # removes what the killed process left beside it
    assert workspace.remove_partials() == 1 and not [*workspace.root.rglob(".*.partial")]
    assert digests(workspace.root) == digests(workspace.root) and adapters.verify(workspace, "law-0001")


def test_a_read_only_workspace_is_packed_in_place(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, open_file = Path.mkdir, os.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.is_relative_to(workspace.root) and not path.exists():
            raise OSError(30, "Read-only file system")
        make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    record = pack(workspace.root, tmp_path / "b.zip")
    monkeypatch.undo()
    assert open_file is os.open
    unpack(tmp_path / "b.zip", tmp_path / "copy")
    assert digests(tmp_path / "copy") == digests(workspace.root) and record.files == len(
        digests(workspace.root)
    )


@pytest.mark.parametrize("error", [OSError(1, "Operation not permitted"), OSError(95, "Not supported"), None])
def test_a_disk_without_hard_links_is_copied(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    def refuse(*_: Any) -> None:
        assert error is not None
        raise error

    if error is None:
        monkeypatch.delattr(os, "link")
    else:
        monkeypatch.setattr(os, "link", refuse)
    pack(workspace.root, tmp_path / "b.zip")
    monkeypatch.undo()
    unpack(tmp_path / "b.zip", tmp_path / "copy")
    assert digests(tmp_path / "copy") == digests(workspace.root)


# ------------------------------------------------------------ damage


def test_a_damaged_item_is_packed_as_it_is_and_named(workspace: Workspace, tmp_path: Path) -> None:
    mix = workspace.ids("mixes")[0]
    workspace.path("mixes", mix).write_bytes(b"{")
    record = pack(workspace.root, tmp_path / "b.zip")
    assert list(record.damaged) == [f"mixes/{mix}.json"] and "read" in record.damaged[f"mixes/{mix}.json"]
    assert unpack(tmp_path / "b.zip", tmp_path / "copy").damaged == record.damaged
    assert Workspace(tmp_path / "copy").path("mixes", mix).read_bytes() == b"{"


def test_files_that_do_not_belong_or_cannot_move_are_named(workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.path("runs", workspace.ids("runs")[0])
    (run / "link.json").symlink_to(workspace.base_path)
    os.mkfifo(run / "pipe")
    (run / "aux.txt").write_text("a device of Windows")
    (run / "a:b").write_text("x")
    (run / "README").write_text("x")
    (run / "readme").write_text("x")
    (workspace.root / "notes.txt").write_text("x")
    (workspace.root / "datasets" / "UPPER").mkdir()
    record = pack(workspace.root, tmp_path / "b.zip")
    name = f"runs/{run.name}"
    assert {n: why.split()[0:3] for n, why in record.left_out.items()} == {
        f"{name}/link.json": ["It", "is", "a"],
        f"{name}/pipe": ["It", "is", "a"],
        f"{name}/aux.txt": ["Its", "name", "is"],
        f"{name}/a:b": ["Its", "name", "is"],
        f"{name}/readme": ["Its", "name", "differs"],
        "notes.txt": ["It", "does", "not"],
        "datasets/UPPER": ["It", "does", "not"],
    }
    assert unpack(tmp_path / "b.zip", tmp_path / "copy").left_out == record.left_out


def test_a_folder_that_is_not_a_workspace_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(NotFound, match="is not a workspace"):
            pack(folder, tmp_path / "b.zip")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------ unpacking what others made


def test_a_folder_with_content_is_never_changed(workspace: Workspace, tmp_path: Path) -> None:
    pack(workspace.root, tmp_path / "b.zip")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    for target in (tmp_path / "full", tmp_path / "full" / "mine", workspace.root):
        before = digests(tmp_path)
        with pytest.raises(InvalidName, match="is not empty|is a file"):
            unpack(tmp_path / "b.zip", target)
        assert digests(tmp_path) == before


@pytest.mark.parametrize("name", ["datasets/a/source/0001.jsonl", RECORD, "mixes/m.json", archives.SUMS])
@pytest.mark.parametrize("how", ["changed", "lost"])
def test_a_damaged_backup_leaves_nothing(tmp_path: Path, name: str, how: str) -> None:
    workspace = Workspace(tmp_path / "w")
    with workspace.build("datasets", "a", "a") as draft:
        (draft.path / "source").mkdir()
        (draft.path / "source" / "0001.jsonl").write_text("{}")
    write_json(workspace.path("mixes", "m"), {})
    pack(workspace.root, tmp_path / "good.zip")
    with zipfile.ZipFile(tmp_path / "good.zip") as z, zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad:
        for member in z.namelist():
            if member == name and how == "lost":
                continue
            bad.writestr(member, z.read(member) + (b" " if member == name else b""))
    with pytest.raises(DataError, match=r"bad\.zip"):
        unpack(tmp_path / "bad.zip", tmp_path / "copy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip", "good.zip", "w"]


@pytest.mark.parametrize(
    "name",
    [
        "../x.json",
        "/etc/x.json",
        "datasets/../../x.json",
        "datasets\\a\\x",
        "datasets/a/.hidden",
        "datasets/a/aux",
        "datasets/a/nul.txt",
        "datasets/a/dot.",
        "datasets/a/blank ",
        "datasets/a/a:stream",
        "secrets/a/x",
        "run.py",
        "datasets/a" + "/b" * 13,
    ],
)
def test_a_member_that_a_workspace_does_not_have_is_refused(tmp_path: Path, name: str) -> None:
    archives.write(tmp_path / "b.zip", {RECORD: b"{}", name: b"x"}, backup.LIMITS)
    with pytest.raises(DataError, match="is not allowed"):
        unpack(tmp_path / "b.zip", tmp_path / "copy")
    assert [p.name for p in tmp_path.iterdir()] == ["b.zip"]


def make_backup(path: Path, members: dict[str, bytes], record: Any = None) -> Path:
    value = {"format": 1, "created": 1.0, "items": {}, "modified": {}, "damaged": {}, "left_out": {}}
    text = json.dumps({**value, "files": 0, "bytes": 0} if record is None else record).encode()
    archives.write(path, {RECORD: text, **members}, backup.LIMITS)
    return path


@pytest.mark.parametrize(
    "members, expected",
    [
        ({"mixes/A.json": b"1", "mixes/a.json": b"2"}, "two members of the same name"),
        ({"mixes/\u00e9.json": b"1", "mixes/e\u0301.json": b"2"}, "two members of the same name"),
        ({"runs/a": b"1", "runs/a/b": b"2"}, "a file and a folder of the same name"),
    ],
)
def test_members_that_would_overwrite_each_other_are_refused(
    tmp_path: Path, members: dict[str, bytes], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        unpack(make_backup(tmp_path / "b.zip", members), tmp_path / "copy")
    assert [p.name for p in tmp_path.iterdir()] == ["b.zip"]


@pytest.mark.parametrize(
    "record, expected",
    [
        ({"format": 2}, "must have the format 1"),
        ([], "must have the format 1"),
        ({"format": 1}, "is not valid"),
        ({"format": 1, "created": 1.0, "items": 3, "modified": {}, "files": 0, "bytes": 0}, "is not valid"),
    ],
)
def test_a_record_of_another_form_is_refused_in_words(tmp_path: Path, record: Any, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        unpack(make_backup(tmp_path / "b.zip", {}, record), tmp_path / "copy")
    assert [p.name for p in tmp_path.iterdir()] == ["b.zip"]


def test_an_archive_of_another_kind_is_refused_in_words(tmp_path: Path) -> None:
    archives.write(tmp_path / "b.zip", {"base.json": b"{}"})
    with pytest.raises(DataError, match="is not a backup of a workspace"):
        unpack(tmp_path / "b.zip", tmp_path / "copy")
    (tmp_path / "b.zip").write_bytes(b"PK not a zip")
    with pytest.raises(DataError, match="cannot be read as a zip file"):
        unpack(tmp_path / "b.zip", tmp_path / "copy")


def test_links_in_a_backup_are_refused(tmp_path: Path) -> None:
    make_backup(tmp_path / "b.zip", {"runs/a/x": b"/etc"})
    with zipfile.ZipFile(tmp_path / "b.zip") as z, zipfile.ZipFile(tmp_path / "c.zip", "w") as bad:
        for info in z.infolist():
            new = zipfile.ZipInfo(info.filename)
            if info.filename == "runs/a/x":
                new.create_system, new.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            bad.writestr(new, z.read(info))
    with pytest.raises(DataError, match="is not a regular file"):
        unpack(tmp_path / "c.zip", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_times_are_only_given_to_items(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("x")
    os.utime(outside, ns=(5, 5))
    record = {"format": 1, "created": 1.0, "items": {}, "damaged": {}, "left_out": {}, "files": 0, "bytes": 0}
    make_backup(
        tmp_path / "b.zip", {}, {**record, "modified": {"../outside": 7, "datasets/../../outside": 7}}
    )
    unpack(tmp_path / "b.zip", tmp_path / "copy")
    assert outside.stat().st_mtime_ns == 5


def test_a_folder_appears_with_one_rename_after_everything_is_verified(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(workspace.root, tmp_path / "b.zip")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom core.store import backup\n"
        "backup._complete = lambda *_: os._exit(9)\n"
        "backup.unpack(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "b.zip"), str(tmp_path / "copy")]
    assert subprocess.run(arguments, cwd=ROOT, check=False).returncode == 9
    assert not (tmp_path / "copy").exists() and (tmp_path / ".copy.partial").is_dir()
    unpack(tmp_path / "b.zip", tmp_path / "copy")  # removes what the killed process left
    assert not (tmp_path / ".copy.partial").exists()
    assert digests(tmp_path / "copy") == digests(workspace.root)
    with FileLock(tmp_path / ".other.claim"), pytest.raises(Busy, match="Another process unpacks into"):
        unpack(tmp_path / "b.zip", tmp_path / "other")


def test_a_backup_that_does_not_fit_is_refused_before_it_is_unpacked(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    pack(workspace.root, tmp_path / "b.zip")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("core.store.files.shutil.disk_usage", lambda _: usage(1, 1, 1_000_000))
    with pytest.raises(DiskFull, match="69 MB are needed and 1 MB are free"):
        unpack(tmp_path / "b.zip", tmp_path / "copy")
    with pytest.raises(DiskFull, match="69 MB are needed and 1 MB are free"):
        pack(workspace.root, tmp_path / "c.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.zip", "w"]


# ------------------------------------------------------------ a run goes on in the copy


@pytest.mark.slow
def test_a_paused_run_ends_with_the_same_adapter_in_the_copy(tmp_path: Path) -> None:
    import shutil

    from core.engine import Engine

    shutil.copytree(ROOT / "tests" / "data" / "old_workspace", tmp_path / "w")
    pack(tmp_path / "w", tmp_path / "b.zip")
    unpack(tmp_path / "b.zip", tmp_path / "copy")
    weights = []
    for root in (tmp_path / "w", tmp_path / "copy"):
        with Engine(root, base="", device="cpu") as engine:
            assert not engine.bases.current(wait=True).error
            engine.runs.resume("paused-a2d6")
            run = engine.runs.wait("paused-a2d6", 600)
            weights.append(sha256_of(engine.workspace.path("adapters", run.adapter, adapters.WEIGHTS)))
    assert weights[0] == weights[1] and len(weights[0]) == len(hashlib.sha256().hexdigest())


@pytest.mark.slow
def test_a_run_is_packed_while_it_trains_and_goes_on_in_the_copy(
    tiny_base: Path, corpus: Path, tmp_path: Path
) -> None:
    from core.engine import Engine
    from core.spec.presets import resolve
    from core.spec.training import RunStatus

    with Engine(tmp_path / "w", str(tiny_base), device="cpu") as engine:
        dataset = engine.datasets.import_files([corpus], "Notes")
        sizes = {"max_steps": 60, "save_steps": 2, "batch_size": 2, "accumulation": 1, "max_length": 64}
        spec = resolve("domain", "standard", {"dataset": dataset.id, "name": "Live", "rank": 4, **sizes})
        run_id = engine.runs.start(spec)
        end = time.monotonic() + 120
        while engine.runs.get(run_id).step < 7 and time.monotonic() < end:
            time.sleep(0.01)
        for number in range(4):
            pack(engine.workspace.root, tmp_path / f"{number}.zip")
        assert engine.runs.wait(run_id, 600).status is RunStatus.DONE
    for number in (0, 3):
        record = unpack(tmp_path / f"{number}.zip", tmp_path / f"copy{number}")
        assert record.damaged == {} == record.left_out
        with Engine(tmp_path / f"copy{number}", str(tiny_base), device="cpu") as copy:
            run = copy.runs.get(run_id)
            if run.status is not RunStatus.DONE:
                assert run.status is RunStatus.INTERRUPTED and run.resumable
                copy.bases.current(wait=True)
                copy.runs.resume(run_id)
                run = copy.runs.wait(run_id, 600)
            assert run.status is RunStatus.DONE and len(copy.library.verify(run.adapter)) == 3
            steps = [e["step"] for e in copy.runs.events(run_id)[0] if e["kind"] == "step"]
            assert steps[-1] == 60 and set(range(1, 61)) <= set(steps)


@pytest.fixture(autouse=True)
def no_leftovers(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob("*.partial"))
