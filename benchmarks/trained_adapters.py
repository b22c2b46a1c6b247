"""Adapters that several benchmarks train alike, in one folder, so that each is trained once.

    adapters = AdapterCache(engine, Path("trained"))
    adapter_id = adapters.train(spec)          the first time it trains, afterwards it copies

An adapter is found again by what determines it: the rows and splits of its dataset, its settings, the adapter
that it is stacked on, the base, the code that trains, the versions of the libraries and the number of
threads. Names do not count. The copy has the id, the figures and the seconds of the run that trained it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
from pathlib import Path

from core.data.datasets import load_dataset
from core.engine import Engine
from core.spec.training import RunStatus, TrainSpec

ROOT = Path(__file__).resolve().parents[1]
CODE = ("core/data", "core/model", "core/spec", "core/train")  # folders whose code determines an adapter
DATA = ("assets/sample",)  # what a run may replay
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "tokenizers")
NAMES = ("name", "dataset", "stack_on", "replay_dataset", "continue_from")  # of settings


@functools.cache
def digest_code() -> str:
    """A digest of the code that trains, and of the libraries."""
    sha = hashlib.sha256()
    for folder in CODE:
        for file in sorted((ROOT / folder).rglob("*.py")):
            sha.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    for folder in DATA:
        for file in sorted(p for p in (ROOT / folder).rglob("*") if p.is_file()):
            sha.update(f"{file.relative_to(ROOT)}:{file.stat().st_size}\0".encode())
    for name in LIBRARIES:
        sha.update(f"{name}=={importlib.metadata.version(name)}\0".encode())
    return sha.hexdigest()


class AdapterCache:
    """Trains through an engine, or copies into its workspace what was trained before.

    Attributes:
        trained, copied: how many adapters were trained here, and how many were found.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._folder = engine, folder
        self._keys: dict[str, str] = {}  # adapter id -> its key
        self.trained = self.copied = 0

    def train(self, spec: TrainSpec) -> str:
        """Returns the id of the adapter, which is in the library then.

        Raises:
            RuntimeError: the run did not finish.
        """
        key = self.find_key(spec)
        stored = self._folder / key
        adapter = self._copy(stored) if stored.is_dir() else self._train(spec, stored)
        self._keys[adapter] = key
        return adapter

    def find_key(self, spec: TrainSpec) -> str:
        """The name under which the adapter of these settings is stored: a digest of what determines it."""
        workspace = self._engine.workspace
        content = {
            "settings": {k: v for k, v in spec.to_json().items() if k not in NAMES},
            "rows": load_dataset(workspace, spec.dataset).sha256,
            "replayed": load_dataset(workspace, spec.replay_dataset).sha256 if spec.replay_dataset else "",
            "parents": [self._key_of(a) for a in (spec.stack_on, spec.continue_from) if a],
            "base": self._engine.bases.current(wait=True).fingerprint,
            "quantization": self._engine.bases.current().quantization,
            "threads": os.environ.get("OMP_NUM_THREADS", ""),
            "code": digest_code(),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def _key_of(self, adapter: str) -> str:
        """The key of a parent adapter; one that was not trained here counts by its weights."""
        return self._keys.get(adapter) or self._engine.library.adapter(adapter).sha256

    def _train(self, spec: TrainSpec, stored: Path) -> str:
        run = self._engine.runs.wait(self._engine.runs.start(spec), 24 * 3600.0)
        if run.status is not RunStatus.DONE:
            raise RuntimeError(f"The run {run.name!r} did not finish: {run.error or run.status.value}")
        part = stored.with_name(f"{stored.name}.{os.getpid()}.part")
        shutil.copytree(self._engine.workspace.path("adapters", run.adapter), part / run.adapter)
        if stored.exists():
            shutil.rmtree(part)  # another benchmark was faster
        else:
            part.rename(stored)
        self.trained += 1
        return run.adapter

    def _copy(self, stored: Path) -> str:
        (source,) = stored.iterdir()
        target = self._engine.workspace.path("adapters", source.name)
        if not target.exists():
            shutil.copytree(source, target)
        self._engine.library.verify(source.name)
        self.copied += 1
        return source.name
