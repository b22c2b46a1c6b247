"""Training on: a new run goes on with the adapter, the optimizer and the data of a finished one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.engine import Engine
from core.errors import NotFound, RunError, SpecError
from core.spec.training import RunStatus
from core.store import grids, runs
from tests.core.train.test_training import domain_spec, losses, task_spec, wait_for


@pytest.fixture
def engine(tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as made:
        yield made


def finish(engine: Engine, spec: Any) -> runs.Run:
    run = engine.runs.wait(engine.runs.start(spec))
    assert run.status is RunStatus.DONE, run.error
    return run


def notes(engine: Engine, run_id: str) -> list[str]:
    return [e["text"] for e in engine.runs.events(run_id)[0] if e["kind"] == "note"]


def learning_spec(engine: Engine, corpus: Path, **changes: Any) -> Any:
    """A run that ends long before its loss does."""
    return domain_spec(engine, corpus, max_steps=8, eval_steps=2, learning_rate=1e-3, dropout=0.0, **changes)


def test_a_run_that_ended_too_early_says_so_and_suggests_steps(engine: Engine, corpus: Path) -> None:
    run = finish(engine, learning_spec(engine, corpus))
    assert run.was_still_learning and run.extra.train_on_steps == 200 - 8, "the floor of a small base"
    assert "still learning" in run.outcome
    assert "It was still learning when it ended" in run.explanation
    assert run.next_step == "Train on for about 192 more steps."
    assert runs.final_checkpoint(engine.workspace, run.id) is not None
    assert not runs.checkpoints_folder(engine.workspace, run.id).exists()


def test_training_on_starts_from_the_weights_and_the_moments(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finish(engine, learning_spec(engine, corpus))
    before = engine.library.adapter(first.adapter).sha256
    final = runs.final_checkpoint(engine.workspace, first.id)
    assert final is not None
    moments = torch.load(final / "optimizer.pt", weights_only=True)["state"]
    assert all(int(s["step"]) == 8 for s in moments.values())
    seen: list[int] = []
    from core.train.checkpoint_io import CheckpointTrainer

    original = CheckpointTrainer.load_moments

    def spy(self: Any) -> None:
        original(self)
        seen.extend(int(s["step"]) for s in self.optimizer.state_dict()["state"].values())
        groups = self.optimizer.param_groups
        assert all(g["lr"] == pytest.approx(groups[0]["lr"]) for g in groups)

    monkeypatch.setattr(CheckpointTrainer, "load_moments", spy)
    second = engine.runs.wait(engine.runs.train_on(first.id, steps=12))
    assert second.status is RunStatus.DONE, second.error
    assert seen and set(seen) == {8}, "the optimizer goes on with its state"
    assert second.step == second.total_steps == 12 and second.spec.continue_from == first.id
    validations = [engine.runs.history(r.id).validation for r in (first, second)]
    assert validations[1][0][1] == pytest.approx(validations[0][-1][1], abs=1e-5), "it starts where it ended"
    assert validations[1][-1][1] < validations[0][-1][1] - 0.01
    assert (first.name, second.name) == ("Domain", "Domain +12 steps")
    assert engine.library.adapter(first.adapter).sha256 == before, "the first adapter stays"
    lineage = engine.library.adapter(second.adapter).metadata["continued_from"]
    assert lineage == {"run": first.id, "adapter": first.adapter, "name": "Domain"}
    rates = [e["learning_rate"] for e in engine.runs.events(second.id)[0] if e["kind"] == "step"]
    assert max(rates) == pytest.approx(1e-3) and rates[-1] < 0.1 * max(rates), "a new schedule"
    third = engine.runs.wait(engine.runs.train_on(second.id, steps=5))
    assert third.name == "Domain +5 steps", "names do not grow"


def test_without_a_stored_optimizer_it_starts_from_the_adapter(engine: Engine, corpus: Path) -> None:
    first = finish(engine, learning_spec(engine, corpus))
    shutil.rmtree(engine.workspace.path("runs", first.id, runs.FINAL))
    second = engine.runs.wait(engine.runs.train_on(first.id, steps=4))
    assert second.status is RunStatus.DONE, second.error
    assert any("the optimizer starts from zero" in text for text in notes(engine, second.id))
    start = engine.runs.history(second.id).validation[0][1]
    assert start == pytest.approx(engine.runs.history(first.id).validation[-1][1], abs=1e-5)


@pytest.mark.parametrize("initialisation", ["default", "pissa"])
def test_a_killed_continuation_resumes_to_the_same_weights(
    tiny_base: Path, tmp_path: Path, corpus: Path, initialisation: str
) -> None:
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as engine:
        spec = learning_spec(engine, corpus, initialisation=initialisation)
        first = finish(engine, spec)
        assert (runs.final_checkpoint(engine.workspace, first.id) is not None) is first.was_still_learning
        if initialisation == "pissa":
            assert first.was_still_learning
        whole = engine.runs.wait(engine.runs.train_on(first.id, steps=30, name="Whole"))
        assert whole.status is RunStatus.DONE, whole.error
        part = engine.runs.start(replace(whole.spec, name="Part", save_steps=5))
        wait_for(lambda: engine.runs.get(part).step >= 8)
        engine.runs.pause(part)
        engine.runs.wait(part)
        engine.runs.resume(part)
        ended = engine.runs.wait(part)
        assert ended.status is RunStatus.DONE, ended.error
        assert losses(engine, part) == losses(engine, whole.id)
        shas = [engine.library.adapter(r.adapter).sha256 for r in (ended, whole)]
        assert shas[0] == shas[1]


def test_only_a_finished_run_can_be_trained_on(engine: Engine, corpus: Path) -> None:
    run_id = engine.runs.start(domain_spec(engine, corpus, max_steps=300, eval_steps=300))
    with pytest.raises(RunError, match="Only a finished run can be trained on"):
        engine.runs.train_on(run_id)
    wait_for(lambda: engine.runs.get(run_id).step >= 1)
    engine.runs.pause(run_id)
    engine.runs.wait(run_id)
    with pytest.raises(RunError, match="Resume it instead"):
        engine.runs.train_on(run_id)


def test_a_missing_source_is_named_at_queueing(engine: Engine, corpus: Path, pairs: Path) -> None:
    first = finish(engine, learning_spec(engine, corpus))
    with pytest.raises(RunError, match="trained with another rank"):
        engine.runs.start(replace(first.spec, rank=8, continue_from=first.id))
    with pytest.raises(RunError, match="trained with another kind"):
        engine.runs.start(replace(task_spec(engine, pairs), continue_from=first.id))
    engine.workspace.delete("runs", first.id)
    with pytest.raises(RunError, match="not in the workspace any more"):
        engine.runs.start(replace(first.spec, name="On", continue_from=first.id))


def test_an_adapter_of_another_base_is_never_trained_on(
    tiny_base: Path, tmp_path: Path, corpus: Path
) -> None:
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as engine:
        first = finish(engine, domain_spec(engine, corpus, max_steps=1))
        runs.update(engine.workspace, first, base="other", base_fingerprint="0" * 64)
        with pytest.raises(RunError, match="trained the base 'other'"):
            engine.runs.train_on(first.id)
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu", load=False) as engine:
        queued = engine.runs.train_on(first.id, steps=2)  # no base is loaded that could be compared
        engine.bases.load()
        ended = engine.runs.wait(queued)
        assert ended.status is RunStatus.FAILED and "trained the base 'other'" in ended.error


def test_a_deleted_source_or_dataset_is_named(engine: Engine, corpus: Path) -> None:
    first = finish(engine, domain_spec(engine, corpus, max_steps=1, eval_steps=1))
    assert runs.final_checkpoint(engine.workspace, first.id) is None
    engine.library.delete("adapters", first.adapter)
    with pytest.raises(RunError, match="not in the Library any more"):
        engine.runs.train_on(first.id, steps=2)
    engine.library.delete("datasets", first.spec.dataset)
    with pytest.raises(NotFound, match="dataset"):
        engine.runs.train_on(first.id, steps=2)


def test_general_text_is_never_taken_from_data_for_evaluation(
    engine: Engine, corpus: Path, pairs: Path
) -> None:
    spec = domain_spec(engine, corpus, replay_share=0.2)
    held_out = engine.datasets.import_files([corpus], "Exam", "domain", purpose="evaluation")
    task = task_spec(engine, pairs).dataset
    for dataset, words in ((held_out.id, "for evaluation only"), (task, "got the task dataset 'Pairs'")):
        with pytest.raises(SpecError, match=words) as refused:
            engine.runs.start(replace(spec, replay_dataset=dataset))
        assert refused.value.field == "replay_dataset"
    with pytest.raises(NotFound):
        engine.runs.start(replace(spec, replay_dataset="gone-0001"))
    assert engine.runs.list() == []


def test_a_checksum_counts_the_source_only_where_there_is_one(engine: Engine, corpus: Path) -> None:
    spec = domain_spec(engine, corpus)
    assert "continue_from" not in grids.FIELDS
    assert grids.spec_checksum(spec) == grids.spec_checksum(replace(spec, continue_from=""))
    assert grids.spec_checksum(spec) != grids.spec_checksum(replace(spec, continue_from="other-0001"))
