"""Several processes that train one adapter together, and what each of them may do.

One of them leads: it alone writes events, checkpoints and the adapter, and hears the wish to stop; the
others hear from it. Knows torch.distributed and how batches are dealt out; knows nothing of how the
processes came to be (`core/launcher.py`) and nothing of models.

    one process       step 1: b0 b1 b2 b3   step 2: b4 b5 b6 b7   ...   last step: b16
    two, process 0    step 1: b0    b2      step 2: b4    b6      ...   last step: b16
         process 1    step 1:    b1    b3   step 2:    b5    b7   ...   last step: blank
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

from core.errors import RunError
from core.spec.training import TrainSpec
from core.store import runs
from core.store.workspace import Workspace

T = TypeVar("T")
WORDS = ("", "keep", "close", "pause")  # what can be wished of a run; sent by number
PATIENCE = timedelta(
    hours=6
)  # others wait so long while the first one validates; a process that died is noticed at once by the launcher


@dataclass(eq=False)
class Crew:
    """The processes of a run, and which of them this is.

    Attributes:
        size: processes of all machines.
        index: this one, from 0.
        sharded: the frozen weights are spread over the processes (FSDP), so that every forward needs all of them.
        asked: what is wished of the run; only the first process looks.
        heard: the wish as all processes heard it, at the same step.
    """

    size: int = 1
    index: int = 0
    sharded: bool = False
    asked: Callable[[], str] = lambda: ""
    heard: str = ""

    @property
    def leads(self) -> bool:
        return self.index == 0

    def change(self, workspace: Workspace, run: runs.Run, **fields: Any) -> runs.Run:
        """`runs.change` by the first process; the others only think so."""
        return runs.change(workspace, run, **fields) if self.leads else replace(run, **fields)

    def log(self, workspace: Workspace, run_id: str) -> Any:
        """The run's event log; that of the other processes goes nowhere."""
        return runs.log(workspace, run_id) if self.leads else _Silence()

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier()

    def tell(self, job: Callable[[], T]) -> T:
        """What the first process finds, told to all; when sharded, all find it together."""
        if self.size == 1 or self.sharded:
            return job()
        told: list[Any] = [job() if self.leads else None]
        distributed.broadcast_object_list(told, src=0)
        return told[0]  # type: ignore[no-any-return]

    def hear(self, device: torch.device) -> None:
        """Called by all processes after a step: what the first one is asked to do becomes known to all."""
        number = torch.tensor(WORDS.index(self.asked()) if self.leads else 0, device=device)
        if self.size > 1:
            distributed.broadcast(number, src=0)
        self.heard = WORDS[int(number)]

    def total(self, number: int, device: torch.device) -> int:
        """A count of each process, summed."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number, device=device, dtype=torch.int64)
        distributed.all_reduce(tensor)
        return int(tensor)

    def accumulation(self, spec: TrainSpec) -> int:
        """Forward passes of one process per optimizer step, so that the effective batch stays what was asked."""
        return spec.accumulation // self.size

    def place(self, step: int, spec: TrainSpec, substep: int) -> int:
        """The number of a forward pass in the whole run, as one process alone would count it.

        What is drawn by it (domain dropout) belongs to the batch and not to the process that happens to
        read it, so that any number of processes gives the same losses.
        """
        return step * spec.accumulation + substep * self.size + self.index


ALONE = Crew()


class _Silence:
    def append(self, kind: str, **fields: Any) -> None:
        """Nobody reads the other processes' events."""


class Blanked(torch.utils.data.Dataset):  # type: ignore[misc]
    """Rows, and after the last one a short row of which nothing is trained."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows) + 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.rows):
            return dict(self.rows[index])
        first = self.rows[0]
        size = len(first["input_ids"])
        row = {k: v[:2] if isinstance(v, list) and len(v) == size else v for k, v in first.items()}
        short = len(row["input_ids"])
        return {**row, "trained": [0] * short, **({"lengths": [short]} if "lengths" in first else {})}


class Filled:
    """A batch sampler whose last batch is full and whose batches can be shared out evenly: blank rows fill up.

    accelerate would start again from the front instead, and train those rows twice.
    """

    drop_last = False

    def __init__(self, inner: Any, processes: int, blank: int) -> None:
        self.inner, self.processes, self.blank = inner, processes, blank
        self.batch_size = inner.batch_size
        self.sampler = getattr(inner, "sampler", None)  # accelerate tells it the epoch

    def __len__(self) -> int:
        return -(-len(self.inner) // self.processes) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        count = 0
        for batch in self.inner:
            count += 1
            yield [*batch, *[self.blank] * (self.batch_size - len(batch))]
        for _ in range(len(self) - count):
            yield [self.blank] * self.batch_size


def deal(loader: Any, rows: int, processes: int) -> Any:
    """Lets accelerate deal out evenly filled batches of a loader over `Blanked` rows.

    Raises:
        RunError: accelerate deals in another way than the one we know.
    """
    shard = loader.batch_sampler
    if type(shard).__name__ != "BatchSamplerShard" or shard.split_batches:
        raise RunError(
            "The batches cannot be shared out: accelerate deals them in a way that we do not know.",
            "Install the pinned version of accelerate.",
        )
    shard.batch_sampler = Filled(shard.batch_sampler, processes, rows)
    return loader
