"""Calibrations of gates: what they are measured on, what is stored, and what stays when they fail or stop."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main
from core.engine import Engine
from core.engine.calibration import Calibrated
from core.engine.calibration_data import GENERAL, choose_data
from core.errors import AdapterError, Busy, NotFound, SpecError
from core.evaluate.gate_prompts import PROMPTS
from core.progress import Progress
from core.spec.gate import GateCalibration, calibrate
from core.spec.training import RunStatus
from core.store import adapters
from core.store.gate_records import describe_gate, join_names, make_gate
from tests.conftest import SENTENCES, build_tiny_llama
from tests.core.train.test_training import domain_spec, task_spec, wait_for


@pytest.fixture(scope="module")
def trained(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a domain adapter, a task stacked on it, and an unrelated task; none is calibrated."""
    root = tmp_path_factory.mktemp("calibration")
    files = {"corpus.txt": "\n\n---\n\n".join(SENTENCES[:48])}
    pairs = [
        {"question": f"Where is the {s.split()[1]} {s.split()[2]} now?", "answer": s} for s in SENTENCES[:48]
    ]
    sums = [{"question": f"What is {i} plus {i + 3}, please?", "answer": str(2 * i + 3)} for i in range(60)]
    files["pairs.jsonl"] = "".join(json.dumps(r) + "\n" for r in pairs)
    files["sums.jsonl"] = "".join(json.dumps(r) + "\n" for r in sums)
    for name, text in files.items():
        (root / name).write_text(text, encoding="utf-8")
    with Engine(root / "ws", str(tiny_base), device="cpu") as engine:
        engine._executor._finish = lambda adapter_id: None
        steps: dict[str, Any] = {"max_steps": 40, "learning_rate": 1e-2}
        domain = engine.runs.wait(engine.runs.start(domain_spec(engine, root / "corpus.txt", **steps)))
        spec = task_spec(engine, root / "pairs.jsonl", max_steps=2, stack_on=domain.adapter)
        engine.runs.wait(engine.runs.start(spec))
        other = engine.datasets.import_files([root / "sums.jsonl"], "Sums", "task")
        spec = replace(spec, name="Arithmetic", dataset=other.id, stack_on="")
        engine.runs.wait(engine.runs.start(spec))
        assert all(engine.calibration.get(a.id) is None for a in engine.library.adapters())
    return root


@pytest.fixture
def engine(trained: Path, tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    shutil.copytree(trained / "ws", tmp_path / "ws")
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as opened:
        opened.resident_base.wait()
        yield opened


def find(engine: Engine, name: str) -> str:
    return engine.library.find_adapter(name)


def find_data(engine: Engine, name: str) -> str:
    return next(d.id for d in engine.datasets.list() if d.name == name)


def test_a_domain_is_calibrated_against_general_text_and_unrelated_data(engine: Engine) -> None:
    domain = find(engine, "Domain")
    weights = (engine.workspace.find("adapters", domain) / adapters.WEIGHTS).read_bytes()
    parts = list(engine.calibration.start(domain))
    result = parts[-1]
    assert isinstance(result, Calibrated) and all(isinstance(p, Progress) for p in parts[:-1])
    found = result.calibration
    assert found == engine.calibration.get(domain) and result.previous is None and result.change == ""
    assert found.against == ("general text", "Sums"), "not its child's data, and not its own"
    own = {r["text"] for r in engine.datasets.rows(find_data(engine, "Corpus"), "val")}
    assert found.rows == (len(own), PROMPTS) and not found.questions
    assert found.other[0] < found.threshold < found.own[0] and found.area > 0.9 and not found.obstacle
    assert found.base_fingerprint == engine.resident_base.info.fingerprint
    assert (
        engine.calibration.describe(domain)
        == result.text
        == (
            f"calibrated on {len(own)} sentences of Corpus against 64 of general text and Sums: threshold "
            f"{found.threshold:.2f} nats a token, area under the curve {found.area:.2f}"
        )
    )
    folder = engine.workspace.find("adapters", domain)
    assert (folder / adapters.WEIGHTS).read_bytes() == weights and engine.library.verify(domain)
    assert "Weight on Auto: calibrated on" in (folder / "README.md").read_text(encoding="utf-8")
    resident = engine.resident_base.peek()
    assert resident is not None and resident.calibrations[domain] == ("domain", found)


def test_the_same_data_gives_the_same_calibration(engine: Engine) -> None:
    domain = find(engine, "Domain")
    first = engine.calibration.start(domain).last()
    second = engine.calibration.start(domain).last()
    assert second.calibration == first.calibration
    assert second.previous == first.calibration.threshold
    assert second.change == "The threshold is the same as before."
    moved = replace(second, previous=second.calibration.threshold - 0.5)
    assert moved.change.startswith("The threshold moved up by 0.50, from ")


def test_a_task_is_not_calibrated_against_its_parent(engine: Engine) -> None:
    task, sums = find(engine, "Task"), find(engine, "Arithmetic")
    assert engine.calibration.suggest_against(task) == [GENERAL, find_data(engine, "Sums")]
    against = engine.calibration.suggest_against(sums)
    assert against == [GENERAL, find_data(engine, "Pairs"), find_data(engine, "Corpus")]
    result = engine.calibration.start(sums).last()
    assert result.calibration.questions and "questions of Sums against 64 of " in result.text
    assert result.calibration.against == ("general text", "Pairs", "Corpus")


def test_copies_of_its_own_data_are_not_against_it(engine: Engine, trained: Path) -> None:
    own = find_data(engine, "Corpus")
    copy = engine.datasets.import_files([trained / "corpus.txt"], "Copy", "domain")
    part = engine.datasets.derive(own, "dedup", "Without repeats")
    for dataset in (copy, part):  # as if another adapter had been trained on it
        arithmetic = find(engine, "Arithmetic")
        data = {"id": dataset.id, "name": dataset.name}
        adapters.add_results(engine.workspace, arithmetic, {}, {"dataset": data})
        assert engine.calibration.suggest_against(find(engine, "Domain")) == [GENERAL]


def test_general_text_is_not_against_an_adapter_of_it(engine: Engine) -> None:
    samples = engine.samples.general_for(engine.resident_base.info.name)
    general = engine.datasets.import_files([samples.folder / "general.txt"], "Texts", "domain")
    domain = find(engine, "Domain")
    data = {"id": general.id, "name": general.name}
    adapters.add_results(engine.workspace, domain, {}, {"dataset": data})
    assert engine.calibration.suggest_against(domain) == [find_data(engine, "Sums")]
    settings = {"replay_dataset": find_data(engine, "Corpus"), "replay_share": 0.2}
    adapters.add_results(engine.workspace, domain, {}, {"hyperparameters": settings})
    assert engine.calibration.suggest_against(domain) == [
        find_data(engine, "Corpus"),
        find_data(engine, "Sums"),
    ], "what was replayed in place of the general text"


def test_questions_and_chosen_data_are_used_as_they_are_given(engine: Engine) -> None:
    domain, pairs, sums = find(engine, "Domain"), find_data(engine, "Pairs"), find_data(engine, "Sums")
    result = engine.calibration.start(domain, pairs, [sums], questions=True).last()
    assert result.calibration.against == ("Sums",) and result.calibration.questions
    texts = [f"Where is the {b} lamp kept today?" for b in ("red", "blue", "old", "green")]
    result = engine.calibration.start(domain, texts=texts).last()
    assert result.calibration.rows == (4, 64) and result.calibration.against == ("general questions", "Sums")
    assert result.text.startswith("calibrated on 4 questions of your list against 64 of general questions")
    samples = engine.samples.general_for(engine.resident_base.info.name)
    adapter = engine.library.adapter(domain)
    choice = choose_data(engine.workspace, samples, adapter, None, [GENERAL, sums])
    assert [s.name for s in choice.others] == ["general text", "Sums"] and not choice.only_questions


@pytest.mark.parametrize(
    ("own", "against", "questions", "field", "words"),
    [
        (None, ["Corpus"], False, "against", "is on both sides"),
        (None, [], True, "own", "'Corpus' has documents"),
        ("Pairs", ["Corpus"], True, "against", "'Corpus' has documents"),
    ],
)
def test_data_that_does_not_suit_is_refused_at_its_field(
    engine: Engine, own: str | None, against: list[str], questions: bool, field: str, words: str
) -> None:
    own_id = find_data(engine, own) if own else None
    ids = [find_data(engine, name) for name in against]
    with pytest.raises(SpecError, match=words) as caught:
        engine.calibration.start(find(engine, "Domain"), own_id, ids, questions)
    assert caught.value.field == field and caught.value.fix


def test_too_few_prompts_are_refused_with_their_number(engine: Engine) -> None:
    domain = find(engine, "Domain")
    with pytest.raises(
        SpecError, match="at least 4 different questions on each side, got 3 from your list"
    ) as e:
        engine.calibration.start(
            domain, texts=["What is it now?", "Who are they all?", "Why is that so?"]
        ).last()
    assert e.value.field == "own" and engine.calibration.get(domain) is None


def test_missing_data_and_other_bases_are_refused_in_words(engine: Engine, tmp_path: Path) -> None:
    domain = find(engine, "Domain")
    engine.library.delete("datasets", find_data(engine, "Corpus"))
    with pytest.raises(SpecError, match="is not in the workspace any more. Choose a dataset") as caught:
        engine.calibration.start(domain)
    assert caught.value.field == "own"
    with pytest.raises(NotFound):
        engine.calibration.start(domain, against=["gone-0000"], own=find_data(engine, "Pairs"))
    adapters.add_results(engine.workspace, domain, {}, {"dataset": None, "imported": {"tool": "peft"}})
    with pytest.raises(SpecError, match="was imported, so that its own data is not known"):
        engine.calibration.start(domain)
    other = build_tiny_llama(tmp_path / "other", seed=5)
    engine.bases.switch(str(other), "none")
    engine.resident_base.wait()
    with pytest.raises(AdapterError, match="was trained on"):
        engine.calibration.start(domain, find_data(engine, "Pairs"))


def test_an_imported_adapter_is_calibrated_on_any_two_datasets(engine: Engine) -> None:
    folder = engine.workspace.find("adapters", find(engine, "Domain"))
    imported = engine.adapter_imports.add(str(folder), "Foreign").id
    said = engine.calibration.describe(imported)
    assert said == "not calibrated: it was imported, and its own data is not known. So on Auto it stays off"
    with pytest.raises(SpecError, match="its own data is not known. Choose a dataset"):
        engine.calibration.start(imported)
    corpus, sums = find_data(engine, "Corpus"), find_data(engine, "Sums")
    found = engine.calibration.start(imported, corpus, [sums]).last().calibration
    assert found.against == ("Sums",) and found.area > 0.9 and engine.library.verify(imported)
    same = engine.calibration.start(find(engine, "Domain"), corpus, [sums]).last().calibration
    assert found.threshold == pytest.approx(same.threshold, abs=1e-3) and found.area == same.area


def test_a_base_with_an_encoder_is_refused(engine: Engine) -> None:
    resident = engine.resident_base.peek()
    assert resident is not None
    resident.base = replace(resident.base, family=replace(resident.base.family, seq2seq=True))
    with pytest.raises(SpecError, match=r"has an encoder. Set a fixed weight"):
        engine.calibration.start(find(engine, "Domain"))


def test_a_run_calibrates_its_adapter_after_it_is_done(
    engine: Engine, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, measure = threading.Event(), engine.calibration._measure

    def measure_late(*given: Any) -> Iterator[Any]:
        yield Progress(0, 1, "Waiting")
        while not go_on.is_set():
            yield None
        yield from measure(*given)

    monkeypatch.setattr(engine.calibration, "_measure", measure_late)
    spec = domain_spec(engine, trained / "corpus.txt", name="Again", max_steps=2)
    run = engine.runs.wait(engine.runs.start(spec))
    assert run.status is RunStatus.DONE and engine.calibration.get(run.adapter) is None
    wait_for(lambda: (s := engine.calibration.status(run.adapter)) and s.state == "running")
    with pytest.raises(Busy, match="being calibrated already"):
        engine.calibration.start_job(run.adapter)
    go_on.set()
    status = engine.calibration.wait(run.adapter, 60)
    assert status is not None and status.state == "done" and status.share == 1.0
    found = engine.calibration.get(run.adapter)
    assert found is not None and status.result is not None and status.result.calibration == found
    assert engine.runs.get(run.id).status is RunStatus.DONE


def test_a_failure_never_harms_the_run_and_its_reason_is_stored(
    engine: Engine, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> Iterator[Any]:
        yield Progress(0, 1, "")
        raise SpecError("The disk is full.", "Make some.")

    monkeypatch.setattr(engine.calibration, "_measure", fail)
    run = engine.runs.wait(
        engine.runs.start(domain_spec(engine, trained / "corpus.txt", name="Again", max_steps=1))
    )
    status = engine.calibration.wait(run.adapter, 60)
    assert (
        status is not None and status.state == "failed" and status.problem == "The disk is full. Make some."
    )
    assert run.status is RunStatus.DONE and not run.error and engine.calibration.get(run.adapter) is None
    said = engine.calibration.describe(run.adapter)
    assert said == "not calibrated: The disk is full. So on Auto it stays off"
    assert engine.library.verify(run.adapter)
    domain = find(engine, "Domain")
    engine.calibration.start_job(domain)
    assert engine.calibration.wait(domain, 60).state == "failed"  # type: ignore[union-attr]
    assert engine.calibration.describe(domain) == "not calibrated, so on Auto it stays off", "asked by hand"


def test_a_stopped_calibration_leaves_the_old_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tiny_base: Path
) -> None:
    domain = find(engine, "Domain")
    first = engine.calibration.start(domain).last().calibration
    before = (engine.workspace.find("adapters", domain) / adapters.METADATA).read_bytes()
    measure, begun = engine.calibration._measure, threading.Event()

    def measure_forever(*given: Any) -> Iterator[Any]:
        for part in measure(*given):
            if isinstance(part, Progress) and part.done:
                begun.set()
                while True:
                    yield part
            yield part

    monkeypatch.setattr(engine.calibration, "_measure", measure_forever)
    for end in (lambda: engine.calibration.cancel(domain), engine.close):
        begun.clear()
        engine.calibration.start_job(domain)
        assert begun.wait(60)
        end()
        status = engine.calibration.wait(domain, 60)
        assert status is not None and status.state == "cancelled"
    assert (engine.workspace.find("adapters", domain) / adapters.METADATA).read_bytes() == before
    with Engine(engine.workspace.root, load=False) as again:
        assert again.calibration.get(domain) == first and again.calibration.status(domain) is None


def test_an_adapter_that_was_trained_further_keeps_no_calibration_of_before(engine: Engine) -> None:
    domain = find(engine, "Domain")
    found = engine.calibration.start(domain).last().calibration
    with pytest.raises(Busy, match="trained further while it was measured"):
        adapters.set_gate(engine.workspace, domain, make_gate(found, "Corpus"), "0" * 64)
    assert engine.calibration.get(domain) == found
    resident = engine.resident_base.peek()
    assert resident is not None
    resident.trainee_id = domain
    with pytest.raises(Busy, match="still in training"):
        engine.calibration.start(domain)
    resident.trainee_id = ""


def test_a_gate_that_tells_nothing_apart_is_stored_and_stays_off(engine: Engine) -> None:
    task = find(engine, "Task")  # of two steps: it makes no prompt likelier
    assert isinstance(engine.calibration.start(task).last(), Calibrated)
    weak = replace(calibrate([0.1] * 4, [0.0] * 4, ("general text",)), area=0.61)
    adapters.set_gate(engine.workspace, task, make_gate(weak, "Pairs"))
    assert engine.calibration.get(task) == weak
    assert engine.calibration.describe(task).endswith(
        "area under the curve 0.61. But on Auto it stays off: its own prompts and others are hardly told "
        "apart (area under the curve 0.61, at least 0.7 is needed)"
    )


def test_damaged_gates_are_read_as_none() -> None:
    for gate in (None, [], "x", {}, {"note": ""}, {"threshold": "x"}, {"temperature": 0}):
        assert GateCalibration.from_json(gate) is None
        assert describe_gate(gate) == "not calibrated, so on Auto it stays off"
    assert join_names(["a"]) == "a" and join_names(["a", "b"]) == "a and b"
    assert join_names(["a", "b", "c", "d"]) == "a, b, c and 1 other" and join_names([]) == ""


def test_the_terminal_calibrates(
    engine: Engine, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.close()
    options = ["--workspace", str(engine.workspace.root), "--base", str(tiny_base), "--json"]
    assert main(["adapters", "calibrate", "Domain", *options]) == 0
    *_, line = capsys.readouterr().out.splitlines()
    first = json.loads(line)
    assert first["usable"] and first["previous_threshold"] is None
    assert first["calibration"]["against"] == ["general text", "Sums"]
    file = tmp_path / "questions.txt"
    file.write_text(
        "".join(f"Where is the {b} clock now?\n" for b in ("red", "old", "blue", "green", "grey"))
    )
    more = ["--questions", str(file), "--against", "Sums", "--against", GENERAL]
    assert main(["adapters", "calibrate", "Domain", *more, *options]) == 0
    second = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert second["calibration"]["rows"] == [5, 64] and second["calibration"]["questions"] is True
    assert second["calibration"]["against"] == ["Sums", "general questions"]
    assert second["previous_threshold"] == first["calibration"]["threshold"]
    table = tmp_path / "questions.jsonl"
    table.write_text("".join(json.dumps({"question": f"Where is pump {i}?"}) + "\n" for i in range(3)))
    assert main(["adapters", "calibrate", "Domain", "--questions", str(table), *options]) == 1
    error = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "got 3 from your list" in error["error"] and error["fix"]
