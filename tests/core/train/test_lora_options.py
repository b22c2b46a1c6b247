"""LoRA options: what each does to training, to the saved file, and to the shared base."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.engine.mix_warnings import list_mix_warnings
from core.errors import AdapterError, SpecError
from core.spec.mix import Mix, Sampling
from core.spec.training import OPTIMIZERS, SCHEDULES, RunStatus, TrainSpec
from core.store.adapters import Adapter
from core.store.runs import Run

FAST: dict[str, Any] = {
    "learning_rate": 5e-3,
    "batch_size": 2,
    "accumulation": 1,
    "max_length": 64,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
    "max_steps": 4,
    "eval_steps": 4,
    "save_steps": 4,
    "sample_prompts": ("The red",),
}


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("options"), str(tiny_base), device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def packed(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The same base in 4 bits."""
    with Engine(
        tmp_path_factory.mktemp("options4"), str(tiny_base), quantization="nf4", device="cpu"
    ) as made:
        yield made


def spec_of(engine: Engine, corpus: Path, **changes: Any) -> TrainSpec:
    data = next(
        (d for d in engine.datasets.list() if d.kind == "domain"), None
    ) or engine.datasets.import_files([corpus], "Corpus", "domain")
    return TrainSpec(**{"kind": "domain", "dataset": data.id, "name": "A", **FAST, **changes})


def train_run(engine: Engine, spec: TrainSpec) -> tuple[Run, list[float]]:
    """Trains a run to its end; returns it with the loss of every step."""
    run = engine.runs.wait(engine.runs.start(spec))
    assert run.status is RunStatus.DONE, run.error
    return run, [e["loss"] for e in engine.runs.events(run.id)[0] if e["kind"] == "step"]


def weights_of(engine: Engine) -> str:
    """One sha256 over the base's own weights, without those of adapters.

    An answer packs 4-bit weights where the processor has AVX512-BF16.
    """

    def digest() -> str:
        from core.model.nf4_cpu import unpack_for_backward

        sha, model = hashlib.sha256(), engine.resident_base.get().base.model
        with unpack_for_backward(model):
            for name, p in sorted(model.named_parameters(), key=lambda x: x[0].replace(".base_layer", "")):
                if "lora_" not in name:
                    data = p.detach().contiguous().view(-1).view(__import__("torch").uint8)
                    sha.update(data.numpy().tobytes())
        return sha.hexdigest()

    return engine.worker.call(digest)


def logits_here(engine: Engine, mix: Mix) -> Any:
    import torch

    def compute() -> Any:
        from core.model.generate import inference_mode_for

        resident = engine.resident_base.get()
        resident.load_adapters([mix])
        with inference_mode_for(resident, resident.rows([mix])):
            return resident.base.model(torch.tensor([[5, 60, 70, 80, 90]])).logits.clone()

    return engine.worker.call(compute)


def logits_in_peft(engine: Engine, base: Path, adapter: str) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), engine.workspace.path("adapters", adapter)
    ).eval()
    with torch.no_grad():
        return plain(torch.tensor([[5, 60, 70, 80, 90]])).logits


def test_rslora_scales_by_the_root_of_the_rank_here_and_in_peft(
    engine: Engine, corpus: Path, tiny_base: Path
) -> None:
    run, losses = train_run(engine, spec_of(engine, corpus, use_rslora=True))
    _, usual = train_run(engine, spec_of(engine, corpus))
    assert losses[0] == usual[0] and losses[1:] != usual[1:]
    assert (
        logits_in_peft(engine, tiny_base, run.adapter) - logits_here(engine, Mix(weights={run.adapter: 1.0}))
    ).abs().max() < 1e-5


@pytest.mark.parametrize(("start", "rslora"), [("pissa", False), ("pissa", True), ("olora", False)])
def test_pissa_and_olora_are_saved_as_plain_lora_and_keep_the_base(
    engine: Engine, corpus: Path, tiny_base: Path, start: str, rslora: bool
) -> None:
    before = weights_of(engine)
    run, losses = train_run(engine, spec_of(engine, corpus, initialisation=start, use_rslora=rslora))
    assert weights_of(engine) == before
    adapter = engine.library.adapter(run.adapter)
    assert adapter.rank == 8 and adapter.alpha == pytest.approx(8 * (math.sqrt(2) if rslora else 2))
    assert len(engine.library.verify(adapter.id)) == 3
    here = logits_here(engine, Mix(weights={adapter.id: 1.0}))
    assert (logits_in_peft(engine, tiny_base, adapter.id) - here).abs().max() < 1e-5
    assert (here - logits_here(engine, Mix())).abs().max() > 1e-2, "the adapter changes the logits"
    validation = [e["loss"] for e in engine.runs.events(run.id)[0] if e["kind"] == "validation"]
    assert validation[-1] < validation[0]


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_pissa_and_olora_train_as_in_peft_which_changes_the_base(
    engine: Engine, corpus: Path, tiny_base: Path, start: str
) -> None:
    """The loss after each of four steps, by a loop of a dozen lines over peft's own PiSSA and OLoRA."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from core.model.base import load_base
    from core.model.families import LLAMA_LIKE
    from core.model.resident import Resident

    ids = torch.randint(5, 300, (2, 24), generator=torch.Generator().manual_seed(1))
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_base),
        LoraConfig(r=4, lora_alpha=8, target_modules=list(LLAMA_LIKE), init_lora_weights=start),
    )
    resident = Resident(load_base(str(tiny_base), "none", "cpu"), engine.workspace)
    resident.add_trainee(
        "t",
        {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": list(LLAMA_LIKE)},
        initialisation=start,
    )
    curves = []
    for model in (theirs, resident.peft):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        curve = []
        for _ in range(4):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(float(loss.detach()))
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], abs=2e-5) and curves[0][-1] < curves[0][0] - 1e-3


@pytest.mark.slow
def test_a_pissa_run_resumes_to_the_same_losses_and_weights(engine: Engine, corpus: Path) -> None:
    import time

    spec = spec_of(
        engine, corpus, initialisation="pissa", max_steps=40, save_steps=5, eval_steps=40, name="Whole"
    )
    whole, losses = train_run(engine, spec)
    run_id = engine.runs.start(TrainSpec.from_json({**spec.to_json(), "name": "Parted"}))
    while engine.runs.get(run_id).step < 8:
        time.sleep(0.01)
    engine.runs.stop(run_id)
    assert engine.runs.wait(run_id).status is RunStatus.STOPPED
    engine.runs.resume(run_id)
    assert engine.runs.wait(run_id).status is RunStatus.DONE
    steps = {e["step"]: e["loss"] for e in engine.runs.events(run_id)[0] if e["kind"] == "step"}
    assert [steps[s] for s in sorted(steps)] == losses
    assert (
        engine.library.adapter(engine.runs.get(run_id).adapter).sha256
        == engine.library.adapter(whole.adapter).sha256
    )


def test_a_pissa_adapter_in_training_is_mixed_as_it_will_be_saved(engine: Engine, corpus: Path) -> None:
    """At weight 0 the mix is the base, at 1 it is the model in training."""
    import torch

    def compare() -> Any:
        from core.model.families import LLAMA_LIKE
        from core.model.generate import inference_mode_for

        resident = engine.resident_base.get()
        resident.add_trainee(
            "trial",
            {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": list(LLAMA_LIKE)},
            initialisation="pissa",
        )
        try:
            with torch.no_grad():
                for key, p in resident.peft.named_parameters():  # type: ignore[union-attr]
                    if p.requires_grad and "lora_B" in key:
                        p.add_(0.05)
            ids, out = torch.tensor([[5, 60, 70, 80]]), []
            for weight in (0.0, 1.0):
                with inference_mode_for(resident, resident.rows([Mix(weights={"trial": weight})])):
                    stamp = resident.stamp(0)
                    out.append(resident.base.model(ids).logits.clone())
            with inference_mode_for(resident, resident.rows([Mix()])):
                base = resident.base.model(ids).logits.clone()
            resident.peft.eval()  # type: ignore[union-attr]
            with torch.no_grad():
                trained_logits = resident.base.model(ids).logits
            return out, base, trained_logits, stamp["weights"]
        finally:
            resident.remove_trainee()

    (off, on), base, trained_logits, weights = engine.worker.call(compare)
    assert (
        (off - base).abs().max() == 0
        and (on - trained_logits).abs().max() < 1e-5
        and (on - base).abs().max() > 1e-2
    )
    assert weights == {"trial": 1.0}, "the offset does not appear in the stamp"


@pytest.mark.slow
def test_initialisations_work_on_nf4_and_do_not_change_the_base(packed: Engine, corpus: Path) -> None:
    before = weights_of(packed)
    for start in ("pissa", "olora", "loftq"):
        run, _ = train_run(packed, spec_of(packed, corpus, initialisation=start, name=start))
        assert engine_rank(packed, run) == (4 if start == "loftq" else 8)
    assert weights_of(packed) == before


def engine_rank(engine: Engine, run: Run) -> int:
    return engine.library.adapter(run.adapter).rank


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_transposed_weights_can_start_from_pissa_and_olora(tmp_path: Path, start: str) -> None:
    """GPT-2 holds its weights as (inputs, outputs)."""
    import torch

    from core.model.generate import inference_mode_for
    from tests.core.data.tokens.test_packing import resident_of

    resident = resident_of("gpt2", tmp_path)
    config = {
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": list(resident.base.family.targets),
        "fan_in_fan_out": True,
    }
    resident.add_trainee("t", config, initialisation=start)
    try:
        out = []
        for mix in (Mix(), Mix(weights={"t": 1.0})):
            with inference_mode_for(resident, resident.rows([mix])):
                out.append(resident.base.model(torch.tensor([[5, 60, 70]])).logits.clone())
        assert (out[0] - out[1]).abs().max() < 1e-5
        for name, layer in resident.base.model.named_modules():
            if name.endswith("c_fc"):
                weight, start_there = layer.get_base_layer().weight, layer.get_delta_weight("default")
                assert start_there.norm() > 0.1 * weight.norm(), (
                    "the adapter starts from the weight, not from zero"
                )
                part = start_there / (
                    2 if start == "olora" else 1
                )  # OLoRA multiplies its part by the scaling
                assert (weight - part).norm() < 0.99 * weight.norm(), "the start is a part of the weight"
    finally:
        resident.remove_trainee()


def test_loftq_reduces_the_quantization_error(packed: Engine, engine: Engine) -> None:
    from core.model.families import LLAMA_LIKE

    true = logits_here(engine, Mix())

    def error() -> tuple[float, float]:
        import torch

        from core.model.generate import inference_mode_for

        resident = packed.resident_base.get()
        resident.add_trainee(
            "trial",
            {"task_type": "CAUSAL_LM", "r": 16, "lora_alpha": 32, "target_modules": list(LLAMA_LIKE)},
            initialisation="loftq",
        )
        try:
            found = []
            for mix in (Mix(), Mix(weights={"trial": 1.0})):
                with inference_mode_for(resident, resident.rows([mix])):
                    found.append(
                        float((resident.base.model(torch.tensor([[5, 60, 70, 80, 90]])).logits - true).norm())
                    )
            return found[0], found[1]
        finally:
            resident.remove_trainee()

    without, with_it = packed.worker.call(error)
    assert with_it < 0.8 * without


def test_loftq_on_an_unquantized_base_is_refused(engine: Engine, corpus: Path) -> None:
    run = engine.runs.wait(engine.runs.start(spec_of(engine, corpus, initialisation="loftq", name="None")))
    assert run.status is RunStatus.FAILED and "not quantized" in run.error
    assert train_run(engine, spec_of(engine, corpus, name="After"))[0].status is RunStatus.DONE, (
        "the next run finds the base unchanged"
    )


def test_dora_trains_verifies_mixes_live_and_loads_in_peft(
    engine: Engine, corpus: Path, pairs: Path, tiny_base: Path
) -> None:
    run, losses = train_run(engine, spec_of(engine, corpus, use_dora=True, max_steps=12, name="Dora"))
    assert losses[-1] < losses[0]
    adapter = engine.library.adapter(run.adapter)
    assert adapter.form == "a DoRA adapter" and len(engine.library.verify(adapter.id)) == 3
    shelf = {a.id: a for a in engine.library.mixable_adapters()}
    assert shelf[adapter.id].fits and not shelf[adapter.id].alone
    with pytest.raises(AdapterError, match="cannot be stacked on 'Dora', a DoRA adapter"):
        questions = engine.datasets.import_files([pairs], "Pairs", "task").id
        engine.runs.start(
            TrainSpec(name="Above", kind="task", dataset=questions, max_length=64, stack_on=adapter.id)
        )
    events = engine.runs.events(run.id)[0]
    last = [e for e in events if e["kind"] == "validation"][-1]
    first = next(e for e in events if e["kind"] == "validation")
    assert last["loss"] < first["loss"]
    assert [e for e in events if e["kind"] == "sample"], "it answers the sample prompts while it trains"

    import torch

    # plain peft has the validation loss that the run measured
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from core.data.datasets import read_split
    from core.data.tokens.encoding import encode_text

    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), engine.workspace.path("adapters", adapter.id)
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    nats = tokens = 0.0
    for row in read_split(engine.workspace, run.spec.dataset, "val"):
        for e in encode_text(tokenizer, row["text"], 64):
            with torch.no_grad():
                scores = plain(torch.tensor([e.ids])).logits[0, :-1].log_softmax(-1)
            nats -= float(scores[torch.arange(len(e.ids) - 1), torch.tensor(e.ids[1:])].sum())
            tokens += len(e.ids) - 1
    assert last["loss"] == pytest.approx(nats / tokens, abs=1e-4)
    ids = torch.tensor([tokenizer("The red lamp is kept")["input_ids"]])

    def mixed() -> torch.Tensor:
        from core.model.generate import inference_mode_for

        resident, mix = engine.resident_base.get(), Mix(weights={adapter.id: 1.0})
        resident.load_adapters([mix])
        with inference_mode_for(resident, resident.rows([mix])):
            logits: torch.Tensor = resident.model(input_ids=ids).logits
            return logits

    with torch.no_grad():
        assert (engine.worker.call(mixed) - plain(ids).logits).abs().max() < 1e-4
    assert engine.library.archive(adapter.id).stat().st_size > 0


@pytest.mark.slow
def test_a_dora_adapter_in_training_is_refused_in_mixes_and_others_answer(
    engine: Engine, corpus: Path
) -> None:
    """The losses of the run do not change."""
    plain, _ = train_run(engine, spec_of(engine, corpus, name="Plain"))
    spec = spec_of(engine, corpus, use_dora=True, max_steps=30, eval_steps=30, save_steps=30, name="Quiet")
    _, calm = train_run(engine, spec)
    run_id = engine.runs.start(TrainSpec.from_json({**spec.to_json(), "name": "Disturbed"}))
    adapter = engine.runs.get(run_id).adapter
    answers = refused = 0
    while engine.runs.get(run_id).status.is_alive:
        if any(m.id == adapter and m.training for m in engine.library.mixable_adapters()):
            assert (
                engine.chat.stream(
                    "The red", [Mix(), Mix(weights={plain.adapter: 1.0})], Sampling(max_new_tokens=4)
                )
                .last()
                .done
            )
            answers += 1
            try:
                engine.chat.stream(
                    "The red", [Mix(weights={adapter: 1.0})], Sampling(max_new_tokens=2)
                ).last()
            except AdapterError as e:
                refused += "cannot be mixed" in str(e)
    assert answers and refused
    assert [e["loss"] for e in engine.runs.events(run_id)[0] if e["kind"] == "step"] == calm


def test_settings_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(SpecError, match="pissa"):
        TrainSpec(use_dora=True, initialisation="pissa")
    with pytest.raises(SpecError, match="on top"):
        TrainSpec(kind="task", use_dora=True, stack_on="a-domain")


def test_the_terminal_accepts_every_setting() -> None:
    from core.cli.common import read_settings
    from core.cli.main import build_parser

    line = "train task --name T --dataset d --no-packing --use-rslora --initialisation olora"
    line += " --lora-plus-ratio 16 --optimizer adafactor --overlap 8 --target-modules q_proj"
    typed = read_settings(build_parser().parse_args(line.split()), TrainSpec)
    spec = TrainSpec(**typed)
    assert (spec.packing, spec.use_rslora, spec.use_dora, spec.initialisation) == (
        False,
        True,
        False,
        "olora",
    )
    assert (spec.lora_plus_ratio, spec.optimizer, spec.overlap, spec.target_modules) == (
        16.0,
        "adafactor",
        8,
        ("q_proj",),
    )


def test_lora_plus_lets_b_learn_faster_than_a(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.train.trainer import StudioTrainer

    groups: list[dict[str, Any]] = []
    inner = StudioTrainer.create_optimizer

    def record_groups(self: Any, model: Any = None) -> Any:
        created = inner(self, model)
        names = {id(p): n for n, p in self.resident.peft.named_parameters()}
        groups.extend(
            {
                "lr": g["lr"],
                "sides": {"lora_B" in names[id(p)] for p in g["params"]},
                "decay": g["weight_decay"],
            }
            for g in created.param_groups
            if g["params"]
        )
        return created

    monkeypatch.setattr(StudioTrainer, "create_optimizer", record_groups)
    _, faster = train_run(
        engine,
        spec_of(engine, corpus, lora_plus_ratio=16.0, learning_rate=1e-3, weight_decay=0.1, name="Plus"),
    )
    monkeypatch.undo()
    assert sorted((g["lr"], *g["sides"], g["decay"]) for g in groups) == [
        (pytest.approx(1e-3), False, 0.1),
        (pytest.approx(1.6e-2), True, 0.1),
    ]
    _, usual = train_run(engine, spec_of(engine, corpus, learning_rate=1e-3, weight_decay=0.1, name="Usual"))
    assert faster[0] == usual[0] and faster[-1] < usual[-1]


@pytest.mark.slow
def test_neftune_noise_is_in_training_only_and_removed_after_a_failure(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = logits_here(engine, Mix())
    spec = spec_of(
        engine, corpus, neftune_alpha=5.0, max_steps=20, eval_steps=20, save_steps=20, name="Noise"
    )
    _, noisy = train_run(engine, spec)
    _, silent = train_run(
        engine, TrainSpec.from_json({**spec.to_json(), "neftune_alpha": 0.0, "name": "Silent"})
    )
    assert noisy[0] != silent[0]
    run_id = engine.runs.start(TrainSpec.from_json({**spec.to_json(), "name": "Disturbed"}))
    comparisons = 0
    while engine.runs.get(run_id).status.is_alive:
        if engine.runs.get(run_id).step:
            assert (logits_here(engine, Mix()) - before).abs().max() == 0, "no noise outside training"
            comparisons += 1
    assert comparisons and [e["loss"] for e in engine.runs.events(run_id)[0] if e["kind"] == "step"] == noisy

    def count_hooks() -> int:
        return len(engine.resident_base.get().base.model.get_input_embeddings()._forward_hooks)

    from core.train.trainer import StudioTrainer

    seen: list[int] = []

    def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(count_hooks())
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(StudioTrainer, "training_step", fail)
    failed = engine.runs.wait(engine.runs.start(TrainSpec.from_json({**spec.to_json(), "name": "Lost"})))
    assert failed.status is RunStatus.FAILED and "on purpose" in failed.error
    assert seen == [1] and engine.worker.call(count_hooks) == 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_warms_up_and_ends_at_its_rate(engine: Engine, corpus: Path, schedule: str) -> None:
    run, _ = train_run(
        engine,
        spec_of(
            engine,
            corpus,
            schedule=schedule,
            max_steps=20,
            eval_steps=20,
            save_steps=20,
            warmup_ratio=0.2,
            name=schedule,
        ),
    )
    rates = [e["learning_rate"] for e in engine.runs.events(run.id)[0] if e["kind"] == "step"]
    assert rates[0] < rates[3] <= 5e-3 and max(rates) == pytest.approx(5e-3)
    late = {
        "constant": 5e-3,
        "linear": 5e-3 / 16,
        "cosine": 0.0,
        "cosine_with_min_lr": 5e-4,
        "inverse_sqrt": 5e-3 * 0.44,
    }[schedule]
    assert rates[-1] == pytest.approx(late, rel=0.15, abs=6e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns_or_names_the_device_that_lacks_it(
    engine: Engine, corpus: Path, optimizer: str
) -> None:
    run = engine.runs.wait(
        engine.runs.start(
            spec_of(
                engine,
                corpus,
                optimizer=optimizer,
                max_steps=16,
                eval_steps=16,
                save_steps=16,
                name=optimizer,
            )
        )
    )
    if run.status is RunStatus.FAILED:
        assert "8bit" in optimizer and "does not run on this cpu" in run.error and "adafactor" in run.error
        return
    validation = [e["loss"] for e in engine.runs.events(run.id)[0] if e["kind"] == "validation"]
    assert run.status is RunStatus.DONE and validation[-1] < validation[0]


def test_an_optimizer_without_a_kernel_is_refused_with_an_alternative(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bitsandbytes

    from core.train.optimizer import optimizer_arguments

    def fail(self: Any) -> None:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(bitsandbytes.optim.PagedAdamW8bit, "step", fail)
    with pytest.raises(SpecError, match="no kernel.*\n?.*adafactor"):
        optimizer_arguments(TrainSpec(optimizer="paged_adamw_8bit"), "cpu")


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_loss_also_stacked_and_on_nf4(
    engine: Engine, packed: Engine, corpus: Path, pairs: Path
) -> None:
    for tested in (engine, packed):
        below, off = train_run(tested, spec_of(tested, corpus, gradient_checkpointing="off", name="Off"))
        _, on = train_run(tested, spec_of(tested, corpus, gradient_checkpointing="on", name="On"))
        rounding = 1e-5 if tested is engine else 1e-4
        assert on == pytest.approx(off, abs=rounding)
        data = next(
            (d for d in tested.datasets.list() if d.kind == "task"), None
        ) or tested.datasets.import_files([pairs], "Pairs", "task")
        task = {**FAST, "kind": "task", "dataset": data.id, "stack_on": below.adapter, "domain_dropout": 0.5}
        curves = [
            train_run(tested, TrainSpec(**task, name=f"T{way}", gradient_checkpointing=way))[1]
            for way in ("off", "on")
        ]
        assert curves[1] == pytest.approx(curves[0], abs=rounding)
        assert not tested.worker.call(
            lambda t=tested: t.resident_base.get().base.model.is_activation_checkpointing
        )


def test_a_stacked_task_does_not_change_its_parent_and_records_it(
    engine: Engine, corpus: Path, pairs: Path
) -> None:
    below, _ = train_run(engine, spec_of(engine, corpus, name="Below"))
    folder = engine.workspace.path("adapters", below.adapter)
    before = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()

    def resident_digest() -> str:
        tensors = engine.resident_base.get().full_state_dict(below.adapter)
        return hashlib.sha256(b"".join(t.numpy().tobytes() for _, t in sorted(tensors.items()))).hexdigest()

    logits_here(engine, Mix(weights={below.adapter: 1.0}))
    loaded = engine.worker.call(resident_digest)
    data = next(
        (d for d in engine.datasets.list() if d.kind == "task"), None
    ) or engine.datasets.import_files([pairs], "Pairs", "task")
    adapters = {}
    for dropout in (0.0, 0.5):
        run, _ = train_run(
            engine,
            TrainSpec(
                kind="task",
                name=f"Task{dropout}",
                dataset=data.id,
                stack_on=below.adapter,
                domain_dropout=dropout,
                weight_decay=0.1,
                **FAST,
            ),
        )
        adapters[dropout] = engine.library.adapter(run.adapter)
        assert (
            adapters[dropout].metadata["trained_with"] == {below.adapter: 1.0}
            and adapters[dropout].metadata["domain_dropout"] == dropout
        )
    assert engine.worker.call(resident_digest) == loaded
    assert (
        hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
        == before
        == engine.library.adapter(below.adapter).sha256
    )
    alone = Mix(weights={adapters[0.0].id: 1.0})
    assert (
        len(engine.library.mix_warnings(alone)) == 1
        and "always on" in engine.library.mix_warnings(alone)[0]
        and "Below" in engine.library.mix_warnings(alone)[0]
    )
    assert engine.library.mix_warnings(Mix(weights={adapters[0.5].id: 1.0})) == [], (
        "domain dropout makes it independent of its parent"
    )
    assert engine.library.mix_warnings(Mix(weights={adapters[0.0].id: 1.0, below.adapter: 1.0})) == []
    (far,) = engine.library.mix_warnings(Mix(weights={adapters[0.5].id: 1.0, below.adapter: -1.0}))
    assert "at 1, and this mix sets it to -1" in far


def test_a_parent_that_was_deleted_or_changed_is_named() -> None:
    about: dict[str, Any] = {
        "kind": "task",
        "base": "b",
        "base_fingerprint": "f",
        "rank": 4,
        "alpha": 8,
        "target_modules": (),
        "bytes": 1,
        "created": 0.0,
    }
    meta = {
        "stacked_on": {"id": "d", "name": "Old papers", "sha256": "1"},
        "hyperparameters": {"domain_dropout": 0.0},
    }
    task = Adapter(id="t", name="Asker", sha256="2", stacked_on="d", metadata=meta, **about)
    (gone,) = list_mix_warnings(Mix(weights={"t": 1.0}), {"t": task})
    assert "Old papers" in gone and "was deleted" in gone and "Train it again" in gone
    anew = Adapter(id="d", name="New papers", sha256="9", **about)
    (changed,) = list_mix_warnings(Mix(weights={"t": 1.0, "d": 1.0}), {"t": task, "d": anew})
    assert "changed since" in changed
