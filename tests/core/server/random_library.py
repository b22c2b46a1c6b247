"""An engine on the random tiny base with three random adapters, whose answers are long and differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from core.engine import Engine
from core.spec.gate import GateCalibration
from core.store import adapters
from core.store.gate_records import make_gate
from tests.core.merge.test_bake import SHAPES, add_random_adapter


@contextlib.contextmanager
def open_engine(tiny_base: Path, folder: Path) -> Iterator[Engine]:
    """Adapters law, chat and odd, called "Law", "Chat" and "Odd"; answers end at their limit only."""
    with Engine(folder, str(tiny_base), quantization="none", device="cpu") as engine:
        engine.bases.current(wait=True)

        def prepare() -> None:
            resident = engine.resident_base.get()
            resident.base.model.generation_config.eos_token_id = []
            with torch.no_grad():  # the tied head gives the end token a logit of 0
                head = resident.base.model.get_output_embeddings().weight
                head[resident.base.tokenizer.eos_token_id] = 0
            for name, shape in SHAPES.items():
                adapters.rename(engine.workspace, add_random_adapter(resident, name, *shape), name.title())

        engine.worker.call(prepare)
        yield engine


def find_id(engine: Engine, name: str) -> str:
    """The id of the adapter with this name."""
    return engine.library.find_adapter(name)


def calibrate_gate(engine: Engine, adapter_id: str, threshold: float = -100.0, area: float = 1.0) -> None:
    """Gives an adapter a gate; with the default threshold it is always open."""
    fingerprint = engine.bases.current().fingerprint
    made = GateCalibration(
        threshold, 0.02, area, (1.0, 0.05), (0.0, 0.05), (8, 8), base_fingerprint=fingerprint
    )

    def store() -> None:
        adapters.set_gate(engine.workspace, adapter_id, make_gate(made, "its own data"))
        engine.resident_base.get().set_calibration(adapter_id, made)

    engine.worker.call(store)
