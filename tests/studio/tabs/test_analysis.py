"""The analysis card over a real engine, without a browser: attribution, interference and baking."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from core.errors import AdapterError, SpecError
from core.spec.mix import Sampling
from studio import samples
from studio.components import mixer, plot
from studio.session import Session
from studio.tabs import analysis, weight_map
from studio.tabs.analysis_session import AnalysisSession
from studio.views import analysis as analysis_views
from tests.core.train.test_training import wait_for
from tests.studio.tabs.conftest import EVIL, cells, draw, ids, nodes, rows_of, sampling, texts, toy_map

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_maps")]


def release_when_replaced(session, gate):
    """The worker goes on once the work under way was asked to end, not before."""

    def stop():
        AnalysisSession.stop(session)
        gate.set()

    session.stop = stop


def test_a_replaced_request_does_not_overwrite_the_new_one(engine, gate):
    domain, task = ids(engine)
    session, data = AnalysisSession(), samples.list_held_out(engine)[0]
    learning = weight_map.search_weights(engine, domain, task, data, 2, None, session)
    next(learning)
    drawing = weight_map.draw_map(engine, domain, task, data, 3, None, session, "perplexity")
    release_when_replaced(session, gate)
    next(drawing)
    assert list(learning) == [], "the map has the place now"
    assert session.stream is not None and list(drawing)


def test_a_request_that_another_one_ends_does_not_stay_busy(engine, gate):
    domain, task = ids(engine)
    both = rows_of(engine, {domain: 1.0, task: 1.0})
    ended = {
        "explained": lambda session: analysis.explain_answer(
            engine, "Where?", both, session, False, *sampling(max_new_tokens=8)
        ),
        "compared": lambda session: analysis.compare_adapters(engine, "Where?", both, session),
        "baked": lambda session: analysis.bake_mix(engine, both, session, "Never", "svd", 0, 0.5),
    }
    for name, ask in ended.items():
        gate.clear()
        session = AnalysisSession()
        asked = ask(session)
        assert "busy" in str(next(asked)), name
        other = weight_map.draw_map(
            engine, domain, task, samples.list_held_out(engine)[0], 2, both, session, "perplexity"
        )
        release_when_replaced(session, gate)
        next(other)
        *_, last = asked
        assert texts(last[0] if isinstance(last, tuple) else last).startswith("Stopped"), name
        list(other)
    assert all(a.name != "Never" for a in engine.library.adapters())
    wait_for(lambda: not engine.worker._open)
    assert engine.worker.call(lambda: engine.resident_base.get().mixer.weights) is None


def test_every_token_shows_which_adapter_made_it_more_likely(engine):
    domain, task = ids(engine)
    rows = rows_of(engine, {domain: 1.0, task: 0.5}, {task: -1.0})
    parts = list(
        analysis.explain_answer(
            engine, "Where is the lamp?", rows, AnalysisSession(), False, *sampling(max_new_tokens=6)
        )
    )
    lines = [n for n in nodes(parts[-1]) if n.get("cls", "").startswith("word-row")]
    assert [texts(n["kids"][0]) for n in lines] == ["All adapters", "Sample domain", "Sample task"]
    assert [n["cls"] for n in lines] == ["word-row mix", "word-row domain", "word-row task"]
    *_, written = Session().stream_frames(
        engine, "Where is the lamp?", [mixer.read_mix(rows)], Sampling(max_new_tokens=6)
    )
    assert all(texts(n["kids"][1]).strip() == written.columns[0].text.strip() for n in lines)
    tokens = [n for n in nodes(lines[0]) if n.get("cls", "").startswith("word ")]
    assert all((n["cls"] == "word more") == (not n["attrs"]["title"].startswith("-")) for n in tokens)
    head, *numbers = cells(parts[-1])
    assert head == ["Token", "All adapters", "Sample domain", "Sample task", "Log-probability"]
    assert [row[1] for row in numbers] == [n["attrs"]["title"].split()[0] for n in tokens]


def test_tokens_that_look_like_markup_are_texts():
    from core.analyze.attribution import Attribution

    found = Attribution({"a": 1.0}, ("<b>", "&amp;"), (-1.0, -2.0), (-2.0, -1.0), {"a": (-1.5, -2.5)})
    tree = analysis_views.render_attribution(found, {"a": (EVIL, "domain")})
    assert [texts(n) for n in nodes(tree) if n.get("cls", "").startswith("word ")] == ["<b>", "&amp;"] * 2
    assert EVIL in texts(tree) and cells(tree)[1] == ["<b>", "+1.00", "+0.50", "-1.00"]


def test_two_adapters_are_compared_layer_by_layer_and_on_the_prompt(engine):
    domain, task = ids(engine)
    *_, (details, figure) = analysis.compare_adapters(
        engine, "Where is the lamp?", rows_of(engine, {domain: 1.0, task: 1.0}), AnalysisSession()
    )
    assert "On the prompt" in texts(details) and "Sample domain and Sample task" in texts(details)
    assert [row[0] for row in cells(details)[1:]] == ["All", "0", "1"]
    field = figure["traces"][0]
    assert (
        field["y"] == ["Layer 0", "Layer 1"]
        and len(field["z"]) == 2
        and all(len(r) == len(field["x"]) for r in field["z"])
    )
    assert (
        field["zmin"] == -field["zmax"]
        and max(abs(v) for r in field["z"] for v in r if v is not None) <= field["zmax"]
    )
    *_, (details, _) = analysis.compare_adapters(
        engine, "", rows_of(engine, {domain: 1.0, task: 1.0}), AnalysisSession()
    )
    assert "On the prompt" not in texts(details)
    with pytest.raises(SpecError, match="got 1 in .*Give two or more adapters"):
        list(analysis.compare_adapters(engine, "Where?", rows_of(engine, {domain: 1.0}), AnalysisSession()))


def test_a_baked_mix_is_added_to_the_library_and_the_mixer(engine):
    domain, task = ids(engine)
    parts = list(
        analysis.bake_mix(
            engine,
            rows_of(engine, {domain: 1.0, task: 0.5}, {domain: -1.0}),
            AnalysisSession(),
            "Both of them",
            "concat",
            0,
            0.5,
        )
    )
    assert (
        all("busy" in str(p) for p in parts[:-1])
        and "Both of them is baked" in texts(parts[-1])
        and "equals the mix, except for rounding" in texts(parts[-1])
    )
    made = next(a for a in engine.library.adapters() if a.name == "Both of them")
    assert made.metadata["mix"]["tilt"] == {domain: -1.0}
    assert made.id in [r["id"] for r in mixer.adapter_rows(engine)] and made.id in [
        i for _, i in weight_map.refresh(engine, None, None, None)[0]["choices"]
    ]
    engine.library.delete("adapters", made.id)
    before = len(engine.library.adapters())
    for wrong in ([], rows_of(engine, {})):
        with pytest.raises(AdapterError, match="The mix is empty"):
            list(analysis.bake_mix(engine, wrong, AnalysisSession(), "Nothing", "svd", 0, 0.5))
    with pytest.raises(SpecError, match="Rank is empty"):
        next(
            analysis.bake_mix(
                engine, rows_of(engine, {domain: 1.0}), AnalysisSession(), "Nothing", "svd", None, 0.5
            )
        )
    with pytest.raises(SpecError):
        next(
            analysis.bake_mix(
                engine, rows_of(engine, {domain: 1.0}), AnalysisSession(), "Nothing", "magic", 0, 0.5
            )
        )
    assert len(engine.library.adapters()) == before


def test_a_name_is_only_ever_text(engine):
    domain, task = ids(engine)
    engine.library.rename("adapters", domain, EVIL)
    try:
        session, rows = AnalysisSession(), rows_of(engine, {domain: 1.0, task: 1.0})
        figure, details = draw(engine, session)
        assert EVIL in texts(details) and all(EVIL not in str(n.get("attrs", "")) for n in nodes(details))
        drawn = json.dumps(figure)
        assert "<b>main" not in drawn and "<img" not in drawn and "%{x}" not in drawn
        assert figure["layout"]["xaxis"]["title"]["text"] == f"Weight of {plot.literal(EVIL)}"
        assert figure["traces"][0]["hovertemplate"].startswith(plot.literal(EVIL) + " %{x:.2f}<br>")
        *_, (details, figure) = analysis.compare_adapters(engine, "Where?", rows, session)
        assert EVIL in texts(details) and "<img" not in json.dumps(figure)
        *_, details = analysis.explain_answer(
            engine, "Where?", rows, session, False, *sampling(max_new_tokens=3)
        )
        assert EVIL in texts(details)
    finally:
        engine.library.rename("adapters", domain, "Sample domain")


def test_every_browser_session_has_its_own_analysis():
    import copy

    mine = AnalysisSession()
    mine.map, mine.stream = toy_map(), SimpleNamespace(close=lambda: None)
    other = copy.deepcopy(mine)
    assert other.map is None and other.stream is None and other.serial == 0
