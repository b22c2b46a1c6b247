"""Exporting on the page: what can be chosen, the form, the estimate, the list, and the buttons elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from core.engine import Engine
from core.engine.export_uploads import UploadStatus
from core.engine.exports import ExportStatus
from core.errors import AdapterError, Busy, DiskFull, InvalidName, NotFound, SpecError
from core.spec.export import ExportSpec
from core.spec.mix import Mix
from studio.components import exports as export_list
from studio.tabs import exports, library
from tests.studio.exported import FAILED, put_export
from tests.studio.shown import actions, texts
from tests.studio.tabs.conftest import ids, pressed, rows_of

DEFAULTS = ["base", "q8_0", 4.0, False, True, 20]


@pytest.fixture
def estimates(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[ExportSpec]:
    """The specs that were estimated or started, in place of the work."""
    seen: list[ExportSpec] = []

    def estimate(spec: ExportSpec) -> Any:
        seen.append(spec)
        return SimpleNamespace(bytes=len(seen) * 10**6, free_bytes=2 * 10**6, seconds=70.0)

    def start(spec: ExportSpec) -> str:
        seen.append(spec)
        return "started-0000"

    monkeypatch.setattr(engine.exports, "estimate", estimate)
    monkeypatch.setattr(engine.exports, "start", start)
    return seen


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path, load=False) as opened:
        yield opened


def test_every_mix_with_an_adapter_can_be_chosen_and_the_base_cannot(engine: Engine) -> None:
    domain, task = ids(engine)
    rows = rows_of(engine, {domain: 0.5, task: 0.25})
    mixed = str(Mix(weights={domain: 0.5, task: 0.25}))
    chosen = {c["id"]: c for c in exports.list_choices(engine, rows)}
    assert "base" not in chosen and {domain, task, f"{domain} + {task}", mixed} <= set(chosen)
    assert chosen[mixed]["name"].startswith("Mixer: ")
    update = exports.refresh(engine, None, rows)
    assert update["value"] in (domain, task), "one adapter is chosen at first"
    kept = exports.refresh(engine, mixed, rows_of(engine, {task: 1.0}))
    assert "value" not in kept and mixed in [i for _, i in kept["choices"]], "a mix stays while it exists"
    assert exports.refresh(engine, "gone-0000=0.5", rows)["value"] in (domain, task)


def test_the_form_becomes_a_spec_with_the_settings_of_its_form_only(engine: Engine) -> None:
    domain, task = ids(engine)
    settings = ["f16", "q4_0", 2.0, True, False, 7]
    spec = exports.read_spec(engine, f"{domain}=0.5 + {task}@1", "gguf", " My files ", *settings)
    assert (spec.name, spec.weights) == ("My files", {domain: 0.5, task: 1.0})
    assert (spec.tilt, spec.form, spec.quantization, spec.prompts) == ({task: 1.0}, "gguf", "q4_0", 7)
    assert (spec.precision, spec.shard_gb, spec.plain_copy, spec.include_base) == ("base", 4.0, False, True)
    assert exports.read_spec(engine, domain, "merged", "", *settings).precision == "f16"
    assert exports.read_spec(engine, domain, "peft", "", *settings).plain_copy
    assert not exports.read_spec(engine, domain, "bundle", "", *settings).include_base
    saved = engine.library.save_mix("Warm tone", {domain: 0.75})
    assert exports.read_spec(engine, str(saved.mix), "peft", "", *settings).name == "Warm tone"
    engine.library.delete("mixes", saved.id)


def test_each_form_shows_its_own_settings(engine: Engine) -> None:
    shown = {
        form: [
            n
            for n, u in zip(exports.SETTINGS, exports.list_settings(engine, form), strict=True)
            if u["visible"]
        ]
        for _, form in exports.FORMS
    }
    assert shown == {
        "peft": ["plain_copy", "prompts"],
        "merged": ["precision", "shard_gb", "prompts"],
        "gguf": ["quantization", "prompts"],
        "bundle": ["quantization", "include_base", "prompts"],
    }


@pytest.mark.parametrize(
    ("what", "settings", "field"),
    [
        ("", DEFAULTS, "what"),
        ("gone-0000", DEFAULTS, "what"),
        ("domain", [*DEFAULTS[:5], 201], "prompts"),
        ("domain", [*DEFAULTS[:5], None], "prompts"),
        ("domain", ["base", "q8_0", 0.0, False, True, 20], "shard_gb"),
    ],
)
def test_what_is_wrong_stands_at_its_field(
    engine: Engine, what: str, settings: list[Any], field: str
) -> None:
    chosen = next(ids(engine)) if what == "domain" else what
    with pytest.raises((SpecError, NotFound)) as e:
        exports.check_form(engine, chosen, "merged", "", *settings)
    assert e.value.field == field


def test_an_error_of_the_work_stands_at_what_caused_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain, _ = ids(engine)
    for error, field in (
        (InvalidName("The name is not allowed."), "name"),
        (AdapterError("It has trained embeddings."), "what"),
        (DiskFull("The disk is full."), "estimate"),
        (SpecError("The precision is wrong.").at("precision"), "precision"),
    ):

        def fail(spec: ExportSpec, error: Any = error) -> str:
            raise error

        for verb in ("estimate", "start"):
            monkeypatch.setattr(engine.exports, verb, fail)
        with pytest.raises(type(error)) as e:
            exports.start(engine, domain, "peft", "", *DEFAULTS)
        assert e.value.field == field
        shown = exports.refresh_estimate(engine, domain, "peft", "", *DEFAULTS)
        assert shown["cls"] == "problem" and error.what in texts(shown)


def test_the_estimate_follows_the_form(engine: Engine, estimates: list[ExportSpec], fresh: Engine) -> None:
    domain, _ = ids(engine)
    assert texts(exports.estimate(engine, None, "peft", "", *DEFAULTS)) == exports.NOTHING
    shown = texts(exports.estimate(engine, domain, "peft", "", *DEFAULTS))
    assert shown.startswith("About 1 MB on the disk; 2 MB must be free, ")
    assert shown.endswith("About 1 min 10 s to write, and the check after that.")
    unchecked = texts(exports.estimate(engine, domain, "gguf", "", *DEFAULTS[:5], 0))
    assert unchecked.startswith("About 2 MB") and unchecked.endswith("About 1 min 10 s to write.")
    assert [spec.form for spec in estimates] == ["peft", "gguf"]
    with pytest.raises(SpecError, match="Train an adapter or import one first"):
        exports.start(fresh, None, "peft", "", *DEFAULTS)


def test_a_started_export_is_followed_by_the_list(engine: Engine, estimates: list[ExportSpec]) -> None:
    _, task = ids(engine)
    assert exports.start(engine, task, "merged", "For the team", *DEFAULTS) == (
        {"export": "started-0000"},
        "",
    )
    assert estimates[0].name == "For the team" and estimates[0].weights == {task: 1.0}


def test_the_details_of_an_adapter_open_the_form(engine: Engine) -> None:
    domain, task = ids(engine)
    details = library.refresh(engine, "adapters", task)[2]
    (press,) = [a for a in actions(details) if a["do"] == "export"]
    fold, what, shown = exports.open_for_adapter(engine, None, pressed(**press))
    assert fold["open"] is True and what["value"] == task and shown["show"] > 0
    assert exports.open_for_adapter(engine, None, pressed(do="verify")) == (gr.skip(),) * 3
    assert "verified" not in texts(library.act_on_item(engine, "adapters", task, pressed(**press))[2])
    assert "verified" in texts(library.act_on_item(engine, "adapters", task, pressed(do="verify"))[2])
    with pytest.raises(NotFound):
        exports.open_for_adapter(engine, None, pressed(do="export", adapter="gone-0000"))


def test_the_mixer_opens_the_form_with_its_mix(engine: Engine) -> None:
    domain, task = ids(engine)
    rows = rows_of(engine, {domain: 0.5, task: -0.25}, {task: 1.0})
    fold, what, _, tabs = exports.open_for_mix(engine, rows)
    assert fold["open"] is True and tabs.selected == "library"
    assert Mix.parse(what["value"]) == Mix(weights={domain: 0.5, task: -0.25}, tilt={task: 1.0})
    assert what["value"] in [i for _, i in what["choices"]]
    with pytest.raises(SpecError, match="the base alone"):
        exports.open_for_mix(engine, rows_of(engine, {}))


def test_an_adapter_in_training_or_of_another_base_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain, task = ids(engine)
    rows = rows_of(engine, {domain: 1.0, task: 1.0})
    listed = [dict(vars(a)) for a in engine.library.mixable_adapters()]
    kind = type(engine.library.mixable_adapters()[0])
    trainee = [kind(**{**a, "training": a["id"] == task}) for a in listed]
    monkeypatch.setattr(engine.library, "mixable_adapters", lambda: trainee)
    with pytest.raises(SpecError, match="is in training"):
        exports.open_for_mix(engine, rows)
    assert task not in [c["id"] for c in exports.list_choices(engine, rows)]
    other = [kind(**{**a, "fits": False, "reason": "It belongs to another base."}) for a in listed]
    monkeypatch.setattr(engine.library, "mixable_adapters", lambda: other)
    with pytest.raises(SpecError, match="It belongs to another base. Choose its base first"):
        exports.open_for_adapter(engine, None, pressed(do="export", adapter=task))


def test_the_list_shows_running_exports_again_and_their_buttons_work(
    fresh: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = put_export(fresh, "done-0001", files={"a": b"x"})
    put_export(fresh, "running-0002")
    status = ExportStatus("running-0002", "Answers", "running", "Writing", 0.5)
    monkeypatch.setattr(fresh.exports, "statuses", lambda: [status])
    listed = export_list.poll_exports(fresh, {"asking": "done-0001"})["exports"]
    assert {e["id"]: e["running"] for e in listed} == {"done-0001": False, "running-0002": True}
    trees = {e["id"]: e["tree"] for e in listed}
    assert [a["do"] for a in actions(trees["done-0001"])] == ["delete", "keep"]
    called: list[str] = []
    monkeypatch.setattr(fresh.exports, "cancel", called.append)
    monkeypatch.setattr(fresh.exports, "resume", called.append)
    monkeypatch.setattr(fresh.bases, "load", lambda: None)
    for do in ("stop", "resume", "unknown"):
        assert export_list.act_on_export(fresh, {"do": do, "export": "running-0002"}) == {}
    assert called == ["running-0002", "running-0002"]
    export_list.act_on_export(fresh, {"do": "delete", "export": done.id})
    assert [e.id for e in fresh.exports.list()] == ["running-0002"]
    monkeypatch.setattr(fresh.exports, "status", lambda export_id: status)
    with pytest.raises(Busy):
        export_list.act_on_export(fresh, {"do": "delete", "export": "running-0002"})


def test_an_upload_is_started_followed_and_stopped_from_its_row(
    fresh: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = put_export(fresh, "done-0001", files={"a": b"x"})
    failed = put_export(fresh, "bad-0002", files={"a": b"x"}, certificate=FAILED)
    started: list[Any] = []
    uploads = fresh.exports.uploads
    monkeypatch.setattr(uploads, "start", lambda export, *given: started.append((export.id, *given)))
    press = {"do": "push", "export": export.id, "repo": "me/x", "private": False}
    assert export_list.act_on_export(fresh, press) == {}
    assert export_list.act_on_export(fresh, {"do": "push", "export": export.id, "repo": "me/y"}) == {}
    assert started == [("done-0001", "me/x", False), ("done-0001", "me/y", True)], "private by default"
    with pytest.raises(SpecError, match='is "owner/name", got'):
        export_list.act_on_export(fresh, {**press, "export": failed.id, "repo": ""})
    assert export_list.act_on_export(fresh, {**press, "export": failed.id}) == {"asks": True}
    assert len(started) == 2, "nothing is uploaded before the answer"
    request = {"asking": failed.id, "question": "upload"}
    trees = {e["id"]: e["tree"] for e in export_list.poll_exports(fresh, request)["exports"]}
    (sure, _) = actions(trees[failed.id])
    assert export_list.act_on_export(fresh, {**sure, "repo": "me/z", "private": True}) == {}
    assert started[2:] == [("bad-0002", "me/z", True)]
    running = UploadStatus(export.id, "Answers", "me/x", state="running", text="Creating me/x")
    monkeypatch.setattr(uploads, "statuses", lambda: [running])
    listed = {e["id"]: e for e in export_list.poll_exports(fresh, {})["exports"]}
    assert listed[export.id]["running"] and not listed[failed.id]["running"]
    assert "Creating me/x" in texts(listed[export.id]["tree"])
    stopped: list[str] = []
    monkeypatch.setattr(uploads, "cancel", stopped.append)
    (stop,) = [a for a in actions(listed[export.id]["tree"]) if a["do"] == "stop-upload"]
    export_list.act_on_export(fresh, stop)
    assert stopped == [export.id]


def test_a_bundle_can_hold_other_adapters_at_weight_0(engine: Engine) -> None:
    domain, task = ids(engine)
    shown = exports.refresh_also(engine, "bundle", domain, [])
    assert shown["visible"] and [i for _, i in shown["choices"]] == [task]
    assert not exports.refresh_also(engine, "gguf", domain, [])["visible"]
    assert exports.refresh_also(engine, "bundle", task, [task])["value"] == [], "it is in the mix now"
    assert exports.show_settings(engine, "bundle", domain, [])[-1] == shown
    spec = exports.read_spec(engine, f"{domain}=0.5@1", "bundle", "", *DEFAULTS, [task])
    assert spec.weights == {domain: 0.5, task: 0.0} and spec.tilt == {domain: 1.0}
    assert exports.read_spec(engine, domain, "bundle", "", *DEFAULTS, [domain]).weights == {domain: 1.0}
    assert exports.read_spec(engine, domain, "gguf", "", *DEFAULTS, [task]).weights == {domain: 1.0}
    with pytest.raises(NotFound, match="'typed' is not an adapter of this base") as e:
        exports.check_form(engine, domain, "bundle", "", *DEFAULTS, ["typed"])
    assert e.value.field == "also"


def test_an_adapter_that_no_bundle_can_hold_is_named_at_its_field(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain, task = ids(engine)
    names = {a.id: a.name for a in engine.library.adapters()}

    def refuse(spec: ExportSpec) -> Any:
        raise AdapterError(f"The adapter {names[task]!r} is trained on experts.", "Export it alone.")

    monkeypatch.setattr(engine.exports, "estimate", refuse)
    for what, also, field in ((domain, [task], "also"), (task, [domain], "what")):
        with pytest.raises(AdapterError) as e:
            exports.estimate(engine, what, "bundle", "", *DEFAULTS, also)
        assert e.value.field == field
