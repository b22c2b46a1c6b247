"""What the adapter of a run is worth: measured right after it, stored beside it, never a reason to fail."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.cli.common import follow
from core.engine import Engine, run_worth
from core.errors import Busy, SpecError
from core.evaluate import paired_gain
from core.evaluate.metrics import f1
from core.spec.training import RunStatus
from core.store import worth
from core.store.worth import Gain, Worth
from studio.components import live
from tests.core.train.test_short_runs import texts
from tests.core.train.test_training import domain_spec, task_spec, wait_for


@pytest.fixture
def engine(tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as made:
        yield made


def test_a_task_run_is_measured_by_the_answers_to_held_out_questions(engine: Engine, pairs: Path) -> None:
    run = engine.runs.wait(engine.runs.start(task_spec(engine, pairs, max_steps=120, learning_rate=5e-3)))
    found = engine.runs.worth(run.id)
    assert found is not None and found.main is not None, found
    test = engine.datasets.rows(run.spec.dataset, "test")
    assert found.main.name == "f1" and found.main.rows == len(test) and found.split == "test"
    assert [g.name for g in found.others] == ["exact_match"]
    asked = {(r["messages"][0]["content"], r["messages"][1]["content"]) for r in test}
    assert {(e.prompt, e.reference) for e in found.examples} <= asked
    prompts = [e.prompt for e in found.examples]
    assert len(prompts) == len(set(prompts)) == min(5, len({q for q, _ in asked}))
    measured = [f1(e.adapter, e.reference) for e in found.examples]
    assert 0 <= found.main.base < found.main.adapter <= 1 and max(measured) > 0.3
    assert found.main.low <= found.main.gain <= found.main.high
    assert found.main.gain == pytest.approx(found.main.adapter - found.main.base)
    assert run.extra.verdict == found.main.verdict == "better" and run.is_better_than_base


def test_a_domain_run_is_measured_in_bits_per_byte_of_held_out_texts(engine: Engine, corpus: Path) -> None:
    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=20)))
    found = engine.runs.worth(run.id)
    assert found is not None and found.main is not None, found
    assert found.main.name == "bits_per_byte" and found.main.adapter < found.main.base
    assert found.main.gain == pytest.approx(found.main.base - found.main.adapter) and found.main.low > 0
    test = [r["text"] for r in engine.datasets.rows(run.spec.dataset, "test")]
    for e in found.examples:
        assert any(t.startswith(f"{e.prompt} {e.reference}") for t in test)
    head = texts(live.metrics(engine, {"run": run.id})["head"])
    assert (
        found.main.describe() in head
        and "Better than the base" in head
        and found.examples[0].reference in head
    )


def test_an_adapter_that_is_not_better_is_not_green(engine: Engine, corpus: Path) -> None:
    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=1)))
    for verdict, colour, words in (
        ("unclear", "chip warn", "finished, not better than the base"),
        ("worse", "chip bad", "finished, worse than the base"),
        ("better", "chip good", "finished"),
    ):
        judged = replace(run, extra=replace(run.extra, verdict=verdict, still_learning=False))
        shown = texts(live.status_chip(judged))
        assert colour in shown and words in shown
        assert judged.is_better_than_base is (verdict == "better")
    poor = replace(run, extra=replace(run.extra, verdict="unclear", still_learning=True, train_on_steps=40))
    assert poor.outcome == "not better than the base, still learning"
    assert poor.next_step == "Train on for about 40 more steps."
    assert "is not better than the base" in poor.explanation and "still falling" in poor.explanation
    assert engine.runs.get(run.id).to_json()["extra"].get("verdict") == run.extra.verdict


@pytest.mark.parametrize("error", [SpecError("No room.", "Wait."), RuntimeError("secret"), MemoryError()])
def test_an_error_while_measuring_never_fails_the_run(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(run_worth, "_measure_texts", fail)
    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=1)))
    found = engine.runs.worth(run.id)
    assert run.status is RunStatus.DONE and not run.error and run.is_better_than_base is None
    assert found is not None and found.main is None and found.note.startswith("Not measured: ")
    assert "secret" not in found.note


def test_the_measurement_ends_in_its_time_and_lets_requests_through(
    engine: Engine, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    monkeypatch.setattr(run_worth, "TIME_LIMITS", (0.0, 0.0))
    monkeypatch.setattr(run_worth, "BATCH_ROWS", 2)
    measure = run_worth._generate

    def generate(resident: Any, prompts: Any, limits: Any, mixes: Any, turn: run_worth.Turn) -> Any:
        counted = replace(turn, after_forward=lambda: (served.append("yield"), turn.after_forward())[1])
        return measure(resident, prompts, limits, mixes, counted)

    monkeypatch.setattr(run_worth, "_generate", generate)
    run = engine.runs.wait(engine.runs.start(task_spec(engine, pairs, max_steps=1)))
    found = engine.runs.worth(run.id)
    assert found is not None and found.main is not None
    assert found.main.rows == 2 and found.partial, "one batch, and no more"
    assert served, "it yields after every forward"
    assert "The time was up" in texts(live.render_worth(found, run))


def test_the_time_of_a_measurement_is_a_share_of_the_run() -> None:
    assert [run_worth.limit_seconds(s) for s in (1, 200, 600, 1e6)] == [10, 20, 60, 120]


def test_the_record_is_optional_and_a_damaged_one_is_none(engine: Engine, corpus: Path) -> None:
    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=1)))
    path = worth.path_of(engine.workspace, run.id)
    path.write_text('{"main": 3}', encoding="utf-8")
    assert engine.runs.worth(run.id) is None and engine.runs.get(run.id).status is RunStatus.DONE
    path.unlink()
    assert engine.runs.worth(run.id) is None
    stored = Worth(Gain("f1", 0.1, 0.5, 0.4, 0.2, 0.6, 9), split="test")
    worth.save(engine.workspace, run.id, stored)
    assert engine.runs.worth(run.id) == stored
    assert stored.main is not None and stored.main.describe() == (
        "F1 on 9 held-out rows: 10.0 (base) → 50.0 (adapter), a change of +40.0 "
        "(95 % interval +20.0 to +60.0)."
    )
    bits = Gain("bits_per_byte", 2.0, 1.5, 0.5, 0.4, 0.6, 9)
    assert bits.describe() == (
        "Bits per byte on 9 held-out rows: 2.000 (base) → 1.500 (adapter), a change of -0.500 "
        "(95 % interval -0.600 to -0.400). Lower is better."
    )


def test_the_interval_covers_the_true_gain_and_narrows_with_rows() -> None:
    generator = random.Random(7)
    widths = []
    for rows in (10, 400):
        hits = 0
        for draw in range(60):
            base = [generator.gauss(0, 1) for _ in range(rows)]
            adapter = [b + 0.5 + generator.gauss(0, 0.5) for b in base]
            gain, low, high = paired_gain.bootstrap_gain(base, adapter, [1.0] * rows, seed=draw)
            assert low <= gain <= high
            hits += low <= 0.5 <= high
        assert hits >= 48, "about 95 % of the intervals"
        widths.append(high - low)
    assert widths[1] < widths[0] / 3
    assert paired_gain.bootstrap_gain([1.0], [2.0], [1.0]) == (1.0, float("-inf"), float("inf"))


def test_the_page_is_told_once_how_a_run_ended(engine: Engine, corpus: Path) -> None:
    run_id = engine.runs.start(domain_spec(engine, corpus, max_steps=3))
    assert live.endings(engine, {}) == {"alive": [run_id], "ended": []}
    engine.runs.wait(run_id)
    wait_for(lambda: not engine.runs.get(run_id).status.is_alive)
    response = live.endings(engine, {"alive": [run_id, "gone-0001"]})
    assert response["alive"] == [] and [e["id"] for e in response["ended"]] == [run_id]
    assert response["ended"][0]["title"].startswith("Domain: finished")
    assert live.endings(engine, {"alive": []})["ended"] == []


def test_a_run_has_ended_for_others_when_it_is_measured(
    engine: Engine, corpus: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, measure = threading.Event(), run_worth._measure_texts

    def measure_late(resident: Any, spec: Any, rows: Any, mixes: Any, turn: run_worth.Turn) -> Any:
        while not go_on.wait(0.02):
            turn.after_forward()
        return measure(resident, spec, rows, mixes, turn)

    monkeypatch.setattr(run_worth, "_measure_texts", measure_late)
    run_id = engine.runs.start(domain_spec(engine, corpus, max_steps=2))
    wait_for(lambda: engine.runs.get(run_id).status is RunStatus.DONE)
    assert engine.runs.is_ending(engine.runs.get(run_id)) and engine.runs.worth(run_id) is None
    with pytest.raises(Busy, match="adapter of the run 'Domain' is being measured"):
        engine.bases.switch(str(tiny_base), "none")
    assert live.endings(engine, {"alive": [run_id]}) == {"alive": [run_id], "ended": []}
    seen: list[Any] = []
    reader = threading.Thread(target=lambda: seen.append((follow(engine, run_id), engine.runs.worth(run_id))))
    reader.start()
    reader.join(1.0)
    assert reader.is_alive(), "the terminal waits for the figures that it prints"
    go_on.set()
    reader.join(60)
    (run, found), *_ = seen
    assert found is not None and found.main is not None and run.extra.verdict == found.verdict != ""
    assert not engine.runs.is_ending(run)
    (notice,) = live.endings(engine, {"alive": [run_id]})["ended"]
    assert notice["id"] == run_id


def test_a_measurement_ends_with_the_studio(
    tiny_base: Path, tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()
    generate = run_worth._generate

    def generate_late(resident: Any, prompts: Any, limits: Any, mixes: Any, turn: run_worth.Turn) -> Any:
        began.set()
        wait_for(turn.is_closing)
        return generate(resident, prompts, limits, mixes, turn)

    monkeypatch.setattr(run_worth, "_generate", generate_late)
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as closed:
        run_id = closed.runs.start(task_spec(closed, pairs, max_steps=1))
        assert began.wait(60)
    with Engine(tmp_path / "ws", load=False) as engine:
        run, found = engine.runs.get(run_id), engine.runs.worth(run_id)
        assert run.status is RunStatus.DONE and run.is_better_than_base is None
        assert found is not None and found.note == "Not measured: the studio was closed."
