"""Judges: verdicts once per answer, resumable, and figures only where they agree with people."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.engine import Engine
from core.engine.experiment_html import format_html
from core.engine.experiment_report import make_report, read_report
from core.engine.judges import Judges
from core.errors import NotFound, SpecError
from core.evaluate.judging import list_answers
from core.spec.experiment import ExperimentSpec
from core.spec.judge import JudgeSpec
from core.store import experiments as store
from core.store import judgements
from core.store.experiments import Cell, CellAnswer
from tests.conftest import build_tiny_llama
from tests.core.server.random_library import open_engine

QUESTIONS = 16
KEY = {"JUDGE_KEY": "secret-9"}


class _Judge(BaseHTTPRequestHandler):
    """An OpenAI-compatible address whose reply is a function of the prompt; None is a failure."""

    def do_POST(self) -> None:  # noqa: N802 (the name that http.server calls)
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.bodies.append((self.headers.get("Authorization"), body))
        reply = server.reply(body["messages"][-1]["content"])
        content = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
        self.send_response(503 if reply is None else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


def judge_well(prompt: str) -> str:
    """Good where the reference is in the answer."""
    parts = [part.splitlines() for part in prompt.split("\n\n")]
    texts = {lines[0]: " ".join(lines[1:]) for lines in parts}
    return "Good." if texts["Reference answer:"] == texts["Answer to judge:"] else "poor, I am afraid"


@pytest.fixture(scope="module")
def address() -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), _Judge)
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("judges")
    base = build_tiny_llama(folder / "base", max_position_embeddings=640)
    with open_engine(base, folder / "ws") as made:
        made.experiments.read_variable = KEY.get
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, address: Any) -> None:
    monkeypatch.setattr("core.engine.experiment_address.PAUSE_SECONDS", 0.0)
    address.reply, address.bodies = judge_well, []


def measure(engine: Engine, questions: int = QUESTIONS) -> str:
    """An experiment of three complete rows: of four answers, each row has two of the reference's words."""
    spec = ExperimentSpec(name="Which", dataset="pairs", mixes=("", "law", "chat"))
    made = store.create(engine.workspace, spec, "tiny", "f" * 64)
    for i, row in enumerate(made.rows):
        answers = tuple(
            CellAnswer(
                n, f"Where is lamp {n}?", f"In room {n if (n + i) % 2 else n + 50 + i}.", f"In room {n}."
            )
            for n in range(questions)
        )
        store.save_cell(engine.workspace, made.id, Cell(f"{i:064x}", row.to_json(), {}, answers))
    return made.id


def run(engine: Engine, experiment_id: str, spec: JudgeSpec) -> str:
    key = engine.judges.start(experiment_id, spec)
    status = engine.judges.wait(experiment_id)
    assert status.state == "done", status.problem
    return key


def vote(engine: Engine, experiment_id: str, count: int, decide: Callable[[Any], bool]) -> list[Any]:
    """A person judges so many answers, as they are drawn; returns the answers."""
    seen, ballot = [], engine.judges.draw(experiment_id)
    for _ in range(count):
        seen.append(ballot.answer)
        verdict = "good" if decide(ballot.answer) else "poor"
        ballot = engine.judges.vote(experiment_id, ballot.answer.key, verdict)  # type: ignore[union-attr]
    return seen


def judge_all(engine: Engine, experiment_id: str, decide: Callable[[Any], str], **changes: Any) -> str:
    """Verdicts of a judge at an address, as if it had replied."""
    spec = JudgeSpec(**{"address": "http://far.example/v1", "model": "far", **changes})
    judge = judgements.StoredJudge(hashlib.sha256(repr(spec).encode()).hexdigest()[:16], spec.to_json(), {})
    log = judgements.JudgeLog(engine.workspace, experiment_id, judge)
    for shown in list_answers(engine.experiments.cells(experiment_id)):
        log.append(judgements.Verdict(shown.key, decide(shown)))
    return judge.key


def is_right(shown: Any) -> str:
    return "good" if shown.answer == shown.reference else "poor"


def far(address: Any, **changes: Any) -> JudgeSpec:
    return JudgeSpec(**{"address": address.url, "model": "judge-x", "key_variable": "JUDGE_KEY", **changes})


def test_a_mix_judges_every_answer_once_and_equal_answers_together(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment_id = measure(engine)
    shown = list_answers(engine.experiments.cells(experiment_id))
    assert len(shown) == QUESTIONS * 5 // 2  # in half of the questions two rows agree, else one of them
    first = run(engine, experiment_id, JudgeSpec(mix="law", limit=5))
    ((judge, verdicts),) = judgements.list_judges(engine.workspace, experiment_id)
    assert judge.key == first and len(verdicts) == 5
    assert run(engine, experiment_id, JudgeSpec(mix="law")) == first
    ((_, all_verdicts),) = judgements.list_judges(engine.workspace, experiment_id)
    assert set(all_verdicts) == {s.key for s in shown} and verdicts.items() <= all_verdicts.items()
    assert all(v.verdict == ("good" if v.nats > 0 else "poor") for v in all_verdicts.values())
    assert len({v.nats for v in all_verdicts.values()}) > len(shown) // 2
    monkeypatch.setattr(Judges, "_read_with_mix", lambda self, job, judge, mix, pending, references: pending)
    run(engine, experiment_id, JudgeSpec(mix="law"))  # nothing is left to read
    monkeypatch.undo()
    assert run(engine, experiment_id, JudgeSpec(mix="chat", limit=2)) != first
    assert len(engine.judges.results(experiment_id).judges) == 2


def test_a_verdict_is_measured_from_the_reference_and_a_wrong_answer(engine: Engine) -> None:
    from core.evaluate.judge_scoring import judge_answers
    from core.evaluate.judging import ShownAnswer, choose_anchors
    from core.spec.judge import CRITERIA
    from core.spec.mix import Mix

    references = ["In room 1.", "In room 2."]
    shown = ShownAnswer("Where is lamp 1?", "In room 1.", (), "In room 7.")
    own, other = choose_anchors(shown, CRITERIA, references)
    assert (own.answer, other.answer) == ("In room 1.", "In room 2.")
    (free,) = choose_anchors(shown, "Good if it is polite.", references)
    assert (free.question, free.reference, free.answer) == ("N/A", "N/A", "N/A")

    def judge() -> Any:
        parts = judge_answers(engine.resident_base.get(), Mix(), [shown, own, other], CRITERIA, references)
        return [v for part in parts if part for v in part]

    _, good, poor = engine.worker.call(judge)
    assert good.nats == pytest.approx(-poor.nats, abs=1e-4) and good.nats != 0.0
    assert {good.verdict, poor.verdict} == {"good", "poor"}


def test_an_answer_that_does_not_fit_is_left_without_a_verdict(engine: Engine) -> None:
    experiment_id = measure(engine, 1)
    long = JudgeSpec(criteria="An answer is Good if it is long. " * 30)
    engine.judges.start(experiment_id, long)
    status = engine.judges.wait(experiment_id)
    assert status.state == "failed" and "the context of this base 640" in status.problem
    (found,) = engine.judges.results(experiment_id).judges
    assert found.read == found.unreadable == found.answers


def test_scores_are_shown_only_where_the_judge_agrees_with_people(engine: Engine, address: Any) -> None:
    experiment_id = measure(engine)
    judge_all(engine, experiment_id, is_right, model="judge-x")
    seen = vote(engine, experiment_id, 29, lambda a: a.answer == a.reference)
    assert max(Counter(r for a in seen for r in a.rows).values()) <= 29 // 3 + 6
    (found,) = engine.judges.results(experiment_id).judges
    assert (
        found.text == "not counted yet: 29 of 30 answers judged by both it and a person" and not found.shares
    )
    assert "share of Good" not in format_html(make_report(engine.judges.results(experiment_id)))
    vote(engine, experiment_id, 1, lambda a: a.answer == a.reference)
    results = engine.judges.results(experiment_id)
    (found,) = results.judges
    assert found.counts and found.kappa.value == 1.0 and found.kappa.count == 30
    assert found.text == "counts: agrees with people by kappa 1.00 (1.00 to 1.00) on 30 answers"
    assert found.shares["base"].value == 0.5 and found.shares["base"].count == QUESTIONS
    assert 0.2 < found.shares["base"].low < 0.5 < found.shares["base"].high < 0.8
    report = make_report(results)
    assert "<th>Judge judge-x (share of Good)</th>" in format_html(report)
    assert read_report(json.dumps(report).encode())["judges"][0]["shares"]["base"]["value"] == 0.5
    assert "Judge judge-x (share of Good)_low" in results.csv()
    assert found.column not in results.metrics and "judge" not in str(results.find("base").figures)


def test_a_judge_that_disagrees_with_people_does_not_count(engine: Engine) -> None:
    experiment_id = measure(engine)
    judge_all(engine, experiment_id, is_right)
    vote(engine, experiment_id, 32, lambda a: int(a.key, 16) % 2 == 0)
    results = engine.judges.results(experiment_id)
    (found,) = results.judges
    assert found.kappa.value is not None and found.kappa.value < 0.5
    assert not found.counts and not found.shares
    assert found.text.startswith(f"does not count: agrees with people by kappa {found.kappa.value:.2f} (")
    assert "share of Good" not in results.csv() + format_html(make_report(results))
    judge_all(engine, experiment_id, is_right, criteria="Good if it names a room.")
    assert engine.judges.results(experiment_id).judges[1].kappa.count == 0  # people read other criteria


def test_one_verdict_for_all_answers_leaves_kappa_undefined(engine: Engine) -> None:
    experiment_id = measure(engine)
    judge_all(engine, experiment_id, lambda shown: "good")
    vote(engine, experiment_id, 30, lambda a: True)
    (found,) = engine.judges.results(experiment_id).judges
    assert not found.counts and "which leaves kappa undefined" in found.text


def test_an_unreadable_verdict_disagrees_with_people(engine: Engine) -> None:
    experiment_id = measure(engine)
    judge_all(engine, experiment_id, lambda s: is_right(s) if int(s.key, 16) % 4 else "unreadable")
    vote(engine, experiment_id, 40, lambda a: a.answer == a.reference)
    (found,) = engine.judges.results(experiment_id).judges
    assert found.kappa.count == 40 and found.kappa.share == 1 - found.unreadable / 40 < 1.0


def test_a_judge_that_answers_nonsense_is_stopped_and_loses_nothing(engine: Engine, address: Any) -> None:
    experiment_id = measure(engine, 6)
    replies = iter(["Good", "Poor", "Good", "Poor", *["As a language model, good or poor"] * 100])
    address.reply = lambda prompt: next(replies)
    key = engine.judges.start(experiment_id, far(address))
    status = engine.judges.wait(experiment_id)
    assert status.state == "failed" and len(address.bodies) == 10
    assert "gave 6 of its first 10 answers no verdict; the last reply: 'As a language" in status.problem
    assert "Its verdicts are kept." in status.problem
    (found,) = engine.judges.results(experiment_id).judges
    assert (found.key, found.read, found.unreadable) == (key, 10, 6)
    address.reply, address.bodies = judge_well, []
    run(engine, experiment_id, far(address))  # only what has no verdict
    (found,) = engine.judges.results(experiment_id).judges
    assert found.unreadable == 0 and found.read == found.answers == len(address.bodies) + 4


def test_an_address_that_is_down_keeps_its_verdicts_and_continues(engine: Engine, address: Any) -> None:
    experiment_id = measure(engine, 6)
    left = iter([True] * 3)
    address.reply = lambda prompt: judge_well(prompt) if next(left, False) else None
    key = engine.judges.start(experiment_id, far(address))
    status = engine.judges.wait(experiment_id)
    assert status.state == "failed" and "answered with the status 503" in status.problem
    assert "Start the judge again when the address answers" in status.problem
    path = engine.workspace.path("experiments", experiment_id, f"judge-{key}.jsonl")
    with open(path, "ab") as f:  # the line that a killed process was writing
        f.write(b'{"answer": "00')
    address.reply, address.bodies = judge_well, []
    run(engine, experiment_id, far(address))
    (found,) = engine.judges.results(experiment_id).judges
    assert found.read == found.answers == len(address.bodies) + 3 and found.unreadable == 0
    assert {key for key, _ in address.bodies} == {"Bearer secret-9"}
    ((_, verdicts),) = judgements.list_judges(engine.workspace, experiment_id)
    shown = list_answers(engine.experiments.cells(experiment_id))
    assert [verdicts[s.key].verdict for s in shown] == [is_right(s) for s in shown]
    folder = engine.workspace.path("experiments", experiment_id)
    assert all(b"secret-9" not in p.read_bytes() for p in folder.rglob("*") if p.is_file())


def test_people_judge_rows_evenly_and_a_skip_does_not_count(engine: Engine, address: Any) -> None:
    experiment_id = measure(engine)
    run(engine, experiment_id, far(address, limit=9))
    ((_, verdicts),) = judgements.list_judges(engine.workspace, experiment_id)
    ballot = engine.judges.draw(experiment_id)
    assert ballot.answer and ballot.count == 0 and ballot.needed == 30
    after = engine.judges.vote(experiment_id, ballot.answer.key, "skip")
    assert after.count == 0 and after.answer and after.answer.key != ballot.answer.key
    seen = vote(engine, experiment_id, 8, lambda a: True)
    assert {a.key for a in seen} | {ballot.answer.key} == set(verdicts)  # what the judge has read comes first
    rest = vote(engine, experiment_id, 31, lambda a: True)
    counts = Counter(row for a in (*seen, *rest) for row in a.rows)
    assert max(counts.values()) - min(counts.values()) <= 2
    assert engine.judges.draw(experiment_id).answer is None
    engine.judges.vote(experiment_id, seen[0].key, "poor")  # the newest vote counts
    assert judgements.read_votes(engine.workspace, experiment_id, ballot.criteria)[seen[0].key] == "poor"
    with pytest.raises(NotFound, match="has no answer 'other'"):
        engine.judges.vote(experiment_id, "other", "good")
    with pytest.raises(SpecError, match="must be .*got 'perhaps'"):
        engine.judges.vote(experiment_id, seen[0].key, "perhaps")


def test_a_judge_without_answers_a_key_or_a_fixed_weight_is_refused(engine: Engine, address: Any) -> None:
    spec = ExperimentSpec(name="New", dataset="pairs", mixes=("",))
    empty = store.create(engine.workspace, spec, "tiny", "f" * 64).id
    with pytest.raises(SpecError, match="no complete row"):
        engine.judges.start(empty, JudgeSpec())
    experiment_id = measure(engine, 1)
    with pytest.raises(SpecError, match="No key is in the environment variable NOWHERE"):
        engine.judges.start(experiment_id, far(address, key_variable="NOWHERE"))
    with pytest.raises(SpecError, match="Auto"):
        engine.judges.start(experiment_id, JudgeSpec(mix="law=auto"))
    with pytest.raises(NotFound):
        engine.judges.start(experiment_id, JudgeSpec(mix="gone"))
    assert not judgements.list_judges(engine.workspace, experiment_id)


def test_settings_of_a_judge_are_those_of_a_row(tmp_path: Path) -> None:
    for wrong, field in (
        ({"address": "ftp://x", "model": "m"}, "address"),
        ({"address": "http://x"}, "model"),
        ({"address": "http://x", "model": "m", "key_variable": "sk-1"}, "key_variable"),
        ({"address": "http://x", "model": "m", "mix": "law"}, "mix"),
        ({"criteria": " "}, "criteria"),
    ):
        with pytest.raises(SpecError) as e:
            JudgeSpec.from_json(wrong)
        assert e.value.field == field
    spec = JudgeSpec(mix="law=0.5", limit=3)
    assert JudgeSpec.from_json(spec.to_json()) == spec and spec.label == "law=0.5"
