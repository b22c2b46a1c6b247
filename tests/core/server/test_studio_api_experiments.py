"""Experiments and promotions over HTTP: what is shown, what a request may not name, and the gate."""

from __future__ import annotations

import httpx

from core.engine import Engine
from tests.core.engine.test_promotions import engine, measure  # noqa: F401 (the fixture)

from .live_server import serve


def test_experiments_are_shown_promoted_and_rolled_back(engine: Engine) -> None:  # noqa: F811
    good, bad = measure(engine, "mine-0001").id, measure(engine, "other-0001", factuality=0.0).id
    with serve(engine) as url, httpx.Client(base_url=url, timeout=60) as client:
        listed = client.get("/api/experiments").json()
        assert [e["id"] for e in listed] == [bad, good] and listed[0]["state"] == "done"
        assert set(listed[0]["rows"].values()) == {"done"} and listed[0]["share"] == 1.0
        report = client.get(f"/api/experiments/{good}/report").json()
        assert len(report["rows"]) == 4 and len(report["rows"][0]["answers"]) == 60
        page = client.get(f"/api/experiments/{good}/report.html")
        assert page.headers["content-type"].startswith("text/html") and "<script" not in page.text
        assert client.get("/api/production").json() == {"production": None}
        refused = client.post("/api/production", json={"mix": "other", "experiment": bad}).json()
        assert refused["status"] == "fail" and refused["promotion"] is None
        made = client.post("/api/production", json={"mix": "mine", "experiment": good}).json()
        assert made["status"] == "pass" and made["promotion"]["weights"] == {"mine-0001": 1.0}
        assert "production" in [m["id"] for m in client.get("/v1/models").json()["data"]]
        assert client.post("/api/production/rollback").json() == {"production": None}
        assert client.post("/api/production/rollback").status_code == 404
        assert client.delete(f"/api/experiments/{bad}").json()["deleted"] == bad
        assert client.get(f"/api/experiments/{bad}").status_code == 404


def test_a_request_names_no_address_and_no_variable_of_the_environment(engine: Engine) -> None:  # noqa: F811
    dataset = engine.datasets.list()[0].id
    body = {"name": "x", "dataset": dataset, "mixes": [""]}
    with serve(engine) as url, httpx.Client(base_url=url, timeout=60) as client:
        for extra in (
            {"rows": [{"name": "a"}]},
            {"address": "https://example.org"},
            {"key_variable": "HOME"},
        ):
            assert client.post("/api/experiments", json={**body, **extra}).status_code == 422
        wrong = client.post("/api/experiments", json={**body, "documents": ["sometimes"]})
        assert wrong.status_code == 422 and "must be" in wrong.json()["detail"] + wrong.json()["title"]
        assert client.get("/api/experiments").json() == []
