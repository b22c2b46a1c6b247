"""The process group of a run: rank, collectives, the stop request of rank 0, and batches that divide evenly.

Rank 0 (the main process) alone writes events, checkpoints and the adapter, validates, draws samples and polls
for a stop request; the other ranks receive its results by broadcast. `core.train.launcher` starts the
processes.

The effective batch does not depend on the world size: the accumulation steps are divided among the processes,
and the ranks read, in turn, the same batches that a single process would read:

    world size 1            step 1: b0 b1 b2 b3   step 2: b4 b5 b6 b7   ...   last step: b16
    world size 2, rank 0    step 1: b0    b2      step 2: b4    b6      ...   last step: b16
                  rank 1    step 1:    b1    b3   step 2:    b5    b7   ...   last step: padding
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
STOP_REQUESTS = ("", "keep", "close", "pause")  # broadcast as an index into this tuple
# The other ranks wait in a collective while rank 0 validates, so the timeout is long. It is not needed to
# notice that a process has died: the launcher does that.
COLLECTIVE_TIMEOUT = timedelta(hours=6)


@dataclass(eq=False)
class ProcessGroup:
    """The processes that train a run together, seen from one of them.

    Attributes:
        world_size: number of processes on all machines.
        rank: number of this process, from 0.
        sharded: the frozen weights are sharded over the processes (FSDP), so that every forward is a
            collective.
        poll_stop: reads the stop request (rank 0 only): "" or one of STOP_REQUESTS.
        stop_request: the request that all ranks received after the same step.
    """

    world_size: int = 1
    rank: int = 0
    sharded: bool = False
    poll_stop: Callable[[], str] = lambda: ""
    stop_request: str = ""

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def update_run(self, workspace: Workspace, run: runs.Run, **fields: Any) -> runs.Run:
        """Returns the run with changed fields; only rank 0 writes them to disk."""
        return runs.update(workspace, run, **fields) if self.is_main_process else replace(run, **fields)

    def open_log(self, workspace: Workspace, run_id: str) -> Any:
        """Returns the run's event log on rank 0, and a log that discards its events on the other ranks."""
        return runs.log(workspace, run_id) if self.is_main_process else _NullLog()

    def barrier(self) -> None:
        """Blocks until every process has reached this call."""
        if self.world_size > 1:
            distributed.barrier()

    def broadcast(self, compute: Callable[[], T]) -> T:
        """Computes a value on rank 0 and sends it to all ranks.

        A sharded group computes it on all ranks together, because every forward is a collective.
        """
        if self.world_size == 1 or self.sharded:
            return compute()
        values: list[Any] = [compute() if self.is_main_process else None]
        distributed.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[no-any-return]

    def sync_stop(self, device: torch.device) -> None:
        """Sets `stop_request` on every rank to the one that rank 0 polls. All ranks call it after a step."""
        number = torch.tensor(
            STOP_REQUESTS.index(self.poll_stop()) if self.is_main_process else 0, device=device
        )
        if self.world_size > 1:
            distributed.broadcast(number, src=0)
        self.stop_request = STOP_REQUESTS[int(number)]

    def all_reduce_sum(self, number: int, device: torch.device) -> int:
        """The sum of a count over all ranks."""
        if self.world_size == 1:
            return number
        tensor = torch.tensor(number, device=device, dtype=torch.int64)
        distributed.all_reduce(tensor)
        return int(tensor)

    def batch_position(self, step: int, spec: TrainSpec, substep: int) -> int:
        """The index of a forward pass in the whole run, as a single process would count it.

        Domain dropout is drawn from this index, so that the draw belongs to the batch and not to the rank
        that reads it, and every world size gives the same losses.

        Args:
            step: optimizer steps taken so far.
            substep: forward passes that this process has taken in the current step.
        """
        return step * spec.accumulation + substep * self.world_size + self.rank


SINGLE_PROCESS = ProcessGroup()


class _NullLog:
    def append(self, kind: str, **fields: Any) -> None:
        """Discards an event: only rank 0 writes the log."""


class PaddedDataset(torch.utils.data.Dataset):  # type: ignore[misc]
    """Training rows followed by one padding row: two tokens, of which none is trained."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows) + 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < len(self.rows):
            return dict(self.rows[index])
        first = self.rows[0]
        length = len(first["input_ids"])
        row = {k: v[:2] if isinstance(v, list) and len(v) == length else v for k, v in first.items()}
        short = len(row["input_ids"])
        return {
            **row,
            "loss_mask": [0] * short,
            **({"seq_lengths": [short]} if "seq_lengths" in first else {}),
        }


class EvenBatchSampler:
    """Pads the last batch, and the number of batches to a multiple of the world size, with the padding row.

    accelerate would instead start again from the first rows, and train those twice.

    Args:
        inner: the batch sampler of a single process.
        world_size: number of processes that share the batches.
        padding_index: index of the padding row.
    """

    drop_last = False

    def __init__(self, inner: Any, world_size: int, padding_index: int) -> None:
        self.inner, self.world_size, self.padding_index = inner, world_size, padding_index
        self.batch_size = inner.batch_size
        self.sampler = getattr(inner, "sampler", None)  # accelerate sets the epoch on it

    def __len__(self) -> int:
        return -(-len(self.inner) // self.world_size) * self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        count = 0
        for batch in self.inner:
            count += 1
            yield [*batch, *[self.padding_index] * (self.batch_size - len(batch))]
        for _ in range(len(self) - count):
            yield [self.padding_index] * self.batch_size


def shard_batches(loader: Any, rows: int, world_size: int) -> Any:
    """Makes accelerate distribute an even number of full batches of a loader over a `PaddedDataset`.

    Args:
        rows: number of training rows, which is also the index of the padding row.

    Raises:
        RunError: the installed accelerate distributes batches in another way.
    """
    shard = loader.batch_sampler
    if type(shard).__name__ != "BatchSamplerShard" or shard.split_batches:
        raise RunError(
            "The installed version of accelerate distributes batches in an unknown way.",
            "Install the pinned version of accelerate.",
        )
    shard.batch_sampler = EvenBatchSampler(shard.batch_sampler, world_size, rows)
    return loader
