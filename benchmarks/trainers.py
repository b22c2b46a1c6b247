"""What the training benchmark measures: the same texts learned by the studio, by TRL, by a script that pads, and by a bare loop.

Every side is a process of its own (`python -m benchmarks.trainers '{"side": ...}'`), so that peak memory is its own. Its
last line is one JSON object: tokens that are no padding and seconds of the steps that count, peak bytes, and the loss at the
end. Knows the sides; knows no ratios.
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

import torch

ROW = 512  # tokens of a packed row, and what the padding script pads to
WARM = 3  # steps that do not count
RANK, RATE = 16, 2e-4


@dataclass(frozen=True)
class Job:
    """One side's work.

    Attributes:
        side: one of SIDES. base: what `load_base` is given. kind: "task" (short pairs, completion only) or "domain" (texts).
        rows: packed rows of ROW tokens that one optimizer step reads; sides that do not pack read as many examples as hold
            about as many tokens.
        steps: optimizer steps that count.
    """

    side: str
    base: str
    kind: str
    quantization: str = "none"
    device: str = "cpu"
    rows: int = 2
    steps: int = 20


class Stopwatch:
    """Seconds and tokens of the steps after the first WARM; hangs on any Trainer."""

    def __init__(self, steps: int) -> None:
        self.last = WARM + steps
        self.tokens = 0
        self.seconds = 0.0
        self.loss = 0.0
        self._step = 0
        self._begin = 0.0

    def hang(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        watch, step = self, trainer.training_step

        class Bell(TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                watch.tick()

        def counted(model: Any, inputs: dict[str, Any], *more: Any, **named: Any) -> Any:
            watch.count(inputs)
            loss = step(model, inputs, *more, **named)
            watch.loss = float(loss)
            return loss

        trainer.training_step = counted
        trainer.add_callback(Bell())

    def count(self, inputs: dict[str, Any]) -> None:
        if self._step >= WARM:
            mask = inputs.get("attention_mask")
            self.tokens += (
                int(mask.sum()) if mask is not None and mask.dim() == 2 else int(inputs["input_ids"].numel())
            )

    def tick(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._step += 1
        if self._step == WARM:
            self._begin = time.perf_counter()
        if self._step == self.last:
            self.seconds = time.perf_counter() - self._begin


def peak_bytes() -> int:
    """Most memory that this process, or its GPU, held."""
    return (
        int(torch.cuda.max_memory_allocated())
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


def material(kind: str) -> list[Any]:
    """The sample's labelled pairs as messages, or its texts and the general ones."""
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


def encoded(base: Any, kind: str) -> list[Any]:
    """The material as token ids and masks, by the studio's own encoder, so that every side reads the same tokens."""
    from core.data.encoding import encode_task, encode_text

    if kind == "task":
        return [encode_task(base.tokenizer, m, ROW, base.eos_ids) for m in material(kind)]
    return [e for text in material(kind) for e in encode_text(base.tokenizer, text, ROW)]


def examples_a_step(sequences: list[Any], job: Job) -> int:
    return max(1, round(job.rows * ROW / (sum(len(e.ids) for e in sequences) / len(sequences))))


def with_adapter(base: Any) -> Any:
    """The base under a fresh LoRA adapter on all linear layers, as peft's documentation has it."""
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


def common(job: Job, folder: str, batch: int) -> dict[str, Any]:
    """Trainer arguments that all sides share."""
    return {
        "output_dir": folder, "max_steps": WARM + job.steps, "per_device_train_batch_size": batch, "learning_rate": RATE, "lr_scheduler_type": "constant",
        "save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": job.device == "cpu", "bf16": job.device != "cpu",
        "dataloader_pin_memory": job.device != "cpu", "seed": 0,
    }  # fmt: skip


def studio(job: Job, packing: bool = True) -> Stopwatch:
    """A run of the studio as the page starts it: events, samples, serving and all."""
    import core.train.train as room
    from core.engine import Engine
    from core.spec.training import TrainSpec

    watch = Stopwatch(job.steps)
    made = room.StudioTrainer

    def timed(*given: Any, **named: Any) -> Any:
        trainer = made(*given, **named)
        watch.hang(trainer)
        return trainer

    room.StudioTrainer = timed  # type: ignore[assignment,misc]
    with (
        tempfile.TemporaryDirectory() as folder,
        Engine(Path(folder) / "workspace", job.base, job.quantization, job.device) as engine,
    ):
        file = Path(folder) / ("pairs.jsonl" if job.kind == "task" else "texts.jsonl")
        file.write_text(
            "".join(
                json.dumps({"messages": m} if job.kind == "task" else {"text": m}) + "\n"
                for m in material(job.kind)
            ),
            encoding="utf-8",
        )
        data = engine.datasets.import_files([file], "Material", job.kind)
        batch = (
            job.rows
            if packing
            else examples_a_step(encoded(engine.worker.call(lambda: engine.resident_base.get().base), job.kind), job)
        )
        spec = TrainSpec(
            kind=job.kind, name="Timed", dataset=data.id, max_steps=WARM + job.steps, batch_size=batch, accumulation=1, max_length=ROW, rank=RANK,
            alpha=2 * RANK, dropout=0.0, learning_rate=RATE, schedule="constant", warmup_ratio=0.0, packing=packing, eval_steps=10**6, save_steps=10**6,
        )  # fmt: skip
        run = engine.runs.wait(engine.runs.start(spec))
        assert run.step == WARM + job.steps, run.error
    return watch


def trl(job: Job, packing: bool) -> Stopwatch:
    """TRL's SFTTrainer on the same token ids; checkpointing off, because it is on by default and slower."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from core.model.base import load_base

    base = load_base(job.base, job.quantization, job.device)
    sequences = encoded(base, job.kind)
    watch = Stopwatch(job.steps)
    rows = Dataset.from_list(
        [
            {"input_ids": e.ids, **({"completion_mask": e.loss_mask} if job.kind == "task" else {})}
            for e in sequences
        ]
    )
    batch = job.rows if packing else examples_a_step(sequences, job)
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            **common(job, folder, batch), max_length=ROW, packing=packing, gradient_checkpointing=False
        )
        trainer = SFTTrainer(
            model=with_adapter(base), args=config, train_dataset=rows, processing_class=base.tokenizer
        )
        watch.hang(trainer)
        trainer.train()
    return watch


def padded(job: Job) -> Stopwatch:
    """A plain Trainer script that pads every example to ROW tokens."""
    from transformers import Trainer, TrainingArguments

    from core.data.collation import collate
    from core.model.base import load_base

    base = load_base(job.base, job.quantization, job.device)
    sequences = encoded(base, job.kind)
    watch = Stopwatch(job.steps)

    def to_row(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        blank = {"input_ids": [base.tokenizer.pad_token_id] * ROW, "loss_mask": [0] * ROW}
        made = collate([*batch, blank], base.tokenizer.pad_token_id)
        return {k: v[:-1] for k, v in made.items()}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            **common(job, folder, examples_a_step(sequences, job)), remove_unused_columns=False
        )
        rows = [{"input_ids": e.ids, "loss_mask": e.loss_mask} for e in sequences]
        trainer = Trainer(model=with_adapter(base), args=arguments, train_dataset=rows, data_collator=to_row)  # type: ignore[arg-type]
        watch.hang(trainer)
        trainer.train()
    return watch


def floor(job: Job) -> Stopwatch:
    """Forward, backward and step on full rows of one text each, in a bare loop: nothing that trains a causal model as stock does less."""
    from core.data.collation import collate
    from core.model.base import load_base
    from core.model.nf4_cpu import unpack_for_backward

    base = load_base(job.base, job.quantization, job.device)
    model = with_adapter(base)
    model.train()
    watch = Stopwatch(job.steps)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, fused=True)
    with unpack_for_backward(base.model):
        for batch in _full_rows(encoded(base, job.kind), job):
            inputs = {k: v.to(base.device) for k, v in collate(batch, base.tokenizer.pad_token_id).items()}
            watch.count(inputs)
            with torch.autocast(base.device.type, torch.bfloat16, enabled=job.device != "cpu"):
                loss = model(**inputs, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            watch.loss = float(loss)
            watch.tick()
            if watch.seconds:
                return watch
    raise AssertionError("the rows never end")


def _full_rows(sequences: list[Any], job: Job) -> Iterator[list[dict[str, Any]]]:
    """Batches whose rows are examples joined end to end, without padding, for ever."""
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
    "padded": padded,
    "floor": floor,
}


def main() -> int:
    """Does one job and prints what it took."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    job = Job(**json.loads(sys.argv[1]))
    watch = SIDES[job.side](job)
    print(
        json.dumps(
            {
                **asdict(job),
                "tokens": watch.tokens,
                "seconds": watch.seconds,
                "peak_bytes": peak_bytes(),
                "loss": watch.loss,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
