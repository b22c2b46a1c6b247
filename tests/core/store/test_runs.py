"""run.json: what is recorded with a run comes back, and keys of other versions stay."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from core.spec.training import Launch, RunStatus, TrainSpec
from core.store import runs
from core.store.runs import RunExtra
from core.store.workspace import Workspace

LAUNCH = Launch(launcher="torchrun", nproc=2)
EXTRAS: list[dict[str, Any]] = [
    {},
    {"grid": "ranks-1234", "cell": 0},
    {"launch": LAUNCH.to_json(), "quantization": "auto", "device": "cpu"},
    {"memory_ratio": 1.904},
    {
        "micro_batch": {"batch_size": 2, "accumulation": 8},
        "made_smaller": [{"batch_size": 2, "accumulation": 8, "from_step": 4}],
    },
    {"cancelled": True},
    {"handed": 1.5, "grid": "g", "cell": 3},
    {"collected": 2.5},
    {"of_another_version": {"x": [None, 0, False]}, "empty": "", "cell": 1, "grid": "g"},
]


@pytest.mark.parametrize("raw", EXTRAS, ids=lambda r: "-".join(r) or "nothing")
def test_the_extra_object_comes_back_key_by_key(raw: dict[str, Any], tmp_path: Path) -> None:
    extra = RunExtra.from_json(json.loads(json.dumps(raw)))
    assert extra.to_json() == raw
    workspace = Workspace(tmp_path)
    run = runs.create(workspace, TrainSpec(name="A"), "tiny", "0" * 64, extra)
    assert json.loads((runs.folder(workspace, run.id) / "run.json").read_text())["extra"] == raw
    assert runs.load(workspace, run.id).extra == extra
    changed = runs.update(workspace, run, extra=dataclasses.replace(extra, memory_ratio=3.0))
    assert (
        runs.load(workspace, run.id).extra.to_json()
        == {**raw, "memory_ratio": 3.0}
        == changed.extra.to_json()
    )


def test_the_fields_of_the_extra_object_have_their_types() -> None:
    extra = RunExtra.from_json(EXTRAS[2])
    assert extra.launch == LAUNCH and (extra.quantization, extra.device) == ("auto", "cpu")
    assert RunExtra.from_json(EXTRAS[1]).cell == 0 and RunExtra().cell is None


@pytest.mark.parametrize("launch", [{"launcher": "other"}, {"of_a_later_version": 1}, "torchrun"])
def test_a_run_with_an_invalid_launch_is_listed_but_not_resumed(launch: Any, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = runs.create(workspace, TrainSpec(name="A"), "tiny", "0" * 64)
    path = runs.folder(workspace, run.id) / "run.json"
    assert runs.load(workspace, run.id).resumable
    path.write_text(json.dumps({**json.loads(path.read_text()), "extra": {"launch": launch, "grid": "g"}}))
    loaded = runs.load(workspace, run.id)
    assert loaded.status is RunStatus.INTERRUPTED and not loaded.resumable and loaded.extra.grid == "g"
    runs.update(workspace, loaded, name="B")
    assert json.loads(path.read_text())["extra"] == {"launch": launch, "grid": "g"}


def test_run_json_and_the_terminal_keep_their_keys(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    run = runs.create(workspace, TrainSpec(name="A"), "tiny", "0" * 64)
    written = json.loads((runs.folder(workspace, run.id) / "run.json").read_text())
    assert set(written) == {
        "id", "name", "kind", "adapter", "created", "base", "base_fingerprint", "dataset_sha256", "error",
        "extra", "status", "spec",
    }  # fmt: skip
    interrupted = runs.load(workspace, run.id)
    assert interrupted.status is RunStatus.INTERRUPTED and interrupted.was_queued
    shown = json.loads(json.dumps(interrupted.to_json()))
    assert shown == {
        **written, "status": "interrupted", "step": 0, "total_steps": 0, "resumable": True, "waited": True,
    }  # fmt: skip
