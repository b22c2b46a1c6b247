"""What lies under the mixer, over a real engine and without a browser: maps, learned weights, words, meetings, baking; and the depth of a mix."""

from __future__ import annotations

import dataclasses
import json
import threading
from types import SimpleNamespace

import gradio as gr
import pytest

from core.analyze.weight_map import WeightMap
from core.analyze.search_results import SearchComparison, SearchResult
from core.engine import Engine
from core.engine.analysis import WeightAxis
from core.errors import AdapterError, NotFound, SpecError
from core.spec.mix import Mix, Sampling
from studio import fields, samples
from studio.components import bars, mixer, plot
from studio.session import SAMPLING, Session
from studio.tabs import analysis, mix, suggestions, weight_map
from studio.tabs.analysis_session import AnalysisSession
from studio.views import analysis as analysis_views
from studio.views import weight_map as map_views
from tests.browser.conftest import small_samples
from tests.core.train.test_training import wait_for

pytestmark = pytest.mark.slow
EVIL = 'Do<b>main & %{x} <img src=x onerror="alert(1)"> &lt;'


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory):
    """An engine with the sample data and two adapters that were trained for a few steps."""
    with Engine(
        tmp_path_factory.mktemp("analysis"), base=str(tiny_base), quantization="none", device="cpu"
    ) as made:
        made.samples = small_samples(tmp_path_factory.mktemp("samples"))
        samples.import_samples(made)
        for kind in ("domain", "task"):
            spec = suggestions.suggest_run(made, kind)
            spec = dataclasses.replace(
                spec,
                max_steps=6,
                batch_size=2,
                accumulation=1,
                max_length=64,
                rank=4,
                learning_rate=5e-3,
                stack_on="",
            )
            made.runs.wait(made.runs.start(spec), 600)
        yield made


@pytest.fixture(autouse=True)
def small_maps(monkeypatch):
    """Nine cells where the page has eighty-one."""
    monkeypatch.setattr("core.engine.analysis.WeightAxis", lambda: WeightAxis(0.0, 1.0, 3))


@pytest.fixture
def empty(tiny_base, tmp_path):
    with Engine(tmp_path, base=str(tiny_base), quantization="none", device="cpu") as made:
        yield made


@pytest.fixture
def held(engine, monkeypatch):
    """Until this is set, every stream waits after what it says where `until` is true."""
    go, real = threading.Event(), engine.worker.stream
    go.until = lambda part: True

    def stream(start):
        def steps():
            for part in start():
                yield part
                if go.until(part):
                    assert go.wait(60)

        return real(steps)

    monkeypatch.setattr(engine.worker, "stream", stream)
    return go


def pressed(**said):
    return gr.EventData(None, said)


def nodes(tree):
    """Every node of a tree, itself first."""
    yield tree
    for kid in tree["kids"]:
        assert isinstance(kid, str) or set(kid) <= {"tag", "kids", "cls", "act", "vars", "attrs"}
        if isinstance(kid, dict):
            yield from nodes(kid)


def texts(tree):
    return tree if isinstance(tree, str) else "".join(texts(k) for k in tree["kids"])


def acts(tree):
    return [n["act"] for n in nodes(tree) if "act" in n]


def cells(tree, which=0):
    """The rows of a table in a tree, as texts."""
    found = [n for n in nodes(tree) if n["tag"] == "table"][which]
    return [[texts(c) for c in n["kids"]] for n in nodes(found) if n["tag"] == "tr"]


def ids(engine):
    return (next(a.id for a in engine.library.adapters() if a.kind == kind) for kind in ("domain", "task"))


def rows_of(engine, weights, tilt=None):
    return mixer.apply_mix(None, mixer.adapter_rows(engine), Mix(weights=weights, tilt=tilt or {}))


def marks(figure):
    return {t["name"]: (t["x"][0], t["y"][0]) for t in figure["traces"][1:]}


def drawn_map(engine, session, metric="perplexity", rows=None, limit=4):
    domain, task = ids(engine)
    data = samples.find_held_out(engine)
    *_, last = weight_map.draw_map(
        engine,
        domain,
        task,
        data,
        limit,
        rows if rows is not None else rows_of(engine, {domain: 1.0, task: 1.0}),
        session,
        metric,
    )
    return last


def toy(metric="perplexity", holes=0, kind="task", values=None):
    """A map that was drawn elsewhere."""
    given = values or ((8.0, 4.0, 2.0), (9.0, 1.5, 90.0), (7.0, 6.0, 5.0))
    if metric == "exact_match":
        given = values or ((0.0, 0.25, 0.5), (0.1, 1.0, 0.2), (0.0, 0.0, 0.3))
    shown = tuple(tuple(None if j >= 3 - holes else v for v in row) for j, row in enumerate(given))
    return WeightMap(
        "k",
        ("d", "t"),
        {"f": 0.5},
        (0.0, 0.5, 1.0),
        (-1.0, 0.0, 1.0),
        metric,
        shown,
        {},
        "base",
        "fp",
        "none",
        "data",
        "Data",
        "sha",
        "val",
        kind,
        "sample",
        4,
        0.0,
    )


# --- what is offered


def test_the_axes_begin_with_the_newest_domain_and_task_and_the_data_with_the_held_out_questions(engine):
    domain, task = ids(engine)
    x, y, data = weight_map.refresh(engine, None, None, None)
    assert (x["value"], y["value"], data["value"]) == (domain, task, samples.find_held_out(engine))
    assert {i for _, i in x["choices"]} == {a.id for a in engine.library.adapters()} and len(
        data["choices"]
    ) == 3
    kept = weight_map.refresh(engine, task, domain, engine.library.adapter(task).dataset)
    assert all("value" not in update for update in kept), "what someone chose is not sent back to them"
    x, y, data = weight_map.refresh(engine, "gone", domain, "gone")
    assert (x["value"], y["value"], data["value"]) == (domain, task, samples.find_held_out(engine)), (
        "one adapter is never on both axes"
    )


def test_with_nothing_there_nothing_is_chosen_and_every_question_says_what_is_missing(empty):
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


def sampling(**changes):
    return [fields.to_component(getattr(Sampling(**changes), n)) for n in SAMPLING]


# --- maps


def test_a_drawn_map_shows_its_numbers_and_marks_its_best_cell_and_the_mixer(engine):
    domain, task = ids(engine)
    session = AnalysisSession()
    figure, told = drawn_map(engine, session, rows=rows_of(engine, {domain: 0.5, task: -0.25}))
    best = session.map.best
    assert session.map.complete and marks(figure) == {"Best": (best.x, best.y), "Mixer": (0.5, -0.25)}
    field = figure["traces"][0]
    assert (
        field["type"] == "contour"
        and field["text"] == [[f"{v:.3g}" for v in row] for row in session.map.values]
        and figure["pick"]
    )
    assert (field["x"], field["y"]) == ([0.0, 0.5, 1.0], [0.0, 0.5, 1.0])
    head, *lines = cells(told)
    assert head == ["Sample task \\ Sample domain", "0", "0.5", "1"]
    assert lines == [
        [f"{y:g}", *[f"{v:.3g}" for v in row]]
        for y, row in reversed(list(zip(session.map.ys, session.map.values)))
    ]
    assert acts(told) == [
        {"weights": {domain: best.x, task: best.y}, "tilt": {}}
    ] and f"{best.value:.3g}" in texts(told)


def test_the_mix_s_other_adapters_stay_in_the_map_as_they_are(engine):
    domain, task = ids(engine)
    baked = engine.library.bake(Mix(weights={domain: 1.0, task: 1.0}), fields_spec("Third")).last().adapter.id
    session = AnalysisSession()
    _, told = drawn_map(engine, session, rows=rows_of(engine, {domain: 1.0, baked: 0.5}), limit=2)
    assert session.map.fixed == {baked: 0.5} and acts(told)[0]["weights"][baked] == 0.5
    taken, _ = weight_map.pick_mix(engine, rows_of(engine, {}), session, pressed(x=0.5, y=1.0))
    assert mixer.read_mix(taken).weights == {domain: 0.5, task: 1.0, baked: 0.5}
    engine.library.delete("adapters", baked)


def fields_spec(name, method="concat"):
    from core.merge.methods import BakeSpec

    return BakeSpec(name=name, method=method)


def test_a_click_on_the_map_sets_the_mixer_to_exactly_that_mix(engine):
    domain, task = ids(engine)
    session = AnalysisSession()
    drawn_map(engine, session)
    off = rows_of(engine, {})
    taken, figure = weight_map.pick_mix(engine, off, session, pressed(x=0.5, y=1.0))
    assert {r["id"]: (r["on"], r["weight"]) for r in taken} == {domain: (True, 0.5), task: (True, 1.0)}
    assert marks(figure)["Mixer"] == (0.5, 1.0)
    tilted = rows_of(engine, {domain: 1.0}, {domain: 1.0})
    taken, figure = weight_map.pick_mix(engine, tilted, session, pressed(x=0.0, y=0.5))
    assert mixer.read_mix(taken) == dataclasses.replace(
        mixer.read_mix(taken), weights={task: 0.5}, tilt={}
    ), "as it was measured: off is off, and nothing leans"
    assert marks(figure)["Mixer"] == (0.0, 0.5)


def test_weights_from_the_table_are_taken_likewise_even_without_a_map(engine):
    domain, task = ids(engine)
    taken, figure = weight_map.pick_mix(
        engine,
        rows_of(engine, {domain: 1.0}),
        AnalysisSession(),
        pressed(weights={domain: -0.3, task: 1.2345}),
    )
    assert mixer.read_mix(taken).weights == {domain: -0.3, task: 1.2345} and figure == gr.skip()
    assert weight_map.pick_mix(engine, taken, AnalysisSession(), pressed(x=1, y=1)) == (
        gr.skip(),
        gr.skip(),
    ), "there is no map to click on"
    session = AnalysisSession()
    drawn_map(engine, session)
    for said in ({"weights": {domain: 3.0}}, {"weights": "all"}, {"x": "1", "y": 1.0}, {}):
        with pytest.raises(SpecError):
            weight_map.pick_mix(engine, taken, session, pressed(**said))


def test_the_mark_follows_the_mixer(engine):
    domain, task = ids(engine)
    session = AnalysisSession()
    assert weight_map.mark_mixer(engine, rows_of(engine, {domain: 1.0}), session) == gr.skip()
    drawn_map(engine, session)
    assert marks(weight_map.mark_mixer(engine, rows_of(engine, {domain: 0.2, task: 0.3}), session))[
        "Mixer"
    ] == (
        0.2,
        0.3,
    )
    assert marks(weight_map.mark_mixer(engine, rows_of(engine, {}), session))["Mixer"] == (0.0, 0.0)


def test_a_map_of_a_mix_that_leans_is_measured_so_and_a_click_on_it_leans_the_mixer(engine):
    domain, task = ids(engine)
    session = AnalysisSession()
    drawn_map(engine, session, rows=rows_of(engine, {domain: 1.0, task: 1.0}))
    even = session.map
    leaning = rows_of(engine, {domain: 1.0, task: 1.0}, {domain: 1.0})
    figure, told = drawn_map(engine, session, rows=leaning)
    assert session.map.tilt == {domain: 1.0} and session.map.values != even.values
    assert marks(figure)["Mixer"] == (1.0, 1.0) and "keep the tilts" in json.dumps(told)
    assert "Mixer" not in marks(
        weight_map.mark_mixer(engine, rows_of(engine, {domain: 1.0, task: 1.0}), session)
    ), "an even mix is not on this map"
    taken, figure = weight_map.pick_mix(engine, rows_of(engine, {}), session, pressed(x=0.5, y=1.0))
    assert mixer.read_mix(taken).tilt == {domain: 1.0} and marks(figure)["Mixer"] == (0.5, 1.0)


def test_a_map_that_is_stopped_stays_as_far_as_it_is_and_goes_on_later(engine, held):
    domain, task = ids(engine)
    session = AnalysisSession()
    held.until = lambda part: bool(part.map.points)
    drawing = weight_map.draw_map(
        engine, domain, task, engine.library.adapter(domain).dataset, 2, None, session, "perplexity"
    )
    figure, told = next(drawing)
    while not session.map.points:
        figure, told = next(drawing)
    assert "busy" in str(told) and figure["traces"][0]["type"] == "heatmap"
    weight_map.stop(engine, session)
    held.set()
    figure, told = list(drawing)[-1]
    assert "points are measured" in texts(told) and "busy" not in str(told) and not session.map.complete
    assert figure["traces"][0]["type"] == "heatmap" and [None] * 3 in figure["traces"][0]["z"]
    partly = session.map.values[0]
    *_, (figure, _) = weight_map.draw_map(
        engine, domain, task, engine.library.adapter(domain).dataset, 2, None, session, "perplexity"
    )
    assert (
        session.map.complete and session.map.values[0] == partly and figure["traces"][0]["type"] == "contour"
    )


def test_exact_match_is_mapped_in_shares(engine):
    session = AnalysisSession()
    figure, told = drawn_map(engine, session, "exact_match", limit=2)
    assert all(
        t.endswith("%") for row in figure["traces"][0]["text"] for t in row
    ) and "exact match" in texts(told)


# --- charts of maps


def test_darker_is_better_whatever_is_measured():
    low, high = (
        map_views.plot_map(toy(), None, {}, {}),
        map_views.plot_map(toy("exact_match"), None, {}, {}),
    )
    assert [c for _, c in low["traces"][0]["colorscale"]] == ["--st-accent", "--st-card"]
    assert [c for _, c in high["traces"][0]["colorscale"]] == ["--st-card", "--st-accent"]
    assert (marks(low)["Best"], marks(high)["Best"]) == ((0.5, 0.0), (0.5, 0.0))
    assert high["traces"][0]["z"] == [list(row) for row in toy("exact_match").values] and low["traces"][0][
        "z"
    ][1][2] == pytest.approx(1.954, abs=1e-3)
    assert (
        high["traces"][0]["colorbar"]["ticktext"][0] == "0.0 %"
        and high["traces"][0]["colorbar"]["ticktext"][-1] == "100.0 %"
    )
    assert low["traces"][0]["zmax"] < 1.0, "a hopeless corner does not take all the colours"
    assert low["traces"][0]["colorbar"]["title"]["text"] == "answer perplexity"
    assert map_views.plot_map(toy(kind="domain"), None, {}, {})["layout"]["xaxis"]["range"] == [0.0, 1.0]


@pytest.mark.parametrize("metric", ["perplexity", "exact_match"])
def test_a_map_with_holes_is_drawn_as_far_as_it_is_and_an_empty_one_not_at_all(metric):
    part = map_views.plot_map(toy(metric, holes=1), None, {}, {})
    assert (
        part["traces"][0]["type"] == "heatmap"
        and part["traces"][0]["z"][2] == [None] * 3
        and part["traces"][0]["text"][2] == [""] * 3
    )
    assert map_views.plot_map(toy(metric, holes=3), None, {}, {}) is None
    assert cells(map_views.render_details(toy(metric, holes=1), None, {}))[1] == ["1", "–", "–", "–"]
    assert acts(
        map_views.render_details(toy(metric, holes=3), None, {})
    ) == [] and "Nothing has been measured yet" in texts(
        map_views.render_details(toy(metric, holes=3), None, {})
    )


def test_a_flat_map_is_drawn_too():
    for metric, value in (("perplexity", 7.0), ("exact_match", 0.0)):
        figure = map_views.plot_map(toy(metric, values=((value,) * 3,) * 3), None, {}, {})
        assert json.dumps(figure, allow_nan=False) and marks(figure)["Best"] == (1.0, 1.0)


def test_the_learned_weights_are_marked_on_a_map_of_the_same_adapters_only():
    def learned(a, b):
        found = tuple(
            SearchResult(n, {a: 0.7, b: 0.2}, 1.0, 1, 1.0, 1.0) for n in ("gradient", "sum", "single")
        )
        return SearchComparison((a, b), {"f": 0.5}, {}, "v", "t", "", "", 0, found)

    assert marks(map_views.plot_map(toy(), learned("d", "t"), {}, {"d": 1.0}))["Search result"] == (0.7, 0.2)
    assert "Mixer" not in marks(map_views.plot_map(toy(), None, {}, {"d": 1.0})), (
        "the map holds another adapter at 0.5"
    )
    assert marks(map_views.plot_map(toy(), learned("t", "d"), {}, {"d": 1.0, "f": 0.5})) == {
        "Best": (0.5, 0.0),
        "Mixer": (1.0, 0.0),
        "Search result": (0.2, 0.7),
    }
    assert "Search result" not in marks(map_views.plot_map(toy(), learned("d", "other"), {}, {}))
    assert acts(map_views.render_details(None, learned("d", "t"), {})) == [
        {"weights": {"f": 0.5, "d": 0.7, "t": 0.2}, "tilt": {}}
    ]


# --- learned weights


def test_learned_weights_are_shown_beside_every_other_way_and_on_the_map(engine):
    domain, task = ids(engine)
    session, data = AnalysisSession(), samples.find_held_out(engine)
    drawn_map(engine, session, limit=4)
    *_, (figure, told) = weight_map.search_weights(
        engine, domain, task, data, 4, rows_of(engine, {domain: 1.0, task: 1.0}), session
    )
    best = session.search.result("gradient").weights
    assert marks(figure)["Search result"] == (best[domain], best[task])
    head, *lines = cells(told)
    assert head[:3] == ["Way", "Sample domain", "Sample task"]
    assert {row[0].split(",")[0] for row in lines} == set(analysis_views.SEARCH_NAMES.values())
    gradient = next(row for row in lines if row[0].startswith("Gradient descent, "))
    assert gradient[0].endswith(" s")
    assert gradient[1:3] == [f"{best[a]:.2f}" for a in (domain, task)] and gradient[5].endswith("%")
    assert session.search.result("grid").note == "read from a map of 9 points"
    assert {"weights": best, "tilt": {}} in acts(told) and len(acts(told)) == 2
    taken, _ = weight_map.pick_mix(engine, rows_of(engine, {}), session, pressed(**acts(told)[-1]))
    assert mixer.read_mix(taken).weights == {a: w for a, w in best.items() if w}


def test_learning_that_is_stopped_says_so(engine, held):
    domain, task = ids(engine)
    session = AnalysisSession()
    learning = weight_map.search_weights(
        engine, domain, task, samples.find_held_out(engine), 2, None, session
    )
    assert "busy" in str(next(learning)[1])
    weight_map.stop(engine, session)
    held.set()
    assert texts(list(learning)[-1][1]).startswith("Stopped")


def release_when_replaced(session, held):
    """The worker goes on once the work under way was asked to end, not before."""

    def stop():
        AnalysisSession.stop(session)
        held.set()

    session.stop = stop


def test_a_question_that_was_replaced_says_nothing_over_the_new_one(engine, held):
    domain, task = ids(engine)
    session, data = AnalysisSession(), samples.find_held_out(engine)
    learning = weight_map.search_weights(engine, domain, task, data, 2, None, session)
    next(learning)
    drawing = weight_map.draw_map(engine, domain, task, data, 3, None, session, "perplexity")
    release_when_replaced(session, held)
    next(drawing)
    assert list(learning) == [], "the map has the place now"
    assert session.stream is not None and list(drawing)


def test_what_another_question_ended_does_not_look_busy_for_ever(engine, held):
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
        held.clear()
        session = AnalysisSession()
        asked = ask(session)
        assert "busy" in str(next(asked)), name
        other = weight_map.draw_map(
            engine, domain, task, samples.find_held_out(engine), 2, both, session, "perplexity"
        )
        release_when_replaced(session, held)
        next(other)
        *_, last = asked
        assert texts(last[0] if isinstance(last, tuple) else last).startswith("Stopped"), name
        list(other)
    assert all(a.name != "Never" for a in engine.library.adapters())
    wait_for(lambda: not engine.worker._open)
    assert engine.worker.call(lambda: engine.resident_base.get().mixer.weights) is None


# --- words, meetings, baking


def test_every_word_of_an_explained_answer_shows_who_made_it_likelier(engine):
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
    *_, (told, figure) = analysis.compare_adapters(
        engine, "Where is the lamp?", rows_of(engine, {domain: 1.0, task: 1.0}), AnalysisSession()
    )
    assert "On the prompt" in texts(told) and "Sample domain and Sample task" in texts(told)
    assert [row[0] for row in cells(told)[1:]] == ["All", "0", "1"]
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
    *_, (told, _) = analysis.compare_adapters(
        engine, "", rows_of(engine, {domain: 1.0, task: 1.0}), AnalysisSession()
    )
    assert "On the prompt" not in texts(told)
    with pytest.raises(SpecError, match="got 1 in .*Give two or more adapters"):
        list(analysis.compare_adapters(engine, "Where?", rows_of(engine, {domain: 1.0}), AnalysisSession()))


def test_the_mixer_s_mix_is_baked_into_the_library_and_back_into_the_mixer(engine):
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


# --- names


def test_a_name_is_only_ever_text(engine):
    domain, task = ids(engine)
    engine.library.rename("adapters", domain, EVIL)
    try:
        session, rows = AnalysisSession(), rows_of(engine, {domain: 1.0, task: 1.0})
        figure, told = drawn_map(engine, session)
        assert EVIL in texts(told) and all(EVIL not in str(n.get("attrs", "")) for n in nodes(told))
        drawn = json.dumps(figure)
        assert "<b>main" not in drawn and "<img" not in drawn and "%{x}" not in drawn
        assert figure["layout"]["xaxis"]["title"]["text"] == f"Weight of {plot.literal(EVIL)}"
        assert figure["traces"][0]["hovertemplate"].startswith(plot.literal(EVIL) + " %{x:.2f}<br>")
        *_, (told, figure) = analysis.compare_adapters(engine, "Where?", rows, session)
        assert EVIL in texts(told) and "<img" not in json.dumps(figure)
        *_, told = analysis.explain_answer(
            engine, "Where?", rows, session, False, *sampling(max_new_tokens=3)
        )
        assert EVIL in texts(told)
    finally:
        engine.library.rename("adapters", domain, "Sample domain")


@pytest.mark.parametrize("name, escaped", [
    ("Sample domain", "Sample domain"),
    ("a<b>c</b>", "a&lt;b&gt;c&lt;/b&gt;"),
    ("&lt;", "&amp;lt;"),
    ("100 % %{x}", "100 &#37; &#37;{x}"),
    ("--st-accent", "&#45;-st-accent"),
])  # fmt: skip
def test_what_plotly_would_read_is_escaped(name, escaped):
    assert plot.literal(name) == escaped
    assert bars.panel("F1", [name], ["mix"], [1.0])["names"] == [escaped]


def test_plotly_draws_an_escaped_name_as_it_was_written():
    """In a real browser, as axis title, hover text and label of a bar."""
    from pathlib import Path

    import plotly

    api, chromium = pytest.importorskip("playwright.sync_api"), "/usr/bin/chromium"
    if not Path(chromium).exists():
        pytest.skip(f"there is no {chromium}")
    name = EVIL + ' <a href="https:x">go</a><br>'
    figure = map_views.plot_map(toy(), None, {"d": name, "t": name}, {})
    figure = json.loads(json.dumps(figure).replace("--st-", "#"))
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_content("<div id=a></div><div id=b></div>")
        page.add_script_tag(path=Path(plotly.__file__).parent / "package_data" / "plotly.min.js")
        said = page.evaluate(
            """async ([f, name]) => {
              const a = document.getElementById("a"), b = document.getElementById("b"), none = { displayModeBar: false };
              for (const t of f.traces) { delete t.colorscale; delete t.line; delete t.marker; }
              f.traces[0].type = "heatmap";
              await Plotly.newPlot(a, [f.traces[0]], { xaxis: f.layout.xaxis, width: 900, height: 500 }, none);
              Plotly.Fx.hover(a, [{ xval: 0.5, yval: 0 }]);
              await new Promise((r) => setTimeout(r, 300));
              await Plotly.newPlot(b, [{ type: "bar", orientation: "h", y: [name], x: [1] }], { width: 900, height: 300, yaxis: { type: "category" } }, none);
              return { title: a.querySelector(".xtitle").textContent, hover: a.querySelector(".hoverlayer").textContent,
                       bar: b.querySelector(".ytick").textContent, links: document.querySelectorAll("svg a, img").length };
            }""",
            [figure, plot.literal(name)],
        )
        browser.close()
    assert said["title"] == f"Weight of {name}" and said["bar"] == name and said["links"] == 0
    assert f"{name} 0.50" in said["hover"] and "1.5" in said["hover"]


# --- the depth of a mix


@pytest.mark.parametrize("tilt", [1.0, -1.0, 0.5])
def test_where_an_adapter_is_heard_survives_saving_and_loading(engine, tilt):
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
def test_a_link_says_where_an_adapter_is_heard_and_the_stamp_shows_it(engine, tilt, said):
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
def test_a_depth_outside_its_limits_is_refused(tilt):
    with pytest.raises(SpecError, match="tilt of 'a'"):
        mixer.read_mix([{"id": "a", "on": True, "weight": 1.0, "tilt": tilt}])


def test_a_study_is_each_visitor_s_own():
    import copy

    mine = AnalysisSession()
    mine.map, mine.stream = toy(), SimpleNamespace(close=lambda: None)
    other = copy.deepcopy(mine)
    assert other.map is None and other.stream is None and other.serial == 0
