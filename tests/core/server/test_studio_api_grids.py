"""Grids over HTTP: started with the questions that they end in, and shown with their experiment."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from core.engine import Engine
from core.server.access import OpenAccess
from core.server.app import make_app
from core.store import grids
from core.store.grids import FollowUp


def test_a_grid_is_started_with_questions_and_shows_its_experiment(
    tiny_base: Path, tmp_path: Path, corpus: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(tmp_path / "ws", str(tiny_base), quantization="none", device="cpu") as engine:
        engine.worker.choose = lambda waiting: None  # the runs stay in the queue
        monkeypatch.setattr(engine.grids.experiments, "watch", lambda: None)
        texts = engine.datasets.import_files([corpus], "Notes", "domain").id
        questions = engine.datasets.import_files([pairs], "Pairs", "task").id
        client = TestClient(make_app(engine, OpenAccess()))
        body = {
            "kind": "domain",
            "settings": {"name": "Ranks", "dataset": texts, "batch_size": 2, "max_length": 48},
            "grid": "portfolio, 64 sequences",
            "vary": {"epochs": [1], "target_modules": [["q_proj"], ["q_proj", "v_proj"]]},
            "then_ask": {"dataset": questions, "limit": 5},
        }
        made = client.post("/api/grids", json=body)
        assert made.status_code == 202, made.json()
        assert len(made.json()["cells"]) == 8
        (grid,) = engine.grids.list()
        assert (grid.base["batch_size"], grid.base["accumulation"]) == (2, 16)
        assert grid.axes["epochs"] == [1] and grid.axes["target_modules"][1] == ["q_proj", "v_proj"]
        shown = client.get(f"/api/grids/{grid.id}").json()
        asked = shown["questions"]
        assert (asked["dataset"], asked["limit"], asked["documents"]) == (questions, 5, "on")
        assert shown["experiment"] == "" and shown["counts"] == {"queued": 8}
        ending = FollowUp(experiment="grid-0001", left_out=("rank 16: failed",))
        grids.end_with(engine.workspace, grid.id, lambda grid: ending)
        (listed,) = client.get("/api/grids").json()
        assert (listed["experiment"], listed["left_out"]) == ("grid-0001", ["rank 16: failed"])
        for change, part in (
            ({"then_ask": {"dataset": texts}}, "holds texts"),
            ({"then_ask": {"dataset": questions, "documents": "maybe"}}, "off"),
            ({"vary": {"rank": [0]}}, "between 1 and 256"),
            ({"vary": {"kind": ["task"]}}, "kind"),
        ):
            refused = client.post("/api/grids", json={**body, **change})
            assert refused.status_code == 422 and part in refused.json()["detail"], refused.json()
        assert len(engine.grids.list()) == 1
