"""Training runs: what they learn and save, how they stop and resume, and that chatting changes nothing."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.errors import RunError, SpecError, StorageError
from core.spec.mix import Mix, Sampling
from core.spec.training import RunStatus, TrainSpec
from core.train import checkpoints

ROOT = Path(__file__).resolve().parents[3]
FAST: dict[str, Any] = {
    "learning_rate": 5e-3,
    "batch_size": 2,
    "accumulation": 2,
    "max_length": 48,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.1,
}


@pytest.fixture
def engine(tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as made:
        yield made


def domain_spec(engine: Engine, corpus: Path, **changes: Any) -> TrainSpec:
    data = next(
        (d for d in engine.datasets.list() if d.kind == "domain"), None
    ) or engine.datasets.import_files([corpus], "Corpus", "domain")
    return TrainSpec(
        **{"kind": "domain", "name": "Domain", "dataset": data.id, "max_steps": 8, **FAST, **changes}
    )


def task_spec(engine: Engine, pairs: Path, **changes: Any) -> TrainSpec:
    data = next(
        (d for d in engine.datasets.list() if d.kind == "task"), None
    ) or engine.datasets.import_files([pairs], "Pairs", "task")
    return TrainSpec(
        **{"kind": "task", "name": "Task", "dataset": data.id, "max_steps": 8, **FAST, **changes}
    )


def losses(engine: Engine, run_id: str) -> list[float]:
    """The loss of every step; of a step that was repeated after a resume, the later one."""
    by_step = {e["step"]: e["loss"] for e in engine.runs.events(run_id)[0] if e["kind"] == "step"}
    return [by_step[s] for s in sorted(by_step)]


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.01)


def test_a_domain_run_lowers_validation_loss_and_records_its_provenance(engine: Engine, corpus: Path) -> None:
    spec = domain_spec(engine, corpus, max_steps=30)
    run = engine.runs.wait(engine.runs.start(spec))
    assert run.status is RunStatus.DONE and run.step == run.total_steps == 30
    events = engine.runs.events(run.id)[0]
    validation = [e for e in events if e["kind"] == "validation"]
    assert validation[0]["step"] == 0 and validation[-1]["step"] == 30
    assert validation[-1]["loss"] < 0.9 * validation[0]["loss"]
    assert validation[-1]["perplexity"] == pytest.approx(math.exp(validation[-1]["loss"]))
    adapter = engine.library.adapter(run.adapter)
    meta = adapter.metadata
    assert (
        meta["dataset"]["sha256"] == engine.datasets.get(spec.dataset).sha256
        and meta["dataset"]["split_seed"] == 20251101
    )
    assert meta["hyperparameters"] == spec.to_json() and meta["results"]["steps"] == 30
    assert set(meta["versions"]) >= {"torch", "transformers", "peft"} and meta["runtime"]["tokens"] > 0
    assert len(engine.library.verify(adapter.id)) == 3
    assert not list(engine.workspace.path("runs", run.id, "checkpoints").glob("*")), (
        "a finished run keeps no checkpoints"
    )


def test_the_saved_adapter_has_the_same_logits_in_plain_peft(
    engine: Engine, corpus: Path, tiny_base: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus)))
    ids = torch.tensor([[5, 60, 70, 80, 90]])

    def mixed_logits() -> Any:
        from core.model.generate import inference_mode_for

        resident = engine.resident_base.get()
        resident.load_adapters([Mix(weights={run.adapter: 1.0})])
        with inference_mode_for(resident, resident.rows([Mix(weights={run.adapter: 1.0})])):
            return resident.base.model(ids).logits.clone()

    here = engine.worker.call(mixed_logits)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), engine.workspace.path("adapters", run.adapter)
    ).eval()
    with torch.no_grad():
        assert (plain(ids).logits - here).abs().max() < 1e-5


def test_a_stacked_task_waits_for_its_domain_and_does_not_change_it(
    engine: Engine, corpus: Path, pairs: Path
) -> None:
    first = engine.runs.start(domain_spec(engine, corpus))
    below = engine.runs.get(first).adapter
    second = engine.runs.start(task_spec(engine, pairs, stack_on=below, max_steps=24, domain_dropout=0.5))
    assert engine.runs.wait(first).status is RunStatus.DONE
    digest = engine.library.adapter(below).sha256
    run = engine.runs.wait(second)
    assert run.status is RunStatus.DONE, run.error
    assert engine.library.adapter(run.adapter).stacked_on == below
    assert (
        engine.library.adapter(run.adapter).metadata["stacked_on"]["sha256"]
        == digest
        == engine.library.adapter(below).sha256
    )
    engine.library.verify(below)
    events = [e for e in engine.runs.events(second)[0] if e["kind"] == "validation"]
    assert events[-1]["loss"] < 0.95 * events[0]["loss"]


def test_domain_dropout_switches_the_parent_off_in_the_set_share(
    engine: Engine, corpus: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts the scalings that the layers use in the forward pass."""
    from transformers import Trainer

    below = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=2))).adapter
    seen: list[float] = []
    inner = Trainer.training_step

    def record_scaling(self: Any, *args: Any, **kwargs: Any) -> Any:
        layer = next(x for x in self.resident.mixer.layers if below in x.scaling)
        seen.append(layer.scaling[below])
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", record_scaling)
    engine.runs.wait(
        engine.runs.start(task_spec(engine, pairs, stack_on=below, max_steps=30, domain_dropout=0.5))
    )
    off = sum(s == 0.0 for s in seen) / len(seen)
    # an epoch of 17 batches ends in an optimizer step of a single one
    assert 54 <= len(seen) <= 60 and 0.3 < off < 0.7 and set(seen) == {0.0, 2.0}


def test_chatting_during_a_run_does_not_change_its_losses(engine: Engine, corpus: Path) -> None:
    spec = domain_spec(engine, corpus, max_steps=40, name="Quiet", eval_steps=20)
    quiet = engine.runs.wait(engine.runs.start(spec))
    other = engine.runs.start(TrainSpec.from_json({**spec.to_json(), "name": "Disturbed"}))
    adapter = engine.runs.get(other).adapter
    wait_for(lambda: any(m.training and m.id == adapter for m in engine.library.mixable_adapters()))
    answers = during = 0
    while engine.runs.get(other).status.is_alive:
        mixes = [
            Mix(),
            Mix(weights={quiet.adapter: 1.0}),
            Mix(weights={adapter: 1.0}),
            Mix(weights={quiet.adapter: -0.5, adapter: 1.5}),
        ]
        frame = engine.chat.stream(
            "Where is the red lamp?", mixes, Sampling(max_new_tokens=12, temperature=0.8, seed=answers)
        ).last()
        assert frame.done and len(frame.columns) == 4
        answers += 1
        during += frame.columns[2].stamp["adapters"] == {adapter: "in training"}
    assert during >= 2, "answers were written while the run trained"
    calm, disturbed = losses(engine, quiet.id), losses(engine, other)
    assert len(calm) == 40 and calm == disturbed


def test_a_stopped_run_keeps_its_adapter_and_can_resume(engine: Engine, corpus: Path) -> None:
    whole = engine.runs.wait(
        engine.runs.start(
            domain_spec(engine, corpus, max_steps=60, name="Whole", save_steps=7, eval_steps=60)
        )
    )
    run_id = engine.runs.start(
        domain_spec(engine, corpus, max_steps=60, name="Stopped", save_steps=7, eval_steps=60)
    )
    wait_for(lambda: engine.runs.get(run_id).step >= 9)
    engine.runs.stop(run_id)
    stopped = engine.runs.wait(run_id)
    assert stopped.status is RunStatus.STOPPED and 9 <= stopped.step < 60 and stopped.resumable
    half = engine.library.adapter(stopped.adapter)
    assert half.results["steps"] == stopped.step
    engine.runs.resume(run_id)
    ended = engine.runs.wait(run_id)
    assert ended.status is RunStatus.DONE and ended.step == 60
    assert losses(engine, run_id) == losses(engine, whole.id)
    assert engine.library.adapter(ended.adapter).results["steps"] == 60


def test_a_second_run_waits_in_the_queue(engine: Engine, corpus: Path) -> None:
    first = engine.runs.start(domain_spec(engine, corpus, name="Mine", max_steps=30))
    second = engine.runs.start(domain_spec(engine, corpus, name="Yours", max_steps=3))
    wait_for(lambda: engine.runs.get(first).status is RunStatus.RUNNING)
    assert engine.runs.get(second).status is RunStatus.QUEUED
    assert (
        engine.runs.wait(second).status is RunStatus.DONE and engine.runs.get(first).status is RunStatus.DONE
    )


def test_a_queued_run_that_is_stopped_never_begins(engine: Engine, corpus: Path) -> None:
    first = engine.runs.start(domain_spec(engine, corpus, name="Mine", max_steps=20))
    second = engine.runs.start(domain_spec(engine, corpus, name="Yours"))
    engine.runs.stop(second)
    assert engine.runs.wait(second).status is RunStatus.STOPPED
    assert engine.runs.wait(first).status is RunStatus.DONE
    assert engine.runs.get(second).step == 0


def test_a_double_click_starts_once(engine: Engine, corpus: Path) -> None:
    spec = domain_spec(engine, corpus, max_steps=2)
    assert engine.runs.start(spec) == engine.runs.start(spec)
    run = engine.runs.wait(engine.runs.list()[0].id)
    assert len(engine.runs.list()) == 1
    engine.library.delete("adapters", run.adapter)
    again = engine.runs.wait(engine.runs.start(spec))
    assert again.id != run.id and engine.library.adapter(again.adapter), "its adapter is gone: another start"


def test_a_nan_loss_ends_the_run_as_diverged_with_a_finite_checkpoint(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import Trainer

    inner = Trainer.training_step

    def return_nan(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = inner(self, *args, **kwargs)
        return loss * torch.nan if self.state.global_step == 5 else loss

    monkeypatch.setattr(Trainer, "training_step", return_nan)
    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=10, save_steps=2)))
    assert (
        run.status is RunStatus.DIVERGED
        and "became nan at step 6" in run.error
        and "learning rate" in run.error
    )
    last = checkpoints.find_newest(engine.workspace.path("runs", run.id, "checkpoints"), run.id)
    assert last is not None and checkpoints.step_of(last) == 5, "the newest and best one"
    assert not engine.library.adapters()


def test_a_full_disk_at_a_checkpoint_is_named_and_the_run_can_resume(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    real = shutil.disk_usage
    full = {"now": False}
    monkeypatch.setattr(shutil, "disk_usage", lambda p: usage(10**9, 10**9, 0) if full["now"] else real(p))
    inner = checkpoints.commit

    def commit(folder: Path, run_id: str, processes: int = 1) -> None:
        inner(folder, run_id, processes)
        full["now"] = checkpoints.step_of(folder) == 4

    monkeypatch.setattr(checkpoints, "commit", commit)
    run = engine.runs.wait(
        engine.runs.start(domain_spec(engine, corpus, max_steps=10, save_steps=2, eval_steps=10))
    )
    assert run.status is RunStatus.DISK_FULL and "The disk is full" in run.error and run.resumable
    folder = engine.workspace.path("runs", run.id, "checkpoints")
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    full["now"] = False
    monkeypatch.setattr(checkpoints, "commit", inner)
    engine.runs.resume(run.id)
    assert engine.runs.wait(run.id).status is RunStatus.DONE


def test_t9_a_run_resumes_only_from_a_checkpoint_that_verifies(engine: Engine, corpus: Path) -> None:
    run_id = engine.runs.start(domain_spec(engine, corpus, max_steps=400, save_steps=3))
    wait_for(lambda: engine.runs.get(run_id).step >= 8)
    engine.runs.stop(run_id)
    engine.runs.wait(run_id)
    folder = engine.workspace.path("runs", run_id, "checkpoints")
    newest = checkpoints.find_newest(folder, run_id)
    assert newest is not None
    assert checkpoints.find_newest(folder, "another-run") is None, (
        "a checkpoint of another run does not count"
    )
    (newest / "optimizer.pt").write_bytes(b"damaged")
    older = checkpoints.find_newest(folder, run_id)
    assert older is not None and checkpoints.step_of(older) < checkpoints.step_of(newest)


def test_settings_that_cannot_work_are_refused_with_advice(engine: Engine, corpus: Path, pairs: Path) -> None:
    engine.bases.current(wait=True)
    task = task_spec(engine, pairs)
    with pytest.raises(SpecError, match="got the task dataset"):
        engine.runs.start(TrainSpec.from_json({**task.to_json(), "kind": "domain"}))
    with pytest.raises(SpecError, match="No dataset is chosen"):
        engine.runs.start(TrainSpec(name="x"))
    with pytest.raises(SpecError, match="context of 256 tokens, got 9999") as refused:
        engine.runs.start(domain_spec(engine, corpus, max_length=9999))
    assert refused.value.field == "max_length" and engine.runs.list() == [], "it is refused at queueing"
    run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, target_modules=("nothing_proj",))))
    assert run.status is RunStatus.FAILED and "no layers called nothing_proj" in run.error
    with pytest.raises(RunError, match="not running here"):
        engine.runs.stop(run.id)
    assert engine.runs.list_problems({"kind": "domain"}) == [
        "Choose a text dataset.",
        "Give the adapter a name.",
    ]


@pytest.mark.slow
def test_a_run_killed_in_the_terminal_resumes_to_the_same_weights(
    tiny_base: Path, tmp_path: Path, corpus: Path
) -> None:
    def command(name: str, *args: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "core",
            *args,
            "--workspace",
            str(tmp_path / name),
            "--base",
            str(tiny_base),
            "--json",
        ]

    settings = [
        f"--{k.replace('_', '-')}={v}"
        for k, v in {**FAST, "max_steps": 120, "save_steps": 5, "eval_steps": 40}.items()
    ]
    for name in ("whole", "killed"):
        with Engine(tmp_path / name, str(tiny_base), load=False) as engine:
            dataset = engine.datasets.import_files([corpus], "Corpus", "domain").id
        train = command(
            name,
            "train",
            "domain",
            "--dataset",
            dataset,
            "--name",
            "Domain",
            "--preset",
            "standard",
            *settings,
        )
        if name == "whole":
            subprocess.run(train, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=300)
            continue
        process = subprocess.Popen(train, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with Engine(tmp_path / name, str(tiny_base), load=False) as engine:
            wait_for(lambda: engine.runs.list() and engine.runs.list()[0].step >= 12, 120)
            assert engine.runs.list()[0].status is RunStatus.RUNNING, "another process finds it alive"
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            run = engine.runs.list()[0]
            assert run.status is RunStatus.INTERRUPTED and run.resumable and 12 <= run.step < 120
    done = subprocess.run(
        command("killed", "runs", "resume", run.id),
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "finished"
    with (
        Engine(tmp_path / "whole", str(tiny_base), load=False) as whole,
        Engine(tmp_path / "killed", str(tiny_base), load=False) as killed,
    ):
        expected, found = losses(whole, whole.runs.list()[0].id), losses(killed, run.id)
        assert len(expected) == 120 and found == expected
        assert killed.library.adapters()[0].sha256 == whole.library.adapters()[0].sha256, (
            "the weights are the same to the bit"
        )
        notes = [e["text"] for e in killed.runs.events(run.id)[0] if e["kind"] == "note"]
        assert any(n.startswith("Resumed from step") for n in notes)


def test_closing_the_engine_interrupts_a_run_that_can_resume(
    tiny_base: Path, tmp_path: Path, corpus: Path
) -> None:
    with Engine(tmp_path / "ws", str(tiny_base)) as engine:
        run_id = engine.runs.start(domain_spec(engine, corpus, max_steps=80, eval_steps=80))
        wait_for(lambda: engine.runs.get(run_id).step >= 5)
    with Engine(tmp_path / "ws", str(tiny_base)) as engine:
        run = engine.runs.get(run_id)
        assert run.status is RunStatus.INTERRUPTED and run.resumable and not engine.library.adapters()
        engine.runs.resume(run_id)
        assert engine.runs.wait(run_id).status is RunStatus.DONE
        assert len(losses(engine, run_id)) == 80


def test_a_disk_error_while_saving_the_adapter_loses_nothing(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise StorageError(
            "The disk is full: adapter_model.safetensors could not be written.", "Free some space."
        )

    with monkeypatch.context() as m:
        m.setattr("core.store.adapters.add", refuse)
        run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=4)))
    assert run.status is RunStatus.FAILED and "disk is full" in run.error and run.resumable
    engine.runs.resume(run.id)
    assert (
        engine.runs.wait(run.id).status is RunStatus.DONE and engine.library.adapters()[0].id == run.adapter
    )


def test_an_nf4_run_trains_like_one_on_the_dequantized_weights(
    tiny_base: Path, tmp_path: Path, corpus: Path
) -> None:
    """bitsandbytes packs 4-bit weights for CPU inference; training must not use that form."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    AutoModelForCausalLM.from_pretrained(
        tiny_base, quantization_config=nf4, dtype=torch.float32
    ).dequantize().save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(tmp_path / "plain")
    curves = {}
    for name, base, quantization in (("unpacked", tmp_path / "plain", "none"), ("nf4", tiny_base, "nf4")):
        with Engine(tmp_path / name, str(base), quantization, device="cpu") as engine:
            engine.chat.stream("Where is the red lamp?", [Mix()], Sampling(max_new_tokens=4)).last()
            run = engine.runs.wait(engine.runs.start(domain_spec(engine, corpus, max_steps=12, dropout=0.0)))
            assert run.status is RunStatus.DONE, run.error
            curves[name] = losses(engine, run.id)
    assert len(curves["nf4"]) == 12 and curves["nf4"][-1] < curves["nf4"][0] - 0.3
    assert curves["nf4"] == pytest.approx(curves["unpacked"], abs=2e-3)


def test_logits_of_trained_positions_alone_give_the_losses_of_all_logits(
    engine: Engine, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    from core.train.trainer import StudioTrainer

    spec = task_spec(engine, pairs, dropout=0.0, rules=2)  # the model's own forward
    widths: list[int] = []
    forward = type(engine.worker.call(lambda: engine.resident_base.get().base.model)).forward

    @functools.wraps(forward)
    def record_width(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        if self.training:
            widths.append(out.logits.shape[1])
        return out

    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", record_width)
    sparse = losses(engine, engine.runs.wait(engine.runs.start(spec)).id)
    few, widths[:] = list(widths), []
    monkeypatch.setattr(StudioTrainer, "compute_loss", transformers.Trainer.compute_loss)
    whole = losses(engine, engine.runs.wait(engine.runs.start(replace(spec, name="Stock"))).id)
    assert sparse == pytest.approx(whole, rel=1e-5) and len(sparse) == 8
    assert len(few) == len(widths) == 17, "sixteen, and the one of the memory probe"
    assert sum(few) < 0.7 * sum(widths)


def test_a_trained_adapter_is_mixed_without_reading_its_file(
    engine: Engine, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine.runs.wait(engine.runs.start(task_spec(engine, pairs)))
    mixes = [Mix(), Mix(weights={run.adapter: 1.0})]
    with monkeypatch.context() as patched:
        patched.setattr("core.model.resident.load_file", lambda *a: pytest.fail("a file was read"))
        fresh = engine.chat.stream("Where is the red lamp?", mixes, Sampling(max_new_tokens=12)).last()
    assert fresh.columns[1].stamp["adapters"] == {run.adapter: engine.library.adapter(run.adapter).sha256}
    resident = engine.resident_base.get()
    engine.worker.call(lambda: resident.unload(run.adapter))
    read = engine.chat.stream("Where is the red lamp?", mixes, Sampling(max_new_tokens=12)).last()
    assert [c.text for c in read.columns] == [c.text for c in fresh.columns] and fresh.columns[
        0
    ].text != fresh.columns[1].text
