"""OpenAI's own client asks documents: by a field, by the name of a model, streamed; refusals are clear."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from core.engine import Engine
from core.engine.serving import Request
from core.server import openai_documents
from core.server.model_names import find_answering_model
from core.spec.mix import Mix, Sampling
from core.store import answer_log, promotions
from core.store.promotions import Promotion

from ...conftest import SENTENCES, build_tiny_llama
from .live_server import serve
from .random_library import find_id, open_engine

pytestmark = pytest.mark.slow
QUESTION: list[Any] = [{"role": "user", "content": "Where is the blue bell?"}]
NOTHING: list[Any] = [{"role": "user", "content": "chromodynamics?"}]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    base = build_tiny_llama(tmp_path_factory.mktemp("base"), max_position_embeddings=1024)
    with open_engine(base, tmp_path_factory.mktemp("ws")) as made:
        yield made


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    with serve(engine) as url:
        yield url


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0, timeout=120) as made:
        yield made


def import_texts(engine: Engine, folder: Path, name: str, sentences: list[str]) -> str:
    file = folder / f"{name}.txt"
    file.write_text("\n\n---\n\n".join(sentences), encoding="utf-8")
    return engine.datasets.import_files([file], name).id


def ask(client: openai.OpenAI, model: str = "base", messages: Any = QUESTION, **options: Any) -> Any:
    fields = {k: options.pop(k) for k in ("documents", "passages") if k in options}
    given = {"temperature": 0, "max_tokens": 8, **options}
    return client.chat.completions.create(model=model, messages=messages, extra_body=fields, **given)


def read_documents(answer: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer.choices[0].model_extra["documents"]
    return found


def test_without_texts_no_model_has_documents(client: openai.OpenAI) -> None:
    assert not [m.id for m in client.models.list() if m.id.endswith("+documents")]
    for options in ({"documents": True}, {"model": "base+documents"}):
        with pytest.raises(openai.UnprocessableEntityError, match="no documents to answer from"):
            ask(client, **options)


@pytest.fixture(scope="module")
def notes(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    return import_texts(engine, tmp_path_factory.mktemp("texts"), "Notes", SENTENCES[:48])


def test_an_answer_names_the_passages_that_the_engine_put_into_its_prompt(
    engine: Engine, client: openai.OpenAI, notes: str
) -> None:
    plain = ask(client)
    assert "documents" not in plain.choices[0].model_extra
    answer = ask(client, documents="Notes", passages=2)
    passages = engine.retrieval.search(notes, "Where is the blue bell?", 2)
    mix, sampling = Mix(), Sampling(max_new_tokens=8)
    progress = engine.serving.submit(Request(QUESTION, mix, sampling, passages=tuple(passages))).last()
    assert answer.choices[0].message.content == progress.columns[0].text
    assert answer.usage.prompt_tokens == progress.prompt_tokens > plain.usage.prompt_tokens
    frame = engine.chat.stream(QUESTION, [mix], sampling, passages=[passages]).last()
    assert frame.columns[0].text == progress.columns[0].text, "as on the page"
    first, second = read_documents(answer)
    assert (first["number"], second["number"], first["dataset"], first["dataset_name"]) == (
        1,
        2,
        notes,
        "Notes",
    )
    start, end = first["position"]
    assert "blue bell" in first["text"] and end - start == len(first["text"]) and not first["is_cited"]
    assert answer.choices[0].model_extra["documents_left_out"] == []
    by_name, by_true = ask(client, "base+documents"), ask(client, documents=True)
    assert read_documents(by_name) == read_documents(by_true) == read_documents(ask(client, documents="all"))
    assert by_name.choices[0].message.content == by_true.choices[0].message.content
    off = ask(client, "base+documents", documents=False)
    assert off.choices[0].message.content == plain.choices[0].message.content


def test_a_stream_ends_with_the_documents_of_each_choice(client: openai.OpenAI, notes: str) -> None:
    options: dict[str, Any] = {"n": 2, "temperature": 0.9, "seed": 3}
    whole = ask(client, "law+documents", **options)
    chunks = list(
        ask(client, "law+documents", stream=True, stream_options={"include_usage": True}, **options)
    )
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    for choice in whole.choices:
        parts = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == choice.index]
        assert "".join(p.delta.content or "" for p in parts) == choice.message.content
        assert parts[-1].model_extra["documents"] == choice.model_extra["documents"] != []
        assert all("documents" not in (p.model_extra or {}) for p in parts[:-1])


def test_nothing_found_is_an_empty_list(client: openai.OpenAI, notes: str) -> None:
    assert read_documents(ask(client, "base+documents", NOTHING)) == []
    last = list(ask(client, "base+documents", NOTHING, stream=True))[-1].choices[0]
    assert last.finish_reason == "length" and last.model_extra["documents"] == []


def test_passages_that_do_not_fit_beside_the_conversation_are_left_out(
    engine: Engine, client: openai.OpenAI, notes: str
) -> None:
    earlier = [{"role": "user", "content": "lamp " * 150}, {"role": "assistant", "content": "Yes."}]
    found = engine.retrieval.search(notes, QUESTION[0]["content"], 30)
    choice = ask(client, messages=[*earlier, *QUESTION], documents=True, passages=30, max_tokens=600).choices[
        0
    ]
    used, left_out = choice.model_extra["documents"], choice.model_extra["documents_left_out"]
    assert used and left_out and len(used) + len(left_out) == len(found)
    assert "number" not in left_out[0] and left_out[0]["text"]
    unlimited = Request(QUESTION, Mix(), Sampling(max_new_tokens=4096), passages=tuple(found))
    with contextlib.closing(engine.serving.submit(unlimited)) as stream:
        progress = next(iter(stream))
    assert progress.prompt.used and 256 < progress.prompt_tokens <= 512, "half of the context is the answer's"
    with pytest.raises(openai.UnprocessableEntityError, match="at most 1024 tokens"):
        ask(client, messages=[{"role": "user", "content": "lamp " * 3000}], documents=True)


def test_every_model_is_listed_with_documents_and_answers(
    engine: Engine, client: openai.OpenAI, notes: str
) -> None:
    listed = {m.id: m.model_extra for m in client.models.list()}
    plain = [name for name in listed if not name.endswith("+documents")]
    assert [f"{name}+documents" for name in plain] == list(listed)[len(plain) :]
    law = find_id(engine, "law")
    assert listed[f"{law}+documents"]["documents"] is True and listed[law]["documents"] is False
    model = "mix:law=0.5,chat=-1+documents"
    assert client.models.retrieve(model).model_extra["weights"] == {law: 0.5, find_id(engine, "chat"): -1.0}
    answer = ask(client, model)
    assert answer.model == model and read_documents(answer)
    assert answer.choices[0].model_extra["active"]["weights"][law] == 0.5


def test_a_name_that_holds_a_plus_keeps_its_meaning(engine: Engine, notes: str) -> None:
    law, chat = find_id(engine, "law"), find_id(engine, "chat")
    taken = engine.library.save_mix("Law+documents", {law: 0.25})
    assert not find_answering_model(engine, "Law+documents").has_documents
    assert find_answering_model(engine, "Law+documents+documents").mix.weights == {law: 0.25}
    engine.library.delete("mixes", taken.id)
    assert find_answering_model(engine, "Law+documents").has_documents
    mix = f"mix:{law}=0.5+{chat}=1"
    assert find_answering_model(engine, f"{mix}+documents").mix.weights == {law: 0.5, chat: 1.0}
    engine.library.rename("adapters", chat, "documents")
    try:
        model = find_answering_model(engine, "mix:Law=0.5+documents")
        assert model.mix.weights == {law: 0.5, chat: 1.0} and not model.has_documents
    finally:
        engine.library.rename("adapters", chat, "Chat")


def test_production_with_documents_falls_back_and_is_counted(
    engine: Engine, client: openai.OpenAI, notes: str
) -> None:
    odd = find_id(engine, "Odd")
    digests = {odd: engine.library.adapter(odd).sha256}
    promotions.promote(engine.workspace, Promotion("", "Odd", {odd: 1.0}, digests, "", "", {}))
    answer = ask(client, "production+documents")
    assert answer.choices[0].model_extra["active"]["weights"] == {odd: 1.0} and read_documents(answer)
    entry = engine.library.delete("adapters", odd).entry
    try:
        fallen = ask(client, "production+documents")
        assert odd in fallen.choices[0].model_extra["active"]["fallback"] and read_documents(fallen)
    finally:
        engine.library.restore(entry)
    figures = {f.mix: f for f in answer_log.summarize(engine.workspace)}
    assert (figures[odd].answers, figures[odd].fallbacks, figures[""].fallbacks) == (1, 0, 1)
    promotions.roll_back(engine.workspace)


def test_unknown_datasets_list_the_nearest_and_texts_are_continued_without(
    client: openai.OpenAI, address: str, notes: str
) -> None:
    with pytest.raises(
        openai.NotFoundError, match="no dataset of texts 'Nots'. The nearest names: 'Notes'"
    ) as e:
        ask(client, documents=["Nots"])
    assert e.value.param == "documents" and e.value.response.headers["content-type"].endswith("problem+json")
    for fields, part in (
        ({"documents": 5}, "must be true, the id or name"),
        ({"documents": []}, "a list of 1 to 16"),
        ({"passages": 3}, "needs documents"),
        ({"documents": True, "passages": 51}, "less than or equal to 50"),
    ):
        with pytest.raises(openai.UnprocessableEntityError, match=part):
            ask(client, **fields)
    with pytest.raises(openai.UnprocessableEntityError, match="must be the user's"):
        ask(client, messages=[*QUESTION, {"role": "assistant", "content": "In"}], documents=True)
    with pytest.raises(openai.NotFoundError, match="The nearest names: 'law'"):
        ask(client, "Lawn+documents")
    with pytest.raises(openai.UnprocessableEntityError, match="cannot have .documents"):
        client.completions.create(model="base+documents", prompt="The")
    with pytest.raises(openai.UnprocessableEntityError, match="chat/completions"):
        client.completions.create(model="base", prompt="The", extra_body={"documents": True})


def test_a_missing_index_is_awaited_within_a_bound_and_built_all_the_same(
    engine: Engine, client: openai.OpenAI, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gongs = [f"The {colour} gong hangs in the attic." for colour in ("violet", "white", "pink", "brown")]
    new = import_texts(engine, tmp_path, "New", gongs)
    monkeypatch.setattr(openai_documents, "INDEX_SECONDS", 0.0)
    with pytest.raises(openai.InternalServerError, match="still being indexed") as caught:
        ask(client, documents=[new])
    assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"] == "5"
    monkeypatch.undo()
    body = {"model": "base", "messages": QUESTION, "documents": [new], "max_tokens": 4}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{address}/v1/chat/completions", json=body, timeout=0.05)
    gong = ask(client, messages=[{"role": "user", "content": "Where is the violet gong?"}], documents=[new])
    assert "violet" in read_documents(gong)[0]["text"] and read_documents(gong)[0]["dataset"] == new
