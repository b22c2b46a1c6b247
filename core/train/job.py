"""One process of a run that torchrun or accelerate started: `python -m core.train.job`.

Loads the base, joins the process group and calls `core.train.train.train`, as the engine does in its own
process. `core.train.launcher` starts it; the folder of the run is the only link between the two.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed

from core.data.samples import Samples
from core.errors import Busy, RunError, StudioError
from core.model.base import load_base
from core.model.resident import Resident
from core.spec.training import QUANTIZATIONS, Launch, RunStatus
from core.store import runs
from core.store.files import write_json
from core.store.locks import FileLock, is_locked
from core.store.workspace import Workspace
from core.train.distributed import COLLECTIVE_TIMEOUT, ProcessGroup
from core.train.train import train

CAN_POLL_PIPES = os.name != "nt"
LOCK_SECONDS = 10.0  # a process that checks whether the run is alive holds its lock for a moment


def main(argv: Sequence[str] | None = None) -> int:
    """Trains the run; writes an error into the run's folder, where the launcher reads it."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("workspace", type=Path)
    p.add_argument("run")
    p.add_argument("--base", required=True)
    p.add_argument("--quantization", choices=QUANTIZATIONS, default="auto")
    p.add_argument("--device", default="auto")
    args = p.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    workspace = Workspace(args.workspace)
    group = ProcessGroup()
    try:
        run = runs.load(workspace, args.run)
        launch = run.extra.launch or Launch()
        on_gpu = args.device != "cpu" and torch.cuda.is_available()
        state = _join_group(on_gpu)
        sharded, poll_stop = launch.sharding == "fsdp", StopRequests(workspace, run.id)
        group = ProcessGroup(state.num_processes, state.process_index, sharded, poll_stop)
        if group.world_size != launch.world_size:  # accelerate starts fewer processes without an error
            raise RunError(
                f"The run needs {launch.world_size} processes, but {group.world_size} started.",
                "`accelerate launch` starts one process where it finds no GPU: use --launcher torchrun.",
            )
        lock = _lock_job(workspace, run.id) if group.is_main_process else None
        device = f"cuda:{state.local_process_index}" if on_gpu else "cpu"
        base = load_base(args.base, args.quantization, device, group.sharded, workspace)
        resident = Resident(base, workspace)
        train(
            workspace,
            resident,
            run,
            lambda seconds: None,
            lambda: group.stop_request,
            lambda: Samples().replay_texts(args.base, run.spec.rules),
            group,
        )
        if lock:
            lock.release()
    except Exception as e:  # noqa: BLE001 (any error ends this process, and the launcher must learn of it)
        traceback.print_exc()
        write_error(workspace, args.run, group, e)
        return 1
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return 0


def _join_group(on_gpu: bool) -> Any:
    """Joins the process group of the launcher; without a launcher, this is the only process."""
    options: dict[str, Any] = {}
    if distributed.is_torchelastic_launched():  # by torchrun, or by accelerate, which uses it
        options = {"timeout": COLLECTIVE_TIMEOUT, "backend": "nccl" if on_gpu else "gloo"}
    return PartialState(cpu=not on_gpu, **options)


def _lock_job(workspace: Workspace, run_id: str) -> FileLock:
    """Takes the lock that marks the run as alive.

    Raises:
        Busy: another process trains the run.
    """
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return FileLock(runs.job_lock_path(workspace, run_id))
        except Busy:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


class StopRequests:
    """Reads the stop request of a run from its folder; after the death of the launcher it is "close"."""

    def __init__(self, workspace: Workspace, run_id: str) -> None:
        self.workspace, self.run_id = workspace, run_id
        self._is_marked = False

    def __call__(self) -> str:
        request = runs.read_stop_request(self.workspace, self.run_id)
        if not request and is_orphaned(runs.lock_path(self.workspace, self.run_id)):
            request = "close"
        if request == "keep" and not self._is_marked:
            self._is_marked = True
            runs.update(self.workspace, runs.load(self.workspace, self.run_id), status=RunStatus.STOPPING)
        return request


def is_orphaned(launcher_lock: Path) -> bool:
    """Whether the launcher has died: standard input is a pipe from it, without data, that ends with it.

    Args:
        launcher_lock: the lock that the launcher holds. Windows cannot look into a pipe without waiting, and
            looks at the lock instead.
    """
    if not CAN_POLL_PIPES:
        return not is_locked(launcher_lock)
    try:
        return bool(select.select([sys.stdin], [], [], 0)[0]) and not os.read(sys.stdin.fileno(), 1)
    except (OSError, ValueError):
        return True


def write_error(workspace: Workspace, run_id: str, group: ProcessGroup, error: Exception) -> None:
    """Writes an error, with its kind, into the file that `core.train.launcher` reads."""
    known = error
    if not isinstance(known, StudioError):
        known = RunError(f"{type(error).__name__}: {str(error)[:500]}")
    value = {
        "kind": type(known).__name__,
        "what": known.what,
        "fix": known.fix,
        "time": time.time(),
        "process": group.rank,
        "of": group.world_size,
    }
    write_json(workspace.path("runs", run_id, f"error-{group.rank}.json"), value)


if __name__ == "__main__":
    raise SystemExit(main())
