"""Checks with a tokenizer: lengths, control tokens, and the first packed row as training builds it."""

import random

import pytest
from transformers import AutoTokenizer

from core.data.documents.sections import join_parts
from core.data.inspection import token_checks
from core.data.inspection.records import LengthBin
from core.data.inspection.row_checks import from_splits, measure_splits
from core.data.inspection.token_checks import TokenizerOfBase, inspect_tokens, make_bins
from core.data.tokens.encoding import encode_documents, encode_turns
from core.data.tokens.packing import build_rows, split_into_windows
from core.spec.settings import SEED


@pytest.fixture(scope="module")
def base(tiny_base):
    return TokenizerOfBase("tiny", AutoTokenizer.from_pretrained(tiny_base), [1], 256)


def pair(question, answer="In the cold room."):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def inspect(base, kind, splits, max_length=64):
    rows = from_splits(kind, splits)
    return inspect_tokens(rows, measure_splits(rows), base, max_length)


def test_lengths_and_split_shares_are_those_of_the_encoded_rows(base):
    splits = {
        "train": [pair(f"Where is lamp {i}?") for i in range(7)],
        "val": [pair("Where?")],
        "test": [pair("Where is it now, " * 9)],
    }
    found, sizes = inspect(base, "task", splits)
    encoded = {
        s: [encode_turns(base.tokenizer, r["messages"], 999, [1])[0] for r in splits[s]] for s in splits
    }
    tokens = {s: sum(len(e.ids) for e in encoded[s]) for s in splits}
    assert {size.split: size.tokens for size in sizes} == tokens
    assert sum(size.share for size in sizes) == pytest.approx(1)
    assert found.lengths.tokens == sum(tokens.values())
    assert found.lengths.trained_tokens == sum(sum(e.loss_mask) for e in encoded["train"])
    assert sum(b.rows for b in found.lengths.bins) == found.lengths.rows == 9
    assert (found.lengths.longest, found.lengths.over) == (len(encoded["test"][0].ids), 1)
    assert found.lengths.over_share == pytest.approx(1 / 9)
    assert [(e.split, e.row) for e in found.lengths.over_examples] == [("test", 0)]
    assert found.lengths.cuts


def test_forged_control_tokens_are_found_in_texts_and_thoughts(base):
    forged = pair("Hello <|end|> there")
    thought = pair("Hello")
    thought["messages"][1]["thought"] = "I say <|user|>"
    found, _ = inspect(base, "task", {"train": [pair("Hello"), forged, thought]})
    assert [(e.split, e.row) for e in found.forged.examples] == [("train", 1), ("train", 2)]


def test_the_first_packed_row_of_conversations_is_that_of_training(base):
    rows = [pair(f"Where is the lamp number {i}?", "room " * (i % 5 + 1)) for i in range(30)]
    found, _ = inspect(base, "task", {"train": rows, "val": [pair("x")], "test": [pair("y")]})
    sequences = [e for r in rows for e in encode_turns(base.tokenizer, r["messages"], 64, [1])]
    random.Random(SEED).shuffle(sequences)
    built, stats = build_rows(sequences, 64, packed=True)
    packed = found.packed
    assert packed.ids == built[0]["input_ids"]
    assert packed.trained == [bool(m) for m in built[0]["loss_mask"]]
    assert [s.length for s in packed.segments] == built[0]["seq_lengths"]
    assert (packed.rows, packed.fill, packed.sequences) == (stats.rows, stats.fill, stats.sequences)
    assert packed.padding == 64 - len(packed.ids)
    assert [s.start for s in packed.segments] == [
        sum(built[0]["seq_lengths"][:i]) for i in range(len(packed.segments))
    ]
    for segment in packed.segments:
        shown = "".join(packed.texts[segment.start : segment.start + segment.length])
        assert rows[segment.row]["messages"][0]["content"] in shown
        assert segment.label.startswith(rows[segment.row]["messages"][0]["content"])


def test_the_first_packed_row_of_texts_joins_sections_and_names_windows(base):
    sections = [
        {"text": f"Section {i} " + "red lamp " * 12, "document": "book.md", "part": i} for i in range(6)
    ]
    rows = [{"text": "A short text."}, *sections[:2], *sections[3:]]
    found, _ = inspect(base, "domain", {"train": rows, "val": [sections[2]], "test": [{"text": "z"}]})
    windows = []
    for ids in encode_documents(base.tokenizer, join_parts(rows)):
        windows += split_into_windows([base.tokenizer.eos_token_id], ids, 64)
    random.Random(SEED).shuffle(windows)
    built, _ = build_rows(windows, 64, packed=True)
    assert found.packed.ids == built[0]["input_ids"]
    firsts = {segment.row for segment in found.packed.segments}
    assert firsts <= {0, 1, 3}  # where a text of the train split begins
    for segment in found.packed.segments:
        assert (segment.window <= segment.windows) and (segment.windows > 1 or segment.row == 0)
    assert not found.lengths.cuts


def test_evaluation_data_has_no_packed_row(base):
    found, sizes = inspect(base, "task", {"test": [pair("a"), pair("b")]})
    assert found.packed is None
    assert [round(size.share, 3) for size in sizes] == [0, 0, 1]


def test_of_many_rows_tokens_are_extrapolated(base, monkeypatch):
    monkeypatch.setattr(token_checks, "TOKEN_ROWS", 4)
    found, sizes = inspect(base, "task", {"train": [pair("same")] * 30, "test": [pair("same")] * 10})
    one = len(encode_turns(base.tokenizer, pair("same")["messages"], 999, [1])[0].ids)
    assert found.lengths.rows == 4
    assert [size.tokens for size in sizes] == [30 * one, 0, 10 * one]


def test_conversations_that_the_template_refuses_are_counted(base):
    tokenizer = AutoTokenizer.from_pretrained(base.tokenizer.name_or_path)
    tokenizer.chat_template = (
        "{% if messages|length > 2 %}{{ raise_exception('Too long') }}{% endif %}"
        + str(tokenizer.chat_template)
    )
    three = {"messages": [*pair("a")["messages"], *pair("b")["messages"]]}
    strict = TokenizerOfBase("strict", tokenizer, [1], 256)
    found, _ = inspect(strict, "task", {"train": [pair("a"), three, three]})
    assert (found.refused, found.lengths.rows, found.packed) == (2, 1, None)
    assert "Too long" in found.refusal


@pytest.mark.parametrize(
    ("lengths", "bins"),
    [
        ([], []),
        ([5], [LengthBin(5, 5, 1)]),
        ([5, 6, 6, 8], [LengthBin(5, 5, 1), LengthBin(6, 6, 2), LengthBin(7, 8, 1)]),
    ],
)
def test_bins_hold_every_row(lengths, bins):
    assert make_bins(lengths) == bins


def test_one_huge_row_does_not_flatten_the_histogram():
    bins = make_bins([*range(10, 110), 100_000])
    assert sum(b.rows for b in bins) == 101
    assert len(bins) <= token_checks.BIN_COUNT + 1
    assert (bins[-1].high, bins[-1].rows) == (100_000, 1)
    assert bins[0] == LengthBin(10, 13, 4)
