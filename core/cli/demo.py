"""The main job without a browser: imports the sample data, trains adapters, and compares and measures mixes.

It calls the engine as the page does, with the preset of the base. Printing is in `core/cli/mixes.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from core.data.samples import Samples
from core.engine import Engine
from core.errors import RunError
from core.spec.mix import Mix, Sampling
from core.spec.presets import resolve, suggest_preset
from core.spec.settings import SEED
from core.spec.training import RunStatus, TrainSpec
from core.store.events import StepEvent, of_kind

IMPORT_SHARE = 0.02  # of the demo's time
TRAINING_SHARES = {"domain": 0.36, "task": 0.2, "task (apart)": 0.14}  # of the demo's time, measured
FIGURES = (
    "exact_match",
    "paraphrased_exact_match",
    "f1",
    "recall",
    "domain_perplexity",
    "general_perplexity",
    "general_exact_match",
    "tokens_per_second",
    "latency_seconds",
)


@dataclass
class DemoProgress:
    """How far the demo is.

    Attributes:
        share: of its time, from 0 to 1.
        text: what it does; the part before a colon names the activity.
        result: None until the end.
        answers: mix name to answer, once the mixes are compared.
    """

    share: float
    text: str
    result: dict[str, Any] | None = None
    answers: dict[str, str] = field(default_factory=dict)


def run_demo(
    engine: Engine,
    samples: Samples | None = None,
    seed: int = SEED,
    train: Callable[[TrainSpec], str] | None = None,
) -> Iterator[DemoProgress]:
    """Runs the main job.

    Args:
        samples: the data; None takes the sample data that ships with the studio.
        seed: of the training runs.
        train: trains an adapter, or finds it, and returns its id; None starts a run for each.

    Yields:
        progress; the last one has `result`: {"mixes": name -> figures, "seconds": ..., "training": ...}.

    Raises:
        RunError: a run did not finish.
    """
    begin = time.monotonic()
    samples = samples or Samples()
    yield DemoProgress(0.0, "Importing the sample data")
    corpus = engine.datasets.import_files(samples.domain, "Sample domain", "domain", seed=SEED)
    pairs = engine.datasets.import_files([samples.task], "Sample task", "task", seed=SEED)
    base = engine.bases.current(wait=True)
    preset = suggest_preset(base.name, base.family, base.parameters)
    adapters: dict[str, str] = {}
    training: dict[str, Any] = {}
    share = IMPORT_SHARE
    for name, kind, dataset, parent in (
        ("domain", "domain", corpus.id, ""),
        ("task", "task", pairs.id, "domain"),
        ("task (apart)", "task", pairs.id, ""),
    ):
        spec = resolve(
            kind,
            preset,
            {
                "name": f"Demo {name}",
                "dataset": dataset,
                "stack_on": adapters.get(parent, ""),
                "seed": seed,
            },
        )
        if train is None:
            adapters[name] = yield from _train(engine, spec, name, share)
        else:
            adapters[name] = train(spec)
        share += TRAINING_SHARES[name]
        adapter = engine.library.adapter(adapters[name])
        training[name] = {"seconds": adapter.metadata["runtime"]["seconds"], **adapter.results}
    mixes = _make_mixes(adapters)
    question = samples.questions()[0]["messages"][0]["content"]
    frame = engine.chat.stream(question, mixes, Sampling(max_new_tokens=48)).last()
    answers = {m.name: c.text for m, c in zip(mixes, frame.columns, strict=True)}
    yield DemoProgress(share, f"Answering: {question}", answers={question: "", **answers})
    report_id = yield from _measure(engine, mixes, samples, corpus.id, share)
    report = engine.evaluation.report(report_id)
    rows = {r["name"]: {k: r[k] for k in FIGURES if k in r} for r in report.rows}
    seconds = round(time.monotonic() - begin, 1)
    yield DemoProgress(1.0, "Done", {"mixes": rows, "seconds": seconds, "training": training})


def _make_mixes(adapters: dict[str, str]) -> list[Mix]:
    domain, task, apart = adapters["domain"], adapters["task"], adapters["task (apart)"]
    return [
        Mix(name="base"),
        Mix(name="domain", weights={domain: 1.0}),
        Mix(name="task", weights={task: 1.0}),
        Mix(name="task (apart)", weights={apart: 1.0}),
        Mix(name="domain+task", weights={domain: 1.0, task: 1.0}),
        Mix(name="domain+task (summed)", weights={domain: 1.0, apart: 1.0}),
    ]


def _train(engine: Engine, spec: TrainSpec, name: str, share: float) -> Generator[DemoProgress, None, str]:
    """Runs and follows one run; returns the id of its adapter."""
    run_id = engine.runs.start(spec)
    yield from _follow_run(engine, run_id, name, share)
    run = engine.runs.get(run_id)
    if run.status is not RunStatus.DONE:
        raise RunError(
            f"The {name} run did not finish ({run.status.value}). {run.error}",
            f"`runs follow {run_id}` shows its events.",
        )
    return run.adapter


def _follow_run(engine: Engine, run_id: str, name: str, share: float) -> Iterator[DemoProgress]:
    """Progress of one run, read from its event log."""
    cursor = 0
    while engine.runs.get(run_id).status.is_alive:
        events, cursor = engine.runs.events(run_id, cursor)
        for e in of_kind(events, StepEvent):
            yield DemoProgress(
                share + TRAINING_SHARES[name] * e["step"] / e["total_steps"],
                f"Training {name}: step {e['step']}/{e['total_steps']}, loss {e['loss']:.2f}",
            )
        time.sleep(0.2)


def _measure(
    engine: Engine, mixes: list[Mix], samples: Samples, corpus_id: str, share: float
) -> Generator[DemoProgress, None, str]:
    """Measures the mixes on held-out questions and texts; returns the report's id."""
    from core.evaluate.measure import EvaluationData

    general = samples.general_for(engine.bases.current().name)
    paraphrases = samples.paraphrases()
    data = EvaluationData(
        questions={
            "": samples.questions(),
            **({"paraphrased": paraphrases} if paraphrases else {}),
            "general": general.general_questions(),
        },
        texts={"domain": [r["text"] for r in engine.datasets.rows(corpus_id, "test")]},
        trusted_texts={"general": general.texts("general_heldout")},
        cloze=samples.recall_probe(),
    )
    progress = None
    stream = engine.evaluation.measure_data(mixes, lambda: data, corpus_id, "Held-out questions", "test")
    for progress in stream:
        part = progress.done / max(progress.total, 1)
        yield DemoProgress(share + (1 - share) * part, f"Evaluating: {progress.text}")
    assert progress is not None
    return str(progress.report)
