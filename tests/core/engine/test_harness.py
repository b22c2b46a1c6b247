"""The lm-evaluation-harness on mixes: local tasks, the harness's own figures, and what is said without it."""

from __future__ import annotations

import csv
import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main
from core.engine import Engine
from core.engine.harness import list_figures
from core.errors import NotFound, SpecError
from core.model.resident import Resident
from core.spec.harness import HarnessSettings
from core.spec.mix import Mix
from tests.conftest import SENTENCES
from tests.core.merge.test_bake import SHAPES, add_random_adapter

NAME = next(iter(SHAPES))
MIX = Mix(name="mixed", weights={NAME: 1.0})
needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="the extra `harness` (lm-eval) is not installed"
)
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
"""
TASKS = {
    "rooms_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "rooms_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}]
""",
    "rooms_answer": """
output_type: generate_until
doc_to_text: "{{question}} "
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 10, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of the harness over 12 rows of our own."""
    folder = tmp_path_factory.mktemp("tasks")
    rooms = ("north", "south", "cold", "dry")
    rows = [
        {
            "question": f"Where is the {s.split()[1]} {s.split()[2]}?",
            "choices": [f" in the {r} room" for r in rooms],
            "label": rooms.index(s.split()[7]),
            "answer": s,
            "text": " ".join(SENTENCES[i : i + 30]),  # longer than the context
        }
        for i, s in enumerate(SENTENCES[:12])
    ]
    data = folder / "rooms.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    for name, text in TASKS.items():
        common = COMMON.format(data=data, cache=folder / "cache")
        (folder / f"{name}.yaml").write_text(f"task: {name}{common}{text}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), "none", "cpu") as made:
        resident: Resident = made.worker.call(made.resident_base.get)
        add_random_adapter(resident, NAME, *SHAPES[NAME])
        yield made


def load_theirs(engine: Engine, base: Path) -> Any:
    """The harness's own model: transformers with the adapter loaded by peft.

    Its argument `peft` is not used: it cuts the vocabulary of this base to that of its tokenizer, which is
    smaller, and so changes every probability.
    """
    from lm_eval.models.huggingface import HFLM
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(model, engine.workspace.find("adapters", NAME))
    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(base), batch_size=3)


@pytest.fixture
def ignore_foreign_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@needs_harness
@pytest.mark.usefixtures("ignore_foreign_warnings")
def test_figures_equal_the_harness_with_transformers_and_peft(
    engine: Engine, tasks: Path, tiny_base: Path
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    steps = []
    settings = HarnessSettings(tasks=tuple(TASKS), tasks_folder=str(tasks), resamples=2)
    report = engine.harness.measure([Mix(name="base"), MIX], settings, steps.append)
    theirs = simple_evaluate(
        model=load_theirs(engine, tiny_base),
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=2,
    )
    expected = list_figures(theirs)
    ours = {k: report.rows[1][k] for k in expected}
    assert set(expected) >= {"rooms_choice acc", "rooms_choice acc_norm", "rooms_text word_perplexity"}
    for name, value in expected.items():  # a standard error may be none
        assert ours[name] == (None if value is None else pytest.approx(value, rel=1e-4)), name
    assert report.rows[0]["rooms_text word_perplexity"] != ours["rooms_text word_perplexity"]
    # Each kind of request counts from the beginning of its mix.
    assert all(0 <= s.done <= s.total for s in steps) and steps[-1].done == steps[-1].total


@needs_harness
@pytest.mark.usefixtures("ignore_foreign_warnings")
def test_every_request_equals_the_harness_with_transformers_and_peft(
    engine: Engine, tasks: Path, tiny_base: Path
) -> None:
    from lm_eval.api.instance import Instance

    from core.evaluate.harness_model import MixModel

    def run(steps: Any) -> Any:
        return engine.worker.stream(lambda: steps(engine.resident_base.get())).last()

    base = engine.worker.call(engine.resident_base.get).base
    ours = MixModel(base, MIX, run)
    theirs = load_theirs(engine, tiny_base)

    def ask(kind: str, *arguments: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
        made = [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]
        return getattr(ours, kind)(made), getattr(theirs, kind)(made)

    long = " ".join(SENTENCES)
    pairs = [
        ("", "The red lamp"),
        ("The red ", "lamp is"),
        ("The old", " bell"),
        (long, " room"),
        ("x", "<|end|>"),
    ]
    for (nats, greedy), (expected, is_greedy) in zip(*ask("loglikelihood", *pairs), strict=True):
        assert nats == pytest.approx(expected, abs=1e-4) and greedy == is_greedy
    texts = [("The red lamp.",), (long,), ("",)]
    for nats, expected in zip(*ask("loglikelihood_rolling", *texts), strict=True):
        assert nats == pytest.approx(expected, abs=1e-3)
    settings = {"until": ["room", "\n"], "max_gen_toks": 9}
    found, expected_texts = ask(
        "generate_until", ("The red", settings), (long, settings), ("The", {"max_gen_toks": 5})
    )
    assert found == expected_texts
    history = [{"role": "user", "content": "Where?"}]
    assert ours.apply_chat_template(history) == theirs.apply_chat_template(history)


@needs_harness
@pytest.mark.usefixtures("ignore_foreign_warnings")
def test_the_terminal_prints_the_figures_and_keeps_the_versions(
    engine: Engine, tasks: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--workspace", str(tmp_path / "ws"), "--base", str(tiny_base), "--quantization", "none"]
    arguments += ["--harness", "rooms_choice", "--tasks-folder", str(tasks), "--limit", "5", "--mix", ""]
    assert main(["evaluate", *arguments, "--json"]) == 0
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    (row,) = csv.DictReader(line for line in out.splitlines() if line.startswith(("name,", "base,")))
    assert float(row["rooms_choice acc"]) == report["rows"][0]["rooms_choice acc"]
    kept = json.loads((tmp_path / "ws" / "reports" / report["id"] / "harness.json").read_text())
    assert kept["versions"]["lm_eval"] and kept["versions"]["transformers"]
    assert kept["mixes"][0]["n-samples"]["rooms_choice"] == {"original": 12, "effective": 5}


@needs_harness
@pytest.mark.usefixtures("ignore_foreign_warnings")
def test_an_unknown_task_is_named(engine: Engine) -> None:
    with pytest.raises(NotFound, match="no task 'arc_hard'"):
        engine.harness.measure([Mix()], HarnessSettings(tasks=("arc_hard",)))
    with pytest.raises(NotFound, match="folder '/nowhere' does not exist"):
        engine.harness.measure([Mix()], HarnessSettings(tasks=("x",), tasks_folder="/nowhere"))


def test_without_the_extra_the_error_names_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "lm_eval" else found(n))
    with pytest.raises(
        SpecError, match=r'not installed. Install it: pip install "adapter-studio\[harness\]"'
    ):
        engine.harness.measure([Mix()], HarnessSettings(tasks=("arc_easy",)))


def test_nothing_to_measure_is_refused_before_the_harness_is_loaded(engine: Engine) -> None:
    for mixes, tasks, said in (([], ("arc_easy",), "No mix"), ([Mix()], (), "No task")):
        with pytest.raises(SpecError, match=said):
            engine.harness.measure(mixes, HarnessSettings(tasks=tasks))
    with pytest.raises(SpecError, match="Shots must be between -1 and 1000, got 1001"):
        HarnessSettings(shots=1001)


def test_a_dataset_or_tasks_must_be_named(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["evaluate", "--workspace", str(tmp_path / "ws"), "--base", str(tiny_base), "--mix", ""]
    for extra in ([], ["--dataset", "d", "--harness", "arc_easy"]):
        assert main([*common, *extra]) == 1
        assert "Exactly one of --dataset and --harness" in capsys.readouterr().err
