"""The main job without a browser: import, train domain and task, compare, evaluate.

The same verbs that the page uses, on the sample data with the embedded preset. Knows the order and the
names of the mixes; knows nothing of printing.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from core.data.samples import Samples
from core.engine import Engine
from core.errors import RunError
from core.spec.mix import Mix, Sampling
from core.spec.presets import resolve
from core.spec.settings import SEED
from core.spec.training import RunStatus
from core.store.events import StepEvent, of_kind

SHARES = {"domain": 0.36, "task": 0.2, "task (apart)": 0.14}  # of the demo's time, measured
FIGURES = (
    "exact_match",
    "f1",
    "recall",
    "domain_perplexity",
    "general_perplexity",
    "general_exact_match",
    "tokens_per_second",
    "latency_seconds",
)


@dataclass
class Moment:
    """Where the demo is: a share of its work from 0 to 1, a sentence, and at the end the result."""

    share: float
    text: str
    result: dict[str, Any] | None = None
    answers: dict[str, str] = field(default_factory=dict)


def run(engine: Engine, samples: Samples | None = None, seed: int = SEED) -> Iterator[Moment]:
    """Runs the main job.

    Args:
        samples: the data; the sample data that ships with the studio if None.
        seed: of the training runs.

    Yields:
        Moments; the last one has `result`: {"mixes": name -> figures, "seconds": ..., "training": ...}.

    Raises:
        RunError: a run did not end well.
    """
    begin = time.monotonic()
    samples = samples or Samples()
    yield Moment(0.0, "Importing the sample data")
    corpus = engine.datasets.import_files(samples.domain, "Sample domain", "domain", seed=SEED)
    pairs = engine.datasets.import_files([samples.task], "Sample task", "task", seed=SEED)
    engine.bases.current(wait=True)
    adapters: dict[str, str] = {}
    training: dict[str, Any] = {}
    share = 0.02
    for name, kind, dataset, below in (
        ("domain", "domain", corpus.id, ""),
        ("task", "task", pairs.id, "domain"),
        ("task (apart)", "task", pairs.id, ""),
    ):
        spec = resolve(
            kind,
            "embedded",
            {"name": f"Demo {name}", "dataset": dataset, "stack_on": adapters.get(below, ""), "seed": seed},
        )
        run_id = engine.runs.start(spec)
        yield from _follow(engine, run_id, name, share)
        share += SHARES[name]
        ended = engine.runs.get(run_id)
        if ended.status is not RunStatus.DONE:
            raise RunError(
                f"The {name} run ended as {ended.status.value}. {ended.error}",
                "See the run's events for why.",
            )
        adapters[name] = ended.adapter
        adapter = engine.library.adapter(ended.adapter)
        training[name] = {"seconds": adapter.metadata["runtime"]["seconds"], **adapter.results}
    mixes = _mixes(adapters)
    question = samples.questions()[0]["messages"][0]["content"]
    frame = engine.chat.stream(question, mixes, Sampling(max_new_tokens=48)).last()
    answers = {m.name: c.text for m, c in zip(mixes, frame.columns, strict=True)}
    yield Moment(share, f"Compared on: {question}", answers={question: "", **answers})
    report = yield from _measure(engine, mixes, samples, corpus.id, share)
    rows = {r["name"]: {k: r[k] for k in FIGURES if k in r} for r in engine.evaluation.report(report).rows}
    yield Moment(
        1.0, "Done", {"mixes": rows, "seconds": round(time.monotonic() - begin, 1), "training": training}
    )


def _mixes(adapters: dict[str, str]) -> list[Mix]:
    domain, task, apart = adapters["domain"], adapters["task"], adapters["task (apart)"]
    return [
        Mix(name="base"),
        Mix(name="domain", weights={domain: 1.0}),
        Mix(name="task", weights={task: 1.0}),
        Mix(name="task (apart)", weights={apart: 1.0}),
        Mix(name="domain+task", weights={domain: 1.0, task: 1.0}),
        Mix(name="domain+task (summed)", weights={domain: 1.0, apart: 1.0}),
    ]


def _follow(engine: Engine, run_id: str, name: str, share: float) -> Iterator[Moment]:
    """Moments of one run, read from its log like any other watcher does."""
    cursor = 0
    while engine.runs.get(run_id).status.is_alive:
        events, cursor = engine.runs.events(run_id, cursor)
        for e in of_kind(events, StepEvent):
            part = e["step"] / e["total_steps"]
            yield Moment(
                share + SHARES[name] * part,
                f"Training {name}: step {e['step']}/{e['total_steps']}, loss {e['loss']:.2f}",
            )
        time.sleep(0.2)


def _measure(
    engine: Engine, mixes: list[Mix], samples: Samples, corpus: str, share: float
) -> Generator[Moment, None, str]:
    from core.evaluate.measure import EvaluationData

    material = EvaluationData(
        questions={"": samples.questions(), "general": samples.general_questions()},
        texts={"domain": [r["text"] for r in engine.datasets.rows(corpus, "test", limit=10**9)]},
        trusted_texts={"general": samples.texts("general_heldout")},
        cloze=samples.recall_probe(),
    )
    progress = None
    for progress in engine.evaluation.measure_data(mixes, lambda: material, corpus, "Held-out questions", "test"):
        yield Moment(
            share + (1 - share) * progress.done / max(progress.total, 1), f"Evaluating: {progress.text}"
        )
    assert progress is not None
    return str(progress.report)
