"""Names of models become mixes; unknown ones list the nearest, and unusable ones say why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.engine import Engine
from core.errors import SpecError
from core.server.model_names import ModelNotFound, find_model, list_models
from core.server.problems import Problem
from core.spec.mix import Mix
from tests.core.merge.test_bake import SHAPES, add_random_adapter

from .random_library import calibrate_gate, find_id, open_engine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_engine(tiny_base, tmp_path_factory.mktemp("ws")) as made:
        yield made


def refuse(engine: Engine, text: str) -> Problem:
    with pytest.raises(Problem) as caught:
        find_model(engine, text)
    return caught.value


def test_base_adapters_by_id_and_name_and_saved_mixes_are_models(engine: Engine) -> None:
    law, chat = find_id(engine, "law"), find_id(engine, "chat")
    saved = engine.library.save_mix("Tone", {law: 0.5, chat: -1.0}, {law: 1.0})
    assert find_model(engine, "base").mix == Mix()
    assert find_model(engine, law).mix == find_model(engine, "Law").mix == Mix(weights={law: 1.0})
    for name in ("Tone", saved.id, f"  {saved.id} "):
        model = find_model(engine, name)
        assert model.mix.weights == {law: 0.5, chat: -1.0} and model.mix.tilt == {law: 1.0}
    listed = {m.id: m.to_json() for m in list_models(engine)}
    assert list(listed)[0] == "base" and {law, chat, saved.id} < set(listed) and "auto" not in listed
    entry = listed[saved.id]
    assert entry["weights"] == {law: 0.5, chat: -1.0} and set(entry["parents"]) == {law, chat}
    assert entry["digests"][law] == engine.library.adapter(law).sha256
    assert entry["created"] > 1_700_000_000 and entry["object"] == "model" and entry["name"] == "Tone"
    engine.library.delete("mixes", saved.id)


def test_a_mix_is_written_with_ids_or_names(engine: Engine) -> None:
    law, odd = find_id(engine, "law"), find_id(engine, "odd")
    model = find_model(engine, f"mix:Law=0.7,{odd}@-1")
    assert model.mix == Mix(weights={law: 0.7, odd: 1.0}, tilt={odd: -1.0})
    assert model.parents == (law, odd) and find_model(engine, "mix:base").mix == Mix()
    with pytest.raises(SpecError, match="between -2 and 2") as caught:
        find_model(engine, "mix:law=9")
    with pytest.raises(SpecError, match="between -2 and 2"):
        find_model(engine, "mix:law=nan")
    with pytest.raises(SpecError, match="names an adapter twice") as caught:
        find_model(engine, f"mix:Law=1,{law}=2")
    assert caught.value.field == "model"


weights = st.floats(-2, 2, allow_nan=False).filter(bool)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["law", "chat", "odd"]), st.tuples(weights, st.floats(-1, 1))))
def test_the_text_of_any_mix_names_the_same_mix(engine: Engine, drawn: dict) -> None:
    mix = Mix(
        weights={find_id(engine, n): w for n, (w, _) in drawn.items()},
        tilt={find_id(engine, n): t for n, (_, t) in drawn.items()},
    )
    found = find_model(engine, "mix:" + str(mix)).mix
    assert found.weights == mix.weights and found.tilt == mix.tilt


def test_an_unknown_name_lists_the_nearest_ones(engine: Engine) -> None:
    error = refuse(engine, "lawn")
    assert isinstance(error, ModelNotFound) and error.status == 404 and "'law'" in error.fix
    value = error.to_json()
    assert value["error"]["code"] == "model_not_found" and value["field"] == "model"
    assert "'chat'" in refuse(engine, "mix:law=1,Chatt=0.5").fix
    assert "'base'" in refuse(engine, "gpt-9-turbo").fix
    assert len(refuse(engine, "x" * 2000).to_json()["detail"]) < 400


def test_a_name_of_two_adapters_asks_for_an_id(engine: Engine) -> None:
    odd = find_id(engine, "odd")
    engine.library.rename("adapters", odd, "Law")
    try:
        error = refuse(engine, "Law")
        assert error.status == 422 and odd in error.fix
        assert refuse(engine, "mix:Law=1").status == 422
        assert find_model(engine, odd).mix.weights == {odd: 1.0}
    finally:
        engine.library.rename("adapters", odd, "Odd")


def test_what_cannot_be_mixed_is_refused_with_the_reason(engine: Engine) -> None:
    chat, law = find_id(engine, "chat"), find_id(engine, "law")
    saved = engine.library.save_mix("Both", {chat: 1.0, law: 1.0})
    entry = engine.library.delete("adapters", chat)
    try:
        error = refuse(engine, "Both")
        assert error.status == 409 and "'Chat' was deleted" in error.what
        assert saved.id not in [m.id for m in list_models(engine)]
        assert refuse(engine, f"mix:{chat}=1").status == 404
    finally:
        engine.library.restore(entry.entry)
    engine.library.delete("mixes", saved.id)


def test_an_adapter_of_another_base_is_refused_and_not_listed(engine: Engine) -> None:
    base = SimpleNamespace(name="elsewhere", fingerprint="0" * 64)
    far = add_random_adapter(SimpleNamespace(base=base, workspace=engine.workspace), "far", *SHAPES["law"])
    error = refuse(engine, far)
    assert error.status == 409 and "elsewhere" in error.what
    assert far not in [m.id for m in list_models(engine)]
    engine.library.delete("adapters", far)


def test_auto_needs_a_gate_that_works(engine: Engine) -> None:
    law, chat = find_id(engine, "law"), find_id(engine, "chat")
    error = refuse(engine, "auto")
    assert error.status == 409 and "none has a calibration" in error.what and "Calibrate" in error.fix
    error = refuse(engine, "mix:law=auto")
    assert error.status == 409 and "'Law' cannot be on Auto: it is not calibrated yet" in error.what
    calibrate_gate(engine, law)
    calibrate_gate(engine, chat, area=0.55)
    assert find_model(engine, "auto").mix == Mix(weights={law: 1.0}, auto={law: "hard"})
    assert "auto" in [m.id for m in list_models(engine)]
    assert find_model(engine, "mix:law=auto:0.5,odd=1").mix.auto == {law: "hard"}
    assert "hardly told apart" in refuse(engine, "mix:chat=auto").what
