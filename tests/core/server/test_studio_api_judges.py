"""Judges over HTTP: votes of people, what a judge is worth, and no address in a request."""

from __future__ import annotations

import httpx

from core.engine import Engine
from tests.core.engine.test_promotions import engine, measure  # noqa: F401 (the fixture)
from tests.studio.tabs.test_judges import judge_all

from .live_server import serve


def test_people_judge_and_the_judge_is_shown_with_its_agreement(engine: Engine) -> None:  # noqa: F811
    key = measure(engine, "mine-0001").id
    judge_all(engine, key)
    with serve(engine) as url, httpx.Client(base_url=f"{url}/api/experiments/{key}", timeout=60) as client:
        ballot = client.get("/votes/next").json()
        for _ in range(30):
            shown = ballot["answer"]
            assert set(shown) == {"key", "question", "reference", "passages", "answer"}
            number = int(shown["question"].split()[-1].rstrip("?"))
            body = {"answer": shown["key"], "verdict": "poor" if number % 2 else "good"}
            ballot = client.post("/votes", json=body).json()
        assert ballot["votes"] == ballot["needed"] == 30
        (judge,) = client.get("/judges").json()["judges"]
        assert judge["counts"] and judge["kappa"]["value"] == 1.0 and judge["shares"]["base"]["value"] == 0.5
        assert client.get("/report").json()["judges"][0]["column"] == "Judge mine-0001=1 (share of Good)"
        assert "Judge mine-0001=1 (share of Good)" in client.get("/report.html").text
        assert client.post("/votes", json={"answer": "x", "verdict": "good"}).status_code == 404
        assert client.post("/votes", json={"answer": shown["key"], "verdict": "perhaps"}).status_code == 422


def test_a_request_for_a_judge_names_no_address_and_needs_a_base(engine: Engine) -> None:  # noqa: F811
    key = measure(engine, "mine-0001").id
    with serve(engine) as url, httpx.Client(base_url=f"{url}/api/experiments/{key}", timeout=60) as client:
        for extra in ({"address": "https://example.org"}, {"key_variable": "HOME"}, {"criteria": ""}):
            assert client.post("/judges", json={"mix": "", **extra}).status_code == 422
        refused = client.post("/judges", json={"mix": "mine"})
        assert refused.status_code >= 400 and refused.json()["title"]
        assert client.get("/judges").json() == {
            "state": "idle", "share": 0.0, "text": "", "problem": "", "judges": [],
        }  # fmt: skip
        assert client.post("/judges/stop").status_code == 404
