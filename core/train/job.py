"""One process of a run that a launcher started: `python -m core.train.job`, under torchrun or accelerate.

Loads the base, takes its place in the group, and trains as the studio's own thread does. Knows the run's
folder and its peers; nobody talks to it but through that folder. Knows nothing of queues or pages.
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

import torch
from accelerate import PartialState
from torch import distributed

from core.data.samples import Samples
from core.errors import Busy, RunError, StudioError
from core.model.base import load_base
from core.model.resident import Resident
from core.spec.training import QUANTIZATIONS, Launch, RunStatus
from core.store import runs
from core.store.workspace import FileLock, Workspace, write_json
from core.train.distributed import COLLECTIVE_TIMEOUT, ProcessGroup
from core.train.train import train

CLAIM_SECONDS = 10.0  # whoever looks whether a run lives holds its claim for a moment


def main(argv: Sequence[str] | None = None) -> int:
    """Trains the run; an error is written into the run's folder, where the launcher's side finds it."""
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
        several = (
            distributed.is_torchelastic_launched()
        )  # torchrun, and what accelerate uses of it; without it we are alone
        state = PartialState(
            cpu=not on_gpu,
            **({"timeout": COLLECTIVE_TIMEOUT, "backend": "nccl" if on_gpu else "gloo"} if several else {}),
        )
        group = ProcessGroup(
            state.num_processes, state.process_index, launch.sharding == "fsdp", StopRequests(workspace, run.id)
        )
        if group.world_size != launch.world_size:
            raise RunError(
                f"{launch.world_size} processes were asked for, and {group.world_size} came.",
                "`accelerate launch` starts a single process where it finds no GPU: use --launcher torchrun there.",
            )
        claim = _claim(workspace, run.id) if group.is_main_process else None
        device = f"cuda:{state.local_process_index}" if on_gpu else "cpu"
        resident = Resident(load_base(args.base, args.quantization, device, group.sharded), workspace)
        train(
            workspace,
            resident,
            run,
            lambda seconds: None,
            lambda: group.stop_request,
            lambda: Samples().texts("general"),
            group,
        )
        if claim:
            claim.release()
    except Exception as e:  # noqa: BLE001 (whatever it is, it ends this process, and others shall know why)
        traceback.print_exc()
        leave_error(workspace, args.run, group, e)
        return 1
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return 0


def _claim(workspace: Workspace, run_id: str) -> FileLock:
    end = time.monotonic() + CLAIM_SECONDS
    while True:
        try:
            return FileLock(runs.job_lock_path(workspace, run_id))
        except Busy:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


class StopRequests:
    """What is wished of the run: by a file in its folder, or by the end of the process that launched it."""

    def __init__(self, workspace: Workspace, run_id: str) -> None:
        self.workspace, self.run_id = workspace, run_id
        self.told = False

    def __call__(self) -> str:
        word = runs.read_stop_request(self.workspace, self.run_id) or ("close" if orphaned() else "")
        if word == "keep" and not self.told:
            self.told = True
            runs.update(self.workspace, runs.load(self.workspace, self.run_id), status=RunStatus.STOPPING)
        return word


def orphaned() -> bool:
    """Has whoever launched us died? Standard input is a pipe from there in which nothing is ever written."""
    try:
        return bool(select.select([sys.stdin], [], [], 0)[0]) and not os.read(sys.stdin.fileno(), 1)
    except (OSError, ValueError):
        return True


def leave_error(workspace: Workspace, run_id: str, group: ProcessGroup, error: Exception) -> None:
    """Writes an error where `core/launcher.py` looks for it, with its kind."""
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
