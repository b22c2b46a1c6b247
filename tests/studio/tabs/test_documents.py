"""Documents in Mix and Compare over a real engine: passages below the answers, switches, and errors."""

from __future__ import annotations

import pytest

from core.engine import Engine
from core.errors import SpecError
from studio.components import documents
from studio.session import Session
from studio.tabs import compare, mix
from tests.conftest import SENTENCES, build_tiny_llama
from tests.studio.tabs.conftest import sampling, texts

pytestmark = pytest.mark.slow
QUESTION = "Where is the blue bell?"


@pytest.fixture(scope="module")
def long_engine(tmp_path_factory):
    base = build_tiny_llama(tmp_path_factory.mktemp("base"), max_position_embeddings=1024)
    with Engine(tmp_path_factory.mktemp("ws"), str(base), quantization="none", device="cpu") as made:
        made.bases.current(wait=True)
        file = tmp_path_factory.mktemp("texts") / "notes.txt"
        file.write_text("\n\n---\n\n".join(SENTENCES[:48]), encoding="utf-8")
        made.datasets.import_files([file], "Notes")
        yield made


def test_an_answer_of_the_mixer_shows_the_passages_it_was_given(long_engine):
    (dataset,) = long_engine.datasets.list()
    field, extra = documents.refresh(long_engine, ["gone-0000"])
    assert field["choices"] == [("Notes", dataset.id)] and field["value"] == []
    assert "Passages are found by their words" in texts(extra)
    session = Session()
    settings = [*sampling(max_new_tokens=4), "", False, [dataset.id]]
    shown = [texts(f) for f in mix.stream_answer(long_engine, QUESTION, [], session, False, *settings)]
    assert any("being indexed" in frame for frame in shown[:3])
    assert "[1] Text" in shown[-1] and "blue bell" in shown[-1]
    assert session.exchanges[0].passages.used
    with pytest.raises(SpecError, match="Documents answer questions"):
        list(mix.stream_answer(long_engine, QUESTION, [], Session(), True, *settings))


def test_each_column_has_a_switch_and_a_blind_test_refuses_documents(long_engine):
    (dataset,) = long_engine.datasets.list()
    assert compare.show_switches(long_engine, [dataset.id]).props["documents"] is True
    value = {"picks": ["base", "base"], "plain": [True, False]}
    settings = [*sampling(max_new_tokens=4), False, "", False, [dataset.id]]
    *_, last = compare.stream_answers(long_engine, QUESTION, value, [], Session(), True, *settings)
    assert last["plain"] == [True, False]
    assert ["[1] Text" in texts(column) for column in last["columns"]] == [False, True]
    with pytest.raises(SpecError, match="without documents"):
        list(compare.stream_blind_test(long_engine, QUESTION, value, [], Session(), True, *settings))
