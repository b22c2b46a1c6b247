"""The Weight map pane over a real engine, without a browser: maps and weight searches."""

from __future__ import annotations

import dataclasses
import json

import gradio as gr
import pytest

from core.errors import AdapterError, NotFound, SpecError
from core.spec.mix import Mix
from studio import samples
from studio.components import mixer
from studio.tabs import analysis, weight_map
from studio.tabs.analysis_session import AnalysisSession
from studio.views import weight_map as map_views
from tests.studio.tabs.conftest import acts, cells, draw, ids, marks, pressed, rows_of, sampling, texts

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_maps")]


def test_newest_adapters_and_held_out_questions_are_picked_first(engine):
    domain, task = ids(engine)
    x, y, data = weight_map.refresh(engine, None, None, None)
    assert (x["value"], y["value"], data["value"]) == (domain, task, samples.list_held_out(engine)[0])
    assert {i for _, i in x["choices"]} == {a.id for a in engine.library.adapters()} and len(
        data["choices"]
    ) == 3
    kept = weight_map.refresh(engine, task, domain, engine.library.adapter(task).dataset)
    assert all("value" not in update for update in kept), "what someone chose is not sent back to them"
    x, y, data = weight_map.refresh(engine, "gone", domain, "gone")
    assert (x["value"], y["value"], data["value"]) == (domain, task, samples.list_held_out(engine)[0]), (
        "one adapter is never on both axes"
    )


def test_an_empty_library_picks_nothing_and_every_button_says_what_is_missing(empty):
    assert [u.get("value") for u in weight_map.refresh(empty, None, None, None)] == [None] * 3
    session = AnalysisSession()
    for ask in (
        weight_map.draw_map(empty, None, None, None, 4, None, session, "perplexity"),
        weight_map.search_weights(empty, None, "a", None, 4, None, session),
    ):
        with pytest.raises(SpecError, match="needs two adapters"):
            next(ask)
    with pytest.raises(SpecError, match="No dataset is chosen"):
        next(weight_map.draw_map(empty, "a", "b", None, 4, None, session, "perplexity"))
    with pytest.raises(NotFound):
        list(weight_map.draw_map(empty, "a", "b", "nowhere", 4, None, session, "perplexity"))
    for prompt in ("", "  \n"):
        with pytest.raises(SpecError, match="The prompt is empty"):
            next(analysis.explain_answer(empty, prompt, None, session, False, *sampling()))
    with pytest.raises(AdapterError, match="The mix is empty"):
        list(analysis.bake_mix(empty, None, session, "Nothing", "svd", 0, 0.5))
    with pytest.raises(SpecError, match="Give two or more adapters a weight"):
        list(analysis.compare_adapters(empty, "Where?", None, session))


def test_a_map_shows_its_numbers_and_marks_its_best_point_and_the_mixer(engine):
    domain, task = ids(engine)
    session = AnalysisSession()
    figure, details = draw(engine, session, rows=rows_of(engine, {domain: 0.5, task: -0.25}))
    best = session.map.best
    assert session.map.complete and marks(figure) == {"Best": (best.x, best.y), "Mixer": (0.5, -0.25)}
    field = figure["traces"][0]
    assert (
        field["type"] == "contour"
        and field["text"] == [[f"{v:.3g}" for v in row] for row in session.map.values]
        and figure["pick"]
    )
    assert (field["x"], field["y"]) == ([0.0, 0.5, 1.0], [0.0, 0.5, 1.0])
    head, *lines = cells(details)
    assert head == ["Sample task \\ Sample domain", "0", "0.5", "1"]
    assert lines == [
        [f"{y:g}", *[f"{v:.3g}" for v in row]]
        for y, row in reversed(list(zip(session.map.ys, session.map.values)))
    ]
    assert acts(details) == [
        {"weights": {domain: best.x, task: best.y}, "tilt": {}}
    ] and f"{best.value:.3g}" in texts(details)


def test_the_other_adapters_of_the_mix_keep_their_weights_on_the_map(engine):
    domain, task = ids(engine)
    baked = engine.library.bake(Mix(weights={domain: 1.0, task: 1.0}), bake_spec("Third")).last().adapter.id
    session = AnalysisSession()
    _, details = draw(engine, session, rows=rows_of(engine, {domain: 1.0, baked: 0.5}), limit=2)
    assert session.map.fixed == {baked: 0.5} and acts(details)[0]["weights"][baked] == 0.5
    new_rows, _ = weight_map.pick_mix(engine, rows_of(engine, {}), session, pressed(x=0.5, y=1.0))
    assert mixer.read_mix(new_rows).weights == {domain: 0.5, task: 1.0, baked: 0.5}
    engine.library.delete("adapters", baked)


def bake_spec(name, method="concat"):
    from core.merge.methods import BakeSpec

    return BakeSpec(name=name, method=method)


def test_a_click_on_the_map_sets_the_mixer_to_exactly_that_mix(engine):
    domain, task = ids(engine)
    session = AnalysisSession()
    draw(engine, session)
    off = rows_of(engine, {})
    new_rows, figure = weight_map.pick_mix(engine, off, session, pressed(x=0.5, y=1.0))
    assert {r["id"]: (r["on"], r["weight"]) for r in new_rows} == {domain: (True, 0.5), task: (True, 1.0)}
    assert marks(figure)["Mixer"] == (0.5, 1.0)
    tilted = rows_of(engine, {domain: 1.0}, {domain: 1.0})
    new_rows, figure = weight_map.pick_mix(engine, tilted, session, pressed(x=0.0, y=0.5))
    assert mixer.read_mix(new_rows) == dataclasses.replace(
        mixer.read_mix(new_rows), weights={task: 0.5}, tilt={}
    ), "as it was measured: off is off, and nothing leans"
    assert marks(figure)["Mixer"] == (0.0, 0.5)


def test_weights_of_a_button_set_the_mixer_even_without_a_map(engine):
    domain, task = ids(engine)
    new_rows, figure = weight_map.pick_mix(
        engine,
        rows_of(engine, {domain: 1.0}),
        AnalysisSession(),
        pressed(weights={domain: -0.3, task: 1.2345}),
    )
    assert mixer.read_mix(new_rows).weights == {domain: -0.3, task: 1.2345} and figure == gr.skip()
    assert weight_map.pick_mix(engine, new_rows, AnalysisSession(), pressed(x=1, y=1)) == (
        gr.skip(),
        gr.skip(),
    ), "there is no map to click on"
    session = AnalysisSession()
    draw(engine, session)
    for said in ({"weights": {domain: 3.0}}, {"weights": "all"}, {"x": "1", "y": 1.0}, {}):
        with pytest.raises(SpecError):
            weight_map.pick_mix(engine, new_rows, session, pressed(**said))


def test_the_mark_follows_the_mixer(engine):
    domain, task = ids(engine)
    session = AnalysisSession()
    assert weight_map.mark_mixer(engine, rows_of(engine, {domain: 1.0}), session) == gr.skip()
    draw(engine, session)
    assert marks(weight_map.mark_mixer(engine, rows_of(engine, {domain: 0.2, task: 0.3}), session))[
        "Mixer"
    ] == (
        0.2,
        0.3,
    )
    assert marks(weight_map.mark_mixer(engine, rows_of(engine, {}), session))["Mixer"] == (0.0, 0.0)


def test_a_map_keeps_the_tilt_of_the_mix_and_a_click_tilts_the_mixer(engine):
    domain, task = ids(engine)
    session = AnalysisSession()
    draw(engine, session, rows=rows_of(engine, {domain: 1.0, task: 1.0}))
    even = session.map
    leaning = rows_of(engine, {domain: 1.0, task: 1.0}, {domain: 1.0})
    figure, details = draw(engine, session, rows=leaning)
    assert session.map.tilt == {domain: 1.0} and session.map.values != even.values
    assert marks(figure)["Mixer"] == (1.0, 1.0) and "keep the tilts" in json.dumps(details)
    assert "Mixer" not in marks(
        weight_map.mark_mixer(engine, rows_of(engine, {domain: 1.0, task: 1.0}), session)
    ), "an even mix is not on this map"
    new_rows, figure = weight_map.pick_mix(engine, rows_of(engine, {}), session, pressed(x=0.5, y=1.0))
    assert mixer.read_mix(new_rows).tilt == {domain: 1.0} and marks(figure)["Mixer"] == (0.5, 1.0)


def test_a_stopped_map_stays_as_measured_and_continues_later(engine, gate):
    domain, task = ids(engine)
    session = AnalysisSession()
    gate.until = lambda part: bool(part.map.points)
    drawing = weight_map.draw_map(
        engine, domain, task, engine.library.adapter(domain).dataset, 2, None, session, "perplexity"
    )
    figure, details = next(drawing)
    while not session.map.points:
        figure, details = next(drawing)
    assert "busy" in str(details) and figure["traces"][0]["type"] == "heatmap"
    weight_map.stop(engine, session)
    gate.set()
    figure, details = list(drawing)[-1]
    assert "points are measured" in texts(details) and "busy" not in str(details) and not session.map.complete
    assert figure["traces"][0]["type"] == "heatmap" and [None] * 3 in figure["traces"][0]["z"]
    partly = session.map.values[0]
    *_, (figure, _) = weight_map.draw_map(
        engine, domain, task, engine.library.adapter(domain).dataset, 2, None, session, "perplexity"
    )
    assert (
        session.map.complete and session.map.values[0] == partly and figure["traces"][0]["type"] == "contour"
    )


def test_exact_match_is_mapped_in_percent(engine):
    session = AnalysisSession()
    figure, details = draw(engine, session, "exact_match", limit=2)
    assert all(
        t.endswith("%") for row in figure["traces"][0]["text"] for t in row
    ) and "exact match" in texts(details)


def test_a_search_result_is_compared_with_every_method_and_marked_on_the_map(engine):
    domain, task = ids(engine)
    session, data = AnalysisSession(), samples.list_held_out(engine)[0]
    draw(engine, session, limit=4)
    *_, (figure, details) = weight_map.search_weights(
        engine, domain, task, data, 4, rows_of(engine, {domain: 1.0, task: 1.0}), session
    )
    best = session.search.result("gradient").weights
    assert marks(figure)["Search result"] == (best[domain], best[task])
    head, *lines = cells(details)
    assert head[:3] == ["Method", "Sample domain", "Sample task"]
    assert {row[0].split(",")[0] for row in lines} == set(map_views.SEARCH_LABELS.values())
    gradient = next(row for row in lines if row[0].startswith("Gradient descent, "))
    assert gradient[0].endswith(" s")
    assert gradient[1:3] == [f"{best[a]:.2f}" for a in (domain, task)] and gradient[5].endswith("%")
    assert session.search.result("grid").note == "read from a map of 9 points"
    assert {"weights": best, "tilt": {}} in acts(details) and len(acts(details)) == 2
    new_rows, _ = weight_map.pick_mix(engine, rows_of(engine, {}), session, pressed(**acts(details)[-1]))
    assert mixer.read_mix(new_rows).weights == {a: w for a, w in best.items() if w}


def test_a_stopped_search_says_so(engine, gate):
    domain, task = ids(engine)
    session = AnalysisSession()
    learning = weight_map.search_weights(
        engine, domain, task, samples.list_held_out(engine)[0], 2, None, session
    )
    assert "busy" in str(next(learning)[1])
    weight_map.stop(engine, session)
    gate.set()
    assert texts(list(learning)[-1][1]).startswith("Stopped")
