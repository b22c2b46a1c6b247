"""Rows that an adapter has seen: recorded with its weights, found again, and known after a deletion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from core.data import training_rows
from core.data.datasets import import_dataset, read_split
from core.data.training_rows import TrainingRows, collect_training_rows, load_record
from core.engine import Engine
from core.errors import DamagedRecord
from core.evaluate.leakage import SeenRow, find_seen_rows
from core.spec.training import RunStatus, TrainSpec
from core.store import adapters
from core.store.workspace import Workspace
from tests.conftest import SENTENCES

FAST: dict[str, Any] = {
    "max_steps": 1, "batch_size": 1, "accumulation": 1, "max_length": 48, "rank": 2, "dropout": 0.0,
}  # fmt: skip


def write_pairs(path: Path, sentences: list[str]) -> Path:
    rows = [{"question": f"Where is the {s.split()[1]} {s.split()[2]}, {i}?", "answer": s}
            for i, s in enumerate(sentences)]  # fmt: skip
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A workspace with a domain adapter, and a task adapter on top of it."""
    root = tmp_path_factory.mktemp("leakage")
    corpus = root / "corpus.txt"
    corpus.write_text("\n\n---\n\n".join(SENTENCES[:24]), encoding="utf-8")
    with Engine(root / "ws", str(tiny_base), "none", "cpu") as made:
        text = made.datasets.import_files([corpus], "Corpus", "domain")
        pairs = made.datasets.import_files([write_pairs(root / "pairs.jsonl", SENTENCES[:40])], "Pairs")
        spec = TrainSpec(**{"kind": "domain", "name": "Domain", "dataset": text.id, **FAST})
        domain = made.runs.wait(made.runs.start(spec))
        spec = TrainSpec(
            **{"kind": "task", "name": "Task", "dataset": pairs.id, "stack_on": domain.adapter, **FAST}
        )
        assert made.runs.wait(made.runs.start(spec)).status is RunStatus.DONE
        yield made


def find_adapter(engine: Engine, name: str) -> adapters.Adapter:
    return next(a for a in engine.library.adapters() if a.name == name)


def rows_of(engine: Engine, kind: str, split: str) -> list[dict[str, Any]]:
    dataset = next(d for d in engine.datasets.list() if d.kind == kind)
    return read_split(engine.workspace, dataset.id, split)


def test_every_training_row_is_found_and_no_test_row(engine: Engine) -> None:
    task = find_adapter(engine, "Task")
    for split, use in (("train", "trained"), ("val", "validated")):
        rows = rows_of(engine, "task", split)
        seen = find_seen_rows(engine.workspace, task, rows)
        assert [(r.row, r.use) for r in seen.rows] == [(i, use) for i in range(len(rows))]
        assert seen.unknown == ()
    assert find_seen_rows(engine.workspace, task, rows_of(engine, "task", "test")).rows == ()
    assert len(engine.library.verify(task.id)) == 3, "the record is among the verified files"


def test_a_row_in_other_letters_is_found_and_quoted(engine: Engine) -> None:
    task = find_adapter(engine, "Task")
    test = rows_of(engine, "task", "test")
    row = json.loads(json.dumps(rows_of(engine, "task", "train")[0]))
    question = row["messages"][0]["content"]
    row["messages"][0]["content"] = f"  {question.upper()}  "
    row["messages"][1]["content"] = "Another answer."
    (found,) = find_seen_rows(engine.workspace, task, [*test, row]).rows
    assert found == SeenRow(len(test), question.upper(), "trained")
    assert found.describe(task) == (
        f"'Task' was trained on row {len(test) + 1} of the test rows: {question.upper()!r}."
    )


def test_a_task_adapter_has_seen_the_rows_of_its_parent(engine: Engine) -> None:
    texts = rows_of(engine, "domain", "train")
    seen = find_seen_rows(engine.workspace, find_adapter(engine, "Task"), texts)
    assert len(seen.rows) == len(texts) and seen.rows[0].text == texts[0]["text"]
    assert (
        find_seen_rows(
            engine.workspace, find_adapter(engine, "Domain"), rows_of(engine, "task", "train")
        ).rows
        == ()
    )


# --- adapters of earlier versions, and damage


def add_adapter(
    workspace: Workspace, name: str, files: dict[str, bytes] | None = None, **metadata: Any
) -> adapters.Adapter:
    import torch

    place = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{place}.lora_A.weight": torch.ones(2, 4), f"{place}.lora_B.weight": torch.ones(4, 2)}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    return adapters.add(
        workspace, name, name, lambda p: save_file(tensors, p), config, {"kind": "task", **metadata}, files
    )


def test_the_record_outlives_its_dataset(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    data = import_dataset(workspace, [write_pairs(tmp_path / "p.jsonl", SENTENCES[:20])], "Pairs")
    record = collect_training_rows(workspace, TrainSpec(name="n", dataset=data.id))
    adapter = add_adapter(workspace, "law-0001", files=record.to_files(), dataset={"id": data.id})
    rows = read_split(workspace, data.id, "train")
    workspace.delete("datasets", data.id)
    seen = find_seen_rows(workspace, adapter, rows)
    assert len(seen.rows) == len(rows) and seen.unknown == ()


def test_an_adapter_without_a_record_is_looked_up_in_its_dataset(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    data = import_dataset(workspace, [write_pairs(tmp_path / "p.jsonl", SENTENCES[:20])], "Pairs")
    origin = {"id": data.id, "name": data.name, "sha256": data.sha256}
    old = add_adapter(workspace, "old-0001", dataset=origin)
    parts = [{"id": old.id, "name": old.name, "sha256": old.sha256, "weight": 1.0}]
    baked = add_adapter(workspace, "baked-0001", baked_from=parts)
    train = read_split(workspace, data.id, "train")
    for adapter in (old, baked):
        seen = find_seen_rows(workspace, adapter, train)
        assert len(seen.rows) == len(train) and seen.unknown == ()
    changed = add_adapter(workspace, "changed-0001", dataset={**origin, "sha256": "0" * 64})
    assert "is not the one that it was trained on" in find_seen_rows(workspace, changed, train).unknown[0]
    foreign = add_adapter(workspace, "foreign-0001")
    assert find_seen_rows(workspace, foreign, train).unknown == (
        "Not all training rows are known: 'foreign-0001' has no record of its training rows.",
    )


def test_a_deleted_dataset_or_parent_is_said(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    found = collect_training_rows(workspace, TrainSpec(name="n", dataset="gone-1", stack_on="gone-2"))
    assert [("gone-1" in s, "gone-2" in s) for s in found.unknown] == [(True, False), (False, True)]


def test_a_damaged_record_is_refused_and_said(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    adapter = add_adapter(workspace, "law-0001")
    file = workspace.path("adapters", adapter.id, training_rows.FILE)
    record = TrainingRows(frozenset({3, 2**64 - 1}), frozenset({7}), ("One.",))
    file.write_bytes(record.to_files()[training_rows.FILE])
    assert load_record(file.parent) == record
    for damage in ('{"format": 2}', '{"format": 1, "trained": "?", "validated": "", "unknown": []}', "[]"):
        file.write_text(damage)
        with pytest.raises(DamagedRecord):
            load_record(file.parent)
        assert "cannot be read" in find_seen_rows(workspace, adapter, []).unknown[0]
