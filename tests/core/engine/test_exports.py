"""Exports in the background: complete with a certificate, continued after a stop, nothing else touched."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.engine import Engine
from core.engine.exports import Exports
from core.errors import AdapterError, BaseModelError, Busy, DamagedRecord, DiskFull, NotFound, SpecError
from core.model.generate import inference_mode_for
from core.spec.export import ExportSpec
from core.spec.mix import Mix
from core.store import exports as store
from core.store.exports import Export
from core.store.files import sha256_of
from core.store.snapshot import open_snapshot
from core.store.workspace import make_id
from tests.core.merge.test_bake import IDS, add_random_adapter

ROOT = Path(__file__).resolve().parents[3]
LAW = ("law", 4, 8, ("q_proj", "down_proj"), False)
ODD = ("odd", 6, 9, ("q_proj", "gate_proj"), True)


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("exports")
    with Engine(folder, str(tiny_base), "none", "cpu") as made:
        resident = made.worker.call(made.resident_base.get)
        for shape in (LAW, ODD):
            add_random_adapter(resident, *shape)
        yield made


def compute_logits(engine: Engine, mix: Mix) -> torch.Tensor:
    def work() -> torch.Tensor:
        resident = engine.resident_base.get()
        resident.load_adapters([mix])
        with inference_mode_for(resident, resident.rows([mix])):
            return resident.base.model(IDS).logits[0].clone()

    return engine.worker.call(work)


def run(engine: Engine, **settings: Any) -> Any:
    export_id = engine.exports.start(ExportSpec.from_json({"prompts": 3, **settings}))
    status = engine.exports.wait(export_id, 240)
    assert status.state == "done", status.problem
    return engine.exports.get(export_id)


def record(engine: Engine, name: str, **changes: Any) -> Export:
    """An export of one file, as the job would have stored it."""
    info = engine.resident_base.wait()
    spec = ExportSpec(weights={"law": 1.0}, name=name).to_json()
    made = Export(make_id(name), name, "peft", spec, info.name, info.fingerprint, is_complete=True)
    made = dataclasses.replace(made, **changes)
    folder = store.files_folder(engine.workspace, made.id)
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# Card\n")
    store.save(engine.workspace, made)
    return made


def test_an_adapter_leaves_with_files_checksums_and_certificate(engine):
    mix = Mix(weights={"law": 1.0})
    before = compute_logits(engine, mix)
    made = run(engine, weights={"law": 1.0}, form="peft", name="For them")
    folder = engine.exports.folder(made.id)
    assert made.is_complete and made.certificate["status"] == "passed", made.certificate["reason"]
    assert made.certificate["difference"] < 1e-4 and made.certificate["prompts"] == 3
    assert {f.name: f.sha256 for f in made.files} == {
        p.relative_to(folder).as_posix(): sha256_of(p) for p in folder.rglob("*") if p.is_file()
    }
    card = (folder / "README.md").read_text()
    assert "✅ passed" in card and card.count("## Parity certificate") == 1
    assert json.loads((folder / "certificate.json").read_text())["status"] == "passed"
    stored = load_file(folder / "adapter_model.safetensors")
    own = load_file(engine.workspace.path("adapters", "law", "adapter_model.safetensors"))
    assert stored.keys() == own.keys() and all(torch.equal(stored[k], own[k]) for k in own)
    assert torch.equal(compute_logits(engine, mix), before), "the resident base is untouched"
    assert made.id in [e.id for e in engine.exports.list()] and engine.exports.find("For them") == made


@pytest.mark.slow
def test_a_mix_leaves_merged_and_alive_and_passes(engine):
    mix = {"law": 0.7, "odd": -0.4}
    for form, settings in {"merged": {"precision": "f32"}, "bundle": {"quantization": "f32"}}.items():
        made = run(engine, weights=mix, tilt={"law": 0.5}, form=form, name=f"mix {form}", **settings)
        found = made.certificate
        expected = "passed"
        if form == "bundle" and found["reason"].startswith("llama.cpp is not installed"):
            expected = "not checked"
        assert (form, found["status"], found["reason"] * (expected == "passed")) == (form, expected, "")


def test_a_stopped_export_is_continued_and_is_the_same(engine, monkeypatch):
    whole = run(engine, weights={"law": 1.0}, form="merged", precision="f32", name="whole", prompts=0)
    spec = ExportSpec.from_json({"weights": {"law": 1.0}, "form": "merged", "precision": "f32", "prompts": 0})
    original = Exports._answer

    def stop_early(self: Exports, job: Any, part: str) -> Any:
        receive = original(self, job, part)

        def answer(question: Any) -> None:
            receive(question)
            if question["progress"]["text"].startswith("Writing"):
                self.cancel(job.key)

        return answer

    monkeypatch.setattr(Exports, "_answer", stop_early)
    export_id = engine.exports.start(spec)
    assert engine.exports.wait(export_id, 120).state == "cancelled"
    assert not engine.exports.get(export_id).is_complete
    monkeypatch.setattr(Exports, "_answer", original)
    engine.exports.resume(export_id)
    assert engine.exports.wait(export_id, 120).state == "done"
    made = engine.exports.get(export_id)
    digests = [{f.name: f.sha256 for f in e.files}["model.safetensors"] for e in (whole, made)]
    assert made.is_complete and digests[0] == digests[1]


KILL = """
import sys
from core.engine import Engine
from core.spec.export import ExportSpec
with Engine(sys.argv[1], sys.argv[2], "none", "cpu") as engine:
    engine.bases.current(wait=True)
    spec = ExportSpec(weights={"law": 1.0}, form="merged", name="killed", prompts=0)
    export_id = engine.exports.start(spec)
    print(export_id, flush=True)
    while True:
        status = engine.exports.status(export_id)
        if status.text.startswith(("Writing", "Computing", "Done")):
            print("writing", flush=True)
            import time
            time.sleep(60)
"""


@pytest.mark.slow
def test_a_killed_studio_leaves_an_export_that_is_continued(tiny_base, tmp_path):
    with Engine(tmp_path, str(tiny_base), "none", "cpu") as engine:
        add_random_adapter(engine.worker.call(engine.resident_base.get), *LAW)
    killed = subprocess.Popen(
        [sys.executable, "-c", KILL, str(tmp_path), str(tiny_base)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None
    export_id = killed.stdout.readline().strip()
    assert killed.stdout.readline().strip() == "writing"
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    time.sleep(0.5)  # its child notices the end with its next report
    with Engine(tmp_path, str(tiny_base), "none", "cpu") as engine:
        engine.bases.current(wait=True)
        assert [e.id for e in engine.exports.list()] == [export_id]
        engine.exports.resume(export_id)
        assert engine.exports.wait(export_id, 120).state == "done"
        assert engine.exports.get(export_id).is_complete
        names = [p.name for p in engine.exports.folder(export_id).iterdir()]
        assert not [n for n in names if n.endswith((".part", ".progress"))]


def test_what_cannot_be_exported_is_refused_before_it_starts(engine, monkeypatch):
    with pytest.raises(SpecError, match="no adapter"):
        engine.exports.start(ExportSpec(form="peft"))
    with pytest.raises((NotFound, AdapterError)):
        engine.exports.start(ExportSpec(weights={"nothing": 1.0}))
    with pytest.raises(NotFound, match="No export is called"):
        engine.exports.find("nothing")

    def refuse(path: Path, need_bytes: int) -> None:
        raise DiskFull("The disk is full.", "Free some space.")

    known = [e.id for e in engine.exports.list()]
    monkeypatch.setattr("core.engine.exports.ensure_space", refuse)
    with pytest.raises(DiskFull):
        engine.exports.start(ExportSpec(weights={"law": 1.0}))
    assert [e.id for e in engine.exports.list()] == known, "nothing half-made is left"


def test_an_estimate_is_computed_again_only_if_a_file_has_changed(engine, monkeypatch):
    from core.export import estimate as estimates

    computed, compute = [], estimates.estimate
    monkeypatch.setattr(estimates, "estimate", lambda *given: (computed.append(given), compute(*given))[1])
    spec = ExportSpec(weights={"law": 1.0}, form="merged")
    first = engine.exports.estimate(spec)
    assert engine.exports.estimate(spec) == first and len(computed) == 1
    assert engine.exports.estimate(dataclasses.replace(spec, precision="bf16")).bytes < first.bytes
    weights = engine.workspace.path("adapters", "law") / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    try:
        with pytest.raises(DamagedRecord):
            engine.exports.estimate(spec)
    finally:
        weights.write_bytes(whole)
    assert engine.exports.estimate(spec) == first


def test_an_export_of_another_base_waits_for_it(engine):
    made = record(engine, "other", base_fingerprint="0" * 64, is_complete=False)
    with pytest.raises(BaseModelError, match="is not loaded"):
        engine.exports.resume(made.id)


def test_an_export_is_deleted_whole_but_not_while_it_is_written(engine, monkeypatch):
    made = record(engine, "short-lived")
    monkeypatch.setattr(
        Exports, "status", lambda self, export_id: type("S", (), {"has_ended": False, "name": "x"})
    )
    with pytest.raises(Busy):
        engine.exports.delete(made.id)
    monkeypatch.undo()
    engine.exports.delete(made.id)
    assert not engine.workspace.path("exports", made.id).exists()
    assert made.id not in [e.id for e in engine.exports.list()]


def test_a_damaged_record_is_listed_as_damaged_and_nothing_else_is(engine):
    made = record(engine, "damaged")
    path = engine.workspace.path("exports", made.id, store.RECORD)
    path.write_text("{")
    known = [d.id for d in engine.library.damaged() if d.kind == "exports"]
    assert known == [made.id]
    assert made.id not in [e.id for e in engine.exports.list()]
    engine.library.delete_damaged("exports", made.id)


def test_prompts_come_from_general_text_where_no_data_is_known(engine):
    questions = engine.exports.choose_questions(ExportSpec(weights={"law": 1.0}, prompts=5))
    assert len(questions) == 5 and all(q.is_text and 0 < len(q.text) <= 240 for q in questions)


def test_a_backup_leaves_exports_out_and_says_so(engine):
    made = record(engine, "not packed")
    with open_snapshot(engine.workspace, with_trash=False) as snapshot:
        assert not [name for name in snapshot.members if name.startswith(f"exports/{made.id}")]
        assert snapshot.left_out[f"exports/{made.id}"] == "Exports are not packed: export it again."
    engine.exports.delete(made.id)


def test_an_export_that_is_stopped_while_the_studio_answers_ends_as_stopped(engine, monkeypatch):
    original = Exports._answer

    def stop_at_answers(self: Exports, job: Any, part: str) -> Any:
        if part == "studio":
            self.cancel(job.key)
        return original(self, job, part)

    monkeypatch.setattr(Exports, "_answer", stop_at_answers)
    export_id = engine.exports.start(ExportSpec(weights={"law": 1.0}, name="stopped", prompts=2))
    assert engine.exports.wait(export_id, 120).state == "cancelled"
    made = engine.exports.get(export_id)
    assert made.is_complete and made.certificate == {}, "it is checked when it is resumed"
