"""The Runs page's handlers over a real engine, without a browser: the queue, grids, and runs side by side."""

from __future__ import annotations

import dataclasses
import threading

import gradio as gr
import pytest

from core.engine import Engine
from core.errors import Busy, RunError, SpecError
from core.spec.training import RunStatus, TrainSpec
from core.store.grids import FollowUp
from studio import actions, app
from studio.components import guide
from studio.server import routes
from studio.tabs import grid, runs, train
from studio.views import grid as grid_views
from studio.views import runs as run_views

pytestmark = pytest.mark.slow
FAST = {
    "max_steps": 3,
    "learning_rate": 5e-3,
    "batch_size": 2,
    "accumulation": 1,
    "max_length": 48,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory):
    """An engine with a dataset whose name looks like markup, and a finished grid of four cells."""
    from tests.conftest import SENTENCES

    file = tmp_path_factory.mktemp("files") / "corpus.txt"
    file.write_text("\n\n---\n\n".join(SENTENCES), encoding="utf-8")
    with Engine(
        tmp_path_factory.mktemp("studio"), base=str(tiny_base), quantization="none", device="cpu"
    ) as made:
        data = made.datasets.import_files([file], "<b>100 %", "domain")
        base = TrainSpec(**{"kind": "domain", "name": "Base", "dataset": data.id, **FAST})
        for run_id in made.grids.start(base, {"rank": [2, 4], "learning_rate": [1e-2, 1e-5]}, "<i>Grid").runs:
            made.runs.wait(run_id, 120)
        yield made


@pytest.fixture(scope="module")
def tabs(engine):
    with gr.Blocks(), gr.Tabs() as top, gr.Tab("All"):
        form, made = train.build(engine), runs.build()
    return form, made, top


@pytest.fixture
def gate(engine):
    """While it is closed, no run begins; what is left in the queue is cancelled at the end."""
    made = threading.Event()
    engine.worker.run(lambda: made.wait(120) and None)
    yield made
    for waiting in reversed(engine.queue.list()):
        engine.queue.cancel(waiting.run.id)
    made.set()


def pressed(**said):
    return gr.EventData(None, said)


def found(node, want):
    """All nodes of a tree that `want` is true of."""
    kids = [k for k in (node or {}).get("kids", []) if isinstance(k, dict)]
    return [n for n in [node] if want(n)] + [n for k in kids for n in found(k, want)]


def texts(node):
    return node if isinstance(node, str) else " ".join(texts(k) for k in (node or {}).get("kids", []))


def acting(node, word):
    return [n["act"] for n in found(node, lambda n: n.get("act", {}).get("do") == word)]


def spec_of(engine, **changes):
    return dataclasses.replace(TrainSpec.from_json(engine.grids.list()[-1].base), **changes)


def values(engine, form, tab, **typed):
    """The page's values as a handler gets them: the suggested Train form, and the typed axes of the grid."""
    spec = spec_of(engine)
    main = {
        form.kind: spec.kind,
        form.dataset: spec.dataset,
        form.name: "",
        form.preset: "standard",
        form.stack_on: "",
    }
    advanced = {c: train.fields.to_component(getattr(spec, n)) for n, c in form.advanced.items()}
    blank = {
        **dict.fromkeys(tab.fields, ""),
        **dict.fromkeys(tab.values, ""),
        tab.name: typed.pop("name", ""),
        tab.questions: typed.pop("questions", ""),
        tab.with_documents: typed.pop("with_documents", False),
    }
    for i, (field, text) in enumerate(typed.items()):
        blank[tab.fields[i]], blank[tab.values[i]] = field, text
    return {**main, **advanced, **blank}


# --- the queue


def test_the_queue_lists_waiting_runs_and_its_buttons_move_and_cancel(engine, gate):
    ids = [engine.runs.start(spec_of(engine, name=n)) for n in ("One", "<script>Two", "Three")]
    tree = runs.show_queue(engine)
    items = found(tree, lambda n: n.get("cls") == "queue-item")
    assert [found(i, lambda n: n["tag"] == "strong")[0]["kids"] for i in items] == [
        ["One"],
        ["<script>Two"],
        ["Three"],
    ]
    can = {run: {a["to"] for a in acting(tree, "move") if a["run"] == run} for run in ids}
    assert can == {ids[0]: {"down"}, ids[1]: {"first", "up", "down"}, ids[2]: {"first", "up"}}
    runs.change_queue(engine, pressed(do="move", run=ids[2], to="first"))
    assert [w.run.id for w in engine.queue.list()] == [ids[2], ids[0], ids[1]]
    tree = runs.change_queue(engine, pressed(do="cancel", run=ids[0], together=False))
    assert engine.runs.get(ids[0]).status is RunStatus.STOPPED and "One" not in texts(tree).split()
    with pytest.raises(RunError, match="sideways"):
        runs.change_queue(engine, pressed(do="move", run=ids[1], to="sideways"))
    assert runs.change_queue(engine, pressed(do="tab", tab="train")) == gr.skip()


def test_cancelling_a_run_cancels_its_dependent_runs_and_its_button_says_so(engine, gate, pairs):
    lower = engine.runs.start(spec_of(engine, name="Lower"))
    data = engine.datasets.import_files([pairs], "Pairs", "task")
    upper = engine.runs.start(
        TrainSpec(
            **{
                "kind": "task",
                "name": "Upper",
                "dataset": data.id,
                "stack_on": engine.runs.get(lower).adapter,
                **FAST,
            }
        )
    )
    tree = runs.show_queue(engine)
    assert (
        acting(tree, "move") == []
        and "Cancel with 1 dependent run" in texts(tree)
        and "Needed by Upper." in texts(tree)
        and "Trains on top of Lower." in texts(tree)
    )
    with pytest.raises(Busy, match="'Upper' would be trained on top of 'Lower'"):
        actions.run_action(engine, pressed(do="stop", run=lower))
    cancel = next(a for a in acting(tree, "cancel") if a["run"] == lower)
    runs.change_queue(engine, pressed(**cancel))
    assert engine.queue.list() == [] and engine.runs.get(upper).status is RunStatus.STOPPED


def test_the_top_of_the_page_notices_a_reordered_queue(engine, gate):
    ids = [engine.runs.start(spec_of(engine, name=n)) for n in ("Front", "Back")]
    before = guide.poll(engine, {})["revision"]
    assert guide.poll(engine, {})["revision"] == before
    engine.queue.move(ids[1], "up")
    assert guide.poll(engine, {})["revision"] != before


def test_runs_that_waited_when_a_studio_ended_are_offered_again(engine, gate):
    run_id = engine.runs.start(spec_of(engine, name="Left behind"))
    left = dataclasses.replace(engine.runs.get(run_id), status=RunStatus.INTERRUPTED, was_queued=True)
    tree = run_views.render_queue([], [], [left, left])
    assert "Queue all 2 again" in texts(tree) and acting(tree, "requeue") == [{"do": "requeue"}]
    assert "The queue is empty" in texts(run_views.render_queue([], [], []))


# --- a grid


def test_the_grid_form_counts_cells_estimates_time_and_requires_a_name(engine, tabs):
    form, tab = tabs[0], tabs[1].grid

    def told(**typed):
        out = grid.check_form(engine, tab, form, values(engine, form, tab, **typed))
        assert "domain run on <b>100 %" in texts(out[tab.common_settings])
        return texts(out[tab.estimate]), out[tab.start]["value"], out[tab.start]["interactive"]

    assert told() == (
        "The grid varies no setting. Choose a setting and enter at least one value.",
        "Queue the grid",
        False,
    )
    assert told(rank="2, 999")[
        0
    ] == "Rank must be between 1 and 256, got 999. Enter a value in this range." and told(rank="2, 4")[
        1:
    ] == (
        "Give the grid a name.",
        False,
    )
    without_dataset = {**values(engine, form, tab, rank="2, 4"), form.dataset: ""}
    assert grid.check_form(engine, tab, form, without_dataset)[tab.start]["value"] == "Choose a text dataset."
    text, button, ready = told(rank="2, 4", epochs="1, 2, 3", name="Mine")
    assert (
        (button, ready) == ("Queue 6 runs", True)
        and text.startswith("6 cells : about ")
        and "estimated from the newest comparable run" in text
    )
    assert "no comparable run yet, so no estimate" in told(max_length="32", name="Mine")[0]
    assert "Allowed" not in told(learning_rate=", ".join(f"{i}e-5" for i in range(1, 9)), name="Mine")[0]


def test_a_grid_preset_fills_the_axes(engine):
    axes = ("rank", "learning_rate", "epochs", "", "16, 32", "0.0001, 5e-05", "2, 3", "")
    _, *filled = grid.fill_preset(engine, "rank x rate x epochs", "")
    assert tuple(filled[:8]) == axes and all(value == gr.skip() for value in filled[8:])
    assert grid.fill_preset(engine, "", "")[1:9] == ("",) * 8
    about, *filled = grid.fill_preset(engine, "portfolio, 64 sequences", "")
    assert "64 sequences per optimizer step" in about["info"] and tuple(filled[:8]) == axes
    shared = dict(zip(grid.PRESET_SETTINGS, filled[10:], strict=True))
    assert filled[8:10] == ["", True], "it would ask with documents, and there are no questions"
    assert shared == {
        "batch_size": 4,
        "accumulation": 16,
        "target_modules": "attention\ndown",
        "max_length": gr.skip(),
    }


def test_a_grid_is_started_and_its_queued_runs_are_cancelled(engine, tabs, gate):
    form, tab, top = tabs[0], tabs[1].grid, tabs[2]
    out = grid.start_grid(
        engine, tab, form, values(engine, form, tab, rank="1, 2, 3", name="To be cancelled")
    )
    made = engine.grids.get(out[tab.picker]["value"])
    assert (
        [engine.runs.get(i).spec.rank for i in made.runs] == [1, 2, 3]
        and "Cancel 3 queued runs" in texts(out[tab.results])
        and out[tab.chart] is None
    )
    rest = acting(out[tab.results], "cancel_queued")[0]
    grid.use_results(engine, tab, form, top, pressed(**rest))
    assert engine.queue.list() == [] and {engine.runs.get(i).status for i in made.runs} == {RunStatus.STOPPED}
    engine.library.delete("grids", made.id)
    assert grid.refresh(engine, made.id, "")[0]["value"] != made.id, "a grid that is gone is picked no longer"


def test_the_table_is_sorted_marks_the_best_and_writes_names_as_text(engine):
    made = engine.grids.list()[-1]
    tree, chart = grid.open_grid(engine, made.id)
    short, whole = (
        [[texts(c) for c in r["kids"]] for r in found(part, lambda n: n["tag"] == "tr")]
        for part in found(tree, lambda n: n["tag"] == "table")
    )
    assert short[0][1:4] == ["Rank", "Learning rate", "Best perplexity"]
    assert [r[0].split()[0].strip(",") for r in short[1:]] == ["best", "finished", "finished", "finished"]
    adapters = {engine.library.labels()[engine.runs.get(i).adapter] for i in made.runs}
    assert {r[-1] for r in short[1:]} == adapters
    assert whole[0][1:6] == ["Rank", "Learning rate", "Best loss", "Best perplexity", "Gap to best"]
    losses = [float(r[3]) for r in whole[1:]]
    assert losses == sorted(losses) and "±" in whole[2][5]
    assert all(a["cell"] in range(4) for a in acting(tree, "use")) and len(acting(tree, "use")) == 4
    assert "standard error" in texts(tree) and [
        n["attrs"]["href"] for n in found(tree, lambda n: n["tag"] == "a")
    ] == [f"gradio_api/studio/download/grid/{made.id}.csv"]
    trace = chart["traces"][0]
    assert trace["type"] == "parcoords" and [d["label"] for d in trace["dimensions"]] == [
        "Rank",
        "Learning rate",
        "Validation loss",
        "Seconds",
    ]
    rank = trace["dimensions"][0]
    assert [rank["ticktext"][i] for i in rank["values"]] == [r[1] for r in whole[1:]]
    assert trace["dimensions"][2]["values"] == pytest.approx(losses, abs=1e-4) and trace["line"][
        "colorscale"
    ][0][1].startswith("--st-")


def test_use_these_settings_fills_the_train_form_with_exactly_that_cell(engine, tabs):
    form, tab, top = tabs[0], tabs[1].grid, tabs[2]
    made = engine.grids.list()[-1]
    out = grid.use_results(engine, tab, form, top, pressed(do="use", grid=made.id, cell=3))
    cell = engine.grids.get(made.id).cells[3]
    plain = [form.kind, form.name, form.preset, *form.advanced.values()]
    filled = {c: out[c] for c in plain} | {c: out[c]["value"] for c in (form.dataset, form.stack_on)}
    assert (
        train.resolve(filled[form.kind], filled[form.preset], train.read_form(form, filled)) == cell.spec
        and cell.spec.rank == 4
    )
    assert out[top].selected == "train"
    for wrong in ({"cell": 4}, {"cell": "0"}, {"cell": -1}, {}):
        with pytest.raises(SpecError, match="no such cell"):
            grid.use_results(engine, tab, form, top, pressed(do="use", grid=made.id, **wrong))


def test_settings_without_a_form_field_are_reported(engine, tabs, monkeypatch):
    warned = []
    monkeypatch.setattr(grid.gr, "Warning", lambda text, **_: warned.append(text))
    form = dataclasses.replace(tabs[0], advanced={n: c for n, c in tabs[0].advanced.items() if n != "rank"})
    grid.fill_train_form(engine, form, spec_of(engine, rank=7))
    assert warned == ["The form has no field for Rank; set it in the terminal."]


def test_the_csv_of_a_grid_is_offered_under_its_own_address(engine):
    route = next(r for r in routes.routes(engine) if "grid" in r.path)
    told = engine.grids.csv(engine.grids.list()[-1].id)
    assert route.path.endswith("/download/grid/{item_id}.csv") and told.startswith(
        "rank,learning_rate,status,final_loss,best_loss"
    )


# --- side by side


def test_two_runs_share_a_chart_and_list_the_settings_that_differ(engine):
    ids = engine.grids.list()[-1].runs[:2]
    chart, tree = runs.compare_runs(engine, ids, "linear", True)
    assert [(t["line"]["width"], t["line"]["color"]) for t in chart["traces"]] == [
        (1, "--st-run-1"),
        (3, "--st-run-1"),
        (1, "--st-run-2"),
        (3, "--st-run-2"),
    ]
    assert (
        chart["traces"][1]["name"].startswith("&lt;i&gt;Grid: rank 2")
        and len(chart["traces"][0]["x"]) == 3
        and chart["layout"]["yaxis"]["type"] == "linear"
    )
    tables = found(tree, lambda n: n["tag"] == "table")
    assert [[texts(c) for c in r["kids"]] for r in found(tables[1], lambda n: n["tag"] == "tr")][1:] == [
        ["Learning rate", "0.01", "1e-05"]
    ]
    chart, tree = runs.compare_runs(engine, ids, "log", False)
    rows = [
        [texts(c) for c in r["kids"]]
        for r in found(found(tree, lambda n: n["tag"] == "table")[1], lambda n: n["tag"] == "tr")
    ]
    assert (
        chart["layout"]["yaxis"]["type"] == "log"
        and len(rows) > 20
        and ["Dataset", "<b>100 %", "<b>100 %"] in rows
    )


def test_fewer_than_two_runs_show_a_hint_and_the_newest_two_are_picked(engine):
    ids = [r.id for r in engine.runs.list() if r.step]
    assert runs.refresh(engine, [])["value"] == ids[:2] and "value" not in runs.refresh(engine, ids[2:4])
    assert runs.refresh(engine, ["gone", ids[0]])["value"] == [ids[0]]
    for few in (None, [], ids[:1]):
        assert runs.compare_runs(engine, few, "linear", True) == (None, run_views.NO_COMPARISON)


def test_a_long_name_or_a_list_of_layers_fits_the_axis_as_text(engine):
    chart = grid_views._ordinal_axis("Target modules", [("q%",), ("<b>", "v")], [["q%"], ["<b>", "v"]])
    assert (
        chart["ticktext"] == ["&lt;b&gt; + v", "q&#37;"]
        and chart["values"] == [1, 0]
        and chart["range"] == [0, 1]
    )


def test_the_whole_page_is_built(engine):
    assert app.build(engine).fns


def test_a_grid_with_questions_shows_the_experiment_that_it_ends_in(engine, tabs, pairs, monkeypatch):
    form, tab, top = tabs[0], tabs[1].grid, tabs[2]
    asked = engine.datasets.import_files([pairs], "Asked", "task", purpose="evaluation")
    try:
        monkeypatch.setattr(engine.grids.experiments, "watch", lambda: None)
        assert ("Asked (for evaluation)", asked.id) in grid.refresh(engine, None, "gone-0000")[1]["choices"]
        assert grid.fill_preset(engine, "portfolio, 64 tokens", "")[9:11] == (asked.id, True)
        too_many = ", ".join(map(str, range(1, 33)))
        given = {"name": "Asking", "questions": asked.id, "with_documents": True}
        checked = grid.check_form(engine, tab, form, values(engine, form, tab, rank=too_many, **given))
        assert "32 cells would have 66" in texts(checked[tab.estimate])
        out = grid.start_grid(engine, tab, form, values(engine, form, tab, rank="1", **given))
        made = engine.grids.get(out[tab.picker]["value"])
        assert made.questions["split"] == "all" and made.questions["documents"] == "on"
        assert "it starts when the last run has ended" in texts(out[tab.results])
        for run_id in made.runs:
            engine.runs.wait(run_id, 120)
        ended = engine.grids.experiments.wait(made.id).follow_up
        engine.experiments.cancel(ended.experiment)
        tree, _ = grid.open_grid(engine, made.id)
        assert f"Experiment: Grid {made.id}." in texts(tree) and acting(tree, "experiment")
        with gr.Blocks():
            picker = gr.Dropdown()
        opened = grid.open_experiment(engine, top, picker, made.id)
        assert opened[picker]["value"] == ended.experiment
        engine.experiments.wait(ended.experiment, 60)
        engine.experiments.delete(ended.experiment)
        assert "it was deleted" in texts(grid.open_grid(engine, made.id)[0])
    finally:
        engine.library.delete("datasets", asked.id)
    failed = dataclasses.replace(made, follow_up=FollowUp(problem="No base.", left_out=("rank 2: failed",)))
    assert "not started. No base. Left out: rank 2: failed." in texts(
        grid_views.render_experiment(failed, "")
    )
