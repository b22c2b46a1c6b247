"""Retrieval in the engine: indexes in the background, searching them, and answers from passages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.errors import NotFound, SpecError
from core.retrieve import extras
from core.spec.mix import Mix, Sampling
from core.spec.retrieval import RetrievalSettings

from ...conftest import SENTENCES, build_tiny_llama

WORDS = RetrievalSettings(encoder="off")
ALL = RetrievalSettings(encoder="off", threshold=0.0)
SHORT = Sampling(max_new_tokens=4)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = build_tiny_llama(tmp_path_factory.mktemp("base"), max_position_embeddings=640)
    with Engine(tmp_path_factory.mktemp("ws"), str(base), quantization="none", device="cpu") as made:
        made.bases.current(wait=True)
        yield made


def import_texts(engine: Engine, folder: Path, texts: list[str], name: str = "Notes") -> str:
    file = folder / "notes.txt"
    file.write_text("\n\n---\n\n".join(texts), encoding="utf-8")
    return engine.datasets.import_files([file], name).id


@pytest.fixture(scope="module")
def dataset(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    return import_texts(engine, tmp_path_factory.mktemp("texts"), SENTENCES[:48])


def test_a_search_builds_the_index_once_and_again_where_it_is_damaged(engine: Engine, dataset: str) -> None:
    first = engine.retrieval.search(dataset, "Where is the blue bell?", 3, WORDS)
    assert first and "blue bell" in first[0].text and first[0].dataset_name == "Notes"
    (file,) = engine.workspace.path("datasets", dataset, "retrieval").glob("*.index")
    written = file.stat().st_ino
    key = engine.retrieval.index(dataset, WORDS)
    assert engine.retrieval.status(key).chunks == 48 and file.stat().st_ino == written
    file.write_bytes(file.read_bytes()[:-9])
    engine.retrieval._open.clear()
    assert engine.retrieval.search(dataset, "Where is the blue bell?", 3, WORDS) == first
    assert file.stat().st_ino != written


def test_passages_of_several_datasets_are_joined_by_score(
    engine: Engine, dataset: str, tmp_path: Path
) -> None:
    other = import_texts(engine, tmp_path, [f"Crane {i} lifts the granite." for i in range(6)], "Cranes")
    found = engine.retrieval.search([dataset, other], "Who lifts granite in the north room?", 50, ALL)
    assert {p.dataset for p in found} == {dataset, other}
    assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
    assert engine.retrieval.search([dataset, other], "quantum chromodynamics", 5, WORDS) == []


def test_bad_searches_say_what_to_do(engine: Engine, dataset: str, pairs: Path) -> None:
    task = engine.datasets.import_files([pairs], "Pairs").id
    for ids, query, message in (
        (task, "Where?", "must be a dataset of texts"),
        ([], "Where?", "1 to 16 datasets, got 0"),
        (dataset, " ", "1 to 20,000 characters, got 0"),
    ):
        with pytest.raises(SpecError, match=message):
            engine.retrieval.search(ids, query, settings=WORDS)
    with pytest.raises(SpecError, match="between 1 and 50, got 51"):
        engine.retrieval.search(dataset, "Where?", 51, WORDS)
    with pytest.raises(NotFound):
        engine.retrieval.search("nothing-0000", "Where?", settings=WORDS)
    with pytest.raises(SpecError, match="at most half of the chunk size"):
        RetrievalSettings(chunk_size=200, overlap=101)


def test_a_cancelled_index_leaves_no_file(engine: Engine, tmp_path: Path) -> None:
    dataset = import_texts(engine, tmp_path, SENTENCES[8:40], "Cancelled")
    key = engine.retrieval.index(dataset, WORDS)
    engine.retrieval.cancel(key)
    assert engine.retrieval.wait(key, 60).state == "cancelled"
    assert not list(engine.workspace.path("datasets", dataset, "retrieval").glob("*.index"))
    with pytest.raises(NotFound):
        engine.retrieval.status("unknown")


def test_each_column_answers_with_its_own_passages(engine: Engine, dataset: str) -> None:
    found = engine.retrieval.search(dataset, "Where is the blue bell?", 3, WORDS)
    mixes = [Mix(), Mix(), Mix()]
    frame = engine.chat.stream(
        "Where is the blue bell?", mixes, SHORT, exact=True, passages=[None, found, []]
    ).last()
    assert [p and [x.text for x in p.used] for p in frame.prompts] == [None, [p.text for p in found], []]
    alone = engine.chat.stream("Where is the blue bell?", [Mix()], SHORT, exact=True).last()
    given = engine.chat.stream(frame.prompts[1].text, [Mix()], SHORT, exact=True).last()
    assert frame.columns[0].text == alone.columns[0].text and alone.prompts == ()
    assert frame.columns[1].text == given.columns[0].text


def test_passages_that_do_not_fit_are_said_and_history_goes_first(engine: Engine, dataset: str) -> None:
    found = engine.retrieval.search(dataset, "Where is the blue bell?", 50, ALL)
    history = [
        {"role": "user", "content": "The lamp? " * 20},
        {"role": "assistant", "content": "Here."},
        {"role": "user", "content": "Where is the blue bell?"},
    ]
    frame = engine.chat.stream(history, [Mix()], SHORT, passages=[found]).last()
    (prompt,) = frame.prompts
    assert prompt.used and prompt.left_out and len(prompt.used) + len(prompt.left_out) == len(found)
    assert frame.left_out == 1
    for passages, chat, message in (
        ([found, None], True, "one entry per column"),
        ([found], False, "continued"),
    ):
        with pytest.raises(SpecError, match=message):
            engine.chat.stream("Where?", [Mix()], SHORT, chat=chat, passages=passages)


def test_an_extra_that_pip_refuses_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = extras.subprocess.CompletedProcess([], 1, "", "No matching distribution")
    monkeypatch.setattr(extras.subprocess, "run", lambda *args, **kwargs: refused)
    with pytest.raises(
        Exception, match="No matching distribution Install it in the terminal with `pip install"
    ):
        extras._install(extras.find_extra("wordllama"), None)  # type: ignore[arg-type]
    with pytest.raises(NotFound, match="wordllama, faiss"):
        extras.find_extra("other")
