"""The sides of the training benchmark: the studio, TRL, a script that pads, and a bare loop.

Every side runs in its own process (`python -m benchmarks.trainers '{"side": ...}'`), so that its peak memory
is its own. The last line of the output is one JSON object: non-padding tokens, seconds and processor seconds
of the timed steps, peak bytes, and the last loss.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from core.errors import StudioError

ROW = 512  # tokens of a packed row, and of a padded example
WARM = 3  # warm-up steps, not timed
RANK, RATE = 16, 2e-4


@dataclass(frozen=True)
class Job:
    """The work of one side.

    Attributes:
        side: one of SIDES. base: source for `load_base`.
        kind: "task" (short pairs, loss on the completion only) or "domain" (texts).
        rows: packed rows of ROW tokens per optimizer step; sides without packing read as many examples as
            have about the same number of tokens.
        steps: timed optimizer steps. warm: steps before them, not timed.
        held_out: validation sequences that the studio scores after the last step; 0 ends the run right after
            that step. The other sides validate nothing.
    """

    side: str
    base: str
    kind: str
    quantization: str = "none"
    device: str = "cpu"
    rows: int = 2
    steps: int = 20
    warm: int = WARM
    held_out: int = 16


class Measured(StudioError):
    """Ends a run whose steps are timed."""


class Stopwatch:
    """Seconds, processor seconds of the process, and tokens of the timed steps."""

    def __init__(self, job: Job) -> None:
        self.last = job.warm + job.steps
        self.warm = job.warm
        self.ends_run = job.side.startswith("studio") and not job.held_out
        self.tokens = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.loss = 0.0
        self._step = 0
        self._begin = self._cpu_begin = 0.0

    def attach(self, trainer: Any) -> None:
        """Times the steps of a Trainer."""
        from transformers import TrainerCallback

        stopwatch, step = self, trainer.training_step

        class TickCallback(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                stopwatch.tick()

        def count_and_step(model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
            stopwatch.count(inputs)
            loss = step(model, inputs, *more, **named)
            stopwatch.loss = float(loss)
            return loss

        trainer.training_step = count_and_step
        trainer.add_callback(TickCallback())

    def count(self, inputs: dict[str, Any]) -> None:
        if self._step >= self.warm:
            mask = inputs.get("attention_mask")
            if "row_lengths" in inputs:  # the packed rows of the studio, without their padding
                self.tokens += int(inputs["row_lengths"].sum())
                return
            self.tokens += (
                int(mask.sum()) if mask is not None and mask.dim() == 2 else int(inputs["input_ids"].numel())
            )

    def tick(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._step += 1
        if self._step == self.warm:
            self._begin, self._cpu_begin = time.perf_counter(), time.process_time()
        if self._step == self.last:
            self.seconds = time.perf_counter() - self._begin
            self.cpu_seconds = time.process_time() - self._cpu_begin
            if self.ends_run:
                raise Measured("The steps are timed.")


def peak_bytes() -> int:
    """Peak memory of this process, or of its GPU."""
    return (
        int(torch.cuda.max_memory_allocated())
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


def read_material(kind: str) -> list[Any]:
    """The labelled pairs of the sample data as messages, or its texts and general texts."""
    from core.data.samples import Samples, read_lines

    samples = Samples()
    if kind == "task":
        return [
            [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]
            for r in read_lines(samples.task)
        ]
    documents = [p.read_text(encoding="utf-8") for p in samples.domain]
    return [d.strip() for text in documents for d in text.split("\n\n") if d.strip()] + samples.texts(
        "general"
    )[:400]


def encode_material(base: Any, kind: str) -> list[Any]:
    """The material as token ids and loss masks, from the studio's encoder, the same for all sides."""
    from core.data.tokens.encoding import encode_task, encode_text

    if kind == "task":
        return [encode_task(base.tokenizer, m, ROW, base.eos_ids) for m in read_material(kind)]
    return [e for text in read_material(kind) for e in encode_text(base.tokenizer, text, ROW)]


def examples_per_step(sequences: list[Any], job: Job) -> int:
    """Examples with about as many tokens as the packed rows of a step."""
    return max(1, round(job.rows * ROW / (sum(len(e.ids) for e in sequences) / len(sequences))))


def add_lora(base: Any) -> Any:
    """The base with a new LoRA adapter on all linear layers, as in the documentation of peft."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    model = (
        prepare_model_for_kbit_training(base.model, use_gradient_checkpointing=False)
        if base.quantization != "none"
        else base.model
    )
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=RANK,
            lora_alpha=2 * RANK,
            lora_dropout=0.0,
            target_modules=list(base.family.targets),
        ),
    )


def common_arguments(job: Job, folder: str, batch: int) -> dict[str, Any]:
    """Trainer arguments that all sides share."""
    return {
        "output_dir": folder,
        "max_steps": job.warm + job.steps,
        "per_device_train_batch_size": batch,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": job.device == "cpu",
        "bf16": job.device != "cpu",
        "dataloader_pin_memory": job.device != "cpu",
        "seed": 0,
    }


def studio(job: Job, packing: bool = True) -> Stopwatch:
    """A run of the studio as the page starts it, with events, samples and the worker thread."""
    from core.engine import Engine
    from core.spec.training import TrainSpec
    from core.train import oom_retry, sequences

    stopwatch = Stopwatch(job)
    trainer_class = oom_retry.StudioTrainer

    def make_timed_trainer(*args: Any, **kwargs: Any) -> Any:
        trainer = trainer_class(*args, **kwargs)
        stopwatch.attach(trainer)
        return trainer

    with (
        patch.object(oom_retry, "StudioTrainer", make_timed_trainer),
        patch.object(sequences, "VALIDATION_ROWS", max(1, job.held_out)),
        tempfile.TemporaryDirectory() as folder,
        Engine(Path(folder) / "workspace", job.base, job.quantization, job.device) as engine,
    ):
        file = Path(folder) / ("pairs.jsonl" if job.kind == "task" else "texts.jsonl")
        file.write_text(
            "".join(
                json.dumps({"messages": m} if job.kind == "task" else {"text": m}) + "\n"
                for m in read_material(job.kind)
            ),
            encoding="utf-8",
        )
        data = engine.datasets.import_files([file], "Material", job.kind)
        batch = (
            job.rows
            if packing
            else examples_per_step(
                encode_material(engine.worker.call(lambda: engine.resident_base.get().base), job.kind), job
            )
        )
        spec = TrainSpec(
            kind=job.kind,
            name="Timed",
            dataset=data.id,
            max_steps=job.warm + job.steps,
            batch_size=batch,
            accumulation=1,
            max_length=ROW,
            rank=RANK,
            alpha=2 * RANK,
            dropout=0.0,
            learning_rate=RATE,
            schedule="constant",
            warmup_ratio=0.0,
            packing=packing,
            eval_steps=10**6,
            save_steps=10**6,
        )
        run_id = engine.runs.start(spec)
        while engine.runs.get(run_id).status.is_alive:  # what follows the run itself is not waited for
            engine.runs.check_base(run_id)
            time.sleep(0.1)
        assert stopwatch.seconds, engine.runs.get(run_id).error
    return stopwatch


def trl(job: Job, packing: bool) -> Stopwatch:
    """SFTTrainer of TRL on the same token ids, without gradient checkpointing (its faster setting)."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from core.model.base import load_base

    base = load_base(job.base, job.quantization, job.device)
    sequences = encode_material(base, job.kind)
    stopwatch = Stopwatch(job)
    rows = Dataset.from_list(
        [
            {"input_ids": e.ids, **({"completion_mask": e.loss_mask} if job.kind == "task" else {})}
            for e in sequences
        ]
    )
    batch = job.rows if packing else examples_per_step(sequences, job)
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            **common_arguments(job, folder, batch),
            max_length=ROW,
            packing=packing,
            gradient_checkpointing=False,
        )
        trainer = SFTTrainer(
            model=add_lora(base), args=config, train_dataset=rows, processing_class=base.tokenizer
        )
        stopwatch.attach(trainer)
        trainer.train()
    return stopwatch


def train_with_pads(job: Job) -> Stopwatch:
    """A plain Trainer script that pads every example to ROW tokens."""
    from transformers import Trainer, TrainingArguments

    from core.data.tokens.collation import collate
    from core.model.base import load_base

    base = load_base(job.base, job.quantization, job.device)
    sequences = encode_material(base, job.kind)
    stopwatch = Stopwatch(job)

    def collate_to_row_length(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        blank = {"input_ids": [base.tokenizer.pad_token_id] * ROW, "loss_mask": [0] * ROW}
        rows = collate([*batch, blank], base.tokenizer.pad_token_id)
        return {k: v[:-1] for k, v in rows.items()}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            **common_arguments(job, folder, examples_per_step(sequences, job)), remove_unused_columns=False
        )
        rows = [{"input_ids": e.ids, "loss_mask": e.loss_mask} for e in sequences]
        trainer = Trainer(
            model=add_lora(base), args=arguments, train_dataset=rows, data_collator=collate_to_row_length
        )  # type: ignore[arg-type]
        stopwatch.attach(trainer)
        trainer.train()
    return stopwatch


def floor(job: Job) -> Stopwatch:
    """Forward, backward and optimizer step on full rows: the least work for a stock causal model."""
    from core.data.tokens.collation import collate
    from core.model.base import load_base
    from core.model.nf4_cpu import unpack_for_backward

    base = load_base(job.base, job.quantization, job.device)
    model = add_lora(base)
    model.train()
    stopwatch = Stopwatch(job)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, fused=True)
    with unpack_for_backward(base.model):
        for batch in _iterate_full_rows(encode_material(base, job.kind), job):
            inputs = {k: v.to(base.device) for k, v in collate(batch, base.tokenizer.pad_token_id).items()}
            stopwatch.count(inputs)
            with torch.autocast(base.device.type, torch.bfloat16, enabled=job.device != "cpu"):
                loss = model(**inputs, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            stopwatch.loss = float(loss)
            stopwatch.tick()
            if stopwatch.seconds:
                return stopwatch
    raise AssertionError("the rows never end")


def _iterate_full_rows(sequences: list[Any], job: Job) -> Iterator[list[dict[str, Any]]]:
    """Endless batches whose rows are concatenated examples, without padding."""
    ids: list[int] = []
    mask: list[int] = []
    batch: list[dict[str, Any]] = []
    while True:
        for e in sequences:
            ids, mask = ids + e.ids, mask + e.loss_mask
            while len(ids) >= ROW:
                batch.append({"input_ids": ids[:ROW], "loss_mask": mask[:ROW]})
                ids, mask = ids[ROW:], mask[ROW:]
                if len(batch) == job.rows:
                    yield batch
                    batch = []


SIDES: dict[str, Callable[[Job], Stopwatch]] = {
    "studio": studio,
    "studio_unpacked": lambda job: studio(job, packing=False),
    "trl_packed": lambda job: trl(job, packing=True),
    "trl_unpacked": lambda job: trl(job, packing=False),
    "padded": train_with_pads,
    "floor": floor,
}


def run_job(job: Job) -> dict[str, Any]:
    """Runs one job in this process; returns its settings and figures."""
    stopwatch = SIDES[job.side](job)
    return {
        **asdict(job),
        "tokens": stopwatch.tokens,
        "seconds": stopwatch.seconds,
        "cpu_seconds": stopwatch.cpu_seconds,
        "peak_bytes": peak_bytes(),
        "loss": stopwatch.loss,
        "speed": stopwatch.tokens / stopwatch.seconds,
    }


def main() -> int:
    """Runs one job and prints its figures."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(json.dumps(run_job(Job(**json.loads(sys.argv[1])))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
