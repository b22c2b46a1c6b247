"""transformers' Trainer, taught our habits.

Saves only the adapter in training, commits checkpoints, counts nats and tokens, drops the adapter below
at random, stops on numbers that are none and when validation no longer improves, and lets others use the
model between its steps. Knows a resident base and encoded data; knows no datasets, runs or pages.
"""

from __future__ import annotations

import inspect
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from core.data.collation import collate
from core.data.encoding import IGNORE_INDEX, EncodedSequence
from core.errors import Diverged, StudioError
from core.model.resident import OFFSET, Resident
from core.model.scoring import Score
from core.spec.mix import Mix
from core.spec.training import TrainSpec
from core.store.adapters import WEIGHTS
from core.store.event_log import EventLog
from core.store.workspace import ensure_space, write_json
from core.train import checkpoints, fsdp, memory, optimizer, validation
from core.train.distributed import SINGLE_PROCESS, COLLECTIVE_TIMEOUT, PaddedDataset, ProcessGroup, shard_batches
from core.train.early_stopping import EarlyStopping

SERVE_SECONDS = 0.12  # longest time lent to others between two steps
START = "start.safetensors"  # what the adapter in training started from, in a checkpoint
ROUNDS = 10  # validations and checkpoints in a run, where the spec says 0


@dataclass
class TrainerContext:
    """What the trainer needs of the world around it.

    Attributes:
        log: where events go.
        serve: lends the model to whoever waits, for at most so many seconds.
        stop_asked: "" to go on; anything else ends the run after this step, with a checkpoint.
        group: the processes that train it together.
    """

    log: EventLog
    serve: Callable[[float], None]
    stop_asked: Callable[[], str]
    group: ProcessGroup = SINGLE_PROCESS


def arguments(
    spec: TrainSpec,
    folder: Path,
    rows: int,
    on_gpu: bool,
    share: int = 1,
    together: dict[str, Any] | None = None,
) -> TrainingArguments:
    """TrainingArguments of a spec.

    Args:
        folder: where checkpoints go.
        rows: sequences in the training split, from which the number of steps follows. It is the same for every
            micro-batch of one effective batch, so a run that had to make it smaller keeps its schedule.
        share: processes that share the forward passes of a step. together: what `several` says of them.
    """
    total = spec.max_steps or max(1, math.ceil(math.ceil(rows / spec.effective_batch) * spec.epochs))
    every = max(1, math.ceil(total / ROUNDS))
    settings: dict[str, Any] = dict(  # noqa: C408 (the names of arguments, as they are called)
        output_dir=str(folder),
        num_train_epochs=spec.epochs,
        max_steps=spec.max_steps or -1,
        per_device_train_batch_size=spec.batch_size,
        gradient_accumulation_steps=spec.accumulation // share,
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
        report_to=list(spec.report_to),
        **optimizer.settings(spec, "cuda" if on_gpu else "cpu"),
    )
    return TrainingArguments(**fsdp.joined(settings, together or {}))


def several(group: ProcessGroup, model: Any, on_gpu: bool) -> dict[str, Any]:
    """Arguments that matter with several processes only.

    Every adapter weight in training takes part in every forward, also where the adapter below is dropped
    (by its scaling), so no process looks for unused ones.
    """
    if group.world_size == 1:
        return {}
    return {
        **(fsdp.arguments(model) if group.sharded else {}),
        "ddp_find_unused_parameters": False,
        "ddp_backend": None if on_gpu else "gloo",
        "ddp_timeout": int(COLLECTIVE_TIMEOUT.total_seconds()),
    }


class StudioTrainer(Trainer):  # type: ignore[misc]
    """One training run on the resident base.

    Args:
        rows: training sequences, a datasets.Dataset of `input_ids` and `trained`.
        validation: encoded sequences that are scored, not trained.
        run_id: written into every checkpoint's manifest.
        prompts: what the adapter in training answers at every validation.
    """

    control: Any
    train_dataset: Any

    def __init__(
        self,
        resident: Resident,
        spec: TrainSpec,
        rows: Any,
        validation: Sequence[EncodedSequence],
        folder: Path,
        run_id: str,
        context: TrainerContext,
        prompts: Sequence[str] = (),
    ) -> None:
        pad = resident.base.tokenizer.pad_token_id
        on_gpu = resident.base.device.type == "cuda"
        if context.group.sharded:
            fsdp.loosen(resident.peft)
        super().__init__(
            model=resident.peft,
            args=arguments(
                spec,
                folder,
                len(rows),
                on_gpu,
                context.group.world_size,
                several(context.group, resident.base.model, on_gpu),
            ),
            train_dataset=rows,
            eval_dataset=list(validation) or None,
            data_collator=lambda batch: collate(batch, pad),
        )
        self._keeps_logits = (
            "logits_to_keep" in inspect.signature(resident.base.model.forward).parameters
            and not resident.base.family.seq2seq
        )
        self.model_accepts_loss_kwargs: bool = self._keeps_logits or bool(
            getattr(self, "model_accepts_loss_kwargs", False)
        )  # tokens are then counted
        self.remove_callback(PrinterCallback)
        self.add_callback(StudioCallback(self))
        self.group = context.group
        for callback in (
            self.callback_handler.callbacks
        ):  # TensorBoard's files outlive the checkpoints, beside which it would put them
            if getattr(callback, "logging_dir", "") is None:
                callback.logging_dir = str(folder.parent / "logs")
        self.resident = resident
        self.spec = spec
        self.validation = list(validation)
        self.run_id = run_id
        self.context = context
        self.prompts = list(prompts)
        self.track = EarlyStopping()  # of the validations
        self.probed: dict[str, Any] = {}  # what one step was measured to need
        self.ended_early = False  # validation stopped improving
        self.tokens = 0  # trained tokens
        self.busy = 0.0  # seconds spent in training steps, without what was lent to others
        self.mark = (0, 0.0, 0)  # (tokens, busy, step) at the last logged step
        self.last_loss = math.nan
        self._since: list[float] = []  # losses of the steps since the last validation
        self._substep = 0  # forward passes of the present optimizer step; an epoch's last step may have fewer

    def create_optimizer(self, model: Any = None) -> Any:
        if self.spec.lora_plus_ratio != 1.0 and getattr(self, "optimizer", None) is None:
            self.optimizer: Any = optimizer.loraplus(self.args, self.resident.peft, self.spec.lora_plus_ratio)
        return super().create_optimizer(model)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp_plugin_args is not None and not self.is_fsdp_enabled:
            fsdp.enforce(self.accelerator, self.args.fsdp_plugin_args)
            self.is_fsdp_enabled: bool = True

    # --- what this process reads

    def get_train_dataloader(self) -> Any:
        """All rows; or this process's share of the very batches that one process alone would read."""
        if self.group.world_size == 1:
            return super().get_train_dataloader()
        rows = self.train_dataset
        self.train_dataset = PaddedDataset(rows)
        try:
            return shard_batches(super().get_train_dataloader(), len(rows), self.group.world_size)
        finally:
            self.train_dataset = rows

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(
            train_dataset.rows if isinstance(train_dataset, PaddedDataset) else train_dataset
        )

    # --- one step

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        begin = time.perf_counter()
        inputs = dict(inputs)
        tokens = inputs.pop(
            "row_lengths", inputs.get("attention_mask")
        )  # packed rows have no mask, and say their sizes
        with self._dropped():
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(float(loss)):
            raise self._diverged("loss", float(loss))
        self.tokens += int(tokens.sum())
        self.busy += time.perf_counter() - begin
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Nats a trained token of this optimizer step, from logits at the trained positions alone.

        A vocabulary's worth of logits for every token of a prompt, in 32 bits and again for its gradient, is the largest
        tensor of a step, and nobody reads it. Positions that any row trains are kept for all rows.
        """
        if not self._keeps_logits or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rest = {k: v for k, v in inputs.items() if k != "labels"}
        targets = inputs["labels"][:, 1:]  # (B, T - 1), of the positions before them
        kept = (targets != IGNORE_INDEX).any(0).nonzero()[:, 0]
        logits = model(**rest, use_cache=False, logits_to_keep=kept).logits  # (B, kept, V)
        nats = functional.cross_entropy(
            logits.flatten(0, 1).float(), targets[:, kept].flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
        )
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return nats * processes / num_items_in_batch

    def _diverged(self, what: str, value: float) -> Diverged:
        return Diverged(
            f"The {what} became {value} at step {self.state.global_step + 1}.",
            "Lower the learning rate and start again; the last checkpoint is finite.",
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm of the gradients; one that is no number would make every weight one too, after a loss that still was."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(float(norm)):
            raise self._diverged("gradient", float(norm))
        return norm

    @contextmanager
    def _dropped(self) -> Iterator[None]:
        """Switches the adapter below off in a share of the forward passes, forward and backward alike.

        Drawn from the seed and the position in the run, so that a resumed run draws the same.
        """
        below = list(self.resident.parent_ids)
        position = self.group.batch_position(self.state.global_step, self.spec, self._substep)
        self._substep += 1
        off = (
            bool(below) and random.Random(f"{self.spec.seed}:{position}").random() < self.spec.domain_dropout
        )
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
        read = self.group.all_reduce_sum(self.tokens, self.args.device)
        self.mark = (read, self.busy, self.state.global_step)
        seconds = max(self.busy - busy, 1e-9)
        left = self.state.max_steps - self.state.global_step
        self.last_loss = float(logs["loss"])
        self._since.append(self.last_loss)
        self.context.log.append(
            "step",
            step=self.state.global_step,
            total_steps=self.state.max_steps,
            epoch=round(self.state.epoch or 0.0, 4),
            loss=self.last_loss,
            learning_rate=float(logs.get("learning_rate", 0.0)),
            grad_norm=float(logs.get("grad_norm", math.nan)),
            tokens=read,
            tokens_per_second=round((read - tokens) / seconds, 1),
            eta_seconds=round(left * self.busy / max(1, int(self.state.global_step)), 1),
        )
        self._report(logs)

    def _report(self, logs: dict[str, Any]) -> None:
        """Hands numbers to TensorBoard and its like, where the spec names them."""
        if self.args.report_to:
            self.control = self.callback_handler.on_log(
                self.args, self.state, self.control, {**logs, "epoch": self.state.epoch}
            )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Validation loss as nats over tokens, and answers to the sample prompts beside those of the base."""
        metrics: dict[str, float] = {}
        if self.validation:
            result = self.group.broadcast(
                lambda: self._validate(validation.present(self.resident))
            )  # the first process scores; all know
            metrics = {"eval_loss": result.loss}
            self._heed(result)
        prompts = self.prompts if self.group.is_main_process and not self.group.sharded else ()
        for prompt, answers in validation.answers(
            self.resident, self.spec.kind, prompts, lambda: self.context.yield_to_requests(SERVE_SECONDS / 4)
        ):
            self.context.log.append(
                "sample",
                step=self.state.global_step,
                prompt=prompt,
                text=answers[-1]["text"],
                answers=answers,
            )
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _validate(self, mix: Mix) -> Score:
        if self.group.sharded:
            return fsdp.validate(
                self.model_wrapped,
                self.validation,
                self.resident.base.tokenizer.pad_token_id,
                self.args.device,
            )
        return validation.validate(
            self.resident, self.validation, mix, lambda: self.context.yield_to_requests(SERVE_SECONDS)
        )

    def _heed(self, result: Score) -> None:
        """Writes a validation down; a new best one is saved, and one too many without a better ends the run."""
        step = int(self.state.global_step)
        training = sum(self._since) / len(self._since) if self._since else math.nan
        self._since = []
        scheduled = step % int(self.args.eval_steps) == 0 or step >= self.state.max_steps
        self.track = self.track.update(step, result.loss, training, scheduled)
        track = self.track
        self.context.log.append(
            "validation",
            step=step,
            loss=result.loss,
            perplexity=result.perplexity,
            tokens=result.tokens,
            training_loss=training,
            gap=track.gap if step else math.nan,
            best_step=track.best_step,
            best_loss=track.best_loss,
            overfitting=track.overfitting_note(self.spec.keep),
            rows=[
                [round(nats, 4), tokens] for _, (nats, tokens) in sorted(result.rows.items())
            ],  # what tells a difference of two runs from chance
        )
        self._report({"eval_loss": result.loss})
        if step and track.best_step == step and self.spec.keep == "best":
            self.control.should_save = True
        if track.is_exhausted(self.spec.early_stopping) and step < self.state.max_steps:
            self.ended_early = self.control.should_save = self.control.should_training_stop = True
            waited = f"{track.waited} validations in a row brought nothing better than {track.best_loss:.4f} at step {track.best_step}"
            self.context.log.append("note", text=f"Stopped early at step {step}: {waited}.")

    # --- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Only the adapter in training: its tensors and its config."""
        tensors = self.resident.trainee_state_dict()
        start = self.resident.full_state_dict(OFFSET) if self.resident.has_offset else {}
        if not self.group.is_main_process:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        if start:
            save_file(start, folder / START, metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(
            json.dumps(self.resident.adapter_config(), indent=2), encoding="utf-8"
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Only what is in training; the stock way would gather a base that is spread over processes as well."""
        self._save(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.group.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = fsdp.whole(self.optimizer.state_dict())
        if self.group.is_main_process:
            torch.save(state, Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.group.sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        fsdp.restore(
            self.optimizer,
            torch.load(Path(checkpoint) / "optimizer.pt", map_location="cpu", weights_only=True),
        )
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes, then commits; what the disk refuses is removed and the last good one stays."""
        root = Path(self.args.output_dir)
        folder = root / f"checkpoint-{self.state.global_step}"
        trained = [p for p in self.resident.peft.parameters() if p.requires_grad]  # type: ignore[union-attr]
        if not all(bool(fsdp.here(p).isfinite().all()) for p in trained):
            raise self._diverged("adapter", math.nan)  # it overflowed in the step that was just taken
        size = sum(p.numel() * 4 for p in trained)
        if self.group.is_main_process and folder.exists():  # a resumed run passes its own steps again
            checkpoints.remove(folder)
        self.group.barrier()
        try:
            ensure_space(root, 3 * size)
            super()._save_checkpoint(model, trial)
            self.group.barrier()  # every process writes its dice
            if self.group.is_main_process:
                write_json(folder / checkpoints.STATE, self._counted())
                checkpoints.commit(folder, self.run_id, self.group.world_size)
        except (OSError, RuntimeError, StudioError, SafetensorError) as e:
            checkpoints.remove(folder)
            raise checkpoints.write_error(e, root, 3 * size, int(self.state.global_step)) from e
        if self.group.is_main_process:
            checkpoints.rotate(root)
        self.group.barrier()  # nobody looks for the best one before it is there
        self.context.log.append("checkpoint", step=self.state.global_step)

    def _counted(self) -> dict[str, Any]:
        """What a resumed run has to know that Trainer does not."""
        numbers = {"tokens": self.tokens, "busy": self.busy, "last_loss": self.last_loss}
        return {
            "track": self.track.to_json(),
            "since": self._since,
            "ended_early": self.ended_early,
            **numbers,
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Fills the adapter in training; the stock way would also change which adapters are active."""
        folder = Path(resume_from_checkpoint)
        self.restore(folder)
        if counted := checkpoints.read_state(folder):
            self.track = EarlyStopping.from_json(counted["track"])
            self._since, self.tokens, self.busy = (
                list(counted["since"]),
                int(counted["tokens"]),
                float(counted["busy"]),
            )
            self.last_loss, self.ended_early = float(counted["last_loss"]), bool(counted["ended_early"])
        self.mark = (self.tokens, self.busy, checkpoints.step_of(folder))

    def restore(self, checkpoint: Path) -> None:
        """Puts a checkpoint's weights into the adapter in training, and into what it started from."""
        tensors, start = (
            load_file(checkpoint / WEIGHTS),
            load_file(checkpoint / START) if self.resident.has_offset else None,
        )
        if self.group.sharded:
            fsdp.refill(self.resident, tensors, start)
        else:
            self.resident.restore_trainee(tensors, start)

    def take_up(self, checkpoint: Path | None) -> None:
        """Trains to the end, from a checkpoint where there is one; one that is the end already is only loaded.

        A kill may fall between the last checkpoint and the adapter's place in the library. Trainer would take a step
        more from there, in the middle of an epoch.
        """
        if checkpoint:
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            if state.global_step >= state.max_steps or checkpoints.read_state(checkpoint).get("ended_early"):
                self._load_from_checkpoint(str(checkpoint))
                self.state = state
                return
        self.args.eval_on_start = (
            checkpoint is None
        )  # a resumed run has validated the step it starts from, if that was due
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def best_checkpoint(self) -> Path | None:
        """Where the adapter with the lowest validation loss lies, if that is another than the present one and it is to be kept."""
        best = self.track.best_step
        folder = Path(self.args.output_dir) / f"checkpoint-{best}"
        wanted = self.spec.keep == "best" and best and best != self.state.global_step
        return folder if wanted and checkpoints.is_intact(folder, self.run_id) else None


class StudioCallback(TrainerCallback):  # type: ignore[misc]
    """Between steps: lends the model to others, and hears a request to stop."""

    def __init__(self, trainer: StudioTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.group.world_size > 1 and not trainer.group.sharded:
            trainer.resident.update_layout()  # spreading the model over processes put its weights elsewhere, and mixing reads them where they lie
        trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        trainer.context.log.append(
            "plan",
            step=state.global_step,
            total_steps=state.max_steps,
            train_rows=len(trainer.train_dataset),
            validation_rows=len(trainer.validation),
            effective_batch=trainer.spec.effective_batch,
            trainable_parameters=trainable,
            total_parameters=trainer.resident.base.parameters,
            processes=trainer.group.world_size,
            parameters_here=sum(
                fsdp.here(p).numel() for p in trainer.model.parameters()
            ),  # a part of them, when they are spread
        )
        if args.world_size == 1:
            trainer.probed = memory.probe_step(trainer, trainer.spec, trainer.resident.base)
            trainer.context.log.append("memory", what="probe", **trainer.probed)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._substep = 0

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.trainer.context.yield_to_requests(SERVE_SECONDS)
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.trainer.context.yield_to_requests(SERVE_SECONDS)
        self.trainer.group.sync_stop(args.device)
        asked = self.trainer.context.poll_stop()
        if asked:
            control.should_training_stop = True
            control.should_save = True
        if asked == "keep" or state.global_step >= state.max_steps:
            control.should_evaluate = True  # what goes into the library has a validation loss
        return control
