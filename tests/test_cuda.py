"""What only a GPU can show: mixing, resume, lack of memory, and chat beside training.

Without a CUDA device they are skipped. `ADAPTER_STUDIO_TEST_DEVICE=cpu` runs all but the lack of memory on a
CPU, to try the tests themselves. `python -m benchmarks.gpu` runs them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.engine import Engine
from core.model.base import load_base
from core.model.generate import inference_mode_for
from core.model.mixing import MixRow
from core.model.resident import Resident
from core.spec.mix import Mix, Sampling
from core.spec.training import RunStatus, TrainSpec
from core.store.workspace import Workspace
from tests.core.train.test_training import losses, wait_for

DEVICE = os.environ.get("ADAPTER_STUDIO_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]
SETTINGS: dict[str, Any] = {
    "kind": "domain",
    "learning_rate": 5e-3,
    "batch_size": 2,
    "accumulation": 2,
    "max_length": 48,
    "rank": 4,
    "alpha": 8,
}


@pytest.fixture(params=["nf4", "none"])
def engine(request: Any, tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "ws", str(tiny_base), request.param, DEVICE) as made:
        made.bases.current(wait=True)
        yield made


def make_spec(engine: Engine, corpus: Path, **changes: Any) -> TrainSpec:
    found = engine.datasets.list()
    data = found[0] if found else engine.datasets.import_files([corpus], "Corpus", "domain")
    return TrainSpec(**{"name": "Domain", "dataset": data.id, **SETTINGS, **changes})


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_mixes_in_one_batch_equal_pefts_forward(quantization: str, tiny_base: Path, tmp_path: Path) -> None:
    resident = Resident(load_base(str(tiny_base), quantization, DEVICE), Workspace(tmp_path))
    names = ("first", "second")
    for name in names:
        resident.add_adapter(name, {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"],
                                    "task_type": "CAUSAL_LM"})  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, p in resident.peft.named_parameters():
            if "lora_" in key:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    resident.update_layout()
    rows: list[MixRow] = [MixRow({"first": 1.0}), MixRow({"first": 0.5, "second": -0.7}), MixRow({})]
    ids = torch.arange(5, 29, device=resident.base.device)[None]
    with inference_mode_for(resident, rows):
        ours = resident.model(input_ids=ids.repeat(len(rows), 1)).logits.float()
    scaled = [m for m in resident.peft.modules() if hasattr(m, "set_scale")]
    for row, logits in zip(rows, ours, strict=True):
        with torch.inference_mode():
            if not row:
                with resident.peft.disable_adapter():
                    expected = resident.peft(ids).logits[0].float()
            else:
                resident.peft.base_model.set_adapter(list(row), inference_mode=True)
                for layer in scaled:
                    for name in row:
                        layer.set_scale(name, row[name])
                expected = resident.peft(ids).logits[0].float()
        spread = float(expected.max() - expected.min())
        # bf16 keeps 8 bits, and both ways add in another order
        assert float((logits - expected).abs().max()) <= (1e-4 if DEVICE == "cpu" else 0.03) * spread


def test_a_stopped_run_resumes_to_the_same_losses(engine: Engine, corpus: Path) -> None:
    spec = {"max_steps": 24, "save_steps": 4, "eval_steps": 24}
    whole = engine.runs.wait(engine.runs.start(make_spec(engine, corpus, name="Whole", **spec)))
    run_id = engine.runs.start(make_spec(engine, corpus, name="Stopped", **spec))
    wait_for(lambda: engine.runs.get(run_id).step >= 5)
    engine.runs.pause(run_id)
    paused = engine.runs.wait(run_id)
    assert paused.status is RunStatus.PAUSED and paused.step < 24
    engine.runs.resume(run_id)
    assert engine.runs.wait(run_id).status is RunStatus.DONE
    assert losses(engine, run_id) == losses(engine, whole.id)


def test_answers_beside_a_run_leave_its_losses_equal(engine: Engine, corpus: Path) -> None:
    quiet = engine.runs.wait(engine.runs.start(make_spec(engine, corpus, max_steps=24, name="Quiet")))
    run_id = engine.runs.start(make_spec(engine, corpus, max_steps=24, name="Disturbed"))
    adapter = engine.runs.get(run_id).adapter
    wait_for(lambda: any(m.training and m.id == adapter for m in engine.library.mixable_adapters()))
    during = 0
    while engine.runs.get(run_id).status.is_alive:
        mixes = [Mix(), Mix(weights={quiet.adapter: 1.0}), Mix(weights={quiet.adapter: 0.5, adapter: 1.0})]
        frame = engine.chat.stream("The red lamp", mixes, Sampling(max_new_tokens=6, temperature=0)).last()
        during += frame.columns[2].stamp["adapters"].get(adapter) == "in training"
    assert during and losses(engine, quiet.id) == losses(engine, run_id)


@pytest.mark.skipif(DEVICE != "cuda", reason="a CPU has no limit for one process")
def test_a_run_that_does_not_fit_halves_its_batch_and_finishes(
    tiny_base: Path, tmp_path: Path, corpus: Path
) -> None:
    large = {"max_steps": 2, "batch_size": 64, "accumulation": 1, "max_length": 256, "packing": False,
             "gradient_checkpointing": "off"}  # fmt: skip
    corpus.write_text("\n\n---\n\n".join([corpus.read_text(encoding="utf-8").replace("---", "")] * 90),
                      encoding="utf-8")  # fmt: skip
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        with Engine(tmp_path / "ws", str(tiny_base), "none", DEVICE) as engine:
            engine.bases.current(wait=True)
            torch.cuda.empty_cache()
            begin = torch.cuda.memory_reserved()
            torch.cuda.reset_peak_memory_stats()
            whole = engine.runs.wait(engine.runs.start(make_spec(engine, corpus, name="Whole", **large)))
            peak = torch.cuda.max_memory_reserved()
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction((begin + 0.7 * (peak - begin)) / total)
            run = engine.runs.wait(engine.runs.start(make_spec(engine, corpus, name="Halved", **large)))
            notes = [e["text"] for e in engine.runs.events(run.id)[0] if e["kind"] == "note"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert whole.status is run.status is RunStatus.DONE and run.step == 2
    assert any("memory" in text for text in notes)
