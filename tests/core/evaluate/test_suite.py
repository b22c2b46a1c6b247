"""Suites: batched answers equal single ones, and prompts are read from text, CSV and JSONL files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.data.tokens.prompts import LENGTH_LIMIT, PROMPT_LIMIT, read_prompts
from core.errors import DataError, SpecError
from core.evaluate import suite as suite_module
from core.evaluate.suite import SuiteResult, run_suite
from core.model.base import load_base
from core.model.generate import encode_prompt, generate
from core.model.resident import Resident
from core.spec.mix import Mix, Sampling
from core.store.workspace import Workspace
from tests.core.model.test_generate import MIXES
from tests.core.model.test_mixing import SHAPES, add_random_adapters

PROMPTS = [
    "Where is the red lamp?",
    "Hi",
    "Where is the very old blue clock of the north room, please?",
    "The bell",
    "Who?",
    "A pump",
    "Is it dry?",
    "Cold or dry room?",
]


@pytest.fixture(scope="module")
def resident(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resident]:
    made = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path_factory.mktemp("ws")))
    add_random_adapters(made, SHAPES)
    yield made


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=12),
        Sampling(max_new_tokens=12, temperature=0.9, top_k=50, repetition_penalty=1.1, seed=5),
    ],
)
def test_answers_of_a_suite_equal_single_answers(resident: Resident, sampling: Sampling) -> None:
    *_, result = run_suite(resident, PROMPTS, MIXES, [sampling] * 4)
    expected = []
    for prompt in PROMPTS:
        for mix in MIXES:
            ids = encode_prompt(resident, prompt, True, sampling.max_new_tokens)
            *_, states = generate(resident, [ids], [mix], [sampling])
            expected.append(states[0].column(resident.base.tokenizer).text)
    assert [text for row in result.answers for text in row] == expected and len(set(expected)) > 8
    assert (result.done, result.total) == (32, 32) and [p for p, _ in result.rows] == PROMPTS


def test_batches_are_limited_and_the_suite_yields_every_token(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def count_rows(resident, prompts, mixes, samplings):
        sizes.append(len(prompts))
        assert len(prompts) == len(mixes) == len(samplings)
        yield from generate(resident, prompts, mixes, samplings)

    monkeypatch.setattr(suite_module, "generate", count_rows)
    results = list(run_suite(resident, PROMPTS, MIXES, [Sampling(max_new_tokens=5)] * 4))
    assert sizes == [24, 8] and len(results) > 10
    assert [s.done for s in results] == sorted(s.done for s in results)


def test_disagreements_are_counted_among_answered_prompts() -> None:
    result = SuiteResult(("a", "b", "c"), ("One", "Two"), (("x", "x"), ("x", "y"), ()), 4)
    assert (result.disagreements, len(result.rows)) == (1, 2)
    assert (
        SuiteResult(("=a",), ("+One", "Two"), (("-x", "y"),), 2).as_csv() == "prompt,'+One,Two\n'=a,'-x,y\n"
    )


def test_a_suite_without_prompts_is_refused(resident: Resident) -> None:
    with pytest.raises(SpecError):
        list(run_suite(resident, [], [Mix()], [Sampling()]))


# --- prompts from lines and files


def write_file(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_prompts_are_read_from_lines_and_the_right_column(tmp_path: Path) -> None:
    txt = write_file(tmp_path, "a.txt", "One?\r\n\n  Two? \n")
    named = write_file(tmp_path, "b.csv", 'id,Question,answer\n1,Three?,x\n2,"Four,\nfive?",y\n')
    first = write_file(
        tmp_path, "c.jsonl", '{"n": 3, "words": "Six?", "more": "no"}\n{"n": 4, "words": "Seven?"}\n'
    )
    assert read_prompts(" Zero? \n\n", [txt, named, first]) == [
        "Zero?",
        "One?",
        "Two?",
        "Three?",
        "Four,\nfive?",
        "Six?",
        "Seven?",
    ]


def test_blank_lines_are_not_prompts() -> None:
    assert read_prompts("\n \n") == []


def test_too_many_too_long_and_invalid_prompts_are_refused(tmp_path: Path) -> None:
    assert len(read_prompts("x\n" * PROMPT_LIMIT)) == PROMPT_LIMIT
    with pytest.raises(DataError, match=f"at most {PROMPT_LIMIT} prompts, got {PROMPT_LIMIT + 1}"):
        read_prompts("x\n" * (PROMPT_LIMIT + 1))
    with pytest.raises(DataError, match="Line 2 of the prompts has"):
        read_prompts("x\n" + "y" * (LENGTH_LIMIT + 1))
    with pytest.raises(DataError, match="Line 1 of the prompts contains"):
        read_prompts("a\ud800b")
    with pytest.raises(DataError, match="long.txt, line 3: the prompt has"):
        read_prompts("", [write_file(tmp_path, "long.txt", "x\n\n" + "y" * (LENGTH_LIMIT + 1))])
