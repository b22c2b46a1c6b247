"""Health, readiness and metrics, without a base and with one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from core.engine import Engine
from core.server.access import ANONYMOUS, Access, OpenAccess, Principal, Role
from core.server.app import make_app
from core.server.metrics import BUCKETS, Metrics, read_resident_bytes

SAMPLE = re.compile(r'^([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)$')


class AsRole:
    def __init__(self, principal: Principal) -> None:
        self.principal = principal

    def identify(self, request: Request) -> Principal:
        return self.principal


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("ws"), load=False) as made:
        yield made


def connect(engine: Engine, access: Access | None = None) -> TestClient:
    return TestClient(make_app(engine, access or OpenAccess()))


def read_samples(text: str) -> dict[str, float]:
    """The samples of Prometheus' text format, with their labels; fails at a line of another form."""
    samples = {}
    for line in text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP adapter_studio_\w+ \S.*|TYPE \w+ (counter|gauge|histogram))", line)
            continue
        found = SAMPLE.match(line)
        assert found, line
        samples[f"{found[1]}{{{found[2] or ''}}}"] = float(found[3])
    assert text.endswith("\n")
    return samples


def test_health_and_readiness_need_no_credential_and_metrics_do(engine: Engine) -> None:
    client = connect(engine, AsRole(ANONYMOUS))
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").status_code == 503
    assert client.get("/metrics").status_code == 401 and client.get("/v1/models").status_code == 401
    assert connect(engine, AsRole(Principal("v", Role.VIEWER))).get("/metrics").status_code == 200


def test_readiness_says_what_is_missing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    info = replace(engine.resident_base.info, loading=True)
    monkeypatch.setattr(engine.resident_base, "info", info)
    answer = connect(engine).get("/ready")
    assert answer.status_code == 503 and "being loaded" in answer.json()["title"]
    assert answer.headers["content-type"] == "application/problem+json"
    failed = replace(info, loading=False, error="/private/place cannot be read")
    monkeypatch.setattr(engine.resident_base, "info", failed)
    answer = connect(engine).get("/ready")
    assert answer.status_code == 503 and answer.json()["title"] == "No base is loaded."
    assert "/private" not in answer.text


@pytest.mark.slow
def test_a_loaded_base_is_ready_until_the_studio_closes(tiny_base: Path, tmp_path: Path) -> None:
    with Engine(tmp_path, str(tiny_base), quantization="none", device="cpu") as engine:
        engine.bases.current(wait=True)
        client = connect(engine)
        answer = client.get("/ready")
        assert answer.status_code == 200 and answer.json() == {"status": "ready"}
        body: dict[str, Any] = {"model": "base", "prompt": "The lamp", "max_tokens": 4, "temperature": 0}
        tokens = client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"]
        samples = read_samples(client.get("/metrics").text)
        assert samples["adapter_studio_tokens_total{}"] >= tokens
        assert samples["adapter_studio_first_token_seconds_count{}"] == 1
        assert samples["adapter_studio_requests_running{}"] == 0
        route = 'route="/v1/completions",method="POST",status="200"'
        assert samples[f"adapter_studio_requests_total{{{route}}}"] == 1
    assert client.get("/ready").status_code == 503 and client.get("/health").status_code == 200


def test_requests_are_counted_by_route_and_not_by_path(engine: Engine) -> None:
    client = connect(engine)
    for path in ("/v1/models/a", "/v1/models/b", '/nowhere/"quoted', "/elsewhere"):
        client.get(path)
    client.request("BREW", "/health")
    counts = {k: v for k, v in read_samples(client.get("/metrics").text).items() if "requests_total" in k}
    by_route = {
        re.sub(r'.*route="(.*?)",method="(.*?)",status="(.*)"}', r"\1 \2 \3", k): v for k, v in counts.items()
    }
    assert by_route == {"/v1/models/{model_id:path} GET 404": 2, "other GET 404": 2, "/health other 405": 1}


def test_the_histogram_counts_every_bucket_up_to_its_end(engine: Engine) -> None:
    metrics = Metrics()
    for seconds in (0.004, 0.01, 0.3, 200.0):
        metrics.add_first_token(seconds)
    samples = read_samples(metrics.write(engine.serving))
    found = [samples[f'adapter_studio_first_token_seconds_bucket{{le="{b:g}"}}'] for b in BUCKETS]
    assert found == [2] + [2] * 3 + [2] + [3] * 7
    assert samples['adapter_studio_first_token_seconds_bucket{le="+Inf"}'] == 4
    assert samples["adapter_studio_first_token_seconds_sum{}"] == pytest.approx(200.314)


def test_resident_memory_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from core.server import metrics

    monkeypatch.setattr(metrics, "STATUS_FILE", tmp_path / "status")
    assert read_resident_bytes() is None
    (tmp_path / "status").write_text("Name:\tx\nVmRSS:\t    2048 kB\n", encoding="ascii")
    assert read_resident_bytes() == 2048 * 1024


def test_the_first_question_loads_the_base_where_no_page_has_done_so(tiny_base: Path, tmp_path: Path) -> None:
    with Engine(tmp_path / "w", str(tiny_base), quantization="none", device="cpu", load=False) as fresh:
        with connect(fresh) as client:
            assert client.get("/ready").status_code == 503
            body = {"model": "base", "messages": [{"role": "user", "content": "Where?"}], "max_tokens": 3}
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] <= 3
            assert client.get("/ready").status_code == 200
