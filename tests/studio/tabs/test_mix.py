"""The tilt of a mix over a real engine, without a browser: saved, loaded and shared by a link."""

from __future__ import annotations

import pytest

from core.errors import SpecError
from studio.components import mixer
from studio.session import Session
from studio.tabs import mix
from tests.studio.tabs.conftest import ids, nodes, rows_of, sampling, texts

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("tilt", [1.0, -1.0, 0.5])
def test_the_tilt_survives_saving_and_loading(engine, tilt):
    domain, task = ids(engine)
    rows = rows_of(engine, {domain: 0.5, task: 1.0}, {domain: tilt})
    assert mixer.read_mix(rows).tilt == {domain: tilt}
    _, saved = mix.save_mix(engine, f"Leaning {tilt}", rows)
    kept = engine.library.mix(saved["value"])
    assert (kept.weights, kept.tilt) == ({domain: 0.5, task: 1.0}, {domain: tilt})
    back = mix.load_mix(engine, saved["value"], rows_of(engine, {task: 2.0}, {task: 1.0}))
    assert {r["id"]: (r["on"], r["weight"], r["tilt"]) for r in back} == {
        domain: (True, 0.5, tilt),
        task: (True, 1.0, 0.0),
    }
    assert str(mixer.read_mix(back)) == str(kept.mix) == f"{domain}=0.5@{tilt:g} + {task}"
    engine.library.rename("mixes", kept.id, "Renamed")
    assert engine.library.mix(kept.id).tilt == {domain: tilt}
    mix.delete_mix(engine, kept.id)


@pytest.mark.parametrize("tilt, said", [(1.0, " (deep)"), (-1.0, " (shallow)"), (0.5, " (@0.5)")])
def test_a_link_carries_the_tilt_and_the_stamp_shows_it(engine, tilt, said):
    domain, task = ids(engine)
    rows, prompt, _, word = mix.open_link(
        engine, f"?mix={domain}=0.5@{tilt:g}&prompt=Where%3F", rows_of(engine, {task: 1.0})
    )
    assert {r["id"]: (r["on"], r["tilt"]) for r in rows} == {domain: (True, tilt), task: (False, 0.0)}
    *_, last = mix.answer_link(engine, word, prompt, rows, Session(), False, *sampling(max_new_tokens=3))
    stamped = next(texts(n) for n in nodes(last) if n.get("cls") == "stamp")
    assert stamped == f"base · {domain} +0.50 @{tilt:g} ({engine.library.adapter(domain).sha256[:8]})"
    assert f"0.50 · Sample domain{said}" in texts(last), "the formula says it in words"


@pytest.mark.parametrize("tilt", ["1", 1.5, float("nan"), True, [1]])
def test_a_tilt_outside_its_limits_is_refused(tilt):
    with pytest.raises(SpecError, match="tilt of 'a'"):
        mixer.read_mix([{"id": "a", "on": True, "weight": 1.0, "tilt": tilt}])
