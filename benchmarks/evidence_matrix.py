"""The part "matrix" of `benchmarks.evidence`: base, base + documents, mix, and mix + documents.

On the embedded base: the shipped domain and three fresh ones, with three seeds of training. On the 135M base:
the museum, with one seed. Each job trains a domain adapter and a task adapter on top of it, and runs the
preset "Does training help, does retrieval help?" on the held-out questions of its domain. Where retrieval
does not beat the base, the gate is void: the context of the embedded base holds few passages.

With a folder as the cache, a job that is complete is read from `<folder>/<job>.json`, and adapters come from
`AdapterCache`, so that an interrupted call continues where it was.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.samples import write_sample
from assets.world.domain import SHIPPED_SEED
from benchmarks.trained_adapters import AdapterCache
from core.data.samples import Samples, find_samples
from core.engine import Engine
from core.engine.experiment_results import ExperimentResults
from core.spec.experiment_presets import ask_what_helps
from core.spec.presets import resolve, suggest_preset
from core.spec.settings import SEED

FRESH, SEEDS = (1, 2, 3), (0, 1, 2)
MUSEUM = -1  # in place of a domain: the sample in real English
SHOWN = (
    "factuality",
    "f1",
    "citation_coverage",
    "citation_precision",
    "unsupported",
    "perplexity",
    "latency",
)
LABELS = ("base", "base + documents", "mix", "mix + documents")
QUICK = {"max_steps": 20}
QUICK_QUESTIONS = 12


@dataclass(frozen=True)
class Job:
    """One training and its experiment."""

    base: str
    domain: int
    seed: int

    @property
    def name(self) -> str:
        """What a reader sees."""
        domain = "museum" if self.domain == MUSEUM else f"domain {self.domain}"
        return f"{self.base} {domain} seed {self.seed}"


def list_jobs(quick: bool) -> list[Job]:
    """Every combination of domain and seed on the embedded base, and one on the 135M base.

    Every domain comes once before any comes twice.
    """
    if quick:
        return [Job("embedded", SHIPPED_SEED, 0)]
    embedded = [Job("embedded", domain, seed) for seed in SEEDS for domain in (SHIPPED_SEED, *FRESH)]
    count = 1 + len(FRESH)
    return [*embedded[:count], Job("smollm2-135m", MUSEUM, 0), *embedded[count:]]


def measure_matrix(quick: bool, cache: Path | None = None) -> dict[str, Any]:
    """The figures of every job, by its name."""
    if cache is not None:
        return _measure_jobs(quick, cache)
    with tempfile.TemporaryDirectory() as folder:
        return _measure_jobs(quick, Path(folder))


def _measure_jobs(quick: bool, cache: Path) -> dict[str, Any]:
    cache.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for job in list_jobs(quick):
        stored = cache / f"{hashlib.sha256(f'{job} {quick}'.encode()).hexdigest()[:12]}.json"
        if not stored.exists():
            figures = run_job(job, quick, cache / "adapters")
            part = stored.with_suffix(".part")
            part.write_text(json.dumps(figures), encoding="utf-8")
            part.rename(stored)
        found[job.name] = json.loads(stored.read_text(encoding="utf-8"))
        print(f"{job.name}: {found[job.name]['factuality_gains']}", file=sys.stderr, flush=True)
    return found


def run_job(job: Job, quick: bool, adapters: Path) -> dict[str, Any]:
    """Trains the adapters of a job and runs its experiment, in a temporary workspace.

    Args:
        adapters: the folder of an `AdapterCache`.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        samples = find_samples("museum")
        if job.domain != MUSEUM:
            write_sample(root / "sample", job.domain)
            samples = Samples(root / "sample")
        with Engine(root / "workspace", base=job.base) as engine:
            corpus = engine.datasets.import_files(samples.domain, "Domain", "domain", seed=SEED)
            adapters.mkdir(parents=True, exist_ok=True)
            cache = AdapterCache(engine, adapters)
            mix = ",".join(train_adapters(engine, cache, samples, corpus.id, job.seed, quick))
            questions = root / "questions.jsonl"
            shutil.copy(samples.questions_file, questions)
            asked = engine.datasets.import_files([questions], "Questions", "task", purpose="evaluation")
            settings = {"split": "all", "limit": QUICK_QUESTIONS if quick else 0}
            key = engine.experiments.start(ask_what_helps(asked.id, mix, [corpus.id], settings))
            status = engine.experiments.wait(key)
            if status.state != "done":
                raise RuntimeError(f"{status.state}: {status.problem}")
            return describe_results(engine.experiments.results(key))


def train_adapters(
    engine: Engine, cache: AdapterCache, samples: Samples, corpus: str, seed: int, quick: bool
) -> Iterator[str]:
    """Trains the domain adapter and the task adapter on top of it; yields their ids."""
    pairs = engine.datasets.import_files([samples.task], "Task", "task", seed=SEED)
    base = engine.bases.current(wait=True)
    preset = suggest_preset(base.name, base.family, base.parameters)
    parent = ""
    for kind, dataset in (("domain", corpus), ("task", pairs.id)):
        changes = {"name": kind, "dataset": dataset, "seed": seed, "stack_on": parent}
        spec = resolve(kind, preset, {**changes, **(QUICK if quick else {})})
        parent = cache.train(spec)
        yield parent


def describe_results(results: ExperimentResults) -> dict[str, Any]:
    """Figures as (value, low, high), what retrieval and training add, and the gate of mix + documents."""
    base, documents, mix, both = (row.name for row in results.rows)
    rows = {
        label: {m: round_figure(f) for m in SHOWN if (f := (row.figures or {}).get(m))}
        for label, row in zip(
            ("base", "base + documents", "mix", "mix + documents"), results.rows, strict=True
        )
    }
    gains = {}
    for label, first, second in (
        ("retrieval on the base", base, documents),
        ("training", base, mix),
        ("training beside retrieval", documents, both),
        ("retrieval beside training", mix, both),
    ):
        found = results.compare(first, second, "factuality")
        gains[label] = [round(v, 4) for v in (found.gain, found.low, found.high)] if found else None
    decision = results.decide(both)
    return {"rows": rows, "factuality_gains": gains, "gate": decision.status, "gate_text": decision.text}


def round_figure(figure: Any) -> list[float]:
    """(value, low, high) with four decimals."""
    return [round(v, 4) for v in (figure.value, figure.low, figure.high)]
