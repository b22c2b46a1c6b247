"""Retrieval over HTTP against a live server: search, indexes, and answers from documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from core.cli.main import main
from core.engine import Engine

from ...conftest import SENTENCES, build_tiny_llama
from .live_server import serve

QUESTION = "Where is the blue bell?"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("base"), max_position_embeddings=512)


@pytest.fixture(scope="module")
def engine(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("ws"), str(base), quantization="none", device="cpu") as made:
        made.bases.current(wait=True)
        yield made


@pytest.fixture(scope="module")
def dataset(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("texts") / "notes.txt"
    file.write_text("\n\n---\n\n".join(SENTENCES[:48]), encoding="utf-8")
    return engine.datasets.import_files([file], "Notes").id


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[httpx.Client]:
    with serve(engine) as url, httpx.Client(base_url=url, timeout=120) as made:
        yield made


def test_a_search_returns_passages_with_marks(client: httpx.Client, dataset: str) -> None:
    index = client.post("/api/indexes", json={"dataset": dataset})
    assert index.status_code == 202
    assert client.get(f"/api/indexes/{index.json()['key']}").json()["dataset"] == dataset
    body = {"datasets": [dataset], "query": QUESTION, "settings": {"passages": 2}}
    first, _ = client.post("/api/search", json=body).json()["passages"]
    assert {first["text"][a:b] for a, b in first["marks"]} == {"blue", "bell"}
    nothing = client.post("/api/search", json={"datasets": [dataset], "query": "chromodynamics"})
    assert nothing.json() == {"passages": []}
    wrong = client.post("/api/search", json={**body, "settings": {"chunk_size": 100, "overlap": 90}})
    assert wrong.status_code == 422 and "half of the chunk size" in wrong.json()["detail"]


def test_a_comparison_says_which_passages_each_column_used(client: httpx.Client, dataset: str) -> None:
    body = {
        "prompt": QUESTION,
        "mixes": ["base", "base"],
        "sampling": {"max_new_tokens": 4},
        "documents": {"datasets": [dataset], "settings": {"passages": 50, "threshold": 0.0}},
        "with_documents": [False, True],
    }
    plain, cited = client.post("/api/compare", json=body).json()["columns"]
    assert plain["passages"] is None and plain["passages_left_out"] is None
    assert "blue bell" in cited["passages"][0]["text"] and cited["passages_left_out"]
    refused = client.post("/api/compare", json={**body, "with_documents": [True]})
    assert refused.status_code == 422 and "one value per mix (2)" in refused.json()["detail"]
    extras = client.get("/api/extras").json()
    assert [e["name"] for e in extras] == ["wordllama", "faiss"]


def test_the_terminal_searches_and_answers_from_documents(
    base: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--workspace", str(tmp_path / "ws"), "--base", str(base)]
    assert main(["data", "add", str(corpus), "--name", "Notes", *place]) == 0
    assert main(["search", "Notes", QUESTION, "--passages", "2", *place]) == 0
    printed = capsys.readouterr().out
    assert "[1] 0." in printed and "blue bell" in printed and "[3]" not in printed
    assert main(["search", "Notes", "chromodynamics", *place]) == 0
    assert "Nothing found" in capsys.readouterr().out
    asked = ["generate", "--prompt", QUESTION, "--mix", "", "--documents", "Notes", "--max-new-tokens", "4"]
    assert main([*asked, *place]) == 0
    assert "[1] 0." in capsys.readouterr().out
