"""Handlers of the tabs with a real engine and without a browser: values in, values out."""

from __future__ import annotations

import dataclasses
import threading
from types import SimpleNamespace

import gradio as gr
import pytest

from core.data.samples import find_samples
from core.engine import Engine
from core.errors import DataError, NotFound, SpecError
from core.model.generate import Column
from core.spec.mix import Mix, Sampling
from core.spec.presets import resolve
from core.spec.training import TrainSpec
from studio import actions, advice, answers, app, events, fields, mix_choices, samples
from studio.components import board, guide, imports, live, mixer
from studio.reading_choices import Choices
from studio.session import SAMPLING, Session
from studio.tabs import compare, data, data_import, evaluate, library, mix, suggestions, train
from tests.browser.conftest import small_samples
from tests.conftest import held
from tests.studio.dropped import drop_files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine(tiny_base, tmp_path_factory):
    """An engine with the sample data and a task adapter on a domain adapter, both trained for two steps."""
    with Engine(
        tmp_path_factory.mktemp("studio"), base=str(tiny_base), quantization="none", device="cpu"
    ) as opened:
        opened.samples = small_samples(tmp_path_factory.mktemp("samples"))
        samples.import_samples(opened)
        for kind in ("domain", "task"):
            spec = dataclasses.replace(
                suggestions.suggest_run(opened, kind),
                max_steps=2,
                batch_size=2,
                accumulation=1,
                max_length=64,
                rank=4,
            )
            opened.runs.wait(opened.runs.start(spec), 600)
        yield opened


@pytest.fixture
def empty(tiny_base, tmp_path):
    with Engine(tmp_path, base=str(tiny_base), quantization="none", device="cpu") as opened:
        yield opened


def pressed(**action):
    """The event data of a click on a button with this action."""
    return gr.EventData(None, action)


def texts(node) -> str:
    """All text of a tree."""
    return node if isinstance(node, str) else "".join(texts(k) for k in (node or {}).get("kids", []))


def nodes(tree):
    """Every node of a tree."""
    yield tree
    for kid in tree.get("kids", []):
        if isinstance(kid, dict):
            yield from nodes(kid)


def rows_of(engine, **weights):
    return [
        {**a, "on": a["name"] in weights, "weight": weights.get(a["name"], 1.0)}
        for a in mixer.adapter_rows(engine)
    ]


# --- the path


def advise(engine):
    return advice.next_step(
        engine.bases.current(), engine.datasets.list(), engine.library.adapters(), engine.runs.list()
    )


def test_an_empty_studio_suggests_the_sample_data_first(empty):
    shown = advise(empty)
    assert [b["act"] for b in shown.buttons][:1] == [{"do": "sample"}]
    offered = [b["act"] for b in shown.buttons][1:]
    practice = [{"do": "get_base", "base": "smollm2-135m"}]
    assert offered == (practice if empty.bases.current().name == "embedded" else [])


def test_a_base_that_is_not_embedded_gets_the_sample_in_english_once(empty):
    actions.run_action(empty, pressed(do="sample"))
    actions.run_action(empty, pressed(do="sample"))
    assert sorted((d.name, d.kind) for d in empty.datasets.list()) == [
        ("Museum domain", "domain"),
        ("Museum held-out questions", "task"),
        ("Museum task", "task"),
    ]
    assert samples.suggest_question(empty) == find_samples("museum").questions()[0]["messages"][0]["content"]
    shown = advise(empty)
    assert shown.buttons[0]["act"] == {"do": "train", "kind": "domain"}


def test_a_task_run_is_suggested_on_the_newest_domain_not_on_held_out_data(engine):
    spec = suggestions.suggest_run(engine, "task")
    domain = next(a for a in engine.library.adapters() if a.kind == "domain")
    assert (engine.datasets.get(spec.dataset).name, spec.stack_on) == ("Sample task", domain.id)


def test_the_path_ends_at_comparing(engine):
    shown = advise(engine)
    assert shown.buttons[0]["act"] == {"do": "compare"}
    assert [s.done for s in advice.path_steps(engine.datasets.list(), engine.library.adapters())] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert [s.done for s in advice.path_steps([], [], mixed=True, compared=True)] == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_a_base_that_cannot_be_loaded_is_reported_first():
    base = SimpleNamespace(error="It is not there.", loading=False)
    assert advice.next_step(base, [], [], []).failed


def test_the_revision_changes_only_when_a_list_changes(engine):
    before = guide.poll(engine, {})["revision"]
    assert guide.poll(engine, {})["revision"] == before
    saved = engine.library.save_mix("For the revision", {})
    assert guide.poll(engine, {})["revision"] != before
    engine.library.delete("mixes", saved.id)


def test_unknown_actions_do_nothing(engine):
    before = len(engine.runs.list())
    for action in ({}, {"do": "rm"}, {"do": "train", "kind": "evil"}, {"do": "tab", "tab": "../x"}):
        actions.run_action(engine, pressed(**action))
    assert len(engine.runs.list()) == before


def test_a_url_that_names_a_deleted_run_is_refused(engine):
    with pytest.raises(NotFound):
        actions.run_action(engine, pressed(do="watch", run="nothing-here"))


# --- data


@pytest.fixture
def uploads_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))


def roles_of(preview):
    """The column of each role picker, with the role that it shows."""
    return {
        n["act"]["column"]: next(o["attrs"]["value"] for o in n["kids"] if "selected" in o["attrs"])
        for n in nodes(preview)
        if n.get("tag") == "select"
    }


def test_columns_of_dropped_files_are_guessed_and_can_be_corrected(engine, uploads_folder):
    lines = "frage,antwort,hinweis\n" + "".join(f"Q{i},A{i},H{i}\n" for i in range(6))
    files = drop_files({"pairs.csv": lines.encode()})
    choices, kind, shown, add = data_import.read_files(engine, files, Choices(), False)[:4]
    assert (kind, add["interactive"]) == ("task", True)
    assert roles_of(shown) == {"frage": "question", "antwort": "answer", "hinweis": ""}
    correct = pressed(do="role", column="hinweis", value="answer")
    choices, kind, shown, add = data_import.change_choices(engine, files, choices, False, correct)[:4]
    assert (kind, add["interactive"]) == ("task", True)
    assert roles_of(shown) == {"frage": "question", "antwort": "", "hinweis": "answer"}
    job = data_import.start_import(engine, imports.Forms(), files, choices, "Fragen", False)[0]["job"]
    status = engine.imports.wait(job, 60)
    assert status.state == "done", status.problem
    rows = engine.datasets.rows(status.dataset_id, "all")
    pairs = sorted(tuple(m["content"] for m in r["messages"]) for r in rows)
    assert pairs == [(f"Q{i}", f"H{i}") for i in range(6)]
    engine.library.delete("datasets", status.dataset_id)


def test_a_broken_line_is_named_with_its_file_and_nothing_is_imported(engine, uploads_folder):
    files = drop_files({"broken.jsonl": b'{"question": "a", "answer": "b"}\n{"question": \n'})
    before = len(engine.datasets.list())
    choices, _, shown, add = data_import.read_files(engine, files, Choices(), False)[:4]
    assert "broken.jsonl, line 2" in texts(shown) and add["interactive"] is False
    job = data_import.start_import(engine, imports.Forms(), files, choices, "Broken", False)[0]["job"]
    status = engine.imports.wait(job, 60)
    assert status.state == "failed" and "broken.jsonl, line 2" in status.problem
    assert len(engine.datasets.list()) == before


def test_dropped_files_show_a_preview_until_they_are_cleared(engine, uploads_folder):
    """The style sheet hides the dataset meanwhile, which `tests/browser/test_path.py` checks."""
    files = drop_files({"notes.txt": b"A note.\n"})
    name, held_out, waiting, page, add, _ = data_import.open_form(engine, files, "", False)
    assert (name, held_out, page, add["interactive"]) == ("notes", False, None, False)
    assert "being read" in str(waiting)
    shown = data_import.read_files(engine, files, Choices(), False)[2]
    assert "Nothing is imported yet" in texts(shown) and "A note." in texts(shown)
    assert data_import.open_form(engine, None, "notes", True)[:4] == ("", False, None, None)
    choices, _, shown, add, hint = data_import.read_files(engine, None, Choices(kind="task"), False)
    assert (choices, shown, add["interactive"], hint) == (Choices(), None, False, None)


def test_a_task_example_marks_only_the_answer_as_trained(engine):
    task = next(d for d in engine.datasets.list() if d.name == "Sample task")
    *_, (tree, index) = data.show_example(engine, task.id)
    tokens = next(k for k in tree["kids"] if k.get("cls") == "tokens")["kids"]
    learned = "".join(texts(t) for t in tokens if t["cls"] == "tok trained")
    answer = engine.datasets.rows(task.id, "train", 1)[0]["messages"][-1]["content"]
    assert learned.startswith(answer) and len([t for t in tokens if t["cls"] == "tok"]) > 0
    assert data.show_next_example(engine, task.id, index)[1] == 1


def test_split_sizes_are_shown_in_order(engine):
    dataset = engine.datasets.list()[0]
    shown = texts(data.show_dataset(engine, dataset.id)[0])
    assert shown.index("Training") < shown.index("Validation") < shown.index("Test")


# --- train


def test_every_setting_shows_its_help_and_has_its_default():
    with gr.Blocks():
        components = fields.build(TrainSpec, train.ADVANCED)
    known = {f.name: f for f in dataclasses.fields(TrainSpec)}
    assert all(known[n].metadata["help"] in c.info for n, c in components.items())
    assert fields.read(TrainSpec, {n: c.value for n, c in components.items()}) == {
        n: getattr(TrainSpec(), n) for n in train.ADVANCED
    }


def test_an_empty_number_is_refused_with_its_label():
    with pytest.raises(SpecError, match="Learning rate is empty"):
        fields.read(TrainSpec, {"learning_rate": None})


def test_the_start_button_names_what_is_missing(engine):
    button = train.update_start_button(engine, {"kind": "domain", "dataset": "", "name": ""})
    assert button["interactive"] is False and "dataset" in button["value"]


def test_the_form_follows_the_path_until_the_user_edits_it(engine):
    with gr.Blocks():
        tab = train.build(engine)
    values = {c: c.value for c in tab.form | {tab.picker, tab.suggestion}}
    out = train.refresh_form(engine, tab, values)
    domain = suggestions.suggest_run(engine, "domain")
    assert out[tab.dataset]["value"] == domain.dataset and out[tab.start]["interactive"] is True
    mine = {**values, tab.dataset: domain.dataset, tab.name: "Mine"}
    again = train.refresh_form(engine, tab, mine)
    assert (
        tab.name not in again and "value" not in again[tab.dataset]
    )  # the text that the user is typing is not overwritten


def test_settings_follow_a_base_that_loads_after_the_form_was_filled(engine, monkeypatch):
    with gr.Blocks():
        tab = train.build(engine)
    here = engine.bases.current()
    values = {c: c.value for c in tab.form | {tab.picker, tab.suggestion}}
    monkeypatch.setattr(
        engine.bases,
        "current",
        lambda wait=False: dataclasses.replace(here, loading=True, family="", context=0, fingerprint=""),
    )
    sent = train.refresh_form(engine, tab, values).items()
    filled = {
        **values,
        **{
            c: v["value"] if isinstance(v, dict) else v
            for c, v in sent
            if not isinstance(v, dict) or "value" in v
        },
    }
    assert (
        filled[tab.preset] == "standard"
        and filled[tab.advanced["max_length"]] == 512
        and filled[tab.suggestion] == ("", "standard", 512)
    )
    monkeypatch.setattr(
        engine.bases,
        "current",
        lambda wait=False: dataclasses.replace(here, family="Mistral", context=128, fingerprint="f" * 64),
    )
    after = train.refresh_form(engine, tab, filled)
    assert (
        after[tab.preset]["value"] == "mistral-7b-qlora"
        and after[tab.advanced["max_length"]] == 128
        and after[tab.suggestion] == ("f" * 64, "mistral-7b-qlora", 128)
    )
    mine = train.refresh_form(engine, tab, {**filled, tab.advanced["rank"]: 5})
    assert (
        tab.preset not in mine
        and tab.advanced["rank"] not in mine
        and mine[tab.advanced["max_length"]] == 128
    )
    shorter = train.refresh_form(engine, tab, {**filled, tab.advanced["max_length"]: 64})
    assert tab.preset not in shorter and shorter[tab.advanced["max_length"]] == 64, (
        "a length that was chosen stays"
    )
    gentle = train.preset_values(engine, tab, "domain", "gentle")
    other = train.refresh_form(engine, tab, {**filled, tab.preset: "gentle", **gentle})
    assert tab.preset not in other and tab.advanced["learning_rate"] not in other, "and so does a preset"
    assert tab.advanced["max_length"] not in train.refresh_form(
        engine, tab, {**filled, tab.suggestion: ("f" * 64, "standard", 512)}
    ), "once is enough"
    assert tab.preset not in train.refresh_form(engine, tab, {**filled, tab.advanced["rank"]: None}), (
        "the user is typing there"
    )


def test_a_reload_reads_the_whole_curve_of_a_run(engine):
    run = next(r for r in engine.runs.list() if r.kind == "domain")
    first = live.metrics(engine, {"run": run.id, "since": 0})
    assert [p[0] for p in first["points"]["train"]] == [1, 2] and first["points"]["validation"]
    again = live.metrics(engine, {"run": run.id, "since": first["cursor"], "latest": first["latest"]})
    assert again["points"]["train"] == [] and texts(again["head"]) == texts(first["head"])
    assert "2 / 2" in texts(first["head"])


def test_the_live_view_says_that_there_is_no_run(engine):
    assert "No run yet" in texts(live.metrics(engine, {})["head"])


# --- mix and compare


def sampling(**changes):
    return [fields.to_component(getattr(Sampling(**changes), n)) for n in SAMPLING]


def test_the_mixer_starts_with_the_newest_domain_and_task_on(engine):
    assert {a["kind"]: (a["on"], a["weight"]) for a in mixer.adapter_rows(engine)} == {
        "domain": (True, 1.0),
        "task": (True, 1.0),
    }


@pytest.mark.parametrize(
    "rows", [None, "x", [1, None], [{"id": 3, "on": True}], [{"id": "a", "on": "yes", "weight": 1}]]
)
def test_values_that_are_not_mixer_rows_are_ignored(rows):
    assert mixer.read_mix(rows).weights == {}


@pytest.mark.parametrize("weight", [2.05, "1", None, float("nan"), True])
def test_a_weight_outside_its_limits_is_refused(weight):
    with pytest.raises(SpecError):
        mixer.read_mix([{"id": "a", "on": True, "weight": weight}], {})


def test_an_answer_is_stamped_with_the_mix_that_wrote_it(engine):
    rows = rows_of(engine, **{"Sample domain": 0.5})
    *_, last = mix.stream_answer(
        engine, "Where is the lamp?", rows, Session(), False, *sampling(max_new_tokens=6)
    )
    domain = next(a for a in engine.library.adapters() if a.kind == "domain")
    assert f"Sample domain +0.50 ({domain.sha256[:8]})" in texts(last) and domain.id not in str(last)


def test_a_slider_does_not_answer_before_the_first_prompt(engine):
    assert [
        type(v) for v in mix.follow_mixer(engine, "Where?", rows_of(engine), Session(), False, *sampling())
    ] == [type(gr.skip())]


def test_a_slider_moved_during_an_answer_changes_the_mix_from_there_on(engine):
    session, before, after = Session(), rows_of(engine), rows_of(engine, **{"Sample task": 0.5})
    long = sampling(max_new_tokens=180, temperature=4.0, seed=3)
    reading = mix.stream_answer(engine, "The lamp", before, session, True, *long)
    next(reading)
    moved = threading.Event()
    engine.worker.post(moved.wait)  # nothing is written while the slider moves, however slow this machine is
    assert [type(v) for v in mix.follow_mixer(engine, "The lamp", after, session, True, *long)] == [
        type(gr.skip())
    ]
    moved.set()
    *_, last = reading
    turn = next(n for n in nodes(last) if n.get("cls") == "turn")
    assert "0.50 · Sample task" in texts(turn) and "0.50 · Sample task" in turn["attrs"]["title"]
    (column,) = session.frame.columns
    task = next(a.id for a in engine.library.adapters() if a.kind == "task")
    assert column.stamp["weights"][task] == 0.5 and 0 < column.mix_changes[0].at <= len(column.text)
    again = list(mix.follow_mixer(engine, "The lamp", before, session, True, *sampling(max_new_tokens=4)))
    assert "turn" not in str(again[-1]), "a finished answer is generated again"


def test_a_link_restores_a_mix_and_its_prompt(engine):
    domain = next(a for a in engine.library.adapters() if a.kind == "domain")
    rows, prompt, tabs, word = mix.open_link(engine, f"?mix={domain.id}%3D-0.35&prompt=Where%3F", None)
    assert {r["name"]: (r["on"], r["weight"]) for r in rows} == {
        "Sample domain": (True, -0.35),
        "Sample task": (False, 1.0),
    }
    assert (prompt, word) == ("Where?", "answer") and tabs.selected == "mix"
    values = [prompt, rows, Session(), False, *sampling(max_new_tokens=3)]
    assert "-0.35" in texts([*mix.answer_link(engine, word, *values)][-1])
    assert mix.open_link(engine, "?run=abc", None)[3] == "" and [*mix.answer_link(engine, "", *values)] == [
        gr.skip()
    ]
    with pytest.raises(NotFound, match="'elsewhere'"):
        mix.open_link(engine, "?mix=elsewhere", None)
    with pytest.raises(SpecError, match="different adapter id with a weight, got 'a=b=c'"):
        mix.open_link(engine, "?mix=a=b=c", None)


def test_a_mix_is_saved_loaded_and_deleted(engine):
    rows = rows_of(engine, **{"Sample task": -0.35})
    _, saved = mix.save_mix(engine, "Against the task", rows)
    back = mix.load_mix(engine, saved["value"], rows_of(engine, **{"Sample domain": 2.0}))
    assert {r["name"]: (r["on"], r["weight"]) for r in back} == {
        "Sample domain": (False, 2.0),
        "Sample task": (True, -0.35),
    }
    assert "Against the task" in [c["name"] for c in mix_choices.list_choices(engine)]
    mix.delete_mix(engine, saved["value"])
    assert "Against the task" not in [c["name"] for c in mix_choices.list_choices(engine)]


def test_the_choices_are_the_default_mixes_and_the_mixer_s(engine):
    present = Mix(
        name="base + 0.30 · Sample domain",
        weights={next(a.id for a in engine.library.adapters() if a.kind == "domain"): 0.3},
    )
    assert [c["name"] for c in mix_choices.list_choices(engine, present)] == [
        "Base",
        "Sample domain",
        "Sample task",
        "Sample domain + Sample task",
        "Sample domain (deep) + Sample task (shallow)",
        "Mixer: base + 0.30 · Sample domain",
    ]
    assert [c["kind"] for c in mix_choices.list_choices(engine)] == ["base", "domain", "task", "mix", "mix"]


def test_four_mixes_answer_side_by_side_and_the_comparison_is_exported(engine):
    picks = [c["id"] for c in mix_choices.list_choices(engine)][:4]
    session = Session()
    *_, last = compare.stream_answers(
        engine, "Where is the lamp?", {"picks": picks}, None, session, True, *sampling(max_new_tokens=6)
    )
    assert len(last["columns"]) == 4 and last["picks"] == picks
    assert all(c.done and c.tokens <= 6 for c in session.frame.columns)
    written = compare.export_markdown(engine, session)
    assert (
        written.count("\n## ") == 4
        and "Where is the lamp?" in written
        and "max\\_new\\_tokens" not in written
    )


def test_stopping_keeps_the_text_so_far_and_marks_it(engine, monkeypatch):
    session, mixes = Session(), [Mix(name="Base")]
    stopped = held(engine, monkeypatch)
    reading = session.stream_frames(engine, "Where?", mixes, Sampling(max_new_tokens=150, temperature=1.0))
    assert not next(reading).done
    session.stop()
    stopped.set()
    rest = list(reading)
    assert rest[-1].done and rest[-1].columns[0].done


def test_a_new_prompt_ends_the_old_answer_without_a_late_frame(engine):
    session, mixes = Session(), [Mix(name="Base")]
    old = session.stream_frames(engine, "Where?", mixes, Sampling(max_new_tokens=150, temperature=1.0))
    next(old)
    new = session.stream_frames(engine, "Who?", mixes, Sampling(max_new_tokens=2))
    first = next(new)
    assert list(old) == [] and first.columns
    list(new)


def test_nothing_is_exported_before_an_answer(engine):
    with pytest.raises(NotFound):
        compare.export_markdown(engine, Session())


def test_a_comparison_of_one_mix_is_refused(engine):
    with pytest.raises(SpecError, match="2 to 6"):
        list(
            compare.stream_answers(engine, "Where?", {"picks": ["base"]}, None, Session(), True, *sampling())
        )


# --- evaluate and library


def test_mixes_are_measured_and_the_report_is_saved(engine):
    chosen, whole, mixes, *_ = evaluate.refresh(engine, None, [], None, None)
    assert (
        engine.datasets.get(chosen["value"]).name == "Sample held-out questions"
        and whole == chosen["value"]
        and len(mixes["value"]) == 4
    )
    *_, last = evaluate.measure_mixes(engine, chosen["value"], "all", mixes["value"][:2], 4, None, Session())
    shown, panels, reports = last
    assert [p["title"] for p in panels][:2] == ["Exact match", "F1"] and all(
        len(p["values"]) == 2 for p in panels
    )
    assert "Download as CSV" in texts(shown)
    assert engine.evaluation.report_csv(reports["value"]).read_text().startswith("name,mix,")
    fresh = evaluate.refresh(engine, None, [], None, None)
    assert fresh[3]["value"] == reports["value"] and "Download as CSV" in texts(fresh[4])
    again = evaluate.refresh(engine, chosen["value"], [], reports["value"], None)
    assert again[4] == gr.skip(), "the report that is shown stays"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ((None, ["base"], 0, 0), "dataset"),
        (("data", [], 0, 0), "mixes"),
        (("data", ["base"], -1, 0), "limit"),
        (("data", ["base"], 0, 5000), "longest"),
    ],
)
def test_a_wrong_measurement_names_its_field(values, field):
    with pytest.raises(SpecError) as caught:
        evaluate.check_form(None, *values)
    assert caught.value.field == field


def test_suggested_mixes_follow_the_library_until_the_user_chooses(engine):
    usual = [str(m) for m in engine.library.default_mixes()]
    held_out = evaluate.refresh(engine, None, [], None, None)[0]["value"]

    def offered(mixes):
        return evaluate.refresh(engine, held_out, mixes, None, None)[2]

    for earlier in ([], usual[:1], usual[:2]):  # what was suggested when there were fewer adapters
        assert offered(earlier)["value"] == usual
    own = [usual[3], usual[0]]
    assert offered(own).get("value", own) == own


def test_the_library_shows_verifies_renames_and_deletes(engine):
    adapter = next(a for a in engine.library.adapters() if a.kind == "domain")
    shown = library.pick_item(engine, "adapters", "", pressed(pick=adapter.id))
    assert shown[1] == adapter.id and adapter.sha256[:16] in texts(shown[2])
    assert "verified" in texts(library.verify_adapter(engine, "adapters", adapter.id))
    library.rename_item(engine, "adapters", adapter.id, "Another name")
    assert engine.library.adapter(adapter.id).name == "Another name"
    library.rename_item(engine, "adapters", adapter.id, "Sample domain")
    saved = engine.library.save_mix("Short-lived", {})
    assert library.delete_item(engine, "mixes", saved.id)[1] == "" and engine.library.mixes() == []


@pytest.mark.parametrize("kind", [k for _, k in library.KINDS])
def test_every_list_of_the_library_opens(engine, kind):
    for item in library.list_items(engine, kind):
        assert item.id in texts(library.refresh(engine, kind, item.id)[2])
    assert "used" in texts(library.refresh(engine, kind, "")[0])


def test_only_the_named_endpoints_of_the_page_are_public(engine):
    page = app.build(engine)
    public = {f.api_name for f in page.fns.values() if f.api_visibility != "private"}
    assert len(page.fns) > 40 and public == {"answer_prompt", "compare_models", "list_models"}


def test_an_always_last_event_has_one_handler_because_two_would_loop(engine):
    listeners = {}
    for fn in app.build(engine).fns.values():
        for target in fn.targets:
            listeners.setdefault(target, []).append(fn)
    assert any(f.trigger_mode == "always_last" for fs in listeners.values() for f in fs), (
        "the form runs its handler once more after the user has typed"
    )
    assert [
        [f.name for f in fs]
        for fs in listeners.values()
        if len(fs) > 1 and any(f.trigger_mode == "always_last" for f in fs)
    ] == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("<b> is broken.", "Fix it."), "&lt;b&gt; is broken. Fix it."),
        (ValueError("x"), events.UNEXPECTED),
    ],
)
def test_a_failing_handler_of_a_group_warns_and_the_others_still_update(engine, error, message):
    def fails(engine, value):
        raise error

    with gr.Blocks():
        one, two, three = gr.Textbox(), gr.Textbox(), gr.Textbox()
    group = events.EventGroup()
    group.add(fails, [one], [one])
    group.add(lambda engine, value: value + "!", [one], [two])
    group.add(lambda engine, values: {three: values[two]}, {two}, [three])
    with pytest.warns(UserWarning) as warned:
        assert group._run(engine, {one: "a", two: "b"}) == {two: "a!", three: "b"}
    assert [str(w.message) for w in warned] == [message]


def test_a_preset_fills_the_form(engine):
    with gr.Blocks():
        tab = train.build(engine)
    filled = train.preset_values(engine, tab, "domain", "embedded")
    assert filled[tab.advanced["learning_rate"]] == resolve("domain", "embedded", {}).learning_rate


@pytest.mark.parametrize(
    ("text", "reason", "shown"),
    [
        ("", "", "…"),
        ("", "end", "(empty answer)"),
        ("", "cancelled", "…"),
        ("A lamp.", "end", "A lamp."),
    ],
)
def test_an_empty_answer_says_so_when_the_model_ended_it(text, reason, shown):
    column = Column(text, tokens=0, seconds=0.0, done=bool(reason), reason=reason, stamp={})
    assert texts({"kids": answers.render_parts(column)}) == shown
    assert texts(board.render_columns(SimpleNamespace(columns=[column], prompts=()), 0)[0]).startswith(shown)
