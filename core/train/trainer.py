"""transformers' Trainer on the resident base: loss, domain dropout, validation, early stopping and events.

Between its steps, and between its accumulation steps, the trainer yields to waiting requests. They do not
change the losses: generation samples from its own random generators, restores train mode, and never changes
peft's active adapters.

A loss or gradient that is not finite ends the run before the optimizer sees it. Validation does not go
through Trainer's evaluation loop, whose loss is a mean of batch means: `core.model.scoring` sums nats over
tokens, as evaluation does.

`keep="best"` lowers perplexity, which is not always the goal: on the embedded base, the validation loss of
the sample domain run turns at 60 % of its steps (from 0.71 to 0.78 at the end) while the share of facts that
it recalls still grows (0.78 to 0.85). The preset for that base keeps the last adapter.
"""

from __future__ import annotations

import inspect
import logging
import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PrinterCallback

from core.data.tokens.collation import collate
from core.data.tokens.encoding import IGNORE_INDEX, EncodedSequence
from core.model.resident import Resident
from core.model.scoring import Score
from core.spec.training import TrainSpec
from core.train import fsdp, memory_probe, optimizer, schedule, validation
from core.train.arguments import parallel_arguments, training_arguments
from core.train.callback import StudioCallback
from core.train.checkpoint_io import CheckpointTrainer
from core.train.checkpoints import StudioState
from core.train.context import YIELD_SECONDS, TrainerContext
from core.train.distributed import PaddedDataset, shard_batches
from core.train.lean.step import LeanStep
from core.train.memory import is_lean
from core.train.threads import digest_step

logger = logging.getLogger(__name__)

DIGEST_SEQUENCES = 2  # validation sequences that are scored when two numbers of threads are compared


class StudioTrainer(CheckpointTrainer):
    """Trains one adapter on the resident base.

    Args:
        rows: training rows, a datasets.Dataset as `core.data.packing.build_rows` describes them.
        validation_sequences: sequences that are scored and never trained.
        folder: where checkpoints go.
        run_id: written into the manifest of every checkpoint.
        prompts: sample prompts that the adapter in training answers at every validation.
    """

    control: Any
    train_dataset: Any

    def __init__(
        self,
        resident: Resident,
        spec: TrainSpec,
        rows: Any,
        validation_sequences: Sequence[EncodedSequence],
        folder: Path,
        run_id: str,
        context: TrainerContext,
        prompts: Sequence[str] = (),
    ) -> None:
        group = context.group
        pad = resident.base.tokenizer.pad_token_id
        on_gpu = resident.base.device.type == "cuda"
        if group.sharded:
            fsdp.make_contiguous(resident.peft)
        distributed = parallel_arguments(group, resident.base.model, on_gpu)
        super().__init__(
            model=resident.peft,
            args=training_arguments(spec, folder, len(rows), on_gpu, group.world_size, distributed),
            train_dataset=rows,
            eval_dataset=list(validation_sequences) or None,
            data_collator=lambda batch: collate(batch, pad),
        )
        self._can_select_logits = (
            "logits_to_keep" in inspect.signature(resident.base.model.forward).parameters
            and not resident.base.family.seq2seq
        )
        # Trainer then passes the number of trained tokens of a step to `compute_loss`.
        self.model_accepts_loss_kwargs: bool = self._can_select_logits or bool(
            getattr(self, "model_accepts_loss_kwargs", False)
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(StudioCallback(self))
        for callback in self.callback_handler.callbacks:
            # TensorBoard would write its files beside the checkpoints, which are removed at the end.
            if getattr(callback, "logging_dir", "") is None:
                callback.logging_dir = str(folder.parent / "logs")
        self.group = group
        self.resident = resident
        self.spec = spec
        self.validation_sequences = list(validation_sequences)
        self.run_id = run_id
        self.context = context
        self.prompts = list(prompts)
        self.progress = StudioState()
        self.last_logged = (0, 0.0)
        self.memory_ratio: float | None = None  # measured over estimated memory of a step
        self._substep = 0  # forward passes of the current step; the last step of an epoch may have fewer
        self._lean = self._make_lean_step()

    def _make_lean_step(self) -> LeanStep | None:
        """The loss without what it does not need; None where the run takes the model's own forward."""
        on_gpu = self.resident.base.device.type != "cpu"
        if not is_lean(self.spec, on_gpu) or self.group.sharded or not self._can_select_logits:
            return None
        lean = LeanStep(self.resident)
        why = lean.check(self.resident.peft)
        if why:
            logger.info("the model's own forward trains: %s", why)
        return None if why else lean

    def create_optimizer(self, model: Any = None) -> Any:
        if self.spec.lora_plus_ratio != 1.0 and getattr(self, "optimizer", None) is None:
            self.optimizer: Any = optimizer.create_loraplus(
                self.args, self.resident.peft, self.spec.lora_plus_ratio
            )
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The learning rate of every step, under the rules that the run began with."""
        if self.lr_scheduler is None and self.spec.rules > 1:
            self.lr_scheduler: Any = schedule.create_scheduler(
                optimizer or self.optimizer, self.spec, num_training_steps
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.args.fsdp_plugin_args is not None and not self.is_fsdp_enabled:
            fsdp.force_fsdp_plugin(self.accelerator, self.args.fsdp_plugin_args)
            self.is_fsdp_enabled: bool = True

    # --- batches

    def get_train_dataloader(self) -> Any:
        """All rows; with several processes, this rank's share of the batches that one process would read."""
        if self.group.world_size == 1:
            return super().get_train_dataloader()
        rows = self.train_dataset
        self.train_dataset = PaddedDataset(rows)
        try:
            return shard_batches(super().get_train_dataloader(), len(rows), self.group.world_size)
        finally:
            self.train_dataset = rows

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Samples the training rows only; `EvenBatchSampler` adds the padding row."""
        rows = train_dataset.rows if isinstance(train_dataset, PaddedDataset) else train_dataset
        return super()._get_train_sampler(rows)

    # --- one step

    def begin_step(self) -> None:
        self._substep = 0
        if self.context.threads:
            self.context.threads.apply(self._digest_step)

    def choose_first_threads(self) -> None:
        """Chooses the number of threads from the load of the machine, before the first forward."""
        if self.context.threads:
            self.context.threads.choose_first(self._digest_step)

    def _digest_step(self) -> str:
        """A checksum of a step on the longest batch, by which two numbers of threads are compared."""
        batch, _, _ = memory_probe.longest_batch(self)
        few = self.validation_sequences[:DIGEST_SEQUENCES]
        return digest_step(self, batch, few, validation.trainee_mix(self.resident))

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        begin = time.perf_counter()
        threads = self.context.threads
        start = None
        if threads:
            threads.apply()
            start = threads.start_pass()
        inputs = dict(inputs)
        # packed rows have no attention mask, and give their lengths instead
        tokens = inputs.pop("row_lengths", inputs.get("attention_mask"))
        with self._domain_dropout():
            loss = super().training_step(model, inputs, num_items_in_batch)
        if not math.isfinite(float(loss)):
            raise self.divergence_error("loss", float(loss))
        self.progress.tokens += int(tokens.sum())
        self.progress.busy_seconds += time.perf_counter() - begin
        if threads and start:
            threads.end_pass(start, inputs["input_ids"].numel(), int(self.state.global_step))
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Nats per trained token of this optimizer step, from the logits of trained positions only.

        The logits of a whole prompt, in float32 and again for their gradient, are the largest tensor of a
        step, and the loss does not use them. A position that any row trains is computed for all rows, or for
        the rows that train it (`core.train.lean`).
        """
        if not self._can_select_logits or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        if self._lean and (lean_nats := self._lean.sum_nats(model, inputs)) is not None:
            return lean_nats * processes / num_items_in_batch
        rest = {k: v for k, v in inputs.items() if k != "labels"}
        targets = inputs["labels"][:, 1:]  # (B, T - 1): what each position predicts
        positions = (targets != IGNORE_INDEX).any(0).nonzero()[:, 0]  # (P,)
        logits = model(**rest, use_cache=False, logits_to_keep=positions).logits  # (B, P, V)
        nats = functional.cross_entropy(
            logits.flatten(0, 1).float(),
            targets[:, positions].flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        )
        return nats * processes / num_items_in_batch

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient norm. If it is not finite, the next step would make every weight NaN.

        That happens after a finite loss, too.

        Raises:
            Diverged: the norm is not finite.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(float(norm)):
            raise self.divergence_error("gradient", float(norm))
        return norm

    @contextmanager
    def _domain_dropout(self) -> Iterator[None]:
        """Switches the frozen parent adapter off in a share of the forward passes, backward included.

        A task adapter trained this way also works without its parent, and the parent's weight can be changed
        in a mix. The parent is switched off by its scaling, never by peft's active adapters, which must not
        change between forward and backward. The draw depends on the seed and the position in the run only, so
        that a resumed run draws the same.

        Source: language adapter cycling, arXiv 2306.02767; MAD-X, arXiv 2005.00052.
        """
        parents = list(self.resident.parent_ids)
        position = self.group.batch_position(self.state.global_step, self.spec, self._substep)
        self._substep += 1
        if not parents or not self._is_dropped(position):
            yield
            return
        parent = parents[0]
        layers = [layer for layer in self.resident.mixer.layers if parent in layer.scaling]
        scalings = [layer.scaling[parent] for layer in layers]
        for layer in layers:
            layer.scaling[parent] = 0.0
        try:
            yield
        finally:
            for layer, scaling in zip(layers, scalings, strict=True):
                layer.scaling[parent] = scaling

    def _is_dropped(self, position: int) -> bool:
        return random.Random(f"{self.spec.seed}:{position}").random() < self.spec.domain_dropout

    # --- events

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turns Trainer's log of a step into an event; logs without a loss are Trainer's own summary."""
        if "loss" not in logs:
            return
        progress, step = self.progress, self.state.global_step
        tokens_before, busy_before = self.last_logged
        tokens = self.group.all_reduce_sum(progress.tokens, self.args.device)
        self.last_logged = (tokens, progress.busy_seconds)
        seconds = max(progress.busy_seconds - busy_before, 1e-9)
        steps_left = self.state.max_steps - step
        progress.last_loss = float(logs["loss"])
        progress.losses.append(progress.last_loss)
        self.context.log.append(
            "step",
            step=step,
            total_steps=self.state.max_steps,
            epoch=round(self.state.epoch or 0.0, 4),
            loss=progress.last_loss,
            learning_rate=float(logs.get("learning_rate", 0.0)),
            grad_norm=float(logs.get("grad_norm", math.nan)),
            tokens=tokens,
            tokens_per_second=round((tokens - tokens_before) / seconds, 1),
            eta_seconds=round(steps_left * progress.busy_seconds / max(1, int(step)), 1),
        )
        self._report(logs)

    def _report(self, logs: dict[str, Any]) -> None:
        """Passes numbers to the trackers that the spec names, such as TensorBoard."""
        if self.args.report_to:
            self.control = self.callback_handler.on_log(
                self.args, self.state, self.control, {**logs, "epoch": self.state.epoch}
            )

    # --- validation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Scores the validation sequences, and answers the sample prompts with the base and the adapters."""
        metrics: dict[str, float] = {}
        if self.validation_sequences:
            result = self.group.broadcast(self._validate)
            metrics = {"eval_loss": result.loss}
            self._record_validation(result)
        prompts = self.prompts if self.group.is_main_process and not self.group.sharded else ()
        for prompt, answers in validation.answer_prompts(
            self.resident, self.spec.kind, prompts, lambda: self.context.yield_to_requests(YIELD_SECONDS / 4)
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

    def _validate(self) -> Score:
        if self.group.sharded:
            pad = self.resident.base.tokenizer.pad_token_id
            return fsdp.validate_fsdp(self.model_wrapped, self.validation_sequences, pad, self.args.device)
        return validation.validate(
            self.resident,
            self.validation_sequences,
            validation.trainee_mix(self.resident),
            lambda: self.context.yield_to_requests(YIELD_SECONDS),
        )

    def _record_validation(self, result: Score) -> None:
        """Logs a validation; a new best one is saved, and the run ends when its patience is exhausted."""
        progress, step = self.progress, int(self.state.global_step)
        training_loss = sum(progress.losses) / len(progress.losses) if progress.losses else math.nan
        progress.losses = []
        scheduled = step % int(self.args.eval_steps) == 0 or step >= self.state.max_steps
        stopping = progress.early_stopping.update(step, result.loss, training_loss, scheduled)
        progress.early_stopping = stopping
        # nats and tokens of every sequence, with which two runs are compared row by row
        rows = [[round(nats, 4), tokens] for _, (nats, tokens) in sorted(result.rows.items())]
        self.context.log.append(
            "validation",
            step=step,
            loss=result.loss,
            perplexity=result.perplexity,
            tokens=result.tokens,
            training_loss=training_loss,
            gap=stopping.gap if step else math.nan,
            best_step=stopping.best_step,
            best_loss=stopping.best_loss,
            overfitting=stopping.overfit_warning(self.spec.keep),
            rows=rows,
        )
        self._report({"eval_loss": result.loss})
        if step and stopping.best_step == step and self.spec.keep == "best":
            self.control.should_save = True
        if stopping.is_exhausted(self.spec.early_stopping) and step < self.state.max_steps:
            progress.ended_early = True
            self.control.should_save = self.control.should_training_stop = True
            self.context.log.append(
                "note",
                text=f"Stopped early at step {step}: {stopping.waited} validations in a row did not improve "
                f"on {stopping.best_loss:.4f} at step {stopping.best_step}.",
            )
