"""The curl lines of the fine-tuning API against a live server on the embedded base, and its errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import time

import httpx
import pytest

from core.engine import Engine
from core.server.access import Principal, Role

from ...conftest import SENTENCES
from .live_server import serve

pytestmark = pytest.mark.slow
TINY = {"num_epochs": 1, "max_length": 64, "batch_size": 8, "gradient_accumulation_steps": 1}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with Engine(tmp_path_factory.mktemp("ws"), "embedded") as made:
        made.bases.current(wait=True)
        yield made


@pytest.fixture(scope="module")
def address(engine):
    with serve(engine) as url:
        yield url


def curl(*arguments: str) -> dict:
    """Runs curl, or sends what it sends where it is not installed; returns the JSON of the answer."""
    if shutil.which("curl"):
        done = subprocess.run(["curl", "-s", *arguments], capture_output=True, timeout=120, check=True)
        return json.loads(done.stdout)
    method = "POST" if "-X" in arguments else "GET"
    url = next(a for a in arguments if a.startswith("http"))
    form = [a.partition("=") for a in arguments if a.startswith("query=")]
    fields = {name: (None, value) for name, _, value in form}
    return httpx.request(method, url, files=fields or None, timeout=120).json()


def wait_for_end(address: str) -> dict:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        status = curl(f"{address}/fine-tuning/status")
        if status["state"] not in ("queued", "running", "stopping"):
            return status
        time.sleep(0.2)
    raise AssertionError(f"still {status}")


def test_the_lines_of_the_seed_train_on_uploads_and_answer(engine, address, corpus):
    problem = curl("-X", "POST", f"{address}/fine-tuning/setup")
    assert problem["status"] == 404 and "upload files" in problem["fix"]
    status = curl(f"{address}/fine-tuning/status")
    assert (status["trained"], status["available"], status["state"]) == (False, True, "not set up")

    answer = curl("-X", "POST", f"{address}/fine-tuning/query", "-F", "query=What is machine learning?")
    assert answer["query"] == "What is machine learning?"
    assert (answer["fine_tuned"], answer["version"], answer["base"]) == (False, 0, "embedded")
    assert answer["answer"] and answer["tokens"] > 0 and answer["latency_seconds"] > 0

    dataset = engine.datasets.import_files([corpus], "Corpus").id
    started = curl("-X", "POST", f"{address}/fine-tuning/setup")
    assert (started["dataset"], started["base"]) == (dataset, "embedded")
    assert started["config"]["lora_rank"] == 16 and started["config"]["num_epochs"] == 3
    assert started["message"] == "Fine-tuning 1 is queued."
    busy = curl("-X", "POST", f"{address}/fine-tuning/setup")
    if "run" not in busy:  # the first one still trains
        assert busy["status"] == 429 and busy["title"].startswith("Fine-tuning 1 is ")
    status = wait_for_end(address)
    assert (status["trained"], status["available"], status["state"]) == (True, True, "finished")
    assert status["progress"] == 1.0 and status["step"] == status["total_steps"] > 0

    answer = curl("-X", "POST", f"{address}/fine-tuning/query", "-F", "query=What is machine learning?")
    assert (answer["fine_tuned"], answer["version"]) == (True, status["version"])
    assert answer["model"] == f"Fine-tuning {status['version']}"


def test_documents_in_the_body_become_a_dataset(engine, address):
    documents = [*SENTENCES[:10], *({"page_content": s, "metadata": {"p": 1}} for s in SENTENCES[10:])]
    body = {"documents": documents, "config": TINY}
    response = httpx.post(f"{address}/fine-tuning/setup", json=body, timeout=60)
    assert response.status_code == 202
    started = response.json()
    assert engine.datasets.get(started["dataset"]).rows == len(SENTENCES)
    spec = engine.runs.get(started["run"]).spec
    assert (spec.epochs, spec.max_length, spec.batch_size, spec.accumulation) == (1, 64, 8, 1)
    assert wait_for_end(address)["run"] == started["run"]


def test_a_second_setup_imports_nothing_while_the_first_one_waits(engine, address, monkeypatch):
    monkeypatch.setattr(engine.worker, "choose", lambda waiting: None)
    body = {"documents": SENTENCES[:12], "config": TINY}
    first = httpx.post(f"{address}/fine-tuning/setup", json=body, timeout=60).json()
    datasets = len(engine.datasets.list())
    second = httpx.post(f"{address}/fine-tuning/setup", json=body, timeout=60)
    assert second.status_code == 429 and second.headers["retry-after"] == "5"
    assert second.json()["title"].endswith("is queued.") and len(engine.datasets.list()) == datasets
    engine.runs.stop(first["run"])


def test_another_model_is_answered_with_the_resident_one(address):
    body = {"documents": ["The lamp."], "config": {"model_name": "microsoft/DialoGPT-medium"}}
    response = httpx.post(f"{address}/fine-tuning/setup", json=body)
    problem = response.json()
    assert response.status_code == 422 and problem["field"] == "model_name"
    assert "The resident base is 'embedded'" in problem["title"] and "--base microsoft" in problem["fix"]


def test_questions_may_be_json_or_a_form(address):
    sent = {"query": "Where is the lamp?", "max_new_tokens": 3}
    as_json = httpx.post(f"{address}/fine-tuning/query", json=sent, timeout=60).json()
    as_form = httpx.post(f"{address}/fine-tuning/query", data=sent, timeout=60).json()
    assert as_json["answer"] == as_form["answer"] and as_json["tokens"] <= 3


@pytest.mark.parametrize(
    "request_, status",
    [
        ({"json": {}}, 422),
        ({"json": {"query": ""}}, 422),
        ({"json": {"query": 5}}, 422),
        ({"json": ["query"]}, 422),
        ({"json": {"query": "x", "temperature": 1}}, 422),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ({"content": b"query=x", "headers": {"content-type": "text/plain"}}, 415),
        ({"data": {"question": "x"}}, 422),
        ({"data": {"query": "x", "max_new_tokens": "many"}}, 422),
        ({"files": {"query": ("q.txt", b"x")}}, 400),
    ],
)
def test_a_query_that_is_not_one_is_a_problem(address, request_, status):
    response = httpx.post(f"{address}/fine-tuning/query", **request_, timeout=30)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == status


@pytest.mark.parametrize(
    "body",
    [
        {"config": {"lora_rank": 0}},
        {"config": {"lora_rank": "16"}},
        {"config": {"rank": 16}},
        {"documents": [{"title": "no text"}]},
        {"documents": ["  "]},
        {"documents": "one"},
        {"dataset": "../runs"},
    ],
)
def test_a_setup_that_is_not_one_is_a_problem(engine, address, body):
    before = (len(engine.datasets.list()), len(engine.runs.list()))
    response = httpx.post(f"{address}/fine-tuning/setup", json=body, timeout=30)
    assert response.status_code == 422 and response.json()["detail"]
    assert response.headers["content-type"] == "application/problem+json"
    assert (len(engine.datasets.list()), len(engine.runs.list())) == before


class AsRole:
    def __init__(self, role: Role) -> None:
        self.role = role

    def identify(self, request) -> Principal:
        return Principal("somewhere", self.role)


def test_a_viewer_asks_and_a_trainer_sets_up(engine):
    with serve(engine, AsRole(Role.VIEWER)) as url:
        assert httpx.post(f"{url}/fine-tuning/setup").status_code == 403
        assert httpx.get(f"{url}/fine-tuning/status").status_code == 200
    with serve(engine, AsRole(Role.NONE)) as url:
        assert httpx.get(f"{url}/fine-tuning/status").status_code == 401
        assert httpx.post(f"{url}/fine-tuning/query", json={"query": "x"}).status_code == 401
