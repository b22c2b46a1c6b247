"""A Trainer whose checkpoints hold the adapter in training only, and count when they are committed.

Three things of transformers' own checkpoint code do not suit a shared, partly frozen model:

- It finds the adapter to load by name, and works for peft's adapter "default" only; with any other name,
  resuming and loading the best checkpoint silently do nothing. So the adapter in training is always called
  `default` (`core.model.resident.TRAINEE`).
- Resuming keeps only the first active adapter, which deactivates the frozen parent adapter. Here the tensors
  are copied into the adapter in training, and nothing else changes.
- A sharded (FSDP) model is saved whole or in shards. Here a checkpoint always holds full tensors of what is
  in training, so that any number of processes can resume it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerState

from core.errors import Diverged, StudioError
from core.model.resident import OFFSET, Resident
from core.spec.training import TrainSpec
from core.store.adapters import CONFIG, WEIGHTS
from core.store.files import ensure_space, write_json
from core.train import checkpoints, fsdp
from core.train.checkpoints import StudioState
from core.train.context import TrainerContext
from core.train.continuation import OFFSET_FILE, Start
from core.train.distributed import ProcessGroup


class CheckpointTrainer(Trainer):  # type: ignore[misc]
    """Saves, commits, loads and rotates the checkpoints of a run. `StudioTrainer` trains.

    Attributes:
        run_id: written into the manifest of every checkpoint.
        progress: saved beside Trainer's own state.
        last_logged: (tokens, busy seconds) at the last logged step, from which tokens per second follow.
        start: what a run starts from that trains a finished one further; None for any other run.
    """

    resident: Resident
    spec: TrainSpec
    run_id: str
    context: TrainerContext
    group: ProcessGroup
    progress: StudioState
    last_logged: tuple[int, float]
    start: Start | None = None

    def divergence_error(self, what: str, value: float) -> Diverged:
        return Diverged(
            f"The {what} became {value} at step {self.state.global_step + 1}.",
            "Lower the learning rate and start again; the last checkpoint is finite.",
        )

    # --- saving

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Writes the adapter in training: its tensors and its config."""
        tensors = self.resident.trainee_state_dict()
        offset = self.resident.full_state_dict(OFFSET) if self.resident.has_offset else {}
        if not self.group.is_main_process:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        if offset:
            save_file(offset, folder / OFFSET_FILE, metadata={"format": "pt"})
        config = json.dumps(self.resident.adapter_config(), indent=2)
        (folder / CONFIG).write_text(config, encoding="utf-8")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the adapter in training; Trainer's own method would also gather a sharded base."""
        self._save(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.group.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = fsdp.gather_full(self.optimizer.state_dict())
        if self.group.is_main_process:
            torch.save(state, Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint, commits it, and rotates; a failed one is removed, and the last good one stays.

        Raises:
            Diverged: a weight is not finite; such weights are never saved.
            DiskFull, StorageError: the checkpoint could not be written.
        """
        root = Path(self.args.output_dir)
        step = int(self.state.global_step)
        folder = root / f"checkpoint-{step}"
        trainable = [p for p in self.resident.peft.parameters() if p.requires_grad]  # type: ignore[union-attr]
        if not all(bool(fsdp.local_tensor(p).isfinite().all()) for p in trainable):
            raise self.divergence_error("adapter", math.nan)  # it overflowed in the step that was just taken
        need_bytes = 3 * sum(p.numel() * 4 for p in trainable)
        if self.group.is_main_process and folder.exists():  # a resumed run passes its own steps again
            checkpoints.remove(folder)
        self.group.barrier()
        try:
            ensure_space(root, need_bytes)
            super()._save_checkpoint(model, trial)
            self.group.barrier()  # every process writes the state of its random generators
            if self.group.is_main_process:
                write_json(folder / checkpoints.STATE, self.progress.to_json())
                checkpoints.commit(folder, self.run_id, self.group.world_size)
        except (OSError, RuntimeError, StudioError, SafetensorError) as e:
            reason = checkpoints.write_error(e, root, need_bytes, step)  # while the disk is as full
            checkpoints.remove(folder)
            raise reason from e
        if self.group.is_main_process:
            checkpoints.rotate(root)
        self.group.barrier()  # no rank looks for the best checkpoint before it is committed
        self.context.log.append("checkpoint", step=step)

    # --- loading

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.group.sharded or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        state = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
        fsdp.load_optimizer_state(self.optimizer, state)
        self.lr_scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))

    def load_moments(self) -> None:
        """Loads the optimizer state of the run that this one continues; the learning rates stay its own.

        Called when training begins, after the optimizer was created and prepared.
        """
        state = self.start.read_optimizer_state() if self.start else {}
        if not state:
            return
        groups = self.optimizer.state_dict()["param_groups"]
        whole = {"state": state, "param_groups": groups}
        try:
            if self.group.sharded:
                fsdp.load_optimizer_state(self.optimizer, whole)
            else:
                self.optimizer.load_state_dict(whole)
        except (ValueError, KeyError, RuntimeError) as e:  # another optimizer, or another number of processes
            text = f"The optimizer starts from zero: its stored state does not fit ({e})."
            self.context.log.append("note", text=text)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads the adapter in training and `progress`; which adapters are active does not change."""
        folder = Path(resume_from_checkpoint)
        self.restore(folder)
        if state := checkpoints.read_state(folder):
            self.progress = StudioState.from_json(state)
        self.last_logged = (self.progress.tokens, self.progress.busy_seconds)

    def restore(self, checkpoint: Path) -> None:
        """Loads the weights of a checkpoint into the adapter in training, and into its offset if any."""
        self._load_weights(checkpoint / WEIGHTS, checkpoint / OFFSET_FILE)

    def start_from(self, start: Start) -> None:
        """Loads the weights that a run starts from; its optimizer state is loaded when training begins."""
        self.start = start
        self._load_weights(start.weights, start.offset or start.weights.with_name(OFFSET_FILE))

    def _load_weights(self, weights: Path, offset_file: Path) -> None:
        tensors = load_file(weights)
        offset = load_file(offset_file) if self.resident.has_offset else None
        if self.group.sharded:
            fsdp.load_full(self.resident, tensors, offset)
        else:
            self.resident.restore_trainee(tensors, offset)

    def train_from(self, checkpoint: Path | None) -> None:
        """Trains to the end, from a checkpoint if there is one.

        A checkpoint of a run's last step is only loaded: a kill may fall between the last checkpoint and
        adding the adapter to the library, and Trainer would take one more step from there, in the middle of
        an epoch.
        """
        if checkpoint:
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            if state.global_step >= state.max_steps or checkpoints.read_state(checkpoint).get("ended_early"):
                self._load_from_checkpoint(str(checkpoint))
                self.state = state
                return
        # a resumed run has already validated the step that it starts from, if a validation was due there
        self.args.eval_on_start = checkpoint is None
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def best_checkpoint(self) -> Path | None:
        """The checkpoint with the lowest validation loss; None if the run keeps its current weights."""
        best = self.progress.early_stopping.best_step
        if self.spec.keep != "best" or not best or best == self.state.global_step:
            return None
        folder = Path(self.args.output_dir) / f"checkpoint-{best}"
        return folder if checkpoints.is_intact(folder, self.run_id) else None
