"""Documents in Mix and Compare over a real engine: passages below the answers, switches, and errors."""

from __future__ import annotations

import gradio as gr
import pytest

from core.engine import Engine
from core.errors import SpecError
from core.spec.mix import Mix, Sampling
from studio.components import documents, mixer
from studio.session import Session, make_messages
from studio.tabs import compare, mix
from studio.views import what_helps
from tests.conftest import SENTENCES, build_tiny_llama
from tests.core.merge.test_bake import SHAPES, add_random_adapter
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


def ask_what_helps(engine, prompt, rows=None, chosen=(), **changes):
    settings = [*sampling(max_new_tokens=4, **changes), True, "Be brief.", False, list(chosen)]
    value = {"picks": ["base", "base"], "touched": True}
    session = Session()
    board, *rest = compare.set_what_helps(engine, prompt, value, rows, session, False, *settings)
    assert board.constructor_args["documents"] is True
    sampled, (_, system, thinking, _) = settings[:-4], settings[-4:]
    now = (*sampled, rest[2], system, thinking, rest[0]["value"])  # what the page sends then
    shown = compare.answer_what_helps(
        engine, prompt, board.constructor_args["value"], rows, session, rest[1], *now
    )
    return board.constructor_args["value"], rest, [v for v in shown if v != gr.skip()]


def test_one_click_needs_an_adapter_and_documents(long_engine):
    button, about = what_helps.refresh(long_engine)
    assert button["interactive"] is False and "needs an adapter" in texts(about)
    with pytest.raises(SpecError, match="needs an adapter"):
        ask_what_helps(long_engine, QUESTION)


def test_one_click_asks_base_and_mix_without_and_with_documents(long_engine):
    (dataset,) = long_engine.datasets.list()
    resident = long_engine.resident_base.get
    law, odd = long_engine.worker.call(
        lambda: [add_random_adapter(resident(), name, *SHAPES[name]) for name in ("law", "odd")]
    )
    assert what_helps.refresh(long_engine)[0]["interactive"] is True
    value, (chosen, same_noise, *mode), answers = ask_what_helps(long_engine, " ")
    assert answers == [] and value["columns"] == [] and value["plain"] == [True, False] * 2
    assert chosen["value"] == [dataset.id] and (same_noise, mode) == (True, [False, True])
    rows = mixer.apply_mix(None, mixer.adapter_rows(long_engine), Mix(weights={odd: 0.5}))
    *_, answers = ask_what_helps(long_engine, QUESTION, rows, [dataset.id], temperature=0.9, seed=3)
    value = answers[-1]
    assert (
        value["picks"] == ["base", "base", f"{odd}=0.5", f"{odd}=0.5"]
        and "odd" in value["names"][f"{odd}=0.5"]
    )
    shown = [texts(column) for column in value["columns"]]
    assert ["[1] Text" in text for text in shown] == [False, True] * 2
    passages = long_engine.retrieval.search(dataset.id, QUESTION)
    mixes, messages = [Mix(), Mix(weights={odd: 0.5})], make_messages("Be brief.", [], QUESTION)
    for number, mix_of in enumerate((mixes[0], mixes[0], mixes[1], mixes[1])):
        given = passages if number % 2 else None
        how = Sampling(max_new_tokens=4, temperature=0.9, seed=3)
        alone = long_engine.chat.stream(messages, [mix_of], how, passages=[given]).last().columns[0]
        assert alone.text in shown[number], "the same noise in every column"
    assert law not in str(value["picks"])
