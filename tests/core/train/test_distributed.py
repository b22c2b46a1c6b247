"""Several processes: the losses of one process, kills and resumes, stops, errors and the environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.errors import Diverged, SpecError
from core.spec.training import Launch, RunStatus, TrainSpec
from core.store import runs
from core.train import launcher

ROOT = Path(__file__).resolve().parents[3]
FAST: dict[str, Any] = {
    "learning_rate": 5e-3,
    "batch_size": 2,
    "accumulation": 2,
    "max_length": 48,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
}
TWO = Launch(launcher="torchrun", nproc=2)
PATIENCE = 240.0


@pytest.fixture
def engine(tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as made:
        yield made


def spec(engine: Engine, kind: str, file: Path, **changes: Any) -> TrainSpec:
    data = next((d for d in engine.datasets.list() if d.kind == kind), None) or engine.datasets.import_files(
        [file], kind, kind
    )
    return TrainSpec(**{"kind": kind, "name": kind, "dataset": data.id, "max_steps": 8, **FAST, **changes})


def read_losses(engine: Engine, run_id: str, kind: str = "step") -> list[float]:
    """The loss of every step, or validation; of one that was repeated, the later."""
    by_step = {e["step"]: e["loss"] for e in engine.runs.events(run_id)[0] if e["kind"] == kind}
    return [by_step[s] for s in sorted(by_step)]


def max_difference(engine: Engine, one: str, other: str) -> float:
    """The largest difference between the weights of two runs' adapters."""
    from safetensors.torch import load_file

    a, b = (
        load_file(engine.workspace.path("adapters", engine.runs.get(r).adapter) / "adapter_model.safetensors")
        for r in (one, other)
    )
    assert set(a) == set(b)
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def wait_for(condition: Any, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition was not met in time"
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_train_the_adapter_of_one_also_stacked(
    engine: Engine, corpus: Path, pairs: Path
) -> None:
    """Over the end of an epoch, whose last batches are neither full nor even in number."""
    domain = spec(engine, "domain", corpus, batch_size=2, max_steps=8)
    alone = engine.runs.wait(engine.runs.start(domain))
    together = engine.runs.wait(
        engine.runs.start(TrainSpec.from_json({**domain.to_json(), "name": "two"}), TWO), PATIENCE
    )
    assert together.status is RunStatus.DONE, together.error
    assert len(read_losses(engine, alone.id)) == 8 and read_losses(engine, together.id) == pytest.approx(
        read_losses(engine, alone.id), abs=1e-5
    )
    assert read_losses(engine, together.id, "validation") == pytest.approx(
        read_losses(engine, alone.id, "validation"), abs=1e-5
    )
    assert max_difference(engine, alone.id, together.id) < 1e-5
    meta = engine.library.adapter(together.adapter).metadata
    assert meta["runtime"]["processes"] == 2 and len(engine.library.verify(together.adapter)) == 3

    stacked = spec(
        engine,
        "task",
        pairs,
        stack_on=alone.adapter,
        domain_dropout=0.5,
        max_steps=12,
        packing=False,
        batch_size=4,
    )
    alone = engine.runs.wait(engine.runs.start(stacked))
    together = engine.runs.wait(
        engine.runs.start(TrainSpec.from_json({**stacked.to_json(), "name": "two"}), TWO), PATIENCE
    )
    assert together.status is RunStatus.DONE, together.error
    assert read_losses(engine, together.id) == pytest.approx(read_losses(engine, alone.id), abs=1e-5)
    assert max_difference(engine, alone.id, together.id) < 1e-5
    engine.library.verify(stacked.stack_on)


@pytest.mark.slow
def test_a_sharded_base_trains_alike_also_after_a_stop_and_a_resume(engine: Engine, corpus: Path) -> None:
    described = spec(engine, "domain", corpus, max_steps=60, eval_steps=30, save_steps=20, keep="last")
    alone = engine.runs.wait(engine.runs.start(described))
    launch = Launch(launcher="torchrun", nproc=2, sharding="fsdp")
    run_id = engine.runs.start(TrainSpec.from_json({**described.to_json(), "name": "spread"}), launch)
    wait_for(lambda: engine.runs.get(run_id).step >= 3)
    with Engine(engine.workspace.root, load=False) as other:
        other.runs.stop(run_id)
    stopped = engine.runs.wait(run_id, PATIENCE)
    assert (
        stopped.status is RunStatus.STOPPED
        and stopped.resumable
        and engine.library.adapter(stopped.adapter).results["steps"] == stopped.step < 60
    )
    engine.runs.resume(run_id)
    spread = engine.runs.wait(run_id, PATIENCE)
    assert spread.status is RunStatus.DONE, spread.error
    assert read_losses(engine, spread.id) == pytest.approx(read_losses(engine, alone.id), abs=1e-5)
    assert read_losses(engine, spread.id, "validation")[-2:] == pytest.approx(
        read_losses(engine, alone.id, "validation")[-2:], abs=1e-5
    )
    assert max_difference(engine, alone.id, spread.id) < 1e-4
    whole, part = (
        next(e for e in engine.runs.events(r.id)[0] if e["kind"] == "plan") for r in (alone, spread)
    )
    assert part["processes"] == 2 and part["parameters_here"] < 0.55 * whole["parameters_here"], (
        "each process holds half of the weights"
    )


@pytest.mark.slow
def test_a_killed_launcher_and_killed_processes_resume_to_the_same_losses(
    tiny_base: Path, tmp_path: Path, corpus: Path
) -> None:
    psutil = pytest.importorskip("psutil")
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as engine:
        described = spec(engine, "domain", corpus, max_steps=300, save_steps=5, eval_steps=150)
        alone = engine.runs.wait(engine.runs.start(described))
    settings = [
        f"--{k.replace('_', '-')}={v}"
        for k, v in {**FAST, "max_steps": 300, "save_steps": 5, "eval_steps": 150}.items()
    ]
    common = ["--workspace", str(tmp_path / "ws"), "--base", str(tiny_base), "--json"]
    train = [
        sys.executable,
        "-m",
        "core",
        "train",
        "domain",
        "--dataset",
        described.dataset,
        "--name",
        "two",
        "--preset",
        "standard",
        *settings,
    ]
    with Engine(tmp_path / "ws", str(tiny_base), load=False) as watching:
        parent = subprocess.Popen(
            [*train, "--launcher", "torchrun", "--nproc", "2", *common],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: watching.runs.list()[0].id != alone.id and watching.runs.list()[0].step >= 7)
        run_id = watching.runs.list()[0].id
        assert watching.runs.get(run_id).status is RunStatus.RUNNING, "another process finds it alive"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 3, "a launcher and two processes"
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        psutil.wait_procs(children, timeout=60)
        assert not any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children), (
            "no process outlives its launcher"
        )
        run = watching.runs.get(run_id)
        assert run.status is RunStatus.INTERRUPTED and run.resumable and run.step < 300
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu", load=False) as engine:
        engine.runs.resume(run_id)
        wait_for(
            lambda: (
                engine.runs.get(run_id).step >= run.step + 6
                and engine.runs.get(run_id).status is RunStatus.RUNNING
            )
        )
        group = next(c for c in psutil.Process().children() if run_id in " ".join(c.cmdline()))
        os.killpg(group.pid, signal.SIGKILL)
        killed = engine.runs.wait(run_id, PATIENCE)
        assert (
            killed.status is RunStatus.INTERRUPTED
            and killed.resumable
            and "terminated from outside" in killed.error
        )
        engine.runs.resume(run_id)
        ended = engine.runs.wait(run_id, PATIENCE)
        assert ended.status is RunStatus.DONE, ended.error
        assert len(read_losses(engine, run_id)) == 300 and read_losses(engine, run_id) == pytest.approx(
            read_losses(engine, alone.id), abs=1e-5
        )
        assert max_difference(engine, alone.id, run_id) < 1e-4


@pytest.mark.slow
def test_a_launch_that_starts_fewer_processes_fails(engine: Engine, corpus: Path) -> None:
    run = engine.runs.wait(
        engine.runs.start(spec(engine, "domain", corpus), Launch(launcher="accelerate", nproc=2)), PATIENCE
    )
    assert (
        run.status is RunStatus.FAILED
        and "The run needs 2 processes, but 1 started" in run.error
        and "torchrun" in run.error
    )


def test_an_accumulation_that_cannot_be_shared_is_refused_before_the_start(
    engine: Engine, corpus: Path
) -> None:
    with pytest.raises(
        SpecError, match="must be a multiple of the number of processes, 3, got 2.*multiple of 3.*stays 4"
    ):
        engine.runs.start(spec(engine, "domain", corpus), Launch(launcher="torchrun", nproc=3))
    assert not engine.runs.list()
    with pytest.raises(SpecError, match="2 processes needs a launcher"):
        Launch(nproc=2)
    with pytest.raises(SpecError, match="host:port"):
        Launch(launcher="torchrun", nnodes=2, rdzv_endpoint="--evil")
    with pytest.raises(SpecError, match="between 0 and 1, got 2"):
        Launch(launcher="torchrun", nnodes=2, node_rank=2, rdzv_endpoint="a:1")


def test_the_environment_of_processes_holds_paths_and_no_secret() -> None:
    ours = {
        "PATH": "/bin",
        "HOME": "/h",
        "HF_TOKEN": "hf_x",
        "HF_HOME": "/c",
        "WANDB_API_KEY": "k",
        "NCCL_DEBUG": "INFO",
        "TORCH_API_KEY": "k",
        "CUDA_VISIBLE_DEVICES": "1",
        "AWS_SECRET_ACCESS_KEY": "s",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "/mine",
        "LD_PRELOAD": "x",
    }
    filtered = launcher.filter_environment(ours)
    assert set(filtered) == {
        "PATH",
        "HOME",
        "HF_HOME",
        "NCCL_DEBUG",
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "PYTHONPATH",
    }
    assert filtered["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/mine"]


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("rows", [7, 8, 9, 25])
def test_processes_read_the_batches_of_a_single_process_and_padding(processes: int, rows: int) -> None:
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    from core.train.distributed import EvenBatchSampler, ProcessGroup

    alone = [list(b) for b in BatchSampler(SequentialSampler(range(rows)), 2, False)]
    shards = [
        list(
            BatchSamplerShard(
                EvenBatchSampler(BatchSampler(SequentialSampler(range(rows)), 2, False), processes, rows),
                processes,
                i,
            )
        )
        for i in range(processes)
    ]
    assert len({len(s) for s in shards}) == 1, "every process reads the same number of batches"
    dealt = [[i for i in batch if i < rows] for turn in zip(*shards, strict=True) for batch in turn]
    assert [b for b in dealt if b] == alone
    described = TrainSpec(accumulation=12)
    places = sorted(
        ProcessGroup(processes, i).batch_position(5, described, k)
        for i in range(processes)
        for k in range(12 // processes)
    )
    assert places == list(range(60, 72)), "the position of a batch does not depend on the rank that reads it"


def job(engine: Engine, corpus: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> runs.Run:
    """A run whose processes are a small program instead of torchrun."""
    monkeypatch.setattr(
        launcher,
        "build_command",
        lambda workspace, run, launch: [sys.executable, "-c", code, str(runs.folder(workspace, run.id))],
    )
    return engine.runs.wait(engine.runs.start(spec(engine, "domain", corpus), TWO), 60)


def test_the_first_error_of_any_process_ends_the_run(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = json.dumps(
        {
            "kind": "Diverged",
            "what": "The loss became nan at step 6.",
            "fix": "Lower it.",
            "time": 1.0,
            "process": 1,
            "of": 2,
        }
    )
    late = json.dumps(
        {"kind": "RunError", "what": "A peer went away.", "fix": "", "time": 2.0, "process": 0, "of": 2}
    )
    code = (
        "import sys, pathlib; f = pathlib.Path(sys.argv[1]); "
        f"(f / 'error-0.json').write_text({late!r}); (f / 'error-1.json').write_text({error!r}); sys.exit(1)"
    )
    run = job(engine, corpus, code, monkeypatch)
    assert (
        run.status is RunStatus.DIVERGED
        and run.error == "Rank 1 of 2: The loss became nan at step 6. Lower it."
    )
    with pytest.raises(Diverged):
        launcher.run_processes(engine.workspace, run, lambda s: None, lambda: "")


def test_processes_whose_launcher_was_killed_leave_a_resumable_run(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import json, os, pathlib, sys; f = pathlib.Path(sys.argv[1]) / 'run.json'; "
    code += "run = json.loads(f.read_text()); run['status'] = 'interrupted'"
    run = job(engine, corpus, code + "; f.write_text(json.dumps(run)); os.kill(os.getpid(), 9)", monkeypatch)
    assert (
        run.status is RunStatus.INTERRUPTED
        and run.resumable
        and "terminated from outside (code -9)" in run.error
    )


def test_killed_processes_can_be_resumed_and_a_failed_start_is_explained(
    engine: Engine, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = job(engine, corpus, "import os; os.kill(os.getpid(), 9)", monkeypatch)
    assert run.status is RunStatus.INTERRUPTED and run.resumable and "code -9" in run.error
    monkeypatch.setattr(
        launcher,
        "build_command",
        lambda workspace, run, launch: [sys.executable, "-c", "import nothing_of_this_name"],
    )
    engine.runs.resume(run.id)
    run = engine.runs.wait(run.id, 60)
    assert run.status is RunStatus.FAILED and "No module named 'nothing_of_this_name'" in run.error
