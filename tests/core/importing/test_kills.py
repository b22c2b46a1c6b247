"""A studio with a model that is killed while it imports: the library, and every logit, are as before."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from core.engine import Engine
from core.model.generate import inference_mode_for
from core.spec.mix import Mix
from tests.core.importing.makers import PREFIX, pack
from tests.core.importing.test_refusals import factors, put

ROOT = Path(__file__).resolve().parents[3]
IMPORTER = """
import sys
from core.engine import Engine
engine = Engine(sys.argv[1], sys.argv[2], "none", "cpu")
engine.bases.current(wait=True)
engine.adapter_imports.examine(sys.argv[3])  # has imported everything
print("ready", flush=True)
while True:
    engine.adapter_imports.add(sys.argv[3], "Foreign", ["use-alone"])
"""


def logits(engine: Engine, weights: dict[str, float]) -> torch.Tensor:
    def work() -> torch.Tensor:
        resident, mixes = engine.resident_base.get(), [Mix(), Mix(weights=weights)]
        resident.load_adapters(mixes)
        with inference_mode_for(resident, resident.rows(mixes)):
            values: torch.Tensor = resident.model(input_ids=torch.tensor([[5, 9, 40, 77]] * 2)).logits
            return values

    return engine.worker.call(work)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_import_leaves_the_library_whole_and_logits_bit_equal(
    tiny_base: Path, tmp_path: Path
) -> None:
    with Engine(tmp_path / "ws", str(tiny_base), "none", "cpu") as engine:
        engine.bases.current(wait=True)
        mine = engine.adapter_imports.add(str(put(tmp_path / "mine")), "Mine")
        before = logits(engine, {mine.id: 0.7})
    head = torch.randn(384, 64, generator=torch.Generator().manual_seed(2))
    source = pack(
        put(tmp_path / "foreign", {**factors(), f"{PREFIX}lm_head.weight": head}), tmp_path / "foreign.zip"
    )
    rng = random.Random(int(os.environ.get("KILL_SEED", "3")))
    for _ in range(int(os.environ.get("KILLS", "1"))):
        command = [sys.executable, "-c", IMPORTER, str(tmp_path / "ws"), str(tiny_base), str(source)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.02, 0.4))
        process.kill()
        process.wait(10)
    with Engine(tmp_path / "ws", str(tiny_base), "none", "cpu") as engine:
        engine.bases.current(wait=True)
        adapters = engine.library.adapters()
        assert engine.library.damaged() == [] and mine.id in {a.id for a in adapters}
        for adapter in adapters:
            assert engine.library.verify(adapter.id)
        assert torch.equal(logits(engine, {mine.id: 0.7}), before)
        whole = [a for a in adapters if a.id != mine.id]
        assert all(torch.equal(logits(engine, {a.id: 1.0})[0], before[0]) for a in whole)
        assert len({a.sha256 for a in whole}) <= 1
    left = [p.name for p in (tmp_path / "ws").rglob(".*") if p.name not in (".lock", ".owner")]
    assert json.dumps(left) == "[]"
