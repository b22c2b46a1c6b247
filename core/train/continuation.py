"""What a run starts from that trains a finished one further: its adapter, and its optimizer state.

A finished run keeps its last checkpoint while it was still learning (`core.store.runs.final_checkpoint`).
Without one, the new run starts from the adapter in the library, and its optimizer from zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from core.errors import RunError, StudioError
from core.model.resident import Resident
from core.spec.training import TrainSpec
from core.store import runs
from core.store.adapters import WEIGHTS
from core.store.runs import Run
from core.store.workspace import Workspace
from core.train import checkpoints

OFFSET_FILE = "start.safetensors"  # the frozen offset of a PiSSA or OLoRA start, in a checkpoint
# What a run and the run that continues it have in common: the shape of the adapter, and what it stands on.
SHARED = ("kind", "stack_on", "rank", "alpha", "target_modules", "experts", "use_rslora", "use_dora",
          "initialisation")  # fmt: skip


@dataclass(frozen=True)
class Start:
    """The files that a run starts from.

    Attributes:
        run: the finished run.
        weights: the tensors of its adapter.
        offset: the frozen offset of a PiSSA or OLoRA start, if it has one.
        optimizer: the state of its optimizer; None where it is not stored.
    """

    run: Run
    weights: Path
    offset: Path | None = None
    optimizer: Path | None = None

    def check_base(self, resident: Resident) -> None:
        """Checks that the finished run trained the resident base.

        Raises:
            RunError: it trained another one.
        """
        if self.run.base_fingerprint not in ("", resident.base.fingerprint):
            raise RunError(
                f"The run {self.run.name!r} trained the base {self.run.base!r}; "
                f"the resident base is {resident.base.name!r}.",
                "Switch back to that base, then train on.",
            )

    def read_optimizer_state(self) -> dict[int, dict[str, torch.Tensor]]:
        """The state of every trained tensor, by its position; empty where it is not stored."""
        if self.optimizer is None:
            return {}
        stored = torch.load(self.optimizer, map_location="cpu", weights_only=True)
        state: dict[int, dict[str, torch.Tensor]] = stored["state"]
        return state

    def describe(self) -> str:
        """One sentence for the run's log."""
        source = f"Trains the adapter of {self.run.name!r} further, from its step {self.run.step}"
        if self.optimizer:
            return f"{source}, with the state of its optimizer and a new schedule."
        return f"{source}. Its optimizer state is not stored, so the optimizer starts from zero."


def find_start(workspace: Workspace, spec: TrainSpec) -> Start | None:
    """What a run starts from; None for a run that starts from nothing.

    Raises:
        RunError: the run that it continues is gone, or trained another adapter.
    """
    if not spec.continue_from:
        return None
    try:
        run = runs.load(workspace, spec.continue_from)
    except StudioError as e:
        raise RunError(
            "The run that is to be trained further is not in the workspace any more.",
            "Restore it from the trash, or start a new run.",
        ) from e
    differing = [name for name in SHARED if getattr(run.spec, name) != getattr(spec, name)]
    if differing:
        raise RunError(
            f"{run.name!r} was trained with another {differing[0].replace('_', ' ')}.",
            "Train it on with the same adapter settings, or start a new run.",
        )
    final = runs.final_checkpoint(workspace, run.id)
    if final is not None and checkpoints.is_intact(final, run.id):
        offset = final / OFFSET_FILE
        return Start(run, final / WEIGHTS, offset if offset.is_file() else None, final / "optimizer.pt")
    if spec.initialisation != "default":
        raise RunError(
            f"The last checkpoint of {run.name!r} is not stored, and its adapter was converted at the end.",
            "Start a new run with more steps.",
        )
    try:
        return Start(run, workspace.find("adapters", run.adapter) / WEIGHTS)
    except StudioError as e:
        raise RunError(
            f"The adapter of {run.name!r} is not in the Library any more.",
            "Restore it from the trash, or start a new run.",
        ) from e
