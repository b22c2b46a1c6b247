"""What the studio makes of ZeroGPU's variable, its decorator and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_worker import SimulatedError
from core.errors import GpuError, GpuQuota, NotFound, StudioError
from core.space.zero_gpu import ZeroGpu, is_zero_gpu, read_error
from core.store.workspace import Workspace


@pytest.mark.parametrize(
    ("value", "expected"),
    [("true", True), ("1", True), ("T", True), ("false", False), ("", False), ("0", False)],
)
def test_the_variable_is_read_as_the_package_reads_it(value: str, expected: bool) -> None:
    assert is_zero_gpu(value) is expected


@pytest.mark.parametrize(
    ("title", "message", "left"),
    [
        ("ZeroGPU quota exceeded", "Your quota (60s requested vs. 12s left). Try again in 3:00:00.", 12),
        ("ZeroGPU quota exceeded", "Your quota (60s requested vs. -5s left). ", 0),
        ("ZeroGPU quota exceeded", "Space app has reached its GPU limit.", None),
        ("ZeroGPU pending credits exceeded", "You have too many ZeroGPU credits allocated", None),
    ],
)
def test_a_used_up_quota_says_what_is_left(title: str, message: str, left: int | None) -> None:
    error = read_error(SimulatedError(message, title))
    assert isinstance(error, GpuQuota) and error.left_seconds == left
    assert error.what.startswith(f"ZeroGPU: {message.strip()}") and "Sign in to Hugging Face" in error.fix


def test_other_errors_are_plain_text() -> None:
    error = read_error(
        SimulatedError('No GPU was available. <a href="x">Retry</a> later', "ZeroGPU queue timeout")
    )
    assert type(error) is GpuError
    assert str(error) == "ZeroGPU: No GPU was available. Retry later. Try again."
    assert read_error(RuntimeError()).what == "ZeroGPU: RuntimeError."


class Package:
    """A `spaces` that runs the task here."""

    def __init__(self) -> None:
        self.durations: list[Any] = []

    def GPU(self, task: Any, duration: Any) -> Any:  # noqa: N802
        self.durations.append(duration)
        return task


def test_errors_of_the_studio_pass_and_others_are_converted() -> None:
    def task(job: str) -> Iterator[str]:
        yield job
        raise NotFound("no such adapter") if job == "studio" else ValueError("broken")

    package = Package()
    call = ZeroGpu(package)(task, len)
    assert package.durations == [len]
    for job, kind, text in (("studio", NotFound, "no such adapter"), ("other", GpuError, "ZeroGPU: broken.")):
        values = call(job)
        assert next(values) == job
        with pytest.raises(StudioError, match=text) as raised:
            next(values)
        assert type(raised.value) is kind


def test_the_page_loads_adapters_without_the_gpu_that_torch_reports(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from core.model.base import load_base
    from core.model.resident import Resident

    def refuse(*args: Any) -> None:
        raise RuntimeError("Low-level CUDA init")  # as the package does in the process of the page

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", refuse)
    resident = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path / "ws"))
    resident.add_adapter("notes", {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})
    assert resident.peft is not None and "notes" in resident.peft.peft_config
