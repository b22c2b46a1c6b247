"""Runs in processes of their own: the command that starts them, what they may know, and how they end.

Knows torchrun, accelerate and the folder of a run. Knows nothing of training: `core/train/job.py` is
what every process runs. Nothing but that folder links it to us: events, the wish to stop, and errors.
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
from pathlib import Path
from typing import Any

from core import errors
from core.errors import RunError, SpecError, StorageError, StudioError
from core.spec.training import Launch, RunStatus, TrainSpec
from core.store import runs
from core.store.runs import Run
from core.store.workspace import Workspace, read_json

ROOT = Path(__file__).resolve().parents[2]
# What processes of ours may know of the environment: where things are and how many threads to take; no token.
ENVIRONMENT = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|TEMP|TMP|SYSTEMROOT|VIRTUAL_ENV|PYTHONPATH|LD_LIBRARY_PATH|XDG_CACHE_HOME|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE"
    r"|(?:OMP|MKL)_NUM_THREADS|CUDA_\w+|NVIDIA_\w+|NCCL_\w+|GLOO_\w+|TORCH_\w+|PYTORCH_\w+|CUBLAS_\w+"
)
SECRET = re.compile(r"token|secret|password|api_?key|credential", re.IGNORECASE)
POLL_SECONDS = 0.05
SERVE_SECONDS = 0.1
CLOSE_SECONDS = 20.0  # from the wish to save and end until the processes are ended
KILLED = re.compile(
    r"Root Cause.*?exitcode\s*: -\d+", re.DOTALL
)  # torchrun's words for a process that a signal ended
TAIL_BYTES = 8000  # of what they printed, for an end that nobody explained


def filter_environment(ours: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a process that we start: an allow-list, without anything that looks like a secret."""
    ours = dict(os.environ) if ours is None else ours
    kept = {k: v for k, v in ours.items() if ENVIRONMENT.fullmatch(k) and not SECRET.search(k)}
    kept["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), ours.get("PYTHONPATH", "")) if p)
    return kept


def check_launch(launch: Launch, spec: TrainSpec) -> None:
    """Checks that the processes can share the batches of a run evenly.

    Raises:
        SpecError: the gradient accumulation is not a multiple of the number of processes.
    """
    if spec.accumulation % launch.world_size:
        raise SpecError(
            f"Gradient accumulation is {spec.accumulation}, and {launch.world_size} processes share its forward passes.",
            f"Make it a multiple of {launch.world_size} and the batch size smaller by as much: the effective batch stays {spec.effective_batch}.",
        )

def build_command(workspace: Workspace, run: Run, launch: Launch) -> list[str]:
    """What starts the processes of this machine; no shell reads it."""
    quantization, device = run.extra.quantization or "auto", run.extra.device or "auto"
    base = str(Path(run.base).resolve()) if Path(run.base).is_dir() else run.base
    job = [
        "-m",
        "core.train.job",
        str(workspace.root),
        run.id,
        "--base",
        base,
        "--quantization",
        quantization,
        "--device",
        device,
    ]
    host, _, port = launch.rdzv_endpoint.partition(":")
    meeting = (
        ["--node-rank", str(launch.node_rank), "--master-addr", host, "--master-port", port]
        if launch.nnodes > 1
        else ["--standalone"]
    )
    if launch.launcher == "torchrun":
        return [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", str(launch.nnodes), "--nproc-per-node", str(launch.nproc),
            "--max-restarts", "0", *meeting, *job,
        ]  # fmt: skip
    meeting = (
        ["--machine_rank", str(launch.node_rank), "--main_process_ip", host, "--main_process_port", port]
        if launch.nnodes > 1
        else []
    )
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--num_machines", str(launch.nnodes), "--num_processes", str(launch.world_size),
        "--mixed_precision", "no", "--dynamo_backend", "no", *(["--cpu"] if device == "cpu" else ["--multi_gpu"] * (launch.world_size > 1)), *meeting, *job,
    ]  # fmt: skip


def run_processes(
    workspace: Workspace,
    run: Run,
    serve: Callable[[float], None],
    stop_asked: Callable[[], str],
    launch: Launch | None = None,
) -> None:
    """Starts the processes of a run and stays until they have ended.

    Args:
        serve: lends our own model to others meanwhile.
        stop_asked: as in `core.train.train.train`.
        launch: of this machine; None takes what the run was started with.

    Raises:
        StudioError: what a process raised, whichever was first.
    """
    launch = launch or run.extra.launch or Launch()
    folder = runs.folder(workspace, run.id)
    if launch.node_rank == 0:
        runs.write_stop_request(workspace, run.id, "")
        for old in folder.glob("error-*.json"):
            old.unlink()
    try:
        with open(folder / f"job-{launch.node_rank}.log", "wb") as printed:
            process = subprocess.Popen(
                build_command(workspace, run, launch),
                env=filter_environment(), stdin=subprocess.PIPE, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
    except OSError as e:
        raise StorageError(
            f"The processes of the run could not be started ({e}).",
            "Check the workspace's disk and the Python installation.",
        ) from e
    try:
        _stay(workspace, run.id, process, serve, stop_asked)
    finally:
        terminate(process)
    if launch.node_rank == 0 or process.returncode:
        _explain(workspace, run.id, process.returncode, folder / f"job-{launch.node_rank}.log")


def _stay(
    workspace: Workspace,
    run_id: str,
    process: subprocess.Popen[bytes],
    serve: Callable[[float], None],
    stop_asked: Callable[[], str],
) -> None:
    """Until the processes have ended; passes on what is wished of the run."""
    told, when = "", 0.0
    while process.poll() is None:
        serve(SERVE_SECONDS)
        word = stop_asked()
        if word and word != told:
            told, when = word, time.monotonic()
            runs.write_stop_request(workspace, run_id, word)
        if told == "close" and time.monotonic() - when > CLOSE_SECONDS:
            return
        time.sleep(POLL_SECONDS)


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started, if they are still there."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # workers that outlived their launcher
    if process.stdin:
        process.stdin.close()
    process.wait()


def _explain(workspace: Workspace, run_id: str, code: int, printed: Path) -> None:
    """Raises what a process wrote down before it ended; an end without a word leaves an interrupted run."""
    found = sorted(
        (read_json(p) for p in runs.folder(workspace, run_id).glob("error-*.json")),
        key=lambda e: float(e.get("time", 0)),
    )
    if found:
        first = found[0]
        kind = getattr(errors, str(first["kind"]), RunError)
        kind = kind if isinstance(kind, type) and issubclass(kind, StudioError) else RunError
        which = f"Process {first['process']} of {first['of']}: " if first["of"] > 1 else ""
        raise kind(which + first["what"], first["fix"])
    run = runs.load(workspace, run_id)
    alone = (
        run.status is RunStatus.INTERRUPTED and not run.error and code < 0
    )  # processes that saw their launcher killed, and ended in good order
    if not run.status.is_alive and not alone:
        return
    tail = printed.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace") if printed.is_file() else ""
    said = [line for line in tail.splitlines() if re.match(r"\w*(Error|Exception)\b", line)]
    where = f"{printed.name} in the run's folder tells more."
    if code > 0 and said and not KILLED.search(tail):
        raise RunError(f"The run's processes ended with {said[-1][:300]!r}.", where)
    what = f"The run's processes were ended from outside (code {code})."
    runs.update(workspace, run, status=RunStatus.INTERRUPTED, error=f"{what} It can be resumed; {where}")
