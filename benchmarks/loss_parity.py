"""Training losses of the studio beside plain transformers and peft in fp32, on the same batches.

    OMP_NUM_THREADS=1 python -m benchmarks.loss_parity                          200 steps on the embedded base
    OMP_NUM_THREADS=1 python -m benchmarks.loss_parity --base FOLDER --json     on another base

A run of the studio trains as users get it. Its batches and the first weights of its adapter are kept, and a
plain loop trains on them again: transformers' model with eager attention, peft's LoRA layers, torch's AdamW
at the same rate, and the logits of every position. Both sides start alike, and their rounding differs. The
target is a largest difference of 1 % of the loss of any step.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.trainers import RANK, RATE, read_material

TARGET = 0.01  # of the plain loss, at any step
MATERIAL = 200  # rows of the sample data


@dataclass
class Recording:
    """What the studio trained on.

    Attributes:
        batches: token ids, labels and positions, one batch a step. losses: nats per trained token.
        adapter: peft's names -> the weights of the adapter before the first step.
    """

    batches: list[dict[str, torch.Tensor]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    adapter: dict[str, torch.Tensor] = field(default_factory=dict)


def record_run(base: str, kind: str, steps: int, rows: int, length: int) -> Recording:
    """Trains in the studio, and keeps every batch."""
    from core.engine import Engine
    from core.spec.training import TrainSpec
    from core.train import oom_retry, sequences

    recording, trainer_class = Recording(), oom_retry.StudioTrainer

    class RecordingTrainer(trainer_class):  # type: ignore[valid-type,misc]
        def training_step(self, model: Any, inputs: dict[str, Any], *more: Any) -> Any:
            if not recording.adapter:
                recording.adapter = {n: p.detach().clone() for n, p in model.named_parameters()
                                     if p.requires_grad}  # fmt: skip
            kept = ("input_ids", "labels", "position_ids")
            recording.batches.append({k: inputs[k].clone() for k in kept if k in inputs})
            loss = super().training_step(model, inputs, *more)
            recording.losses.append(float(loss))
            return loss

    oom_retry.StudioTrainer, before = RecordingTrainer, oom_retry.StudioTrainer  # type: ignore[misc]
    held_out, sequences.VALIDATION_ROWS = sequences.VALIDATION_ROWS, 2
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            Engine(Path(folder) / "workspace", base, "none", "cpu") as engine,
        ):
            file = Path(folder) / "rows.jsonl"
            key = "messages" if kind == "task" else "text"
            lines = [json.dumps({key: row}) for row in read_material(kind)[:MATERIAL]]
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
            data = engine.datasets.import_files([file], "Material", kind)
            settings = {"kind": kind, "name": "Parity", "dataset": data.id, "max_steps": steps,
                        "batch_size": rows, "accumulation": 1, "max_length": length, "rank": RANK,
                        "alpha": 2 * RANK, "dropout": 0.0, "learning_rate": RATE, "schedule": "constant",
                        "warmup_ratio": 0.0, "eval_steps": 10**6, "save_steps": 10**6}  # fmt: skip
            run_id = engine.runs.start(TrainSpec(**settings))
            while engine.runs.get(run_id).status.is_alive:
                engine.runs.check_base(run_id)
                time.sleep(0.05)
            assert engine.runs.get(run_id).step == steps, engine.runs.get(run_id).error
    finally:
        oom_retry.StudioTrainer = before  # type: ignore[misc]
        sequences.VALIDATION_ROWS = held_out
    return recording


def train_plainly(base: str, recording: Recording) -> list[float]:
    """The losses of a plain loop on the recorded batches."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from core.model.families import family_of
    from core.store.base_models import locate

    folder = locate(base)[0]
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=list(family_of(AutoConfig.from_pretrained(folder, local_files_only=True)).targets),
    )
    peft = get_peft_model(model, config).train()
    trained = {n: p for n, p in peft.named_parameters() if p.requires_grad}
    assert set(trained) == set(recording.adapter), "both sides train the same weights"
    with torch.no_grad():
        for name, weight in recording.adapter.items():
            trained[name].copy_(weight)
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    losses = []
    for batch in recording.batches:
        rest = {k: v for k, v in batch.items() if k != "labels"}
        logits = peft(**rest, use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def compare_losses(
    base: str = "embedded", kind: str = "task", steps: int = 200, rows: int = 2, length: int = 512
) -> dict[str, float]:
    """Trains on both sides.

    Args:
        rows, length: packed rows of a step, and their tokens.

    Returns:
        The largest and the mean difference of a step as a share of the plain loss, and the last losses.
    """
    recording = record_run(base, kind, steps, rows, length)
    plain = train_plainly(base, recording)
    shares = [abs(a - b) / b for a, b in zip(recording.losses, plain, strict=True)]
    return {
        "steps": float(steps),
        "largest_difference": max(shares),
        "mean_difference": sum(shares) / len(shares),
        "first_loss": plain[0],
        "last_loss": plain[-1],
        "last_loss_studio": recording.losses[-1],
    }


def main() -> int:
    """Compares, and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="embedded", help="the base: embedded, or a folder")
    parser.add_argument("--kinds", nargs="+", default=["task", "domain"], choices=("task", "domain"))
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    parser.add_argument("--quick", action="store_true", help="20 steps")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    figures: dict[str, float] = {}
    for kind in args.kinds:
        found = compare_losses(args.base, kind, 20 if args.quick else args.steps)
        figures |= {f"{kind}_{name}": value for name, value in found.items()}
        verdict = "met" if found["largest_difference"] <= TARGET else "MISSED"
        largest, last = found["largest_difference"], found["last_loss"]
        print(f"  {kind}: largest difference {largest:.2e} of the loss, last loss {last:.4f}", flush=True)
        print(f"  {verdict}: target <= {TARGET:g}", flush=True)
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
