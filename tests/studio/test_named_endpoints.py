"""Named endpoints of the page, through the real client of Gradio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gradio_client
import pytest
from gradio_client.exceptions import AppError

from core.engine import Engine
from core.store.api_keys import ApiKeys
from studio.app import serve
from tests.browser.conftest import free_port
from tests.conftest import SENTENCES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def studio(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, str]]:
    workspace = tmp_path_factory.mktemp("ws")
    with Engine(workspace, str(tiny_base), quantization="none", device="cpu") as engine:
        engine.bases.current(wait=True)
        engine.library.save_mix("Plain", {})
        page = serve(engine, port=free_port(), link=True, block=False)
        yield engine, page.local_url
        page.close(verbose=False)


@pytest.fixture(scope="module")
def client(studio: tuple[Engine, str]) -> gradio_client.Client:
    engine, url = studio
    _, secret = ApiKeys(engine.workspace).create("a program", "viewer")
    return gradio_client.Client(url, headers={"x-api-key": secret}, verbose=False)


def test_the_endpoints_are_the_public_ones_of_the_page(client: gradio_client.Client) -> None:
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {"/answer_prompt", "/compare_models", "/list_models"}
    assert [p["parameter_name"] for p in named["/compare_models"]["parameters"]] == [
        "prompt",
        "models",
        "max_new_tokens",
        "temperature",
        "seed",
    ]


def test_a_client_lists_models_and_gets_the_answers_of_the_engine(
    studio: tuple[Engine, str], client: gradio_client.Client
) -> None:
    from core.spec.mix import Mix, Sampling

    engine, _ = studio
    models = client.predict(api_name="/list_models")
    assert [m["name"] for m in models] == ["Base", "Plain"]
    found = client.predict("Where is the lamp?", ["base", "Plain"], 8, api_name="/compare_models")
    expected = engine.chat.stream("Where is the lamp?", [Mix()], Sampling(max_new_tokens=8)).last()
    assert [f["text"] for f in found] == [expected.columns[0].text] * 2
    assert found[0]["active"]["base_fingerprint"] == expected.columns[0].stamp["base_fingerprint"]
    one = client.predict("Where is the lamp?", max_new_tokens=8, api_name="/answer_prompt")
    assert one["text"] == found[0]["text"] and one["model"] == "base"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("Where?", ["lost"]), "lost"),
        (("Where?", ["base"], 0), "between 1 and"),
        (("Where?", []), "number of mixes"),
        (("  ", ["base"]), "prompt is empty"),
        (("Where?", ["base+documents"]), "no documents to answer from"),
    ],
)
def test_a_client_reads_what_is_wrong(
    client: gradio_client.Client, arguments: tuple[object, ...], words: str
) -> None:
    with pytest.raises(AppError, match=words):
        client.predict(*arguments, api_name="/compare_models")


def test_t22_without_a_key_the_client_gets_nothing(studio: tuple[Engine, str]) -> None:
    with pytest.raises(Exception, match="credentials were not provided"):
        gradio_client.Client(studio[1], verbose=False)


def test_a_client_gets_answers_with_and_without_documents(
    studio: tuple[Engine, str], client: gradio_client.Client, tmp_path: Path
) -> None:
    engine, _ = studio
    file = tmp_path / "notes.txt"
    file.write_text("\n\n---\n\n".join(SENTENCES[:40]), encoding="utf-8")
    engine.datasets.import_files([file], "Notes", "domain")
    models = client.predict(api_name="/list_models")
    assert [m["id"] for m in models[:1] + models[-1:]] == ["base", models[1]["id"] + "+documents"]
    names = ["base", "base+documents"]
    without, having = client.predict(SENTENCES[0], names, 4, api_name="/compare_models")
    assert without["passages"] is None and having["passages"][0]["dataset_name"] == "Notes"
    assert SENTENCES[0] in having["passages"][0]["text"]
