"""Prompts of a calibration: sentences of documents, questions of labelled rows, spread evenly, balanced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from core.data.tokens.encoding import encode_chat
from core.evaluate.gate_prompts import (
    PROMPTS,
    PromptSource,
    draw_prompts,
    list_passages,
    list_prompts,
    list_questions,
    spread_evenly,
)
from core.model.base import Base, load_base
from tests.conftest import SENTENCES


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base), "none", "cpu")


def draw(base: Base, sources: Sequence[PromptSource], *args: Any, **kwargs: Any) -> list[list[list[int]]]:
    steps = draw_prompts(base, sources, *args, **kwargs)
    while True:
        try:
            assert next(steps) is None
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def texts(base: Base, prompts: Sequence[Sequence[int]]) -> list[str]:
    found = base.tokenizer.batch_decode(prompts)
    return [t.split("<|user|>")[-1].split("<|end|>")[0].strip() for t in found]


def test_a_document_gives_its_sentences_of_a_usual_length() -> None:
    text = (
        "# The harbour of the town\n\nIt is old. The harbour was built by Dr. Bell in the year of the "
        "flood,\nand it has been repaired twice. Ships come!\n- The red crane lifts coal from the barges.\n"
        "| Ship | Cargo | Day of the week | Number of tons |\n" + "word " * 41 + "."
    )
    assert list_passages(text) == [
        "The harbour of the town",
        "The harbour was built by Dr. Bell in the year of the flood, and it has been repaired twice.",
        "The red crane lifts coal from the barges.",
    ]


def test_a_form_gives_passages_of_neighbouring_lines() -> None:
    assert list_passages("Name: plum horn\nPlace: attic\nMaker: Maud Penny") == [
        "Name: plum horn Place: attic Maker: Maud Penny"
    ]
    long = " ".join(f"w{i}" for i in range(90))
    assert [len(p.split()) for p in list_passages(long)] == [40, 40, 10]
    assert [len(p) for p in list_passages("水" * 90)] == [40, 40, 10]
    assert list_passages("水を飲む前に、必ず確認してください。") == ["水を飲む前に、必ず確認してください。"]
    assert list_passages("Too short.") == list_passages("") == []


def test_a_labelled_row_gives_the_conversation_up_to_its_last_question(base: Base) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is the red lamp?"},
        {"role": "assistant", "content": "In the cold room."},
        {"role": "user", "content": "And the old bell?"},
        {"role": "assistant", "content": "In the dry room."},
    ]
    assert list_prompts({"messages": messages}) == [messages[:4]]
    assert list_prompts({"messages": messages[2:3]}) == []
    ((prompt,),) = draw(base, [PromptSource("", [{"messages": messages}])])
    assert prompt == encode_chat(base.tokenizer, messages[:4], add_generation_prompt=True)


def test_prompts_are_spread_evenly_and_follow_from_the_seed(base: Base) -> None:
    rows = [{"text": f"{s} It has the number {i} of all." * 2} for i, s in enumerate(SENTENCES * 4)]
    assert sorted(spread_evenly(100, 7)) == list(range(100))
    first = spread_evenly(256)[:PROMPTS]
    assert sorted(first) == list(range(0, 256, 4))
    (drawn,) = draw(base, [PromptSource("", rows)])
    assert len(drawn) == PROMPTS == 64 and len(set(map(tuple, drawn))) == 64
    assert drawn == draw(base, [PromptSource("", rows)])[0]
    assert drawn != draw(base, [PromptSource("", rows)], seed=1)[0]
    assert max(len(p) for p in drawn) <= base.context


def test_the_sources_of_others_give_equally_many_as_far_as_they_can(base: Base) -> None:
    many = [{"text": s} for s in SENTENCES]
    few = [{"text": f"A sentence with the number {i} in it."} for i in range(5)]
    other = [{"messages": [{"role": "user", "content": f"What is number {i}?"}]} for i in range(90)]
    sources = [PromptSource("a", many), PromptSource("b", few), PromptSource("c", other)]
    assert [len(drawn) for drawn in draw(base, sources)] == [30, 5, 29]
    assert [len(drawn) for drawn in draw(base, sources, count=6)] == [2, 2, 2]


def test_tiny_equal_and_excluded_prompts_are_passed_over(base: Base) -> None:
    questions = ["Hm", "Where is the lamp?", "Where is the lamp?", "Where is the bell?", "x " * 300]
    rows = [{"messages": [{"role": "user", "content": q}]} for q in questions]
    (drawn,) = draw(base, [PromptSource("", rows)])
    assert sorted(texts(base, drawn)) == ["Where is the bell?", "Where is the lamp?"]
    known = list_questions(rows[3:4])
    assert known == {"Where is the bell?"}
    (drawn,) = draw(base, [PromptSource("", rows)], without=known)
    assert texts(base, drawn) == ["Where is the lamp?"]
