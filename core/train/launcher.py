"""Runs in processes of their own: the command that starts them, their environment, and how they end.

    engine ── run_processes ──> torchrun | accelerate ──┬──> core.train.job, rank 0 ──> run.json, events,
      ^                                                 └──> core.train.job, others     checkpoints, adapter
      └──────────────────────── runs/<id>/ <─────────────────────┘

The folder of the run is the only link between the engine and the processes: readers follow the events of the
run as usual; a stop request is a file, which rank 0 reads after a step and broadcasts; the error of any
process is a file too. Rank 0 holds `job.lock`, so that a run is alive as long as its launcher *or* its
processes are. When the launcher dies, the pipe to its processes closes, and they save a checkpoint and end
after their step.

Tested with gloo on CPUs: DDP and FSDP 2 with unquantized weights, on one machine. NCCL, several machines,
FSDP over 4-bit weights or with activation checkpointing, and resuming with another world size use the same
code and have not been tested.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core import errors
from core.errors import DamagedRecord, RunError, SpecError, StorageError, StudioError
from core.spec.training import Launch, RunStatus, TrainSpec
from core.store import runs
from core.store.record_types import Count, Time
from core.store.records import read_record
from core.store.runs import Run
from core.store.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
# The variables that the processes of a run receive: paths, devices and thread counts, never a token.
ENVIRONMENT = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|TEMP|TMP|SYSTEMROOT|VIRTUAL_ENV|PYTHONPATH|LD_LIBRARY_PATH"
    r"|XDG_CACHE_HOME|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE"
    r"|(?:OMP|MKL)_NUM_THREADS|CUDA_\w+|NVIDIA_\w+|NCCL_\w+|GLOO_\w+|TORCH_\w+|PYTORCH_\w+|CUBLAS_\w+"
)
SECRET = re.compile(r"token|secret|password|api_?key|credential", re.IGNORECASE)
POLL_SECONDS = 0.05
YIELD_SECONDS = 0.1  # longest time for which waiting yields to requests between two polls
CLOSE_SECONDS = 20.0  # from the request to save and end until the processes are terminated
# torchrun's report of a process that was killed by a signal
KILLED = re.compile(r"Root Cause.*?exitcode\s*: -\d+", re.DOTALL)
LOG_TAIL_BYTES = 8000  # of the processes' output, read when they leave no error file


@dataclass(frozen=True)
class ProcessError:
    """The content of error-<rank>.json, which `core.train.job` writes.

    Attributes:
        kind: the class in `core.errors`.
        process, of: rank of the process, and the number of processes.
    """

    kind: str
    what: str
    fix: str
    time: Time
    process: Count
    of: Count


def filter_environment(variables: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of the processes of a run: allowed variables that do not look like secrets.

    Args:
        variables: the environment to filter; None takes the one of this process.
    """
    variables = dict(os.environ) if variables is None else variables
    allowed = {k: v for k, v in variables.items() if ENVIRONMENT.fullmatch(k) and not SECRET.search(k)}
    paths = (str(ROOT), variables.get("PYTHONPATH", ""))
    allowed["PYTHONPATH"] = os.pathsep.join(p for p in paths if p)
    return allowed


def check_launch(launch: Launch, spec: TrainSpec) -> None:
    """Checks that the processes can share the forward passes of a step evenly.

    Raises:
        SpecError: the gradient accumulation is not a multiple of the world size.
    """
    size = launch.world_size
    if spec.accumulation % size:
        raise SpecError(
            f"Gradient accumulation must be a multiple of the number of processes, {size}, "
            f"got {spec.accumulation}.",
            f"Set it to a multiple of {size} and reduce the batch size by the same factor: "
            f"the effective batch stays {spec.effective_batch}.",
        )


def build_command(workspace: Workspace, run: Run, launch: Launch) -> list[str]:
    """The arguments that start the processes of this machine; they do not pass through a shell."""
    device = run.extra.device or "auto"
    job = [
        "-m", "core.train.job", str(workspace.root), run.id,
        "--base", str(Path(run.base).resolve()) if Path(run.base).is_dir() else run.base,
        "--quantization", run.extra.quantization or "auto", "--device", device,
    ]  # fmt: skip
    host, _, port = launch.rdzv_endpoint.partition(":")
    rank = str(launch.node_rank)
    if launch.launcher == "torchrun":
        rendezvous = ["--standalone"]
        if launch.nnodes > 1:
            rendezvous = ["--node-rank", rank, "--master-addr", host, "--master-port", port]
        return [
            sys.executable, "-m", "torch.distributed.run",
            "--nnodes", str(launch.nnodes), "--nproc-per-node", str(launch.nproc), "--max-restarts", "0",
            *rendezvous, *job,
        ]  # fmt: skip
    rendezvous = []
    if launch.nnodes > 1:
        rendezvous = ["--machine_rank", rank, "--main_process_ip", host, "--main_process_port", port]
    hardware = ["--cpu"] if device == "cpu" else ["--multi_gpu"] * (launch.world_size > 1)
    return [
        sys.executable, "-m", "accelerate.commands.launch",
        "--num_machines", str(launch.nnodes), "--num_processes", str(launch.world_size),
        "--mixed_precision", "no", "--dynamo_backend", "no", *hardware, *rendezvous, *job,
    ]  # fmt: skip


def run_processes(
    workspace: Workspace,
    run: Run,
    yield_to_requests: Callable[[float], None],
    poll_stop: Callable[[], str],
    launch: Launch | None = None,
) -> None:
    """Starts the processes of a run on this machine and waits until they have ended.

    Args:
        yield_to_requests, poll_stop: as in `core.train.train.train`.
        launch: of this machine; None takes the one that the run was started with.

    Raises:
        StudioError: the first error of a process.
    """
    launch = launch or run.extra.launch or Launch()
    folder = runs.folder(workspace, run.id)
    output = folder / f"job-{launch.node_rank}.log"
    if launch.node_rank == 0:
        runs.write_stop_request(workspace, run.id, "")
        for path in folder.glob("error-*.json"):
            path.unlink()
    try:
        with open(output, "wb") as f:
            process = subprocess.Popen(
                build_command(workspace, run, launch),
                env=filter_environment(),
                stdin=subprocess.PIPE,
                stdout=f,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as e:
        raise StorageError(
            f"The processes of the run could not be started ({e}).",
            "Check the workspace's disk and the Python installation.",
        ) from e
    try:
        _wait_for_end(workspace, run.id, process, yield_to_requests, poll_stop)
    finally:
        terminate(process)
    if launch.node_rank == 0 or process.returncode:
        _raise_error(workspace, run.id, process.returncode, output)


def _wait_for_end(
    workspace: Workspace,
    run_id: str,
    process: subprocess.Popen[bytes],
    yield_to_requests: Callable[[float], None],
    poll_stop: Callable[[], str],
) -> None:
    """Waits until the processes have ended, and passes stop requests on to them.

    After a request to close, it waits for CLOSE_SECONDS at most.
    """
    last_request, request_time = "", 0.0
    while process.poll() is None:
        yield_to_requests(YIELD_SECONDS)
        request = poll_stop()
        if request and request != last_request:
            last_request, request_time = request, time.monotonic()
            runs.write_stop_request(workspace, run_id, request)
        if last_request == "close" and time.monotonic() - request_time > CLOSE_SECONDS:
            return
        time.sleep(POLL_SECONDS)


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all processes that it started."""
    for is_forced in (False, True):
        if process.poll() is not None:
            break
        _signal_group(process, is_forced)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    _signal_group(process, is_forced=True)  # workers that outlived their launcher
    if process.stdin:
        process.stdin.close()
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], is_forced: bool) -> None:
    """Signals a process and its workers. Without process groups (Windows), `job.is_orphaned` ends them."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL if is_forced else signal.SIGTERM)
        elif is_forced:
            process.kill()
        else:
            process.terminate()


def _raise_error(workspace: Workspace, run_id: str, code: int, output: Path) -> None:
    """Raises the earliest error that a process wrote; processes that were killed leave an interrupted run.

    Raises:
        StudioError: the error of a process, or the last exception in its output.
    """
    reports = []
    for path in runs.folder(workspace, run_id).glob("error-*.json"):
        with suppress(DamagedRecord):
            reports.append(read_record(path, ProcessError))
    if reports:
        first = min(reports, key=lambda e: e.time)
        kind = getattr(errors, first.kind, RunError)
        is_plain = isinstance(kind, type) and issubclass(kind, StudioError) and kind is not DamagedRecord
        rank = f"Rank {first.process} of {first.of}: " if first.of > 1 else ""
        raise (kind if is_plain else RunError)(rank + first.what, first.fix)
    run = runs.load(workspace, run_id)
    # processes whose launcher was killed save and end in order, without an error
    launcher_died = run.status is RunStatus.INTERRUPTED and not run.error and code < 0
    if not run.status.is_alive and not launcher_died:
        return
    tail = output.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace") if output.is_file() else ""
    exceptions = [line for line in tail.splitlines() if re.match(r"\w*(Error|Exception)\b", line)]
    details = f"{output.name} in the run's folder has the details."
    if code > 0 and exceptions and not KILLED.search(tail):
        raise RunError(f"The processes of the run ended with {exceptions[-1][:300]!r}.", details)
    what = f"The processes of the run were terminated from outside (code {code})."
    error = f"{what} The run can be resumed; {details}"
    runs.update(workspace, run, status=RunStatus.INTERRUPTED, error=error)
