"""Adapters that benchmarks share: trained once, and again where anything that determines them differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import trained_adapters
from benchmarks.trained_adapters import AdapterCache
from core.engine import Engine
from core.spec.training import TrainSpec


def make_spec(engine: Engine, corpus: Path, **changes: Any) -> TrainSpec:
    data = engine.datasets.import_files([corpus], "Corpus", "domain")
    settings = {"kind": "domain", "name": "A", "dataset": data.id, "max_steps": 2, "batch_size": 2,
                "accumulation": 1, "max_length": 48, "rank": 2}  # fmt: skip
    return TrainSpec(**{**settings, **changes})


def test_an_adapter_is_trained_once_and_copied_into_other_workspaces(
    tiny_base: Path, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "trained"
    with Engine(tmp_path / "one", str(tiny_base), "none", "cpu") as engine:
        cache = AdapterCache(engine, kept)
        first = cache.train(make_spec(engine, corpus))
        digest = engine.library.adapter(first).sha256
        assert (cache.trained, cache.copied) == (1, 0)
        spec = make_spec(engine, corpus)
        keys = {cache.find_key(spec), cache.find_key(make_spec(engine, corpus, name="Other name"))}
        assert len(keys) == 1 and len(list(kept.iterdir())) == 1
        others = [cache.find_key(make_spec(engine, corpus, **c)) for c in ({"seed": 7}, {"stack_on": first})]
        monkeypatch.setattr(trained_adapters, "digest_code", lambda: "other code")
        others.append(cache.find_key(spec))
        monkeypatch.undo()
        corpus.write_text(corpus.read_text(encoding="utf-8") + "\n\n---\n\nOne more row.", encoding="utf-8")
        others.append(cache.find_key(make_spec(engine, corpus)))
        assert len({*keys, *others}) == 5
        corpus.write_text(corpus.read_text(encoding="utf-8")[: -len("\n\n---\n\nOne more row.")], "utf-8")
    with Engine(tmp_path / "two", str(tiny_base), "none", "cpu") as engine:
        cache = AdapterCache(engine, kept)
        second = cache.train(make_spec(engine, corpus))
        assert (cache.trained, cache.copied) == (0, 1) and not engine.runs.list()
        assert engine.library.adapter(second).sha256 == digest
