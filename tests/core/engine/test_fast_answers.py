"""Which weights answer: the choice, its probe, and what stays in the base's own precision."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.model import fast_choice
from core.spec.mix import Mix, Sampling

GREEDY = Sampling(temperature=0, max_new_tokens=3)


def wait_for_answers(engine: Engine) -> str:
    """The sentence about the answers once nothing is prepared any more."""
    engine.resident_base.wait()
    end = time.monotonic() + 60
    while "prepared" in engine.resident_base.info.answers:
        assert time.monotonic() < end
        time.sleep(0.02)
    return engine.resident_base.info.answers


def ask(engine: Engine, **how: Any) -> str | None:
    """The precision on the stamp of an answer."""
    stream = engine.chat.stream("Where is the red lamp?", [Mix()], GREEDY, **how)
    return stream.last().columns[0].stamp.get("answered_in")  # type: ignore[no-any-return]


def test_fast_answers_come_from_8_bit_weights(tiny_base: Path, tmp_path: Path) -> None:
    with Engine(tmp_path, str(tiny_base), answers="fast") as engine:
        assert wait_for_answers(engine).startswith("8-bit weights")
        assert ask(engine) == "int8"
        assert ask(engine, exact=True) is None


@pytest.mark.parametrize(("mode", "sentence"), [("auto", "small base"), ("exact", "")])
def test_a_small_base_answers_in_its_own_precision(
    mode: str, sentence: str, tiny_base: Path, tmp_path: Path
) -> None:
    with Engine(tmp_path, str(tiny_base), answers=mode) as engine:
        assert sentence in wait_for_answers(engine)
        assert ask(engine) is None
        assert engine.resident_base.get().base.packed is None


@pytest.mark.parametrize(("speedup", "precision"), [(1.2, None), (2.0, "int8")])
def test_a_probe_decides_once_per_base(
    speedup: float, precision: str | None, tiny_base: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    probes: list[fast_choice.Probe] = []

    def measure(*_: Any) -> fast_choice.Probe:
        probes.append(fast_choice.Probe(speedup, 0.95, 0.1, fast_choice.describe_machine()))
        return probes[-1]

    monkeypatch.setattr(fast_choice, "measure", measure)
    monkeypatch.setattr(fast_choice, "LEAST_PARAMETERS", 0)
    for _ in range(2):
        with Engine(tmp_path, str(tiny_base), answers="auto") as engine:
            assert f"{speedup} times as fast" in wait_for_answers(engine)
            assert ask(engine) == precision
    assert len(probes) == 1


def test_a_damaged_or_foreign_probe_is_measured_again(tiny_base: Path, tmp_path: Path) -> None:
    with Engine(tmp_path, str(tiny_base), answers="fast") as engine:
        wait_for_answers(engine)
        path = engine.workspace.probes_path
    stored = json.loads(path.read_text(encoding="utf-8"))
    ((fingerprint, record),) = stored.items()
    assert 0 <= record["agreement"] <= 1 and record["speedup"] > 0
    for content in ("[", json.dumps([1]), json.dumps({fingerprint: {**record, "machine": "another"}})):
        path.write_text(content, encoding="utf-8")
        with Engine(tmp_path, str(tiny_base), answers="fast") as engine:
            assert wait_for_answers(engine).startswith("8-bit weights")
        assert json.loads(path.read_text(encoding="utf-8"))[fingerprint]["machine"] == record["machine"]


def test_without_a_compiler_answers_stay_exact(tiny_base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def fail(block: int) -> None:
        raise ImportError("No module named 'llvmlite'")

    monkeypatch.setattr(fast_choice, "compile_kernels", fail)
    with Engine(tmp_path, str(tiny_base), answers="fast") as engine:
        assert "llvmlite" in wait_for_answers(engine)
        assert ask(engine) is None
