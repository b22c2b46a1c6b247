"""Measuring: no row ends an evaluation, rows that are cut or left out are named, lengths follow the data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from core.engine import Engine
from core.errors import SpecError
from core.evaluate import measure as measure_module
from core.evaluate.measure import EvaluationData, Measurement, batch_by_length, measure
from core.evaluate.rows import (
    LEFT_OUT,
    Question,
    choose_answer_length,
    count_reference_tokens,
    describe_notes,
    encode_questions,
)
from core.evaluate.sample import RowLosses, RowMatches, Sample, encode_sample
from core.evaluate.suite import run_suite
from core.model.base import load_base
from core.model.families import FAMILIES
from core.model.generate import generate
from core.model.resident import Resident
from core.spec.metric_rules import RULE
from core.spec.mix import Mix, Sampling
from core.store import reports
from core.store.reports import Conditions
from core.store.workspace import Workspace
from tests.conftest import SENTENCES
from tests.core.engine.test_bases import build_tiny
from tests.core.model.test_mixing import SHAPES, add_random_adapters

MIXES = [Mix(), Mix(weights={"one": 1.0})]
LONG = "lamp " * 400  # more tokens than the context of 256


def row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def measured(resident: Resident, data: EvaluationData, length: int = 512, new_tokens: int = 0) -> Measurement:
    *_, last = measure(resident, MIXES, data, length, new_tokens)
    assert isinstance(last, Measurement)
    return last


@pytest.fixture(scope="module")
def resident(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resident]:
    made = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path_factory.mktemp("ws")))
    add_random_adapters(made, SHAPES)
    yield made


ROWS = [row(f"Where is the {s.split()[2]}?", s) for s in SENTENCES[:6]]


def test_a_row_longer_than_the_context_is_named_and_the_rest_measured(resident: Resident) -> None:
    rows = [*ROWS[:3], row(LONG, "In the north room."), *ROWS[3:], row("Where?", " ")]
    found = measured(resident, EvaluationData(questions={"": rows}), new_tokens=8)
    whole = measured(resident, EvaluationData(questions={"": ROWS}), new_tokens=8)
    assert [f["questions"] for f in found] == [6, 6]
    for figure, expected in zip(found, whole, strict=True):
        assert figure["exact_match"] == expected["exact_match"] and figure["f1"] == expected["f1"]
        assert [e["question"] for e in figure["examples"]] == [e["question"] for e in expected["examples"]]
    assert [(n.row, n.effect) for n in found.notes] == [(4, "left out"), (8, "left out")]
    assert [f["nats"] for f in found] == pytest.approx([f["nats"] for f in whole], rel=1e-5)
    first = next(n for n in found.notes if n.row == 4)
    assert first.text.startswith("lamp lamp") and len(first.text) < 70
    assert "context of this base 256" in first.reason
    assert any(n.row == 8 and "empty" in n.reason for n in found.notes)


def test_an_answer_without_enough_room_is_cut_and_named(resident: Resident) -> None:
    question = "lamp " * 100
    rows = [*ROWS[:2], row(question, "lamp " * 300)]
    found = measured(resident, EvaluationData(questions={"": rows}))
    note = next(n for n in found.notes if "leaves room for" in n.reason)
    assert (note.row, note.effect) == (3, "cut")
    assert found.max_new_tokens == resident.base.context - 1 and found[0]["questions"] == 3


def test_a_question_longer_than_a_sequence_is_still_answered(resident: Resident) -> None:
    rows = [row("lamp " * 30, "In the north room."), row("Where?", "Here.")]
    found = measured(resident, EvaluationData(questions={"": rows}), length=24, new_tokens=4)
    whole = measured(resident, EvaluationData(questions={"": rows}), new_tokens=4)
    assert found[0]["questions"] == 2 and 0 < found[0]["tokens"] <= whole[0]["tokens"]
    assert [(n.row, n.effect) for n in found.notes] == [(1, "cut")]
    alone = measured(resident, EvaluationData(questions={"": rows[:1]}), length=24, new_tokens=4)
    assert alone[0]["questions"] == 1 and ("perplexity" in alone[0]) == (alone[0].get("tokens", 0) > 0)


def test_documents_longer_than_the_context_are_measured_whole(resident: Resident) -> None:
    texts = [SENTENCES[0], " ".join(SENTENCES), "  "]
    found = measured(resident, EvaluationData(texts={"": texts}))
    assert [(n.row, n.effect, n.text) for n in found.notes] == [(3, "left out", "")]
    tokenizer = resident.base.tokenizer
    tokens = sum(len(tokenizer(t)["input_ids"]) + 1 for t in texts[:2])
    assert found[0]["tokens"] >= tokens - 2 and math.isfinite(found[0]["perplexity"])


def test_recall_leaves_out_and_names_what_cannot_be_completed(resident: Resident) -> None:
    cloze = [("The red lamp is kept in the", " north room."), (LONG, " room."), ("The bell", " ")]
    found = measured(resident, EvaluationData(cloze=cloze))
    assert [(n.data, n.row, n.effect) for n in found.notes] == [
        ("recall probe", 2, "left out"),
        ("recall probe", 3, "left out"),
    ]
    alone = measured(resident, EvaluationData(cloze=cloze[:1]))
    assert [f["recall"] for f in found] == [f["recall"] for f in alone]


def test_a_set_with_nothing_left_is_an_error_in_words(resident: Resident) -> None:
    with pytest.raises(SpecError, match=r"None of the 2 rows can be measured.*Row 1 \('lamp lamp"):
        measured(resident, EvaluationData(questions={"": [row(LONG, "x"), row(LONG, "y")]}))
    with pytest.raises(SpecError, match=r"None of the 1 rows of general can be measured"):
        measured(resident, EvaluationData(questions={"": ROWS, "general": [row(LONG, "x")]}))
    with pytest.raises(SpecError, match="None of the 1 rows can be measured"):
        measured(resident, EvaluationData(texts={"": [" "]}))


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 320), st.integers(0, 320)), min_size=1, max_size=4))
def test_rows_of_any_length_are_measured_or_named(resident: Resident, sizes: list[tuple[int, int]]) -> None:
    rows = [row("a" * q or "a", "b" * a) for q, a in [*sizes, (3, 3)]]
    found = measured(resident, EvaluationData(questions={"": rows}), new_tokens=3)
    named = {n.row for n in found.notes if n.effect == "left out"}
    assert 1 <= found[0]["questions"] <= len(rows) and found[0]["questions"] >= len(rows) - len(named)
    assert all(math.isfinite(v) for f in found for v in f.values() if isinstance(v, float))
    assert set(range(1, len(rows) + 1)) >= named


def test_the_longest_answer_follows_the_longest_reference(resident: Resident) -> None:
    rows = [row("Where?", "In the north room."), row("Why?", " ".join(SENTENCES[:5]))]
    longest = max(len(resident.base.tokenizer(r["messages"][1]["content"])["input_ids"]) for r in rows) + 1
    assert choose_answer_length(resident.base, rows) == longest > 50
    found = measured(resident, EvaluationData(questions={"": rows}))
    assert found.max_new_tokens == longest
    assert measured(resident, EvaluationData(questions={"": rows}), new_tokens=7).max_new_tokens == 7
    assert measured(resident, EvaluationData(texts={"": SENTENCES[:2]})).max_new_tokens == 0


def test_a_thought_of_a_reference_counts_for_the_longest_answer(resident: Resident) -> None:
    plain, thinking = row("Where?", "North."), row("Where?", "North.")
    thinking["messages"][1]["thought"] = SENTENCES[0]
    extra = len(resident.base.tokenizer(SENTENCES[0])["input_ids"])
    assert (
        count_reference_tokens(resident.base, thinking)
        >= count_reference_tokens(resident.base, plain) + extra
    )


def test_answers_that_reach_their_limit_are_counted(resident: Resident) -> None:
    found = measured(resident, EvaluationData(questions={"": ROWS}), new_tokens=4)
    expected = 0
    for question in batch_by_length(encode(resident, 4)):
        *_, states = generate(
            resident,
            [q.prompt for q in question],
            [Mix()] * len(question),
            [Sampling(max_new_tokens=4)] * len(question),
        )
        expected += sum(s.reason == "length" for s in states)
    assert found[0]["answers_cut"] == expected > 0
    assert sum("cut" in e for e in found[0]["examples"]) == expected


def encode(resident: Resident, new_tokens: int) -> list[Question]:
    questions, notes = encode_questions(resident.base, ROWS, new_tokens)
    assert all(n.effect != "left out" for n in notes)
    return questions


def test_batches_hold_similar_lengths_and_a_bounded_number_of_tokens() -> None:
    sizes = [5, 900, 7, 6, 5000, 40_000, 8, 800]
    questions = [Question(i, [1] * n, "", "", 100) for i, n in enumerate(sizes)]
    batches = list(batch_by_length(questions))
    assert sorted(q.index for b in batches for q in b) == list(range(8))
    for batch in batches:
        longest = max(len(q.prompt) + q.limit for q in batch)
        assert len(batch) == 1 or (longest * len(batch) <= measure_module.BATCH_TOKENS and len(batch) <= 16)
    assert [len(q.prompt) for b in batches for q in b] == sorted(sizes)


class _Answering:
    """Replaces `generate`: every question gets the same answer, written with the base's tokenizer."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, resident: Any, prompts: Any, mixes: Any, samplings: Any) -> Iterator[Any]:
        from core.model.columns import SequenceState

        states = []
        for i, (mix, sampling) in enumerate(zip(mixes, samplings, strict=True)):
            state = SequenceState(i, mix, sampling)
            state.ids = list(resident.base.tokenizer(self.text, add_special_tokens=False)["input_ids"])
            state.reason = "end"
            states.append(state)
        yield states


def test_answers_are_compared_without_their_thought(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row("Where?", "<think>The map says so.</think>\n\nNorth."), row("Where?", "South.")]
    monkeypatch.setattr(measure_module, "generate", _Answering("<think>North, or south?</think>\n\nNorth."))
    found = measured(resident, EvaluationData(questions={"": rows}))
    assert (found[0]["exact_match"], found[0]["squad_exact_match"], found[0]["f1"]) == (0.5, 0.5, 0.5)
    example = found[0]["examples"][0]
    assert (example["answer"], example["reference"], example["thought"]) == (
        "North.",
        "North.",
        "North, or south?",
    )
    assert example["thought_tokens"] > 5


def test_figures_use_the_studios_rule_and_squads_beside_it(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "generate", _Answering("5"))
    rows = [row("What is 2 - 7?", "-5"), row("What is 2 + 3?", "5")]
    found = measured(resident, EvaluationData(questions={"": rows}))
    assert (found[0]["exact_match"], found[0]["squad_exact_match"]) == (0.5, 1.0)


# --- samples


def task_sample(rows: list[dict[str, Any]]) -> Sample:
    return Sample(
        "d", "D", "task", "0" * 64, "val", tuple(rows), tuple(10 * i for i in range(1, len(rows) + 1))
    )


def test_a_sample_measures_the_rest_and_names_rows_by_their_numbers(resident: Resident) -> None:
    sample, whole = task_sample([ROWS[0], row(LONG, "x"), *ROWS[1:3]]), task_sample(ROWS[:3])
    matches, expected = (RowMatches(resident, s, MIXES, 6) for s in (sample, whole))
    assert list(matches.compute())[-1] == list(expected.compute())[-1] == 1.0
    assert matches.shares == expected.shares and [n.row for n in matches.notes] == [20]
    assert matches.exact.isnan().any(0).tolist() == [False, True, False, False]
    encoded, encoded_whole = (encode_sample(resident, s, 64) for s in (sample, whole))
    losses, expected_losses = (RowLosses(resident, e, MIXES) for e in (encoded, encoded_whole))
    for part in (losses, expected_losses):
        for _ in part.compute():
            pass
    if encoded.tokens[1] == 0:  # nothing of the answer fits
        assert losses.losses == pytest.approx(expected_losses.losses)
    assert "Row 20 ('lamp lamp" in describe_notes(encoded.notes)
    with pytest.raises(SpecError, match="None of the 1 rows of"):
        list(RowMatches(resident, task_sample([row(LONG, "x")]), MIXES).compute())


# --- reports


def test_the_report_names_its_rule_its_lengths_and_its_rows(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [{"question": f"Where is {i}?", "answer": s} for i, s in enumerate(SENTENCES[:12])]
    lines.insert(3, {"question": LONG, "answer": "In the north room."})
    file.write_text("".join(json.dumps(r) + "\n" for r in lines), encoding="utf-8")
    with Engine(tmp_path / "ws", str(tiny_base), quantization="none", device="cpu") as engine:
        data = engine.datasets.import_files([file], "Rows").id
        stream = engine.evaluation.measure([Mix()], data, "all", general=False)
        report = engine.evaluation.report(stream.last().report)
        how = report.conditions
        assert (how.rule, how.rows_left_out) == (RULE, 1)
        tokenizer = AutoTokenizer.from_pretrained(tiny_base)
        assert how.max_new_tokens == max(len(tokenizer(s)["input_ids"]) for s in SENTENCES[:12]) + 1
        assert [n.effect for n in how.notes] == ["left out"] and how.notes[0].text.startswith("lamp lamp")
        assert report.rows[0]["questions"] == 12
        assert "squad_f1" in engine.evaluation.report_csv(report.id).read_text(encoding="utf-8")
        short = engine.evaluation.measure([Mix()], data, "all", general=False, max_new_tokens=3).last()
        assert engine.evaluation.report(short.report).conditions.max_new_tokens == 3
        with pytest.raises(SpecError, match="between 1 and 4096 tokens, got 5000"):
            engine.evaluation.measure([Mix()], data, "all", max_new_tokens=5000)


def test_a_report_without_a_rule_is_one_of_squads(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    made = reports.save(
        workspace, "d", "D", "test", "b", 1.0, [{"name": "Base", "mix": "base", "weights": {}}]
    )
    path = workspace.path("reports", made.id, "report.json")
    raw = json.loads(path.read_text(encoding="utf-8"))
    del raw["conditions"]
    path.write_text(json.dumps(raw), encoding="utf-8")
    assert reports.load(workspace, made.id).conditions == Conditions() and Conditions().rule == "squad"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_an_overlong_row_ends_no_measurement_on_any_family(family: str, tmp_path: Path) -> None:
    base = load_base(str(build_tiny(tmp_path / family, family)), "none", "cpu")
    made = Resident(base, Workspace(tmp_path / "ws"))
    size = 3 * base.context
    rows = [ROWS[0], row("b" * size, "c"), row("d", "e" * size), ROWS[1]]
    data = EvaluationData(
        questions={"": rows},
        texts={"text": [SENTENCES[0], "f " * size]},
        cloze=[("The red lamp is kept in the", " north room."), ("g" * size, " h")],
    )
    *_, found = measure(made, [Mix()], data, 4 * base.context, 3)
    assert isinstance(found, Measurement)
    assert (found[0]["questions"], found[0]["answers_cut"] <= 3) == (3, True)
    assert {(n.data, n.row) for n in found.notes if n.effect == LEFT_OUT} == {("", 2), ("recall probe", 2)}
    sample = task_sample(rows)
    matches = RowMatches(made, sample, [Mix()], 3)
    assert list(matches.compute())[-1] == 1.0 and [n.row for n in matches.notes] == [20]
    losses = RowLosses(made, encode_sample(made, sample, 4 * base.context), [Mix()])
    assert list(losses.compute())[-1] == 1.0 and math.isfinite(losses.losses[0])
    *_, suite = run_suite(made, ["Hi", "i" * size], [Mix()], [Sampling(max_new_tokens=3)])
    assert (list(suite.left_out), len(suite.rows), suite.done, suite.total) == ([2], 1, 1, 1)


def test_a_row_that_the_template_refuses_is_left_out_in_its_own_words(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{% if messages|length > 3 %}{{ raise_exception('Only one question') }}{% endif %}"
    monkeypatch.setattr(
        resident.base.tokenizer, "chat_template", template + resident.base.tokenizer.chat_template
    )
    long = {"messages": [*ROWS[0]["messages"], *ROWS[1]["messages"], *ROWS[2]["messages"]]}
    found = measured(resident, EvaluationData(questions={"": [*ROWS[:2], long]}), new_tokens=3)
    assert found[0]["questions"] == 2 and [(n.row, n.effect) for n in found.notes] == [(3, "left out")]
    assert "Only one question" in found.notes[0].reason
