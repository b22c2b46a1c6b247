"""transformers' Trainer, taught our habits.

Saves only the adapter in training, commits checkpoints, counts nats and tokens, drops the adapter below
at random, stops on a loss that is no number, and lets others use the model between its steps.
Knows a resident base and encoded data; knows no datasets, runs or pages.
"""

from __future__ import annotations

import inspect
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from core.data.batches import IGNORED, Encoded, collate, encode_chat, encode_opening
from core.errors import Diverged, StorageError
from core.events import EventLog
from core.library import WEIGHTS
from core.model.generate import generate
from core.model.resident import ANCHOR, AsTrained, Resident
from core.model.scoring import score
from core.spec import Mix, Sampling, TrainSpec
from core.train import checkpoints, steps
from core.workspace import ensure_space

SERVE_SECONDS = 0.12  # longest time lent to others between two steps
SAMPLE_TOKENS = 48
START = "start.safetensors"  # what the adapter in training started from, in a checkpoint
ROUNDS = 10  # validations and checkpoints in a run, where the spec says 0


@dataclass
class Hooks:
    """What the trainer needs of the world around it.

    Attributes:
        log: where events go.
        serve: lends the model to whoever waits, for at most so many seconds.
        stop_asked: "" to go on; anything else ends the run after this step, with a checkpoint.
    """

    log: EventLog
    serve: Callable[[float], None]
    stop_asked: Callable[[], str]


def arguments(spec: TrainSpec, folder: Path, rows: int, on_gpu: bool) -> TrainingArguments:
    """TrainingArguments of a spec.

    Args:
        folder: where checkpoints go.
        rows: sequences in the training split, from which the number of steps follows.
    """
    total = spec.max_steps or max(1, math.ceil(math.ceil(rows / spec.batch_size) / spec.accumulation * spec.epochs))
    every = max(1, math.ceil(total / ROUNDS))
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=spec.epochs,
        max_steps=spec.max_steps or -1,
        per_device_train_batch_size=spec.batch_size,
        gradient_accumulation_steps=spec.accumulation,
        learning_rate=spec.learning_rate,
        warmup_steps=math.ceil(total * spec.warmup_ratio),
        seed=spec.seed,
        data_seed=spec.seed,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # the default hides NaN losses behind a perfect-looking curve
        eval_strategy="steps",
        eval_steps=spec.eval_steps or every,
        eval_on_start=True,
        save_strategy="steps",
        save_steps=spec.save_steps or every,
        save_total_limit=None,  # we rotate by step
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
        **steps.settings(spec, "cuda" if on_gpu else "cpu"),
    )


class StudioTrainer(Trainer):  # type: ignore[misc]
    """One training run on the resident base.

    Args:
        rows: training sequences, a datasets.Dataset of `input_ids` and `trained`.
        validation: encoded sequences that are scored, not trained.
        run_id: written into every checkpoint's manifest.
        prompts: what the adapter in training answers at every validation.
    """

    def __init__(
        self,
        resident: Resident,
        spec: TrainSpec,
        rows: Any,
        validation: Sequence[Encoded],
        folder: Path,
        run_id: str,
        hooks: Hooks,
        prompts: Sequence[str] = (),
    ) -> None:
        pad = resident.base.tokenizer.pad_token_id
        super().__init__(
            model=resident.peft,
            args=arguments(spec, folder, len(rows), resident.base.device.type == "cuda"),
            train_dataset=rows,
            eval_dataset=list(validation) or None,
            data_collator=lambda batch: collate(batch, pad),
        )
        self._keeps_logits = "logits_to_keep" in inspect.signature(resident.base.model.forward).parameters and not resident.base.family.seq2seq
        self.model_accepts_loss_kwargs: bool = self._keeps_logits or bool(getattr(self, "model_accepts_loss_kwargs", False))  # tokens are then counted
        self.remove_callback(PrinterCallback)
        self.add_callback(_Manners(self))
        self.resident = resident
        self.spec = spec
        self.validation = list(validation)
        self.run_id = run_id
        self.hooks = hooks
        self.prompts = list(prompts)
        self.best: dict[str, float] = {}
        self.tokens = 0  # trained tokens of this process
        self.busy = 0.0  # seconds spent in training steps of this process, without what was lent to others
        self.mark = (0, 0.0, 0)  # (tokens, busy, step) at the last logged step
        self.last_loss = math.nan
        self._substep = 0  # forward passes of the present optimizer step; an epoch's last step may have fewer

    def create_optimizer(self, model: Any = None) -> Any:
        if self.spec.lora_plus_ratio != 1.0 and getattr(self, "optimizer", None) is None:
            self.optimizer: Any = steps.loraplus(self.args, self.resident.peft, self.spec.lora_plus_ratio)
        return super().create_optimizer(model)

    # --- one step

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        begin = time.perf_counter()
        inputs = dict(inputs)
        tokens = inputs.pop("sizes", inputs.get("attention_mask"))  # packed rows have no mask, and say their sizes
        with self._dropped():
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(float(loss)):
            raise Diverged(
                f"The loss became {float(loss)} at step {self.state.global_step + 1}.",
                "Lower the learning rate and start again, or resume from the last checkpoint, which is finite.",
            )
        self.tokens += int(tokens.sum())
        self.busy += time.perf_counter() - begin
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Nats a trained token of this optimizer step, from logits at the trained positions alone.

        A vocabulary's worth of logits for every token of a prompt, in 32 bits and again for its gradient, is the largest
        tensor of a step, and nobody reads it. Positions that any row trains are kept for all rows.
        """
        if not self._keeps_logits or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rest = {k: v for k, v in inputs.items() if k != "labels"}
        targets = inputs["labels"][:, 1:]  # (B, T - 1), of the positions before them
        kept = (targets != IGNORED).any(0).nonzero()[:, 0]
        logits = model(**rest, use_cache=False, logits_to_keep=kept).logits  # (B, kept, V)
        nats = functional.cross_entropy(logits.flatten(0, 1).float(), targets[:, kept].flatten(), ignore_index=IGNORED, reduction="sum")
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return nats * processes / num_items_in_batch

    @contextmanager
    def _dropped(self) -> Iterator[None]:
        """Switches the adapter below off in a share of the forward passes, forward and backward alike.

        Drawn from the seed and the position in the run, so that a resumed run draws the same.
        """
        below = list(self.resident.pinned)
        position = self.state.global_step * self.spec.accumulation + self._substep
        self._substep += 1
        off = bool(below) and random.Random(f"{self.spec.seed}:{position}").random() < self.spec.domain_dropout
        if not off:
            yield
            return
        layers = [layer for layer in self.resident.mixer.layers if below[0] in layer.scaling]
        kept = [layer.scaling[below[0]] for layer in layers]
        for layer in layers:
            layer.scaling[below[0]] = 0.0
        try:
            yield
        finally:
            for layer, value in zip(layers, kept, strict=True):
                layer.scaling[below[0]] = value

    # --- what others see of it

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turns Trainer's per-step logs into events; the rest of its logs are its own summary."""
        if "loss" not in logs:
            return
        tokens, busy, step = self.mark
        self.mark = (self.tokens, self.busy, self.state.global_step)
        seconds = max(self.busy - busy, 1e-9)
        left = self.state.max_steps - self.state.global_step
        self.last_loss = float(logs["loss"])
        self.hooks.log.append(
            "step",
            step=self.state.global_step,
            total_steps=self.state.max_steps,
            epoch=round(self.state.epoch or 0.0, 4),
            loss=self.last_loss,
            learning_rate=float(logs.get("learning_rate", 0.0)),
            grad_norm=float(logs.get("grad_norm", math.nan)),
            tokens=self.tokens,
            tokens_per_second=round((self.tokens - tokens) / seconds, 1),
            eta_seconds=round(left * self.busy / max(1, self._steps_here()), 1),
        )

    def _steps_here(self) -> int:
        return int(self.state.global_step) - int(getattr(self, "_initial_global_step", 0))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validation loss as nats over tokens, and the answers to the sample prompts."""
        mix = AsTrained(weights={self.resident.trainee_id: 1.0, **dict.fromkeys(self.resident.pinned, 1.0)})
        metrics: dict[str, float] = {}
        if self.validation:
            result = None
            for _, scores in score(self.resident, self.validation, [mix]):
                result = scores[0]
                self.hooks.serve(SERVE_SECONDS)
            assert result is not None
            metrics = {"eval_loss": result.loss}
            self.best = min((self.best, {"step": self.state.global_step, "loss": result.loss}), key=lambda b: b.get("loss", math.inf))
            rows = [[round(nats, 4), tokens] for _, (nats, tokens) in sorted(result.rows.items())]  # what tells a difference of two runs from chance
            self.hooks.log.append("validation", step=self.state.global_step, loss=result.loss, perplexity=result.perplexity, tokens=result.tokens, rows=rows)
        for prompt in self.prompts:
            self._sample(prompt, mix)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _sample(self, prompt: str, mix: Mix) -> None:
        tokenizer = self.resident.base.tokenizer
        if self.spec.kind == "task":
            ids = encode_chat(tokenizer, [{"role": "user", "content": prompt}], generate=True)
        else:
            ids = encode_opening(tokenizer, prompt)
        room = min(SAMPLE_TOKENS, self.resident.base.context - len(ids))
        if room < 1:
            return
        writers: Any = []
        for writers in generate(self.resident, [ids], [mix], [Sampling(max_new_tokens=room)]):
            self.hooks.serve(SERVE_SECONDS / 4)
        self.hooks.log.append("sample", step=self.state.global_step, prompt=prompt, text=writers[0].column(tokenizer).text)

    # --- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Only the adapter in training: its tensors and its config."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.resident.trainee_tensors(), folder / WEIGHTS, metadata={"format": "pt"})
        if self.resident.anchored:
            save_file(self.resident.tensors_of(ANCHOR), folder / START, metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(self.resident.adapter_config(), indent=2), encoding="utf-8")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes, then commits; what the disk refuses is removed and the last good one stays."""
        root = Path(self.args.output_dir)
        folder = root / f"checkpoint-{self.state.global_step}"
        size = sum(p.numel() * 4 for p in self.resident.peft.parameters() if p.requires_grad)  # type: ignore[union-attr]
        if folder.exists():  # a resumed run passes its own steps again
            shutil.rmtree(folder)
        try:
            ensure_space(root, 3 * size)
            super()._save_checkpoint(model, trial)
            checkpoints.commit(folder, self.run_id)
        except (OSError, RuntimeError) as e:
            shutil.rmtree(folder, ignore_errors=True)
            raise StorageError(
                f"The checkpoint of step {self.state.global_step} could not be written ({e}).",
                "Free some space; the run can be resumed from its last checkpoint.",
            ) from e
        except StorageError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        checkpoints.rotate(root)
        self.hooks.log.append("checkpoint", step=self.state.global_step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Fills the adapter in training; the stock way would also change which adapters are active."""
        folder = Path(resume_from_checkpoint)
        self.resident.restore_trainee(load_file(folder / WEIGHTS), load_file(folder / START) if self.resident.anchored else None)


class _Manners(TrainerCallback):  # type: ignore[misc]
    """Between steps: lends the model to others, and hears a request to stop."""

    def __init__(self, trainer: StudioTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        trainer.hooks.log.append(
            "plan",
            step=state.global_step,
            total_steps=state.max_steps,
            train_rows=len(trainer.train_dataset),
            validation_rows=len(trainer.validation),
            effective_batch=trainer.spec.effective_batch,
            trainable_parameters=trainable,
            total_parameters=trainer.resident.base.parameters,
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._substep = 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.trainer.hooks.serve(SERVE_SECONDS)
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.trainer.hooks.serve(SERVE_SECONDS)
        if self.trainer.hooks.stop_asked():
            control.should_training_stop = True
            control.should_save = True
            control.should_evaluate = True
        return control
