"""Training on a disk that really fills up: the run ends as such, leaves nothing half-written, and resumes."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from core.engine import Engine
from core.spec.presets import resolve
from core.spec.training import RunStatus
from core.store import files
from core.train import checkpoints
from tests.core.store.test_disk_full import disk as disk  # a fixture
from tests.core.store.test_disk_full import leave

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("free_bytes", [0, 16_384, 120_000, 300_000, 500_000])
def test_a_run_on_a_full_disk_leaves_no_partial_and_resumes(
    disk: Path, tiny_base: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int
) -> None:
    monkeypatch.setattr(files, "MARGIN_BYTES", 0)
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with Engine(disk / "w", str(tiny_base), device="cpu") as engine:
        dataset = engine.datasets.import_files([corpus], "Notes")
        changes = {
            "dataset": dataset.id, "name": "Full", "max_steps": 6, "save_steps": 2, "eval_steps": 6,
            "batch_size": 2, "accumulation": 1, "max_length": 64, "rank": 4,
        }  # fmt: skip
        spec = resolve("domain", "standard", changes)
        commit, filled = checkpoints.commit, contextlib.ExitStack()

        def fill(folder: Path, run_id: str, processes: int = 1) -> None:
            commit(folder, run_id, processes)
            if checkpoints.step_of(folder) == 2:
                filled.enter_context(leave(disk, free_bytes))

        monkeypatch.setattr(checkpoints, "commit", fill)
        run = engine.runs.wait(engine.runs.start(spec))
        assert run.status in (RunStatus.DISK_FULL, RunStatus.DONE, RunStatus.INTERRUPTED), run.error
        if run.status is RunStatus.DISK_FULL:
            assert "The disk is full" in run.error and run.resumable
        assert not [p for p in disk.rglob("*") if p.suffix in (".partial", ".ready")]
        folder = engine.workspace.path("runs", run.id, "checkpoints")
        for checkpoint in folder.iterdir() if folder.exists() else ():
            assert checkpoints.is_intact(checkpoint, run.id)
        filled.close()
        monkeypatch.setattr(checkpoints, "commit", commit)
        if run.status is not RunStatus.DONE:
            engine.runs.resume(run.id)
            run = engine.runs.wait(run.id)
        assert run.status is RunStatus.DONE and len(engine.library.verify(run.adapter)) == 3
