"""Weights on Auto keep their gates wherever a mix is shown, saved, linked, chosen or answered with."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from core.cli.common import read_mix
from core.engine.calibration import CalibrationStatus
from core.errors import NotFound, SpecError
from core.merge.methods import BakeSpec
from core.model.columns import Column, MixChange
from core.spec.gate import calibrate
from core.spec.mix import AUTO_MODES, Mix, Sampling
from core.store.gate_records import make_gate
from studio import actions, answers, mix_choices
from studio.components import mixer
from studio.session import Exchange, Session
from studio.tabs import analysis, analysis_session, exports, mix, weight_map
from tests.studio.tabs.conftest import ids, nodes, pressed, sampling, texts

pytestmark = pytest.mark.slow
SHARED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WEIGHTS = st.integers(-40, 40).filter(bool).map(lambda n: n / 20)
GATES = st.sampled_from(["", *AUTO_MODES])
PART = st.tuples(WEIGHTS, st.sampled_from([0.0, 1.0, -1.0, 0.25]), GATES)


def mix_of(parts) -> Mix:
    return Mix(
        weights={a: w for a, (w, _, _) in parts.items()},
        tilt={a: t for a, (_, t, _) in parts.items()},
        auto={a: g for a, (_, _, g) in parts.items() if g},
    )


def parts_of(one: Mix):
    return one.weights, one.tilt, one.auto


@pytest.fixture
def rows_of_mix(engine):
    return lambda one: mixer.apply_mix(None, mixer.adapter_rows(engine), one)


@SHARED
@given(data=st.data())
def test_a_mix_survives_every_form_that_it_takes(engine, data):
    domain, task = ids(engine)
    parts = data.draw(st.fixed_dictionaries({}, optional={domain: PART, task: PART}))
    assume(not {"soft", "token"} <= {gate for _, _, gate in parts.values()})  # a mix has one of them
    one = mix_of(parts)
    adapters = mixer.adapter_rows(engine)
    rows = json.loads(json.dumps(mixer.apply_mix(None, adapters, one)))
    assert parts_of(mixer.read_mix(rows)) == parts_of(one), "the rows of the mixer"
    assert parts_of(Mix.parse(str(one))) == parts_of(one), "a link, an id of a choice, a row of a report"
    opened, *_ = mix.open_link(engine, f"?mix={str(one).replace(' + ', ',')}", None)
    assert parts_of(mixer.read_mix(opened)) == parts_of(one), "a link"
    _, saved = mix.save_mix(engine, "Kept", rows)
    try:
        loaded = mix.load_mix(engine, saved["value"], mixer.apply_mix(None, adapters, Mix()))
        assert parts_of(mixer.read_mix(loaded)) == parts_of(one), "a saved mix"
        engine.library.rename("mixes", saved["value"], "Renamed")
        (listed,) = (m for m in engine.library.mixes() if m.id == saved["value"])
        assert parts_of(listed.mix) == parts_of(one), "a renamed mix"
        (chosen,) = mix_choices.parse_mixes(engine, [str(listed.mix)])
        assert parts_of(chosen) == parts_of(one), "a column of Compare"
    finally:
        engine.library.delete("mixes", saved["value"])
    assert parts_of(read_mix(engine, str(one).replace(" + ", ","))) == parts_of(one), "the terminal"


def test_the_terminal_resolves_names_and_keeps_their_gates(engine):
    domain, task = ids(engine)
    names = {a.id: a.name for a in engine.library.adapters()}
    read = read_mix(engine, f"{names[domain]}=auto-soft:0.7@1,{names[task]}", "shown")
    assert read == Mix("shown", {domain: 0.7, task: 1.0}, tilt={domain: 1.0}, auto={domain: "soft"})


@pytest.mark.parametrize("auto", ["often", True, 1, ["hard"], {"mode": "hard"}])
def test_a_gate_that_does_not_exist_is_refused(auto):
    with pytest.raises(SpecError, match="gate of 'a' must be one of hard, soft, token"):
        mixer.read_mix([{"id": "a", "on": True, "weight": 1.0, "auto": auto}])


def test_the_names_say_auto(engine, rows_of_mix):
    domain, task = ids(engine)
    one = Mix(weights={domain: 1.0, task: 1.0}, auto={domain: "hard"})
    shown = mixer.current_mix(engine, rows_of_mix(one))
    assert shown.name == "base + auto · Sample domain + 1.00 · Sample task"
    choice = mix_choices.list_choices(engine, shown)[-1]
    assert choice["name"] == f"Mixer: {shown.name}" and Mix.parse(choice["id"]).auto == {domain: "hard"}
    assert choice["about"] == "auto · Sample domain + Sample task"
    saved = engine.library.save_mix("Follows", one.weights, auto=one.auto)
    assert mix_choices.describe_saved_mix(engine, saved) == "Follows: auto · Sample domain + Sample task"
    engine.library.delete("mixes", saved.id)


# --- what a gate chose


def gated_column(weight=1.0, **changes) -> Column:
    decision = {"weight": weight, "evidence": 0.62, "threshold": 0.1, "probability": 0.99}
    stamp = {
        "base": "tiny", "mix": "Follows", "weights": {"d": weight} if weight else {}, "tilt": {},
        "adapters": {"d": "a" * 64} if weight else {}, "sampling": {}, "auto": {"d": decision},
    }  # fmt: skip
    return Column("A lamp.", 3, 0.1, True, "end", stamp, **changes)


LABELS = {"d": "Station papers"}


def test_the_stamp_says_the_chosen_weight_and_the_reason():
    shown = texts(answers.render_stamp(gated_column(), LABELS))
    assert "base · Station papers auto 1.00" in shown
    assert "0.62 nats a token likelier with Station papers (limit 0.10): on." in shown
    closed = texts(answers.render_stamp(gated_column(0.0), LABELS))
    assert "base · Station papers auto 0.00" in closed


def test_a_change_by_a_gate_is_marked_with_the_new_weights():
    stamps = [{"weights": {"d": w} if w else {}, "auto": {"d": {"weight": w}}} for w in (1.0, 0.0)]
    changes = tuple(MixChange(at, at, "Follows", s) for at, s in zip((2, 4), stamps, strict=True))
    column = gated_column(0.0, mix_changes=changes)
    for render in (answers.render_rich, lambda *a: {"kids": answers.render_parts(*a), "tag": "p"}):
        marks = [texts(n) for n in nodes(render(column, LABELS)) if n.get("cls") == "turn"]
        assert marks == ["base · Station papers auto 1.00", "base · Station papers auto 0.00"]


def test_the_comparison_as_markdown_says_the_reason():
    session = Session(prompt="Where?", names=["Follows"], labels=LABELS)
    session.frame = SimpleNamespace(columns=[gated_column()], prompts=())
    written = answers.to_markdown(session)
    assert "Station papers auto 1.00" in written and "nats a token likelier with Station papers" in written


def test_the_mixer_follows_the_newest_answer_and_a_new_question_keeps_it():
    session = Session(exchanges=[Exchange("Where?", column=gated_column(), labels=LABELS)])
    gates = mix.show_conversation(session)["gates"]
    assert gates["d"]["weight"] == 1.0 and gates["d"]["text"].endswith("Station papers (limit 0.10): on")
    session.exchanges.append(Exchange("And now?"))
    assert "gates" not in mix.show_conversation(session), "until the answer begins"
    session.exchanges[-1].column = Column("x", stamp={"weights": {}})
    assert mix.show_conversation(session)["gates"] == {}
    assert mix.show_conversation(Session())["gates"] == {}


def test_a_row_says_what_its_gate_lacks_and_its_button_calibrates(engine, monkeypatch):
    domain, _ = ids(engine)
    rows = {r["id"]: r for r in mixer.adapter_rows(engine)}
    assert set(rows[domain]["gate"]) == {"usable", "reason", "running"} and rows[domain]["auto"] == ""
    started = []
    monkeypatch.setattr(engine.calibration, "start_job", started.append)
    actions.run_action(engine, pressed(do="calibrate", adapter=domain))
    assert started == [domain]
    failed = CalibrationStatus(domain, state="failed", problem="Too few rows.")
    monkeypatch.setattr(engine.calibration, "status", lambda _: failed)
    gate = mixer._find_gate(engine, domain, {"usable": False, "reason": "it is not calibrated yet"})
    assert gate == {
        "usable": False, "reason": "it could not be calibrated: Too few rows", "running": False
    }  # fmt: skip


# --- where numbers are needed


@pytest.fixture
def on_auto(engine, rows_of_mix):
    domain, task = ids(engine)
    return rows_of_mix(Mix(weights={domain: 1.0, task: 1.0}, auto={domain: "hard"}))


REFUSED = "needs a number for every weight, and Sample domain is on Auto"


def test_baking_and_exporting_refuse_auto_with_the_remedy(engine, on_auto):
    one = mixer.read_mix(on_auto)
    with pytest.raises(SpecError, match=REFUSED) as e:
        list(engine.library.bake(one, BakeSpec(name="Baked")))
    assert e.value.fix == "Set it to a number first."
    with pytest.raises(SpecError, match=REFUSED):
        exports.open_for_mix(engine, on_auto)
    form = ["peft", "Out", *[getattr(exports.ExportSpec(), s) for s in exports.SETTINGS]]
    with pytest.raises(SpecError, match=REFUSED) as e:
        exports.read_spec(engine, str(one), *form)
    assert e.value.field == "what"


def test_a_map_needs_numbers_for_the_adapters_that_it_does_not_vary(engine, on_auto, small_maps):
    domain, task = ids(engine)
    dataset = next(d.id for d in engine.datasets.list() if d.kind == "task")
    one = mixer.read_mix(on_auto)
    for start in (
        lambda: engine.analysis.weight_map(task, "another", dataset, 2, one),
        lambda: engine.analysis.search_weights([task], dataset, 2, one),
    ):
        with pytest.raises(SpecError, match=REFUSED):
            start()
    session = analysis_session.AnalysisSession()
    *_, (figure, _) = weight_map.draw_map(engine, domain, task, dataset, 2, on_auto, session, "perplexity")
    assert session.map.fixed == {} and figure is not None, "its own axes are numbers"


def calibrated(engine, adapter_id, threshold):
    """Gives an adapter a gate with a threshold."""
    resident_base = engine.resident_base
    own = [threshold + 0.1 + d / 100 for d in range(4)]
    other = [threshold - 0.1 - d / 100 for d in range(4)]
    found = calibrate(own, other, ["others"], resident_base.info.fingerprint)

    def store():
        from core.store import adapters

        resident = resident_base.get()
        adapters.set_gate(engine.workspace, adapter_id, make_gate(found, "Papers"))
        resident.set_calibration(adapter_id, found)

    engine.worker.call(store)


@pytest.mark.parametrize(("threshold", "weight"), [(-9.0, 1.0), (9.0, 0.0)])
def test_an_attribution_uses_the_weights_of_its_prompt_and_says_them(engine, on_auto, threshold, weight):
    domain, task = ids(engine)
    calibrated(engine, domain, threshold)
    session = analysis_session.AnalysisSession()
    how = sampling(max_new_tokens=4)
    *_, last = analysis.explain_answer(engine, "Where is the red lamp kept?", on_auto, session, False, *how)
    assert f"Weights on Auto, for this prompt: Sample domain {weight:.2f}." in texts(last)
    stream = engine.analysis.attribution(
        "Where is the red lamp kept?", mixer.read_mix(on_auto), sampling=Sampling(max_new_tokens=4)
    )
    found = stream.last().attribution
    assert found.auto == {domain: weight}
    assert found.mix == ({domain: 1.0, task: 1.0} if weight else {task: 1.0})


def test_a_comparison_resolves_auto_for_one_prompt_and_needs_numbers_otherwise(engine, on_auto):
    domain, _ = ids(engine)
    one = mixer.read_mix(on_auto)
    calibrated(engine, domain, -9.0)
    last = engine.analysis.interference(one, ["Where is the red lamp kept?"]).last()
    assert "for this prompt: Sample domain 1.00" in last.note and last.outputs is not None
    calibrated(engine, domain, 9.0)
    with pytest.raises(SpecError, match="at least two adapters. .*Sample domain 0.00"):
        engine.analysis.interference(one, ["Where is the red lamp kept?"]).last()
    for prompts in ([], ["One lamp", "Two lamps"]):
        with pytest.raises(SpecError, match=REFUSED):
            engine.analysis.interference(one, prompts)


def test_a_link_to_a_missing_adapter_on_auto_is_refused(engine):
    with pytest.raises(NotFound, match="uses the adapter 'gone'"):
        mix.open_link(engine, "?mix=gone%3Dauto-soft%3A0.5", None)
