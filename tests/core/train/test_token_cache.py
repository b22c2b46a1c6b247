"""A second run on the same data reads its tokens from the dataset's folder, and nothing changes by that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.data.tokens import token_cache
from core.engine import Engine
from core.spec.training import TrainSpec
from core.train import sequences
from core.train.sequences import RunSequences, build_sequences

SETTINGS: dict[str, Any] = {"max_length": 48, "name": "Cached"}


@pytest.fixture
def engine(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(token_cache, "SMALLEST", 10)
    monkeypatch.setattr(sequences, "BLOCK_ROWS", 7)
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as made:
        yield made


def import_rows(engine: Engine, folder: Path, kind: str) -> str:
    rows = [
        {"question": f"Where is lamp {i}? <|end|>", "answer": f"In room {i % 7}, and it is red."}
        if kind == "task"
        else {"text": f"The lamp {i} is in room {i % 7}. " * (1 + i % 9)}
        for i in range(60)
    ]
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return engine.datasets.import_files([path], "Rows", kind).id


def build(engine: Engine, dataset_id: str, kind: str, **changes: Any) -> tuple[RunSequences, list[str]]:
    notes: list[str] = []
    dataset = engine.datasets.get(dataset_id)
    spec = TrainSpec(kind=kind, dataset=dataset_id, **{**SETTINGS, **changes})

    def call() -> RunSequences:
        resident = engine.resident_base.get()
        return build_sequences(
            engine.workspace, resident, spec, dataset, lambda: ["A general text."], notes.append
        )

    return engine.worker.call(call), notes


def content(built: tuple[RunSequences, list[str]]) -> Any:
    made, notes = built
    return [*made.rows], made.validation, made.stats, notes


def folders(engine: Engine, dataset_id: str) -> list[Path]:
    parent = engine.workspace.path("datasets", dataset_id, token_cache.FOLDER)
    return sorted(parent.iterdir()) if parent.exists() else []


@pytest.mark.parametrize("kind", ["task", "domain"])
def test_rows_are_the_same_with_and_without_the_cache(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    dataset = import_rows(engine, tmp_path, kind)
    first = content(build(engine, dataset, kind, replay_share=0.2 if kind == "domain" else 0.0))
    assert len(folders(engine, dataset)) == 1
    with monkeypatch.context() as m:  # nothing is encoded a second time
        for name in ("encode_turns", "encode_documents"):
            m.setattr(sequences, name, lambda *args: pytest.fail("it was encoded again"))
        m.setattr(sequences, "_encode_validation", lambda *args: first[1])
        m.setattr(sequences, "_encode_replay", lambda *args: _replay_of(engine))
        second = content(build(engine, dataset, kind, replay_share=0.2 if kind == "domain" else 0.0))
    assert second == first and any("special tokens" in note for note in first[3]) == (kind == "task")
    monkeypatch.setattr(token_cache, "SMALLEST", 10**9)
    assert content(build(engine, dataset, kind, replay_share=0.2 if kind == "domain" else 0.0)) == first


def _replay_of(engine: Engine) -> list[list[int]]:
    from core.data.tokens.encoding import encode_documents

    return list(encode_documents(engine.resident_base.get().base.tokenizer, ["A general text."], True))


@pytest.mark.parametrize("damage", ["cut", "changed", "half written", "no notes"])
def test_a_damaged_cache_is_ignored_and_written_again(engine: Engine, tmp_path: Path, damage: str) -> None:
    dataset = import_rows(engine, tmp_path, "task")
    first = content(build(engine, dataset, "task"))
    (folder,) = folders(engine, dataset)
    ids = folder / "ids.bin"
    if damage == "cut":
        ids.write_bytes(ids.read_bytes()[:-8])
    elif damage == "changed":
        ids.write_bytes(b"\7" + ids.read_bytes()[1:])
    elif damage == "half written":
        (folder / "notes.json").unlink()
        ids.unlink()
    else:
        (folder / "notes.json").write_text('{"sha256": [', encoding="utf-8")
    assert content(build(engine, dataset, "task")) == first
    assert content(build(engine, dataset, "task")) == first
    assert folders(engine, dataset) == [folder] and ids.stat().st_size > 8


def test_a_disk_that_refuses_costs_the_cache_and_not_the_run(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = import_rows(engine, tmp_path, "task")

    def refuse(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_cache.os, "fsync", refuse)
    first = content(build(engine, dataset, "task"))
    assert not folders(engine, dataset)
    monkeypatch.undo()
    assert content(build(engine, dataset, "task")) == first


def test_settings_and_content_have_caches_of_their_own_and_few_stay(engine: Engine, tmp_path: Path) -> None:
    dataset = import_rows(engine, tmp_path, "task")
    for length in (32, 40, 48, 48):
        build(engine, dataset, "task", max_length=length)
    assert len(folders(engine, dataset)) == 3
    for length in (50, 52, 54):
        build(engine, dataset, "task", max_length=length)
    assert len(folders(engine, dataset)) == token_cache.KEEP
    build(engine, dataset, "task", rules=1)
    assert len(folders(engine, dataset)) == token_cache.KEEP
    engine.workspace.delete("datasets", dataset)
    assert not engine.workspace.path("datasets", dataset, token_cache.FOLDER).exists()


def test_a_large_split_is_not_read_as_a_list(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = import_rows(engine, tmp_path, "task")
    monkeypatch.setattr(sequences, "read_split", lambda *args: pytest.fail("a whole split was read"))
    made, _ = build(engine, dataset, "task")
    assert made.stats.sequences == engine.datasets.get(dataset).splits["train"]
