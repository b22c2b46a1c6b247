"""The sizes of splits in tokens before an import: as an inspection counts them, estimated for much text."""

import pytest
from transformers import AutoTokenizer

from core.data.inspection import split_tokens
from core.data.inspection.row_checks import from_splits, measure_splits
from core.data.inspection.split_tokens import count_split_tokens
from core.data.inspection.token_checks import TokenizerOfBase, inspect_tokens

TEXTS = [{"text": f"Lamp {i} is lit. " * (1 + i % 9)} for i in range(300)]
PARTS = {"train": list(range(200)), "val": list(range(200, 250)), "test": list(range(250, 300))}


@pytest.fixture(scope="module")
def base(tiny_base):
    return TokenizerOfBase("tiny", AutoTokenizer.from_pretrained(tiny_base), [1], 256)


def pair(question, answer="In the cold room."):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("rows", [TEXTS, [pair(row["text"]) for row in TEXTS]], ids=["domain", "task"])
def test_tokens_before_an_import_are_those_of_an_inspection(base, rows):
    counted = count_split_tokens(rows, PARTS, base)
    kind = "domain" if "text" in rows[0] else "task"
    splits = from_splits(kind, {name: [rows[i] for i in indices] for name, indices in PARTS.items()})
    _, sizes = inspect_tokens(splits, measure_splits(splits), base, 64)
    assert counted.tokens == {size.split: size.tokens for size in sizes}
    assert (counted.base, counted.is_estimate) == ("tiny", False)


def test_much_text_is_estimated_from_a_part_of_its_rows(base, monkeypatch):
    whole = count_split_tokens(TEXTS, PARTS, base)
    monkeypatch.setattr(split_tokens, "CHARACTERS", 4000)
    counted = []
    measure = split_tokens.measure_row
    monkeypatch.setattr(split_tokens, "measure_row", lambda row, b: counted.append(row) or measure(row, b))
    about = count_split_tokens(TEXTS, PARTS, base)
    assert about.is_estimate and len(counted) < 120
    for split, tokens in whole.tokens.items():
        assert about.tokens[split] == pytest.approx(tokens, rel=0.05)


def test_a_conversation_that_the_template_refuses_is_not_counted(base):
    rows = [{"messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "y"}]}] * 3
    refusing = AutoTokenizer.from_pretrained(base.tokenizer.name_or_path)
    refusing.chat_template = "{{ raise_exception('only user and assistant') }}"
    assert count_split_tokens(rows, {"train": [0]}, TokenizerOfBase("t", refusing, [1], 256)) is None


def test_a_split_without_rows_has_no_tokens(base):
    counted = count_split_tokens(TEXTS[:3], {"test": [0, 1, 2]}, base)
    assert counted.tokens["train"] == counted.tokens["val"] == 0 and counted.tokens["test"] > 0
