"""The part "matrix" of `benchmarks.evidence`: base, base + documents, mix, and mix + documents.

On the embedded base: the shipped domain and three fresh ones, with three seeds of training. On the 135M base:
the museum, with one seed. Each job trains a domain adapter and a task adapter on top of it, and runs the
preset "Does training help, does retrieval help?" on the held-out questions of its domain. Where retrieval
does not beat the base, the gate is void: the context of the embedded base holds few passages.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assets.samples import write_sample
from assets.world.domain import SHIPPED_SEED
from core.data.samples import Samples, find_samples
from core.engine import Engine
from core.engine.experiment_results import ExperimentResults
from core.spec.experiment_presets import ask_what_helps
from core.spec.presets import resolve, suggest_preset
from core.spec.settings import SEED

FRESH, SEEDS = (1, 2, 3), (0, 1, 2)
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
    """One training and its experiment; the domain -1 is the museum in real English."""

    base: str
    domain: int
    seed: int


def list_jobs(quick: bool) -> list[Job]:
    """Every combination of domain and seed on the embedded base, and one on the 135M base."""
    if quick:
        return [Job("embedded", SHIPPED_SEED, 0)]
    embedded = [Job("embedded", domain, seed) for domain in (SHIPPED_SEED, *FRESH) for seed in SEEDS]
    return [*embedded, Job("smollm2-135m", -1, 0)]


def measure_matrix(quick: bool) -> dict[str, Any]:
    """The figures of every job, by its name."""
    return {f"{j.base} domain {j.domain} seed {j.seed}": run_job(j, quick) for j in list_jobs(quick)}


def run_job(job: Job, quick: bool) -> dict[str, Any]:
    """Trains the adapters of a job and runs its experiment, in a temporary workspace."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        samples = find_samples("museum")
        if job.domain >= 0:
            write_sample(root / "sample", job.domain)
            samples = Samples(root / "sample")
        with Engine(root / "workspace", base=job.base) as engine:
            corpus = engine.datasets.import_files(samples.domain, "Domain", "domain", seed=SEED)
            mix = ",".join(train_adapters(engine, samples, corpus.id, job.seed, quick))
            questions = root / "questions.jsonl"
            shutil.copy(samples.questions_file, questions)
            asked = engine.datasets.import_files([questions], "Questions", "task", purpose="evaluation")
            settings = {"split": "all", "limit": QUICK_QUESTIONS if quick else 0}
            key = engine.experiments.start(ask_what_helps(asked.id, mix, [corpus.id], settings))
            status = engine.experiments.wait(key)
            if status.state != "done":
                raise RuntimeError(f"{status.state}: {status.problem}")
            return describe_results(engine.experiments.results(key))


def train_adapters(engine: Engine, samples: Samples, corpus: str, seed: int, quick: bool) -> Iterator[str]:
    """Trains the domain adapter and the task adapter on top of it; yields their ids."""
    pairs = engine.datasets.import_files([samples.task], "Task", "task", seed=SEED)
    base = engine.bases.current(wait=True)
    preset = suggest_preset(base.name, base.family, base.parameters)
    parent = ""
    for kind, dataset in (("domain", corpus), ("task", pairs.id)):
        changes = {"name": kind, "dataset": dataset, "seed": seed, "stack_on": parent}
        spec = resolve(kind, preset, {**changes, **(QUICK if quick else {})})
        run = engine.runs.wait(engine.runs.start(spec))
        if not run.adapter or run.error:
            raise RuntimeError(f"the {kind} run failed: {run.error}")
        parent = run.adapter
        yield run.adapter


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
    retrieval = gains["retrieval on the base"]
    decision = results.decide(both)
    is_void = retrieval is None or retrieval[1] <= 0
    gate = "void: retrieval does not beat the base" if is_void else decision.status
    return {"rows": rows, "factuality_gains": gains, "gate": gate, "gate_text": decision.text}


def round_figure(figure: Any) -> list[float]:
    """(value, low, high) with four decimals."""
    return [round(v, 4) for v in (figure.value, figure.low, figure.high)]
