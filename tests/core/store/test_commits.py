"""Changes of a workspace are one commit each: whole after a kill, and none is lost beside another one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import crashes
from benchmarks.crash_operations import CONFIG, FINGERPRINT, OPERATIONS, add_adapter, write_weights
from core.errors import AdapterError, NotFound, SpecError, StudioError
from core.spec.training import RunStatus, TrainSpec
from core.store import adapters, grids, mixes, runs
from core.store.adapter_files import CARD, CHECKSUMS, METADATA, WEIGHTS
from core.store.adapter_files import CONFIG as CONFIG_FILE
from core.store.files import read_json, write_json
from core.store.runs import RunExtra
from core.store.workspace import Workspace

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "ws")
    add_adapter(made, "mine-0001", "Mine", 1)
    return made


def run_together(*calls: Callable[[], Any]) -> None:
    """Calls everything at the same moment, each on a thread of its own; an error of a call is raised."""
    barrier, errors = threading.Barrier(len(calls)), []

    def begin(call: Callable[[], Any]) -> None:
        barrier.wait(10)
        try:
            call()
        except Exception as e:  # noqa: BLE001 (raised below)
            errors.append(e)

    threads = [threading.Thread(target=begin, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


def run_in_processes(*calls: Callable[[], Any]) -> list[int]:
    """Calls everything in a process of its own; the exit codes, 0 without an error."""
    return [crashes.wait(pid) for pid in [crashes.fork(call) for call in calls]]


# --- kills


def run_crashes(*arguments: str) -> dict[str, Any]:
    """The figures of `benchmarks.crashes`, which forks a process that has no other threads."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork a process")
    command = [sys.executable, "-m", "benchmarks.crashes", "--json", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    outcome: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert outcome["problems"] == [] and outcome["damaged"] == 0
    return outcome


def test_kills_at_random_moments_leave_the_old_or_the_new_state() -> None:
    outcome = run_crashes("--kills", "30", "--every", "0", "--seed", "11")
    assert outcome["kills"] == 30 and outcome["at_points"] == 0
    # How many are old and how many new depends on the moments.
    assert set(outcome["left"]) <= {"old", "new", "between"} and len(outcome["operations"]) > 5


@pytest.mark.parametrize("name", ["rename adapters", "add results", "save mix"])
def test_a_kill_before_every_second_call_leaves_the_old_or_the_new_state(name: str) -> None:
    outcome = run_crashes("--kills", "0", "--every", "2", "--only", name)
    assert outcome["kills"] == outcome["at_points"] >= 4 and list(outcome["operations"]) == [name]
    assert outcome["left"]["old"] and outcome["left"]["new"] and "between" not in outcome["left"]


def test_a_kill_in_the_import_of_an_adapter_leaves_nothing_half_made() -> None:
    outcome = run_crashes("--kills", "0", "--every", "9", "--only", "import adapter")
    assert outcome["kills"] == outcome["at_points"] >= 4 and list(outcome["operations"]) == ["import adapter"]
    assert outcome["left"]["old"] and outcome["left"]["new"] and "between" not in outcome["left"]


@pytest.mark.slow
def test_kills_before_some_calls_of_every_operation_damage_nothing() -> None:
    outcome = run_crashes("--kills", "0", "--every", "20", "--seed", "4")
    assert outcome["kills"] == outcome["at_points"] > 30
    assert len(outcome["operations"]) > len(OPERATIONS) * 2 // 3


def test_the_crash_test_finds_a_change_in_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of the first version: metadata first, then the checksums."""

    def rename(workspace: Workspace, adapter_id: str, name: str) -> None:
        folder = workspace.find("adapters", adapter_id)
        write_json(folder / METADATA, {**read_json(folder / METADATA), "name": name})
        adapters.write_checksums(folder)

    monkeypatch.setattr(adapters, "rename", rename)
    outcome = crashes.run(0, seed=3, names=["rename adapters"], stride=2)
    assert any("adapters/" in p and "expected one of" in p for p in outcome.problems)


# --- two changes at once


def test_a_rename_and_a_result_at_the_same_moment_both_take_effect(workspace: Workspace) -> None:
    for i in range(15):
        run_together(
            lambda i=i: adapters.rename(workspace, "mine-0001", f"Name {i}"),
            lambda i=i: adapters.add_results(workspace, "mine-0001", {"recall": i}),
            lambda i=i: adapters.add_results(workspace, "mine-0001", {f"figure {i}": i}, {"kept": {"q": i}}),
        )
        adapter = adapters.load(workspace, "mine-0001")
        assert adapter.name == f"Name {i}" and adapter.results["recall"] == i
        assert all(adapter.results[f"figure {j}"] == j for j in range(i + 1))
        assert adapter.metadata["kept"] == {"q": i} and adapter.results["train_loss"] == 1.0
    assert len(adapters.verify(workspace, "mine-0001")) == 3
    assert f"# Name {i}" in workspace.path("adapters", "mine-0001", CARD).read_text()


def test_changes_of_several_processes_all_take_effect(workspace: Workspace) -> None:
    codes = run_in_processes(
        *[lambda i=i: adapters.add_results(workspace, "mine-0001", {f"figure {i}": i}) for i in range(6)],
        lambda: adapters.rename(workspace, "mine-0001", "Renamed"),
    )
    adapter = adapters.load(workspace, "mine-0001")
    assert codes == [0] * 7 and adapter.name == "Renamed"
    assert [adapter.results[f"figure {i}"] for i in range(6)] == list(range(6))
    assert len(adapters.verify(workspace, "mine-0001")) == 3


def test_an_adapter_is_readable_at_every_moment_of_its_replacement(workspace: Workspace) -> None:
    ended, read = threading.Event(), []

    def replace() -> None:
        for i in range(25):
            adapters.rename(workspace, "mine-0001", f"Name {i}")
            add_adapter(workspace, "mine-0001", "Again", i)
        ended.set()

    def watch() -> None:
        while not ended.is_set():
            read.append(adapters.load(workspace, "mine-0001").name)
            assert [a.id for a in adapters.load_all(workspace)] == ["mine-0001"]
            adapters.verify(workspace, "mine-0001")
            adapters.export_zip(workspace, "mine-0001")

    run_together(replace, watch, watch)
    assert len(read) > 5


def test_an_item_that_is_replaced_while_it_is_listed_stays_in_the_list(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, real, missed = workspace.path("adapters", "mine-0001"), Path.stat, []

    def stat(path: Path, **options: Any) -> os.stat_result:
        if path == item and not missed:  # between the two renames
            missed.append(path)
            raise FileNotFoundError(path)
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert workspace.ids("adapters") == ["mine-0001"] and missed
    missed.clear()
    assert [a.id for a in adapters.load_all(workspace)] == ["mine-0001"] and missed


def test_a_replacement_with_the_same_inode_is_read_again(workspace: Workspace) -> None:
    read: list[int] = []

    def fail_once(folder: Path) -> str:
        read.append(folder.stat().st_ino)
        if len(read) == 1:
            time.sleep(0.02)  # more than a tick of the file system's clock
            folder.rename(folder.with_name("away")).rename(folder)
            raise FileNotFoundError("a file of the folder that was replaced")
        return folder.name

    assert adapters.read_files(workspace, "mine-0001", fail_once) == "mine-0001"
    assert read == read[:1] * 2


def test_a_replaced_adapter_keeps_the_name_that_the_user_gave_it(workspace: Workspace) -> None:
    adapters.rename(workspace, "mine-0001", "Mine, better")
    add_adapter(workspace, "mine-0001", "Mine", 2)
    adapter = adapters.load(workspace, "mine-0001")
    assert adapter.name == "Mine, better" and adapter.results == {"train_loss": 2.0}


def test_weights_are_linked_not_copied_by_a_rename(workspace: Workspace) -> None:
    weights = workspace.path("adapters", "mine-0001", WEIGHTS)
    inode = weights.stat().st_ino
    adapters.rename(workspace, "mine-0001", "Other")
    assert weights.stat().st_ino == inode and len(adapters.verify(workspace, "mine-0001")) == 3


def test_without_hard_links_the_files_are_copied(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no hard links")

    monkeypatch.setattr(os, "link", refuse)
    adapters.rename(workspace, "mine-0001", "Other")
    assert adapters.load(workspace, "mine-0001").name == "Other"
    assert len(adapters.verify(workspace, "mine-0001")) == 3


def test_one_name_makes_one_mix_in_threads_and_processes(workspace: Workspace) -> None:
    refused: list[str] = []

    def save(name: str) -> None:
        try:
            mixes.save(workspace, name, {"mine-0001": 1.0})
        except SpecError as e:
            refused.append(str(e))

    for i in range(5):
        run_together(*[lambda i=i: save(f"Mix {i}")] * 4)
    assert len(refused) == 15 and len(mixes.load_all(workspace)) == 5
    codes = run_in_processes(*[lambda: mixes.save(workspace, "Last", {"mine-0001": 1.0})] * 4)
    assert sorted(codes) == [0, 1, 1, 1] and len(mixes.load_all(workspace)) == 6


def test_a_mix_cannot_get_the_name_of_another_mix(workspace: Workspace) -> None:
    first = mixes.save(workspace, "First", {"mine-0001": 1.0})
    second = mixes.save(workspace, "Second", {"mine-0001": 1.0})
    with pytest.raises(SpecError, match="already a mix called 'First'"):
        mixes.rename(workspace, second.id, "First")
    assert mixes.rename(workspace, first.id, "First").name == "First"
    assert mixes.load(workspace, second.id).name == "Second"


# --- runs and grids


@pytest.fixture
def run(workspace: Workspace) -> runs.Run:
    return runs.create(workspace, TrainSpec(kind="domain", name="Run", dataset="data-0001"), "tiny", "0" * 64)


def test_fields_are_applied_to_the_record_on_disk_not_to_a_stale_copy(
    workspace: Workspace, run: runs.Run
) -> None:
    runs.rename(workspace, run.id, "Renamed")
    runs.update(workspace, run, extra=RunExtra(memory_ratio=1.5))
    later = runs.update(workspace, run, status=RunStatus.PAUSED, extra=RunExtra(collected=7.0))
    assert (later.name, later.extra.memory_ratio, later.extra.collected) == ("Renamed", 1.5, 7.0)
    stored = runs.load(workspace, run.id)
    assert (stored.name, stored.extra, stored.status) == ("Renamed", later.extra, RunStatus.PAUSED)
    runs.update(workspace, later, extra=RunExtra(collected=7.0))
    assert runs.load(workspace, run.id).extra == RunExtra(collected=7.0), "a key can be removed"


def test_changes_of_a_run_by_many_threads_all_take_effect(workspace: Workspace, run: runs.Run) -> None:
    changes: list[dict[str, Any]] = [
        {"name": "Renamed"},
        {"base": "other"},
        {"error": "why"},
        {"extra": RunExtra(memory_ratio=2.0)},
        {"extra": RunExtra(grid="grid-0001", cell=3)},
        {"extra": RunExtra(cancelled=True)},
    ]
    for _ in range(5):
        run_together(*[lambda c=c: runs.update(workspace, run, **c) for c in changes])
        now = runs.load(workspace, run.id)
        assert (now.name, now.base, now.error) == ("Renamed", "other", "why")
        assert now.extra == RunExtra(memory_ratio=2.0, grid="grid-0001", cell=3, cancelled=True)
        runs.update(workspace, now, name="Run", base="tiny", error="", extra=RunExtra())


def test_an_update_of_a_damaged_record_writes_it_whole(workspace: Workspace, run: runs.Run) -> None:
    path = workspace.path("runs", run.id, "run.json")
    for content in ("", "[1]", '{"id": 3}', '{"id": "other"}'):
        path.write_text(content)
        runs.update(workspace, run, status=RunStatus.PAUSED)
        assert runs.load(workspace, run.id).name == "Run"


def test_an_update_of_a_deleted_run_does_not_bring_it_back(workspace: Workspace, run: runs.Run) -> None:
    workspace.remove("runs", run.id)
    with pytest.raises(NotFound):
        runs.update(workspace, run, name="X")
    assert workspace.ids("runs") == []


def test_a_status_that_cannot_be_logged_is_recorded(
    workspace: Workspace, run: runs.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(workspace.path("runs", run.id, "events.jsonl"), ignore_errors=True)
    workspace.path("runs", run.id, "events.jsonl").unlink()
    workspace.path("runs", run.id, "events.jsonl").mkdir()
    assert runs.update(workspace, run, status=RunStatus.DONE).status is RunStatus.DONE
    assert read_json(workspace.path("runs", run.id, "run.json"))["status"] == RunStatus.DONE.value


def test_a_collected_run_replaces_the_record_and_the_log_together(
    workspace: Workspace, run: runs.Run
) -> None:
    from core.store.locks import FileLock, is_locked

    lock = FileLock(runs.lock_path(workspace, run.id))
    (workspace.path("runs", run.id) / "job-0.log").write_text("kept")
    runs.checkpoints_folder(workspace, run.id).mkdir()
    runs.put(workspace, run.__class__(**{**run.__dict__, "status": RunStatus.DONE}), b'{"kind": "note"}\n')
    assert runs.load(workspace, run.id).status is RunStatus.DONE
    assert runs.events_path(workspace, run.id).read_bytes() == b'{"kind": "note"}\n'
    assert is_locked(runs.lock_path(workspace, run.id)), "the lock that the caller holds stays"
    assert (workspace.path("runs", run.id) / "job-0.log").read_text() == "kept"
    assert not runs.checkpoints_folder(workspace, run.id).exists()
    lock.release()


def test_a_run_never_gets_the_id_of_an_adapter(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["mine-0001", "mine-0001", "mine-0002"])
    monkeypatch.setattr(runs, "make_id", lambda name: next(ids))
    spec = TrainSpec(kind="domain", name="Mine", dataset="data-0001")
    assert runs.create(workspace, spec, "tiny", "").adapter == "mine-0002"


def test_cells_that_two_threads_fill_are_both_recorded(workspace: Workspace) -> None:
    base = TrainSpec(kind="domain", name="Grid", dataset="data-0001")
    grid = grids.create(workspace, base, {"rank": [1, 2, 4, 8]}, "Grid")
    run_together(
        *[lambda i=i: grids.set_runs(workspace, grid.id, {i: f"run-{i}"}) for i in range(4)],
        lambda: grids.rename(workspace, grid.id, "Ranks"),
    )
    assert grids.load(workspace, grid.id).runs == [f"run-{i}" for i in range(4)]
    assert grids.load(workspace, grid.id).name == "Ranks"


# --- folders that a kill of an earlier version left


def damage(folder: Path, how: str) -> None:
    """Leaves a folder as a kill, or a disk that lost the end of a file, would."""
    card, sums = folder / CARD, folder / CHECKSUMS
    if how == "new metadata, old checksums":
        write_json(folder / METADATA, {**read_json(folder / METADATA), "name": "New", "results": {"f1": 0.5}})
    elif how == "new metadata and card, old checksums":
        damage(folder, "new metadata, old checksums")
        card.write_text("# New\n")
    elif how == "half a card":
        card.write_bytes(card.read_bytes()[:40])
    elif how == "no card":
        card.unlink()
    elif how == "half of the checksums":
        sums.write_bytes(sums.read_bytes()[:100])
    elif how == "no checksums":
        sums.unlink()
    elif how == "empty checksums":
        sums.write_text("")
    elif how == "checksums that are not text":
        sums.write_bytes(b"\xff\xfe\x00")


DAMAGES = (
    "new metadata, old checksums", "new metadata and card, old checksums", "half a card", "no card",
    "half of the checksums", "no checksums", "empty checksums", "checksums that are not text",
)  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_weights_whose_sha256_holds_are_repaired_and_used(
    workspace: Workspace, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = workspace.path("adapters", "mine-0001")
    digest = adapters.load(workspace, "mine-0001").sha256
    damage(folder, how)
    said = adapters.verify(workspace, "mine-0001")
    assert len(said) == 4 and "the files were written again" in said[3] and "checksums.txt" in said[3]
    assert "the files were written again" in caplog.text
    adapter = adapters.load(workspace, "mine-0001")
    assert adapter.sha256 == digest and "checksums.txt" in adapter.repairs
    assert adapter.name == ("New" if how.startswith("new") else "Mine")
    assert f"# {adapter.name}" in (folder / CARD).read_text()
    assert len(adapters.verify(workspace, "mine-0001")) == 3, "it says so once"


@pytest.mark.parametrize("how", ["", *DAMAGES])
def test_changed_weights_or_settings_are_refused_whatever_is_beside_them(
    workspace: Workspace, how: str
) -> None:
    folder = workspace.path("adapters", "mine-0001")
    whole = {p.name: p.read_bytes() for p in folder.iterdir()}

    def restore() -> None:
        for name, content in whole.items():
            (folder / name).write_bytes(content)

    def flip(name: str) -> None:
        content = bytearray(whole[name])
        content[-3] ^= 1
        (folder / name).write_bytes(bytes(content))

    def other_weights() -> None:
        write_weights(folder / WEIGHTS, 99)

    def other_rank() -> None:
        write_json(folder / CONFIG_FILE, {**CONFIG, "r": 3})

    def code() -> None:
        (folder / "adapter_model.bin").write_bytes(b"x")

    for change in (lambda: flip(WEIGHTS), other_weights, other_rank, code):
        restore()
        damage(folder, how)
        change()
        with pytest.raises((AdapterError, StudioError)):
            adapters.verify(workspace, "mine-0001")
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        with pytest.raises((AdapterError, StudioError)):
            adapters.verify(workspace, "mine-0001")
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before, "nothing is written"
        (folder / "adapter_model.bin").unlink(missing_ok=True)


def test_a_changed_config_with_its_checksum_is_refused(workspace: Workspace) -> None:
    folder = workspace.path("adapters", "mine-0001")
    write_json(folder / CONFIG_FILE, {**CONFIG, "lora_alpha": 400})
    with pytest.raises(AdapterError, match=r"adapter_config\.json .* has changed since it was saved"):
        adapters.verify(workspace, "mine-0001")


def test_a_repaired_adapter_can_be_mixed(tmp_path: Path, tiny_base: Path) -> None:
    from core.engine import Engine
    from core.spec.mix import Mix, Sampling

    with Engine(tmp_path / "ws", str(tiny_base), "none", "cpu") as engine:
        fingerprint = engine.bases.current(wait=True).fingerprint
        assert fingerprint != FINGERPRINT
        base = {"name": "tiny", "fingerprint": fingerprint}
        add_adapter(engine.workspace, "mine-0001", "Mine", 1, base=base)
        damage(engine.workspace.path("adapters", "mine-0001"), "half a card")
        answer = engine.chat.stream(
            "Hi", [Mix(weights={"mine-0001": 1.0})], Sampling(max_new_tokens=2)
        ).last()
        assert answer.done and "README.md" in engine.library.adapter("mine-0001").repairs


def test_a_deletion_waits_for_a_change_that_has_begun(workspace: Workspace, tmp_path: Path) -> None:
    from core.engine import Engine

    with Engine(workspace.root, load=False) as engine:
        for i in range(8):
            add_adapter(workspace, "gone-0001", "Gone", i)

            def rename() -> None:
                for _ in range(3):
                    try:
                        adapters.rename(workspace, "gone-0001", "Renamed")
                    except NotFound:
                        return

            def delete(i: int = i) -> None:
                time.sleep(0.002 * i)
                engine.library.delete("adapters", "gone-0001")

            run_together(rename, delete)
            assert workspace.ids("adapters") == ["mine-0001"]
        assert len(engine.library.trash()) == 8
