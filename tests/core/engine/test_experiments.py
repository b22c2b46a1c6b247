"""Experiments: cell by cell, resumable, cached by content, compared inside groups only, and the gate."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import _choose_quantization, build_parser
from core.engine import Engine, experiment_html
from core.engine.experiment_results import check_group
from core.errors import NotFound, SpecError
from core.spec.experiment import ExperimentRow, ExperimentSpec
from core.spec.experiment_presets import ask_what_helps, plan_size_series
from core.store import experiments as store
from tests.conftest import SENTENCES
from tests.core.server.random_library import open_engine

pytestmark = pytest.mark.slow
QUESTIONS = 6


class _Model(BaseHTTPRequestHandler):
    """An OpenAI-compatible address that answers from the passages, and can be down."""

    def do_POST(self) -> None:  # noqa: N802 (the name that http.server calls)
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.keys.append(self.headers.get("Authorization"))
        server.left -= 1
        if server.left < 0:
            self.send_response(503)
            self.end_headers()
            return
        lines = [m[2:] for m in body["messages"][-1]["content"].splitlines() if m.startswith("> ")]
        answer = f"{lines[0].rstrip('.')} [1]." if lines else "I do not know."
        value = {"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]}
        content = json.dumps({**value, "usage": {"completion_tokens": 7}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), _Model)
    server.left, server.keys = 10**6, []
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("experiments")
    notes, pairs = folder / "notes.txt", folder / "pairs.jsonl"
    notes.write_text("\n\n---\n\n".join(SENTENCES[:12]), encoding="utf-8")
    rows = [{"question": f"Where is the {s.split()[1]} {s.split()[2]}?", "answer": s} for s in SENTENCES[:12]]
    pairs.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    with open_engine(tiny_base, folder / "ws") as made:
        made.datasets.import_files([notes], "Notes", "domain")
        made.datasets.import_files([pairs], "Pairs", "task")
        yield made


def ids(engine: Engine) -> dict[str, str]:
    return {d.name: d.id for d in engine.datasets.list()}


def four_rows(engine: Engine, **changes: Any) -> ExperimentSpec:
    settings = {
        "split": "all", "limit": QUESTIONS, "general_questions": 2, "timed_questions": 2, "max_new_tokens": 6,
    }  # fmt: skip
    known = ids(engine)
    return ask_what_helps(known["Pairs"], "law", [known["Notes"]], {**settings, **changes})


def run(engine: Engine, spec: ExperimentSpec) -> str:
    key = engine.experiments.start(spec)
    status = engine.experiments.wait(key)
    assert status.state == "done", status.problem
    return key


def test_four_rows_answer_the_same_questions_and_are_compared(engine: Engine) -> None:
    key = run(engine, four_rows(engine))
    results = engine.experiments.results(key)
    assert [r.name for r in results.rows] == ["base", "base + documents", "law", "law + documents"]
    assert {r.state for r in results.rows} == {"done"} and set(results.baselines.values()) == {
        "base + documents"
    }
    for row in results.rows:
        assert row.cell is not None and row.figures is not None
        assert [a.index for a in row.cell.answers] == list(range(QUESTIONS))
        assert len(row.cell.general) == 2 and len(row.cell.timed) == 2 and row.latency_p95
        assert row.figures["factuality"].count == row.figures["perplexity"].count == QUESTIONS
        assert row.figures["latency"].low <= row.figures["latency"].value <= row.figures["latency"].high
        assert bool(row.cell.answers[0].passages or row.cell.answers[0].left_out) is bool(row.row.passages)
    base, mix = results.find("base").cell, results.find("law").cell
    assert base and mix and [a.answer for a in base.answers] != [a.answer for a in mix.answers]
    assert base.general == results.find("base + documents").cell.general  # type: ignore[union-attr]
    difference = results.compare("base", "law", "perplexity")
    assert difference and difference.gain == pytest.approx(difference.value - difference.base)
    assert difference.low <= difference.gain <= difference.high and difference.count == QUESTIONS
    assert "law + documents" in results.csv() and results.csv().count("\n") == 5
    decision = results.decide("law + documents")
    assert decision.baseline == "base + documents" and decision.status in ("fail", "not enough questions")


def test_a_complete_cell_answers_for_the_same_cell_of_another_experiment(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(engine, four_rows(engine))
    import core.engine.experiment_cells as cells

    def refuse(*args: Any) -> Any:
        raise AssertionError("a cached cell is measured again")

    monkeypatch.setattr(cells.ResidentCells, "run", refuse)
    second = run(engine, four_rows(engine, name="Again"))
    before, after = engine.experiments.cells(first), engine.experiments.cells(second)
    assert {n: c.key for n, c in before.items()} == {n: c.key for n, c in after.items()}
    monkeypatch.undo()
    other = run(engine, four_rows(engine, max_new_tokens=5))
    assert {c.key for c in engine.experiments.cells(other).values()}.isdisjoint(
        c.key for c in before.values()
    )


def test_an_experiment_continues_behind_the_answers_on_the_disk(engine: Engine) -> None:
    whole = run(engine, four_rows(engine, max_new_tokens=4))
    cells = engine.experiments.cells(whole)
    left = store.create(engine.workspace, four_rows(engine, max_new_tokens=4), *_base(engine))
    engine.workspace.delete("experiments", whole)  # so that nothing is cached
    cell = cells["law"]
    log = store.CellLog(engine.workspace, left.id, cell.key)
    marked = {**cell.answers[0].__dict__, "answer": "from the disk", "passages": []}
    log.append(store.ANSWER, marked)
    path = engine.workspace.path("experiments", left.id, "cells", f"{cell.key}.jsonl")
    with open(path, "ab") as f:  # the line that a killed process was writing
        f.write(b'{"kind": "answer", "index": 1, "ans')
    assert engine.experiments.states(left.id)["law"] == "not run: the experiment was stopped"
    engine.experiments.resume(left.id)
    assert engine.experiments.wait(left.id).state == "done" and not path.exists()
    continued = engine.experiments.cells(left.id)
    assert continued["law"].answers[0].answer == "from the disk"
    assert [a.answer for a in continued["law"].answers[1:]] == [a.answer for a in cell.answers[1:]]
    assert [a.answer for a in continued["base"].answers] == [a.answer for a in cells["base"].answers]


def _base(engine: Engine) -> tuple[str, str]:
    info = engine.bases.current()
    return info.name, info.fingerprint


def test_rows_that_need_another_base_adapter_or_key_are_not_run(engine: Engine, address: Any) -> None:
    known = ids(engine)
    series = plan_size_series(known["Pairs"], "law", "law", [known["Notes"]])
    assert [r.name for r in series.rows] == [
        "rag_baseline_0p5", "lora_science_0p5_ft", "hybrid_science_0p5",
        "rag_baseline_3b", "lora_science_3b_ft", "hybrid_science_3b", "cloud_eval_v1",
    ]  # fmt: skip
    key = engine.experiments.start(series)
    assert engine.experiments.wait(key).state == "done"
    states = engine.experiments.states(key)
    assert states["cloud_eval_v1"] == (
        "not run: no key is in the environment variable OPENAI_API_KEY, which the terminal reads"
    )
    assert states["hybrid_science_3b"].startswith(
        "not run: it needs the base 'qwen2.5:3b-instruct-q4_K_M'. A"
    )
    assert states["lora_science_3b_ft"].endswith("'Qwen/Qwen2.5-3B-Instruct' is not complete on this machine")
    spec = four_rows(engine, name="Gone")
    gone = store.create(
        engine.workspace, ExperimentSpec.from_json({**spec.to_json(), "mixes": ["gone"]}), *_base(engine)
    )
    assert "no adapter 'gone'" in engine.experiments.states(gone.id)["gone"]


def test_an_address_that_is_down_keeps_its_answers_and_continues(
    engine: Engine, address: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.engine.experiment_address.PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(engine.experiments, "read_variable", {"TEST_KEY": "secret-1"}.get)
    row = ExperimentRow("far", "", "on:2", "", "far", address.url, "model-x", "TEST_KEY")
    known = ids(engine)
    spec = ExperimentSpec(
        name="Far",
        dataset=known["Pairs"],
        split="all",
        limit=QUESTIONS,
        sources=(known["Notes"],),
        rows=(row,),
    )
    address.left = 2
    key = engine.experiments.start(spec)
    status = engine.experiments.wait(key)
    assert status.state == "failed" and "answered with the status 503" in status.problem
    assert "secret" not in status.problem and "The answers so far are kept" in status.problem
    assert engine.experiments.states(key)["far"].startswith("failed: The address")
    address.left, address.keys = 10**6, []
    engine.experiments.resume(key)
    assert engine.experiments.wait(key).state == "done"
    assert address.keys == ["Bearer secret-1"] * (QUESTIONS - 2)
    figures = engine.experiments.results(key).find("far").figures
    assert figures and figures["citation_coverage"].value == 1.0 and figures["support"].value == 1.0
    folder = engine.workspace.path("experiments", key)
    assert all(b"secret-1" not in p.read_bytes() for p in folder.rglob("*") if p.is_file())


def test_rows_of_different_groups_are_not_compared(engine: Engine) -> None:
    small, large = ExperimentRow("a", group="0.5B"), ExperimentRow("b", group="3B")
    with pytest.raises(SpecError, match="0.5B and 3B.*different sizes are not compared"):
        check_group(small, large)
    check_group(small, ExperimentRow("c", group="0.5B"))


def test_questions_without_answers_and_texts_are_refused(engine: Engine) -> None:
    from core.evaluate.answer_figures import choose_metrics

    with pytest.raises(SpecError, match="Factuality and F1 must be compared with reference answers"):
        choose_metrics(["factuality", "latency", "f1"], False)
    assert "factuality" not in choose_metrics([], False) and "support" in choose_metrics([], False)
    with pytest.raises(SpecError, match="holds texts"):
        engine.experiments.start(ExperimentSpec(name="x", dataset=ids(engine)["Notes"], mixes=("",)))
    with pytest.raises(NotFound):
        engine.experiments.find("unknown")


@pytest.mark.parametrize("name", ["base", "a" * 36, "demo-domain-32e5=1,demo-task-0154=1 + documents"])
def test_a_long_name_beside_a_plot_keeps_what_tells_rows_apart(name: str) -> None:
    shown = experiment_html._shorten(name)
    assert len(shown) <= 36 and shown.endswith(name[-17:]) and (shown == name) == (len(name) <= 36)


def test_a_preset_of_experiments_is_none_of_training() -> None:
    args = build_parser().parse_args(["experiment", "run", "--preset", "what-helps", "--dataset", "d"])
    assert args.preset == "what-helps" and _choose_quantization(args) == "auto"
