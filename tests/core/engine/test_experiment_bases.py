"""Bases of an experiment: each is loaded once in its turn, and the first one is resident again at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine, experiment_bases
from core.engine.callers import Caller, act_for
from core.engine.experiment_cells import ResidentCells
from core.errors import BaseModelError
from core.spec.experiment import ExperimentRow, ExperimentSpec
from core.spec.mix import Mix, Sampling
from core.spec.training import TrainSpec
from tests.conftest import SENTENCES, build_tiny_llama, held
from tests.core.merge.test_bake import SHAPES, add_random_adapter
from tests.core.server.random_library import open_engine

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another base of the same shape, with other weights."""
    return build_tiny_llama(tmp_path_factory.mktemp("second-base"), seed=9)


@pytest.fixture(scope="module")
def engine(tiny_base: Path, second: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Adapters of the first base, "far" of the second one, and questions."""
    folder = tmp_path_factory.mktemp("bases")
    rows = [
        {"question": f"Where is the {s.split()[1]} {s.split()[2]}?", "answer": s} for s in SENTENCES[:16:4]
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    with open_engine(tiny_base, folder / "ws") as made:
        made.datasets.import_files([folder / "pairs.jsonl"], "Pairs", "task")
        first = made.resident_base.choice
        made.bases.load_temporarily(first._replace(base=made.bases.locate(str(second))))
        made.worker.call(lambda: add_random_adapter(made.resident_base.get(), "far", *SHAPES["law"]))
        made.bases.load_temporarily(first)
        yield made


@pytest.fixture
def loads(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bases that are loaded, in order."""
    made, load = [], engine.resident_base._load

    def record(choice: Any) -> Any:
        made.append(choice.base)
        return load(choice)

    monkeypatch.setattr(engine.resident_base, "_load", record)
    return made


def plan(engine: Engine, *rows: ExperimentRow, **changes: Any) -> ExperimentSpec:
    settings = {
        "name": "Bases", "split": "all", "general_questions": 1, "timed_questions": 1, "max_new_tokens": 4,
    }  # fmt: skip
    dataset = engine.datasets.list()[0].id
    return ExperimentSpec(dataset=dataset, rows=rows, **{**settings, **changes})


def start(engine: Engine, *rows: ExperimentRow, **changes: Any) -> tuple[str, Any]:
    key = engine.experiments.start(plan(engine, *rows, **changes))
    return key, engine.experiments.wait(key)


def list_answers(engine: Engine, key: str) -> dict[str, list[str]]:
    return {name: [a.answer for a in cell.answers] for name, cell in engine.experiments.cells(key).items()}


def test_each_base_is_loaded_once_and_the_first_one_again(
    engine: Engine, tiny_base: Path, second: Path, loads: list[str]
) -> None:
    first, other = str(tiny_base), str(second)
    stored = engine.workspace.base_path.exists()
    before = engine.bases.current()
    texts: set[str] = set()
    key = engine.experiments.start(
        plan(
            engine,
            ExperimentRow("there", base=other),
            ExperimentRow("here"),
            ExperimentRow("far there", "far", base=other),
            ExperimentRow("law here", "law"),
            ExperimentRow("law there", "law", base=other),
            ExperimentRow("nowhere", base="owner/missing"),
        )
    )
    while not (status := engine.experiments.status(key)).has_ended:  # type: ignore[union-attr]
        texts.add(status.text)  # type: ignore[union-attr]
        time.sleep(0.002)
    assert status.state == "done" and loads == [other, first]  # type: ignore[union-attr]
    assert f"Loading {second.name}" in texts and f"Loading {tiny_base.name}" in texts
    assert engine.bases.current() == before and engine.workspace.base_path.exists() == stored
    states, answers = engine.experiments.states(key), list_answers(engine, key)
    assert {name for name, state in states.items() if state == "done"} == set(answers)
    assert set(answers) == {"there", "here", "far there", "law here"}
    assert states["law there"] == "not run: the adapter 'Law' was trained on another base"
    assert states["nowhere"] == (
        "not run: it needs the base 'owner/missing'. 'owner/missing' is not complete on this machine"
    )
    assert len({tuple(a) for a in answers.values()}) == 4
    groups = {row.name: row.row.group_name for row in engine.experiments.results(key).rows}
    assert groups["here"] == groups["law here"] == before.name and groups["there"] == other


def test_rows_that_no_base_can_answer_load_nothing(engine: Engine, second: Path, loads: list[str]) -> None:
    key, status = start(engine, ExperimentRow("law there", "law", base=str(second)))
    assert status.state == "done" and loads == []
    assert "trained on another base" in engine.experiments.states(key)["law there"]


def test_a_caller_who_may_not_change_the_base_leaves_it(
    engine: Engine, second: Path, loads: list[str]
) -> None:
    rows = ExperimentRow("here"), ExperimentRow("there", base=str(second))
    with act_for(Caller("tom")):
        key, status = start(engine, *rows, max_new_tokens=3)
    states = engine.experiments.states(key)
    assert states["here"] == "done" and loads == []
    assert states["there"].startswith(f"not run: it needs the base {str(second)!r}, and ")
    with act_for(Caller("olga", is_limited=False)):
        engine.experiments.resume(key)
    assert engine.experiments.wait(key).state == "done" and len(loads) == 2
    assert set(engine.experiments.states(key).values()) == {"done"}


def test_a_base_that_cannot_be_loaded_leaves_the_other_rows(
    engine: Engine, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    third = build_tiny_llama(tmp_path / "third", seed=3)
    load, before = engine.resident_base._load, engine.bases.current()

    def run_out(choice: Any) -> Any:
        info = load(choice)
        return info if choice.base != str(third) else _fail(engine)

    monkeypatch.setattr(engine.resident_base, "_load", run_out)
    rows = (ExperimentRow(name, base=str(base)) for name, base in (("third", third), ("second", second)))
    key, status = start(engine, *rows, max_new_tokens=5)
    assert status.state == "done"
    states = engine.experiments.states(key)
    assert states["second"] == "done" and states["third"] == (
        f"not run: the base {str(third)!r} is not loaded. 'third' could not be loaded (out of memory)"
    )
    assert engine.bases.current() == before
    monkeypatch.undo()
    engine.experiments.resume(key)
    engine.experiments.wait(key)
    assert set(engine.experiments.states(key).values()) == {"done"}


def _fail(engine: Engine) -> Any:
    from core.engine.resident_base import BaseInfo

    engine.resident_base._resident = None
    return BaseInfo("third", loading=False, error="'third' could not be loaded (out of memory).")


def test_a_cancel_on_another_base_loads_the_first_one_and_continues(
    engine: Engine, second: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = engine.bases.current()
    rows = ExperimentRow("here"), ExperimentRow("there", base=str(second))
    whole, _ = start(engine, *rows, max_new_tokens=6)
    expected = list_answers(engine, whole)
    engine.workspace.delete("experiments", whole)  # so that nothing is cached
    loads.clear()
    measure = ResidentCells._time

    def cancel_and_measure(self: ResidentCells, *args: Any) -> None:
        if engine.bases.current().name == str(second):
            engine.experiments.cancel(engine.experiments.list()[0].id)
        measure(self, *args)

    monkeypatch.setattr(ResidentCells, "_time", cancel_and_measure)
    key, status = start(engine, *rows, max_new_tokens=6)
    assert status.state == "cancelled" and list(list_answers(engine, key)) == ["here"]
    assert engine.bases.current() == before
    monkeypatch.setattr(ResidentCells, "_time", measure)
    engine.experiments.resume(key)
    assert engine.experiments.wait(key).state == "done"
    assert list_answers(engine, key) == expected and loads == [str(second), before.name] * 2


def test_a_base_that_an_answer_or_a_run_needs_stays_resident(
    engine: Engine, second: Path, corpus: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment_bases, "WAIT_SECONDS", 0.3)
    row = ExperimentRow("there", base=str(second))
    goes_on = held(engine, monkeypatch)
    answer = engine.chat.stream("Where is the red lamp?", [Mix()], Sampling(max_new_tokens=2))
    key, _ = start(engine, row, max_new_tokens=2)
    assert "1 answer or measurement is in progress" in engine.experiments.states(key)["there"] and loads == []
    goes_on.set()
    answer.last()
    text = engine.datasets.import_files([corpus], "text")
    small = {"dataset": text.id, "batch_size": 2, "accumulation": 1, "max_length": 32, "rank": 2}
    run = engine.runs.start(TrainSpec(name="Long", max_steps=4000, **small))
    while engine.runs.get(run).step < 1:
        time.sleep(0.02)
    engine.experiments.resume(key)
    engine.experiments.wait(key)
    assert "The run 'Long' is running" in engine.experiments.states(key)["there"] and loads == []
    engine.runs.stop(run)
    engine.runs.wait(run, 60)
    monkeypatch.setattr(experiment_bases, "WAIT_SECONDS", 60.0)  # the adapter of the run is calibrated now
    engine.experiments.resume(key)
    engine.experiments.wait(key)
    assert engine.experiments.states(key)["there"] == "done" and len(loads) == 2


def test_an_unfinished_row_waits_for_what_truly_hinders(engine: Engine, second: Path, tmp_path: Path) -> None:
    from core.store import experiments as store

    info = engine.bases.current()
    rows = ExperimentRow("there", base=str(second)), ExperimentRow("gone", base=str(tmp_path / "gone"))
    left = store.create(engine.workspace, plan(engine, *rows), info.name, info.fingerprint)
    states = engine.experiments.states(left.id)
    assert states["there"] == "not run: the experiment was stopped"
    assert states["gone"].startswith(f"not run: it needs the base {str(tmp_path / 'gone')!r}. A base model")
    with pytest.raises(BaseModelError):
        engine.bases.locate(str(tmp_path / "gone"))
