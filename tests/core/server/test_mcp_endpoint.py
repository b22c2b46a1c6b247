"""MCP with the official client against a live server: every tool, its role, and its errors."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from core.engine import Engine
from core.server.access import Principal, Role
from core.server.mcp_tools import TOOLS
from core.spec.presets import resolve

from ...conftest import SENTENCES
from .live_server import serve

pytest.importorskip("mcp")
pytestmark = pytest.mark.slow
TINY = {"max_steps": 2, "batch_size": 4, "accumulation": 1, "max_length": 64, "rank": 4, "replay_share": 0}


class HeaderAccess:
    """The role that a request names in a header."""

    def identify(self, request) -> Principal:
        name = request.headers.get("authorization", "Bearer none").partition(" ")[2]
        return Principal(name, Role[name.upper()])


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    corpus, pairs = folder / "corpus.txt", folder / "pairs.jsonl"
    corpus.write_text("\n\n---\n\n".join(SENTENCES), encoding="utf-8")
    rows = [{"question": f"Where is the {s.split()[1]} {s.split()[2]}?", "answer": s} for s in SENTENCES]
    pairs.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), quantization="none", device="cpu") as made:
        made.bases.current(wait=True)
        made.datasets.import_files([corpus], "Corpus")
        data = made.datasets.import_files([pairs], "Pairs", kind="task")
        for name in ("One", "Two"):
            spec = resolve(
                "task", "standard", {"dataset": data.id, "name": name, **TINY, "learning_rate": 0.01}
            )
            made.runs.wait(made.runs.start(spec))
        yield made


@pytest.fixture(scope="module")
def address(engine):
    with serve(engine, HeaderAccess()) as url:
        yield f"{url}/mcp"


def use(address: str, role: str, action: Callable[[Any], Any], mode: str = "auto") -> Any:
    """What an action does with a connected client of a role."""
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    async def run() -> Any:
        headers = {"authorization": f"Bearer {role}"}
        async with httpx2.AsyncClient(headers=headers, timeout=120) as http:
            async with Client(streamable_http_client(address, http_client=http), mode=mode) as client:
                return await action(client)

    return asyncio.run(run())


def call(address: str, role: str, tool: str, mode: str = "auto", **arguments: Any) -> Any:
    return use(address, role, lambda client: client.call_tool(tool, arguments), mode)


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_official_client_lists_eight_tools_with_their_arguments(address, mode):
    tools = use(address, "viewer", lambda client: client.list_tools(), mode).tools
    assert [t.name for t in tools] == [
        "list_adapters", "start_training", "run_status", "stop_run", "compare_mixes", "search_documents",
        "learn_weights", "explain_token",
    ]  # fmt: skip
    by_name = {t.name: t for t in tools}
    assert by_name["stop_run"].input_schema["required"] == ["run"]
    assert by_name["list_adapters"].annotations.read_only_hint is True
    assert by_name["stop_run"].annotations.read_only_hint is False
    assert "Needs the role trainer" in by_name["start_training"].description


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_viewer_compares_mixes_and_lists_adapters(address, engine, mode):
    listed = call(address, "viewer", "list_adapters", mode).structured_content
    assert [a["name"] for a in listed["adapters"]] == ["Two", "One"]
    assert listed["base"] == engine.bases.current().name
    result = call(
        address, "viewer", "compare_mixes", mode, prompt="Where is the red lamp?",
        mixes=["base", "One", "One=0.5,Two=-1"], max_new_tokens=6,
    )  # fmt: skip
    columns = result.structured_content["columns"]
    assert [c["mix"] for c in columns] == ["base", "One", "One=0.5,Two=-1"]
    assert all(c["done"] and 0 < c["tokens"] <= 6 for c in columns)
    assert json.loads(result.content[0].text) == result.structured_content


def test_documents_are_searched_and_answered_from(address, engine):
    dataset = next(d for d in engine.datasets.list() if d.kind == "domain")
    text = engine.datasets.rows(dataset.id, "all", 1)[0]["text"]
    for documents in ([], [dataset.id], [dataset.name]):
        found = call(address, "viewer", "search_documents", query=text, documents=documents, passages=1)
        (passage,) = found.structured_content["passages"]
        assert passage["text"].strip() == text.strip() and passage["dataset"] == dataset.id
        assert found.structured_content["datasets"] == {dataset.id: dataset.name}
    nothing = call(address, "viewer", "search_documents", query="zzyzx qwrtp")
    assert nothing.structured_content["passages"] == []
    compared = call(
        address, "viewer", "compare_mixes", prompt="Where is the red lamp?", mixes=["base", "One"],
        documents=[], with_documents=[False, True], max_new_tokens=3,
    ).structured_content  # fmt: skip
    without, having = (c["passages"] for c in compared["columns"])
    assert without is None and having is not None
    lost = call(address, "viewer", "search_documents", query="x", documents=[dataset.name[:-1] + "?"])
    assert lost.is_error and dataset.name in lost.content[0].text, "the nearest name"


def test_a_trainer_starts_follows_and_stops_a_run(address, engine):
    dataset = next(d for d in engine.datasets.list() if d.kind == "domain").id
    settings = {**TINY, "max_steps": 5000, "epochs": 1000}
    started = call(
        address, "trainer", "start_training", kind="domain", dataset=dataset, name="Long", preset="standard",
        settings=settings,
    ).structured_content  # fmt: skip
    assert started["status"] in ("queued", "running") and started["settings"]["rank"] == 4
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = call(address, "viewer", "run_status", run=started["id"]).structured_content
        if status["run"]["step"] >= 1:
            break
        time.sleep(0.1)
    assert status["run"]["status"] == "running" and 1 <= len(status["events"]) <= 20
    stopped = call(address, "trainer", "stop_run", run=started["id"])
    assert not stopped.is_error
    assert engine.runs.wait(started["id"], 120).status.value == "stopped"


def test_weights_are_learned_on_a_dataset_with_progress(address, engine):
    dataset = next(d for d in engine.datasets.list() if d.kind == "task").id
    seen: list[tuple[float, float | None, str | None]] = []

    async def follow(done: float, total: float | None, text: str | None) -> None:
        seen.append((done, total, text))

    async def learn(client: Any) -> Any:
        arguments = {"adapters": ["One", "Two"], "dataset": dataset, "limit": 3}
        return await client.call_tool("learn_weights", arguments, progress_callback=follow)

    found = use(address, "viewer", learn).structured_content
    ids = {a.name: a.id for a in engine.library.adapters()}
    assert set(found["weights"]) <= {ids["One"], ids["Two"]}
    assert 0 < found["validation_loss"] < 20 and found["summary"]
    assert seen and all(total == 400 for _, total, _ in seen[:1])


def test_a_token_is_explained_by_the_nats_of_each_adapter(address, engine):
    arguments = {"prompt": "Where is the red lamp?", "mix": "One=1,Two=0.5", "answer": "In the north room."}
    whole = call(address, "viewer", "explain_token", **arguments).structured_content
    assert "".join(t["text"] for t in whole["tokens"]) == whole["answer"]
    assert all(len(t["by_adapter"]) == 2 and t["log_prob"] <= 0 for t in whole["tokens"])
    one = call(address, "viewer", "explain_token", **arguments, token=1).structured_content
    assert one["tokens"] == [whole["tokens"][1]]
    beyond = call(address, "viewer", "explain_token", **arguments, token=500)
    assert beyond.is_error and "got the index 500" in beyond.content[0].text


@pytest.mark.parametrize("tool", ["start_training", "stop_run"])
def test_a_viewer_may_not_train(address, engine, tool):
    before = len(engine.runs.list())
    arguments = {"run": "x"} if tool == "stop_run" else {"kind": "domain", "dataset": "x", "name": "x"}
    result = call(address, "viewer", tool, **arguments)
    assert result.is_error and "needs the role trainer, and you are viewer" in result.content[0].text
    assert len(engine.runs.list()) == before


def test_without_a_credential_the_endpoint_answers_401(address):
    response = httpx.post(address, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "tool, arguments, words",
    [
        ("stop_run", {}, "run: Field required"),
        ("stop_run", {"run": "gone"}, "'gone'"),
        ("compare_mixes", {"prompt": "x", "mixes": ["Onee"]}, "One"),
        ("compare_mixes", {"prompt": "x", "mixes": []}, "mixes"),
        ("compare_mixes", {"prompt": "x", "mixes": ["One=nan"]}, "between -2 and 2"),
        ("compare_mixes", {"prompt": "lamp " * 4000, "mixes": ["base"]}, "at most"),
        ("learn_weights", {"adapters": ["base"], "dataset": "x"}, "must be one adapter"),
        ("start_training", {"kind": "domain", "dataset": "gone", "name": "A", "settings": {}}, "gone"),
        ("delete_everything", {}, "The tool must be one of list_adapters"),
    ],
)
def test_wrong_arguments_are_answered_with_what_is_allowed(address, tool, arguments, words):
    result = call(address, "owner", tool, **arguments)
    assert result.is_error and words in result.content[0].text, result.content[0].text


def test_a_defect_in_a_tool_is_logged_without_the_text_of_the_caller(engine, address, monkeypatch, caplog):
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret prompt")

    monkeypatch.setattr(engine.chat, "stream", fail)
    with caplog.at_level(logging.INFO):
        result = call(address, "viewer", "compare_mixes", prompt="secret prompt", mixes=["base"])
    assert result.is_error and "could not be used" in result.content[0].text
    assert "ZeroDivisionError" in caplog.text and "secret prompt" not in caplog.text


def test_every_tool_names_a_role_and_documents_its_arguments():
    assert {t.name for t in TOOLS.values() if t.role is Role.TRAINER} == {"start_training", "stop_run"}
    for tool in TOOLS.values():
        assert tool.role >= Role.VIEWER and tool.description.endswith((".", "minutes."))
        assert tool.arguments.model_json_schema()["examples"]
