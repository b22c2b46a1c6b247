"""The life of a run: pausing, early stopping, the best adapter, memory, a full disk, what the user reads."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.data import datasets
from core.engine import Engine
from core.errors import RunError, SpecError
from core.spec.training import RunStatus, TrainSpec
from core.train import checkpoints, memory, memory_probe
from core.train.early_stopping import EarlyStopping
from tests.core.train.test_training import FAST, ROOT, domain_spec, losses, task_spec, wait_for


@pytest.fixture
def engine(tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as made:
        yield made


def kinds(engine: Engine, run_id: str, kind: str) -> list[dict[str, Any]]:
    return [e for e in engine.runs.events(run_id)[0] if e["kind"] == kind]


# ------------------------------------------------------------ pausing


def test_a_paused_run_frees_the_model_and_resumes_to_the_same_weights(
    tiny_base: Path, tmp_path: Path, corpus: Path
) -> None:
    with Engine(tmp_path / "ws", str(tiny_base)) as engine:
        spec = domain_spec(engine, corpus, max_steps=40, eval_steps=15, save_steps=50)
        whole = engine.runs.wait(engine.runs.start(spec))
        first = engine.runs.start(TrainSpec.from_json({**spec.to_json(), "name": "Paused"}))
        second = engine.runs.start(domain_spec(engine, corpus, max_steps=3, name="Next"))
        wait_for(lambda: engine.runs.get(first).step >= 5)
        engine.runs.pause(first)
        assert engine.runs.wait(second).status is RunStatus.DONE, "the next run had the model"
        paused = engine.runs.get(first)
        assert paused.status is RunStatus.PAUSED and paused.resumable and 5 <= paused.step < 40
        assert [e["status"] for e in kinds(engine, first, "status")][-2:] == ["stopping", "paused"]
        assert len(engine.library.adapters()) == 2, "a paused run adds no adapter"
        with pytest.raises(RunError, match=r"not running \(paused\)"):
            engine.runs.pause(first)
    with Engine(tmp_path / "ws", str(tiny_base)) as engine:
        assert engine.runs.get(first).status is RunStatus.PAUSED
        engine.runs.resume(first)
        ended = engine.runs.wait(first)
        assert ended.status is RunStatus.DONE and losses(engine, first) == losses(engine, whole.id)
        assert engine.library.adapter(ended.adapter).sha256 == engine.library.adapter(whole.adapter).sha256
        steps = [[v["step"] for v in kinds(engine, r, "validation")] for r in (first, whole.id)]
        assert steps[0] == steps[1] == [0, 15, 30, 40], "neither pausing nor resuming adds a validation"


def test_another_process_can_pause_a_run(engine: Engine, corpus: Path, tiny_base: Path) -> None:
    run_id = engine.runs.start(domain_spec(engine, corpus, max_steps=500, eval_steps=500))
    wait_for(lambda: engine.runs.get(run_id).step >= 3)
    with Engine(engine.workspace.root, str(tiny_base), load=False) as other:
        other.runs.pause(run_id)
    assert engine.runs.wait(run_id).status is RunStatus.PAUSED
    engine.runs.resume(run_id)
    wait_for(lambda: engine.runs.get(run_id).status is RunStatus.RUNNING)
    assert engine.runs.get(run_id).status is RunStatus.RUNNING, "a stop request counts once"
    engine.runs.stop(run_id)
    engine.runs.wait(run_id)


@pytest.mark.slow
def test_a_run_in_the_terminal_saves_on_sigterm_and_resumes_exactly(
    tiny_base: Path, tmp_path: Path, corpus: Path
) -> None:
    def command(*args: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "core",
            *args,
            "--workspace",
            str(tmp_path / "ws"),
            "--base",
            str(tiny_base),
            "--json",
        ]

    with Engine(tmp_path / "ws", str(tiny_base)) as engine:
        spec = domain_spec(engine, corpus, max_steps=120, eval_steps=60, save_steps=1000)
        whole = engine.runs.wait(engine.runs.start(spec))
        expected = (losses(engine, whole.id), engine.library.adapter(whole.adapter).sha256)
    settings = [
        f"--{k.replace('_', '-')}={v}"
        for k, v in {**FAST, "max_steps": 120, "eval_steps": 60, "save_steps": 1000}.items()
    ]
    train = command(
        "train",
        "domain",
        "--dataset",
        spec.dataset,
        "--name",
        "Ended",
        "--preset",
        "standard",
        *settings,
    )
    process = subprocess.Popen(train, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with Engine(tmp_path / "ws", str(tiny_base), load=False) as engine:
        wait_for(lambda: engine.runs.list()[0].name == "Ended" and engine.runs.list()[0].step >= 12, 120)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
        run = engine.runs.list()[0]
        assert run.status is RunStatus.INTERRUPTED and run.resumable
        found = checkpoints.find_newest(engine.workspace.path("runs", run.id, "checkpoints"), run.id)
        assert found is not None and checkpoints.step_of(found) == run.step >= 12, (
            "the checkpoint is of the step that it finished"
        )
    with Engine(tmp_path / "ws", str(tiny_base)) as engine:
        engine.runs.resume(run.id)
        ended = engine.runs.wait(run.id)
        assert (losses(engine, run.id), engine.library.adapter(ended.adapter).sha256) == expected


# ------------------------------------------------------------ the best step, and early stopping


def overfit(engine: Engine, tmp_path: Path, **changes: Any) -> TrainSpec:
    """A run that memorises random numbers, which do not generalise."""
    numbers = random.Random(7)
    file = tmp_path / "heart.txt"
    file.write_text(
        "\n\n---\n\n".join(" ".join(str(numbers.randrange(10**6)) for _ in range(4)) for _ in range(14)),
        encoding="utf-8",
    )
    data = next(
        (d for d in engine.datasets.list() if d.name == "Heart"), None
    ) or engine.datasets.import_files([file], "Heart", "domain")
    settings = {
        **FAST,
        "learning_rate": 1e-2,
        "rank": 16,
        "alpha": 32,
        "dropout": 0.0,
        "schedule": "constant",
        "max_steps": 60,
        "eval_steps": 3,
    }
    return TrainSpec(**{"kind": "domain", "name": "Heart", "dataset": data.id, **settings, **changes})


def test_the_best_or_last_adapter_is_kept_and_recorded(engine: Engine, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    kept: dict[str, Any] = {}
    for keep in ("best", "last"):
        run = engine.runs.wait(engine.runs.start(overfit(engine, tmp_path, keep=keep, name=keep)))
        assert run.status is RunStatus.DONE, run.error
        validations = {v["step"]: v["loss"] for v in kinds(engine, run.id, "validation") if v["step"]}
        adapter = engine.library.adapter(run.adapter)
        best = min(validations, key=lambda s: validations[s])
        assert best < 60, "validation got worse after the best step"
        wanted = best if keep == "best" else 60
        assert (
            adapter.results["kept_step"] == wanted
            and adapter.results["steps"] == 60
            and adapter.results["best_step"] == best
        )
        assert (
            adapter.results["validation_loss"] == validations[wanted]
            and adapter.results["last_validation_loss"] == validations[60]
        )
        warning = [
            v["overfitting"]
            for v in kinds(engine, run.id, "validation")
            if v["overfitting"] and v["step"] > best
        ][-1]
        assert warning.startswith(
            f"Validation has not improved since step {best} while training loss fell by "
        ) and ("the run keeps" in warning) is (keep == "best")
        kept[keep] = (
            adapter,
            load_file(engine.workspace.path("adapters", adapter.id, "adapter_model.safetensors")),
        )
    assert kept["best"][0].sha256 != kept["last"][0].sha256
    measured = engine.evaluation.measure(
        [_mix(kept["best"][0].id), _mix(kept["last"][0].id)],
        kept["best"][0].metadata["dataset"]["id"],
        "val",
        general=False,
    ).last()
    better, worse = (r["perplexity"] for r in engine.evaluation.report(measured.report).rows)
    assert (
        better == pytest.approx(math.exp(kept["best"][0].results["validation_loss"]), rel=1e-4)
        and better < worse
    )


def _mix(adapter: str) -> Any:
    from core.spec.mix import Mix

    return Mix(name=adapter, weights={adapter: 1.0})


def test_early_stopping_ends_a_run_at_the_same_step_also_after_a_pause(
    engine: Engine, tmp_path: Path
) -> None:
    whole = engine.runs.wait(engine.runs.start(overfit(engine, tmp_path, early_stopping=3, max_steps=200)))
    assert whole.status is RunStatus.DONE and whole.step < 200, whole.error
    results = engine.library.adapter(whole.adapter).results
    assert results["stopped_early"] and whole.step == results["best_step"] + 9, (
        "three validations, three steps apart, did not improve"
    )
    assert any(
        n["text"].startswith(f"Stopped early at step {whole.step}: 3 validations")
        for n in kinds(engine, whole.id, "note")
    )
    parted = engine.runs.start(overfit(engine, tmp_path, early_stopping=3, max_steps=200, name="Parted"))
    wait_for(lambda: engine.runs.get(parted).step > results["best_step"])
    engine.runs.pause(parted)
    if engine.runs.wait(parted).status is RunStatus.PAUSED:
        engine.runs.resume(parted)
    ended = engine.runs.wait(parted)
    assert (
        ended.step == whole.step
        and engine.library.adapter(ended.adapter).sha256 == engine.library.adapter(whole.adapter).sha256
    )


def test_rotation_spares_the_best_checkpoint_that_a_remaining_one_names(tmp_path: Path) -> None:
    for step, best in ((5, 5), (10, 5), (15, 5), (20, 5), (25, 25), (30, 25)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in checkpoints.checkpoint_files(1):
            (folder / name).write_bytes(b"x")
        (folder / checkpoints.STATE).write_text(json.dumps({"track": {"best_step": best}}))
        checkpoints.commit(folder, "run")
        checkpoints.rotate(tmp_path)
        assert checkpoints.is_intact(tmp_path / f"checkpoint-{best}", "run")
    assert sorted(int(p.name.split("-")[1]) for p in tmp_path.iterdir()) == [25, 30]


def test_only_scheduled_validations_use_up_patience_and_nan_is_never_best() -> None:
    track = EarlyStopping().update(0, 4.0, math.nan)
    assert track.start_loss == 4.0 and track.best_step == 0 and math.isnan(EarlyStopping().gap)
    track = track.update(10, 3.0, 3.2).update(20, math.nan, 3.0).update(25, 3.1, 2.9, scheduled=False)
    assert (track.best_step, track.best_loss, track.waited) == (10, 3.0, 1) and track.gap == pytest.approx(
        0.2
    )
    assert (
        not track.is_exhausted(2)
        and track.update(30, 3.0, 2.8).is_exhausted(2)
        and not track.update(30, 3.0, 2.8).is_exhausted(0)
    )
    assert (
        track.update(40, 2.9, 2.0).waited == 0
        and EarlyStopping.from_json(json.loads(json.dumps(track.to_json()))) == track
    )


def test_overfitting_is_reported_when_only_the_training_loss_falls() -> None:
    track = EarlyStopping().update(10, 2.0, 2.5)
    assert track.overfit_warning("best") == ""
    both_stuck = track.update(20, 2.1, 2.5).update(30, 2.1, 2.49)
    assert both_stuck.overfit_warning("best") == "", "the training loss does not fall either"
    worse = track.update(20, 2.1, 2.0).update(30, 2.4, 1.25)
    assert worse.overfit_warning("best") == (
        "Validation has not improved since step 10 while training loss fell by 1.25: "
        "likely overfitting; the run keeps the adapter of step 10."
    )
    assert (
        "keep the best one instead" in worse.overfit_warning("last")
        and worse.update(40, 1.9, 1.0).overfit_warning("best") == ""
    )


# ------------------------------------------------------------ samples


def test_base_parent_and_adapter_in_training_answer_the_sample_prompts(
    engine: Engine, corpus: Path, pairs: Path
) -> None:
    below = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=20))).adapter
    spec = task_spec(
        engine,
        pairs,
        stack_on=below,
        max_steps=30,
        eval_steps=15,
        sample_prompts=("Where is the red lamp?", "Where is the old bell?"),
    )
    run = engine.runs.wait(engine.runs.start(spec))
    samples = kinds(engine, run.id, "sample")
    assert [(s["step"], s["prompt"]) for s in samples] == [
        (step, p) for step in (0, 15, 30) for p in spec.sample_prompts
    ]
    assert all(
        [a["who"] for a in s["answers"]] == ["Base", "Domain", "In training"]
        and s["text"] == s["answers"][-1]["text"]
        for s in samples
    )
    fixed = {(s["prompt"], a["text"]) for s in samples for a in s["answers"][:2]}
    assert len(fixed) == len({(s["prompt"], i) for s in samples for i in range(2)}), (
        "mixes without the adapter in training answer the same at every step"
    )
    last = {s["prompt"]: s["text"] for s in samples if s["step"] == 30}
    assert all(
        text and text != first
        for (prompt, text), first in zip(
            last.items(), (s["answers"][0]["text"] for s in samples), strict=False
        )
    ), prompt_says(last)


def prompt_says(answers: dict[str, str]) -> str:
    return "; ".join(f"{p} -> {t}" for p, t in answers.items())


# ------------------------------------------------------------ numbers that are not finite


def test_a_gradient_that_is_not_finite_never_reaches_the_adapter(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import Trainer

    inner = Trainer.training_step

    def spoil_gradient(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = inner(self, *args, **kwargs)
        if self.state.global_step == 4:
            next(p for p in self.model.parameters() if p.grad is not None).grad.fill_(torch.inf)
        return loss

    monkeypatch.setattr(Trainer, "training_step", spoil_gradient)
    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=10, save_steps=1)))
    assert (
        run.status is RunStatus.DIVERGED
        and "The gradient became" in run.error
        and "step 5" in run.error
        and run.resumable
    )
    last = checkpoints.find_newest(engine.workspace.path("runs", run.id, "checkpoints"), run.id)
    assert last is not None and checkpoints.step_of(last) == 4
    assert all(bool(t.isfinite().all()) for t in load_file(last / "adapter_model.safetensors").values())
    monkeypatch.setattr(Trainer, "training_step", inner)
    engine.runs.resume(run.id)
    assert engine.runs.wait(run.id).status is RunStatus.DONE, "the run resumes from its checkpoint"


# ------------------------------------------------------------ a full disk


def test_a_file_size_limit_ends_the_run_as_disk_full_and_it_can_resume(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real OSError of a real write, below torch and safetensors, which both hide its cause."""
    inner = checkpoints.commit
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def commit(folder: Path, run_id: str, processes: int = 1) -> None:
        inner(folder, run_id, processes)
        if checkpoints.step_of(folder) == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    monkeypatch.setattr(checkpoints, "commit", commit)
    try:
        run = engine.runs.wait(
            engine.runs.start(domain_spec(engine, corpus, max_steps=10, save_steps=2, eval_steps=10))
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (
        run.status is RunStatus.DISK_FULL
        and "step 6 could not be written" in run.error
        and "larger than the system's file size limit" in run.error
    ), run.error
    folder = engine.workspace.path("runs", run.id, "checkpoints")
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-2", "checkpoint-4"], (
        "the uncommitted checkpoint is removed"
    )
    monkeypatch.setattr(checkpoints, "commit", inner)
    engine.runs.resume(run.id)
    ended = engine.runs.wait(run.id)
    assert ended.status is RunStatus.DONE and ended.error == "" and len(losses(engine, run.id)) == 10


def test_a_full_disk_is_found_behind_a_vague_write_error(tmp_path: Path) -> None:
    """On a real small file system, where the test may mount one."""
    from core.errors import DiskFull

    place = tmp_path / "small"
    place.mkdir()
    if (
        os.name == "nt"
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True
        ).returncode
    ):
        pytest.skip("no file system can be mounted here")
    try:
        error = checkpoints.write_error(
            RuntimeError("PytorchStreamWriter failed writing file data/2: file write failed"),
            place,
            2 << 20,
            7,
        )
        assert isinstance(error, DiskFull) and "The disk is full" in str(error) and not list(place.iterdir())
        other = checkpoints.write_error(RuntimeError("something else"), place, 1000, 7)
        assert not isinstance(other, DiskFull) and "something else" in str(other)
    finally:
        subprocess.run(["umount", str(place)], check=True)


# ------------------------------------------------------------ memory


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_losses(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import Trainer

    shape = {"batch_size": 4, "accumulation": 1, "dropout": 0.0, "save_steps": 2, "packing": False}
    whole = engine.runs.wait(
        engine.runs.start(domain_spec(engine, corpus, max_steps=8, name="Whole", **shape))
    )
    inner = Trainer.training_step
    seen: list[tuple[int, int]] = []

    def refuse_large_batches(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((self.state.global_step, len(inputs["input_ids"])))
        if self.state.global_step >= 5 and len(inputs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
        return inner(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", refuse_large_batches)
    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=8, name="Tight", **shape)))
    assert run.status is RunStatus.DONE, run.error
    assert (
        [rows for _, rows in seen][:6] == [4] * 6
        and {rows for _, rows in seen[-8:]} == {1}
        and (5, 2) in seen
    )
    smaller = [e for e in kinds(engine, run.id, "memory") if e["what"] == "smaller"]
    assert [(e["batch_size"], e["accumulation"], e["from_step"]) for e in smaller] == [(2, 2, 5), (1, 4, 5)]
    assert losses(engine, run.id) == pytest.approx(losses(engine, whole.id), rel=1e-4), (
        "the same rows in the same steps"
    )
    meta = engine.library.adapter(run.adapter).metadata
    assert (
        meta["runtime"]["batch_size"],
        meta["runtime"]["accumulation"],
        len(meta["runtime"]["made_smaller"]),
    ) == (1, 4, 2)
    assert meta["hyperparameters"]["batch_size"] == 4
    rates = [[e["learning_rate"] for e in kinds(engine, r, "step")][-1] for r in (run.id, whole.id)]
    assert rates[0] == rates[1]


def test_a_row_that_does_not_fit_ends_the_run_with_advice(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.train.trainer import StudioTrainer

    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 99 bytes."
        )

    monkeypatch.setattr(StudioTrainer, "compute_loss", refuse)
    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, batch_size=2)))
    assert (
        run.status is RunStatus.OUT_OF_MEMORY
        and "One row of 48 tokens did not fit" in run.error
        and not run.resumable
    )
    advice = run.error.partition("What would help most: ")[2]
    assert advice.count("(saves about") == 3 and "Max length 24 instead of 48" in advice
    monkeypatch.undo()
    assert (
        engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, name="After"))).status
        is RunStatus.DONE
    ), "the next run finds the base unchanged"


def test_another_runtime_error_is_not_out_of_memory() -> None:
    assert memory.is_out_of_memory(MemoryError()) and not memory.is_out_of_memory(
        RuntimeError("shape mismatch in memory format")
    )


def test_the_next_smaller_micro_batch_keeps_the_effective_batch() -> None:
    assert memory.shrink_micro_batch(8, 4) == (4, 8) and memory.shrink_micro_batch(1, 32) is None
    for rows in range(2, 20):
        for accumulation in (1, 2, 3, 5):
            smaller = memory.shrink_micro_batch(rows, accumulation)
            assert smaller and smaller[0] * smaller[1] == rows * accumulation and smaller[0] <= rows // 2


def test_the_memory_probe_changes_no_loss_or_weight(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, name="Probed")))
    told = kinds(engine, probed.id, "memory")[0]
    assert (
        told["what"] == "probe"
        and told["rows"] == 2
        and told["length"] <= 48
        and told["estimated_step"] > 10_000
    )
    monkeypatch.setattr(
        memory_probe, "probe_step", lambda *args: memory_probe.MemoryProbe(0, 0, 0, None, "", None, None)
    )
    plain = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, name="Plain")))
    assert losses(engine, probed.id) == losses(engine, plain.id)
    assert engine.library.adapter(probed.adapter).sha256 == engine.library.adapter(plain.adapter).sha256


def test_the_countable_parts_of_the_memory_estimate_are_exact(engine: Engine, corpus: Path) -> None:
    engine.bases.current(wait=True)
    spec = domain_spec(engine, corpus, rules=2)  # the own forward of the model
    report = engine.runs.estimate_memory(spec)
    assert report is not None
    told = report.estimate
    trainable = kinds(engine, engine.runs.wait(engine.runs.start(spec)).id, "plan")[0]["trainable_parameters"]
    assert told.adapter == told.gradients == 4 * trainable and told.optimizer == 8 * trainable
    assert told.base == engine.bases.current().memory_bytes and told.total == sum(
        getattr(told, k) for k in ("base", "adapter", "gradients", "optimizer", "activations", "logits")
    )
    assert report.fits and report.text.startswith("Needs about") and "are free" in report.text
    twice = engine.runs.estimate_memory(TrainSpec.from_json({**spec.to_json(), "batch_size": 4}))
    assert twice is not None
    assert (
        twice.estimate.activations == 2 * told.activations
        and twice.estimate.logits == 2 * told.logits
        and twice.estimate.adapter == told.adapter
    )
    saved = engine.runs.estimate_memory(
        TrainSpec.from_json({**spec.to_json(), "gradient_checkpointing": "on"})
    )
    assert saved is not None
    assert saved.estimate.activations < told.activations


def test_a_lean_step_needs_less_memory_than_the_models_own_forward() -> None:
    shape = dataclasses.replace(LARGER, number_bytes=4, on_gpu=False)
    lean, own = (memory.estimate(shape, TrainSpec(rules=rules, batch_size=2)) for rules in (3, 2))
    twice = memory.estimate(shape, TrainSpec(rules=3, batch_size=4))
    assert lean.activations < 0.75 * own.activations and lean.logits < 0.1 * own.logits
    assert twice.activations == 2 * lean.activations and twice.logits < 2 * lean.logits
    assert (lean.base, lean.adapter, lean.optimizer) == (own.base, own.adapter, own.optimizer)


LARGER = memory.ModelShape(
    layers=28,
    hidden=2048,
    inner=6144,
    keys_values=2048,
    vocabulary=150_000,
    number_bytes=2,
    base_bytes=1_400_000_000,
    on_gpu=True,
    linear={"q_proj": (28, 28 * 2048, 28 * 2048), "down_proj": (28, 28 * 6144, 28 * 2048)},
    targets=("q_proj", "down_proj"),
)


def test_a_run_that_does_not_fit_is_reported_with_the_most_helpful_setting() -> None:
    spec = TrainSpec(batch_size=8, max_length=2048)
    report = memory.report_memory(LARGER, spec, None, free=4_000_000_000)
    assert (
        not report.fits
        and "only 4.0 GB are free" in report.text
        and "Batch size 1 instead of 8 (saves about" in report.text
        and not report.calibrated
    )
    advice = memory.advice(LARGER, spec)
    assert (
        len(advice) == 3 and advice[0].startswith("Batch size 1") and advice[1].startswith("Max length 1024")
    )
    assert (
        memory.report_memory(LARGER, spec, 0.5, free=None).estimate.activations
        == report.estimate.activations // 2
    )


@pytest.mark.slow
def test_the_memory_estimate_is_within_a_factor_of_two_of_a_real_step(tmp_path: Path, corpus: Path) -> None:
    from tests.conftest import build_tiny_llama

    base = build_tiny_llama(
        tmp_path / "base",
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    with Engine(tmp_path / "ws", str(base), device="cpu") as engine:
        spec = domain_spec(
            engine, corpus, max_steps=1, batch_size=16, accumulation=1, max_length=256, dropout=0.0, rules=2
        )
        told = kinds(engine, engine.runs.wait(engine.runs.start(spec)).id, "memory")[0]
        if told["measured_step"] is None:
            pytest.skip("this system does not report a process's peak")
        assert told["estimated_step"] > memory_probe.MIN_GROWTH_BYTES
        assert 0.5 < told["ratio"] < 2.0, told
        report = engine.runs.estimate_memory(spec)
        assert report is not None and report.calibrated and "measured on this base" in report.text


# ------------------------------------------------------------ trackers


def test_a_tracker_that_is_not_installed_is_named_before_the_start(engine: Engine, corpus: Path) -> None:
    import importlib.util

    if importlib.util.find_spec("trackio"):
        pytest.skip("trackio is installed here")
    spec = domain_spec(engine, corpus, report_to=("trackio",))
    with pytest.raises(SpecError, match="pip install trackio"):
        engine.runs.start(spec)
    assert (
        engine.runs.list_problems(spec.to_json())
        == ["To log to trackio, install it first: pip install trackio."]
        and not engine.runs.list()
    )
    with pytest.raises(SpecError, match="logged to tensorboard, trackio, wandb, got 'elsewhere'"):
        engine.runs.start(domain_spec(engine, corpus, report_to=("elsewhere",)))


def test_losses_and_validations_reach_the_tracker_of_the_spec(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    logged: list[tuple[int, dict[str, Any]]] = []

    class Tracker(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            logged.append((state.global_step, dict(logs)))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    monkeypatch.setattr("core.engine.runs.check_reporters", lambda spec: [])
    run = engine.runs.wait(
        engine.runs.start(domain_spec(engine, corpus, max_steps=4, eval_steps=2, report_to=("tensorboard",)))
    )
    assert run.status is RunStatus.DONE, run.error
    assert [(s, logs["loss"]) for s, logs in logged if "loss" in logs] == list(
        enumerate(losses(engine, run.id), 1)
    )
    assert [s for s, logs in logged if "eval_loss" in logs] == [0, 2, 4] and all(
        "learning_rate" in logs for _, logs in logged if "loss" in logs
    )


# ------------------------------------------------------------ what the user reads


def test_the_terminal_explains_a_status_and_the_next_step(
    engine: Engine, corpus: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from core.cli.main import main

    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=2)))
    place = ("--workspace", str(engine.workspace.root), "--base", str(tiny_base))
    assert main(["runs", "show", run.id, *place]) == 0
    text = capsys.readouterr().out
    assert RunStatus.DONE.explanation in text and RunStatus.DONE.next_step in text and "step 2 of 2" in text
    assert main(["runs", "list", *place]) == 0
    assert f"finished: {RunStatus.DONE.explanation} {RunStatus.DONE.next_step}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "the caller's own handler is restored"


def test_the_page_explains_a_status_and_offers_to_pause(engine: Engine, corpus: Path) -> None:
    from studio.components import live

    run_id = engine.runs.start(domain_spec(engine, corpus, max_steps=300, eval_steps=4))
    wait_for(lambda: engine.runs.get(run_id).step >= 9)
    told = live.metrics(engine, {"run": run_id, "since": 0})
    head = json.dumps(told["head"])
    assert RunStatus.RUNNING.next_step in head and '"do": "pause"' in head and '"do": "stop"' in head
    assert [a["who"] for a in told["samples"][0]["answers"]] == ["Base", "In training"]
    validations = [v for v in kinds(engine, run_id, "validation") if v["step"]][: len(told["points"]["gap"])]
    assert told["points"]["gap"] == [[v["step"], v["gap"]] for v in validations] and validations
    assert validations[0]["gap"] == pytest.approx(
        validations[0]["loss"] - sum(losses(engine, run_id)[:4]) / 4
    )
    engine.runs.pause(run_id)
    engine.runs.wait(run_id)
    head = json.dumps(live.metrics(engine, {"run": run_id, "since": 0})["head"])
    assert RunStatus.PAUSED.explanation in head and '"do": "resume"' in head


def test_the_next_run_removes_checkpoints_of_a_finished_run(engine: Engine, corpus: Path) -> None:
    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=2)))
    left = engine.workspace.path("runs", run.id, "checkpoints")
    (left / "checkpoint-2").mkdir(parents=True)
    engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=2, name="Next")))
    assert not left.exists()


def test_a_partial_adapter_of_a_killed_process_does_no_harm(engine: Engine, corpus: Path) -> None:
    run_id = engine.runs.start(domain_spec(engine, corpus, max_steps=2))
    left = engine.workspace.root / "adapters" / f".{engine.runs.get(run_id).adapter}.partial"
    left.mkdir()
    (left / "half").write_bytes(b"x")
    assert engine.runs.wait(run_id).status is RunStatus.DONE and not left.exists()
    assert datasets.list_datasets(engine.workspace)
