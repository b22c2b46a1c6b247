"""The weights of an idle base lie in a file: nothing changes but the memory."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.errors import DiskFull
from core.model import mapped_weights
from core.spec.mix import Mix, Sampling
from core.spec.training import TrainSpec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="weights are mapped on Linux only")


@pytest.fixture
def maps_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps the tiny base, which is too small for it."""
    monkeypatch.setattr(mapped_weights, "LEAST_BYTES", 0)
    monkeypatch.setattr(mapped_weights, "LEAST_TENSOR_BYTES", 0)


def wait_for_mapping(engine: Engine) -> None:
    """Waits until the weights lie in the file."""
    engine.resident_base.wait()
    end = time.monotonic() + 60
    while not engine.resident_base.file_bytes:
        assert time.monotonic() < end
        time.sleep(0.02)


def count_resident_bytes(folder: Path) -> int:
    """Bytes in memory of the mapped files of a folder."""
    found, is_mapped = [], False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(" ")[0]:
            is_mapped = str(folder) in line
        elif is_mapped and line.startswith("Rss:"):
            found.append(int(line.split()[1]) * 1024)
    assert found, "no file of the folder is mapped"
    return sum(found)


def train(engine: Engine, pairs: Path) -> tuple[list[Any], str]:
    """The losses of a run, and an answer of its adapter."""
    data = engine.datasets.import_files([pairs], "Pairs", "task")
    spec = TrainSpec(
        kind="task", name="A", dataset=data.id, max_steps=3, batch_size=2, accumulation=1, max_length=64
    )
    run = engine.runs.wait(engine.runs.start(spec))
    losses = [e["loss"] for e in engine.runs.events(run.id)[0] if e["kind"] in ("step", "validation")]
    mixes, sampling = [Mix(weights={run.adapter: 1.0})], Sampling(temperature=0, max_new_tokens=8)
    answer = engine.chat.stream("Where is the red lamp?", mixes, sampling, exact=True).last()
    return losses, answer.columns[0].text


@pytest.mark.usefixtures("maps_all")
def test_released_weights_train_and_answer_to_the_bit(
    tiny_base: Path, tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []  # bytes in memory right after a release
    release = mapped_weights.MappedWeights.release

    def release_and_count(self: Any) -> None:
        release(self)
        left.append(count_resident_bytes(tmp_path / "mapped"))

    monkeypatch.setattr(mapped_weights.MappedWeights, "release", release_and_count)
    with Engine(tmp_path / "mapped", str(tiny_base), answers="exact") as engine:
        wait_for_mapping(engine)
        size = sum(p.numel() * 4 for p in engine.resident_base.get().base.model.parameters())
        assert size <= engine.resident_base.file_bytes < size + 4096 * 40
        mapped = train(engine, pairs)
        assert left == [0, 0]  # after loading, and after the run
        assert count_resident_bytes(engine.workspace.root) > 0  # the answer has read them
        assert not [p for p in engine.workspace.root.iterdir() if p.name.startswith("tmp")]
    monkeypatch.setattr(mapped_weights, "choose_weights", lambda base: [])
    with Engine(tmp_path / "usual", str(tiny_base), answers="exact") as engine:
        assert train(engine, pairs) == mapped
        assert not engine.resident_base.file_bytes


@pytest.mark.usefixtures("maps_all")
def test_8_bit_answers_do_not_hold_the_weights(tiny_base: Path, tmp_path: Path) -> None:
    texts = []
    with Engine(tmp_path, str(tiny_base), answers="fast") as engine:
        wait_for_mapping(engine)
        assert count_resident_bytes(tmp_path) == 0
        packed = engine.resident_base.get().base.packed
        embedding = engine.resident_base.get().base.model.model.embed_tokens.weight
        assert packed.token_vectors.data_ptr() == embedding.data_ptr()
        for exact in (False, True):
            sampling = Sampling(temperature=0, max_new_tokens=4)
            stream = engine.chat.stream("Where is the red lamp?", [Mix()], sampling, exact=exact)
            texts.append(stream.last().columns[0].stamp.get("answered_in"))
    assert texts == ["int8", None]


@pytest.mark.usefixtures("maps_all")
def test_a_full_disk_leaves_the_weights_in_memory(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    def refuse(path: Path, need_bytes: int) -> None:
        refused.append(need_bytes)
        raise DiskFull("The disk is full.")

    monkeypatch.setattr(mapped_weights, "ensure_space", refuse)
    with Engine(tmp_path, str(tiny_base), answers="exact") as engine:
        engine.resident_base.wait()
        end = time.monotonic() + 30
        while not refused:
            assert time.monotonic() < end
            time.sleep(0.02)
        answer = engine.chat.stream("Where?", [Mix()], Sampling(temperature=0, max_new_tokens=2)).last()
        assert answer.columns[0].text and not engine.resident_base.file_bytes


def test_a_small_base_stays_in_memory(tiny_base: Path) -> None:
    from core.model.base import load_base

    assert mapped_weights.choose_weights(load_base(str(tiny_base), "none", "cpu")) == []


def test_the_memory_estimate_counts_weights_in_the_file_as_used(
    tiny_base: Path, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.train import memory

    monkeypatch.setattr(memory, "available_bytes", lambda on_gpu: 5_000_000_000)
    with Engine(tmp_path / "w", str(tiny_base), answers="exact") as engine:
        engine.resident_base.wait()
        data = engine.datasets.import_files([corpus], "Texts", "domain")
        spec = TrainSpec(kind="domain", name="A", dataset=data.id, max_length=64)
        before = engine.runs.estimate_memory(spec)
        monkeypatch.setattr(type(engine.resident_base), "file_bytes", 2_000_000_000)
        after = engine.runs.estimate_memory(spec)
    assert before and after and before.text != after.text
    assert "3.0 GB are free" in after.text and "5.0 GB are free" in before.text
