"""The callback of a run: reports plan and memory, yields to requests between steps, and stops on request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from core.train import fsdp, memory_probe
from core.train.context import YIELD_SECONDS

if TYPE_CHECKING:
    from core.train.trainer import StudioTrainer


class StudioCallback(TrainerCallback):  # type: ignore[misc]
    """Runs between the steps of a `StudioTrainer`."""

    def __init__(self, trainer: StudioTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.group.world_size > 1 and not trainer.group.sharded:
            # DDP moved the weights to other storage; mixing must read them there.
            trainer.resident.update_layout()
        trainer.load_moments()
        trainer.choose_first_threads()
        trainer.context.log.append(
            "plan",
            step=state.global_step,
            total_steps=state.max_steps,
            train_rows=len(trainer.train_dataset),
            validation_rows=len(trainer.validation_sequences),
            effective_batch=trainer.spec.effective_batch,
            trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            total_parameters=trainer.resident.base.parameters,
            processes=trainer.group.world_size,
            # fewer than total_parameters where FSDP shards them
            parameters_here=sum(fsdp.local_tensor(p).numel() for p in trainer.model.parameters()),
        )
        if args.world_size == 1:
            probe = memory_probe.probe_step(trainer, trainer.spec, trainer.resident.base)
            trainer.memory_ratio = probe.ratio
            trainer.context.log.append("memory", what="probe", **probe.to_json())

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_step()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.trainer.context.yield_to_requests(YIELD_SECONDS)
        return control

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Pausing and closing save without a validation; stopping validates, because its adapter is kept."""
        self.trainer.context.yield_to_requests(YIELD_SECONDS)
        self.trainer.group.sync_stop(args.device)
        request = self.trainer.context.poll_stop()
        if request:
            control.should_training_stop = True
            control.should_save = True
        if request == "keep" or state.global_step >= state.max_steps:
            control.should_evaluate = True  # the adapter that enters the library has a validation loss
        return control
