"""Large tables are read in blocks; the dataset is the one that reading all rows at once gives."""

from __future__ import annotations

import json


import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data import dataset_preview, source_copies, streamed_import
from core.data.datasets import import_dataset
from core.errors import Cancelled, DataError
from core.store.workspace import Workspace

SAME = ("kind", "rows", "splits", "sha256", "roles", "columns", "types", "duplicates", "split_sha256", "layout",
        "unread", "notes", "left_out", "cuts")  # fmt: skip

words = st.sampled_from(
    ["Where is the lamp?", "where  is the LAMP", "On the shelf.", "", " ", "\n", "[1, 2]", '["role"]', "naïve",
     "Straße", "\u00a0x", "\u3000", "“quoted”", 'a "b" c', "back\\slash", "tab\there", "line\nbreak", "é", "日本語",
     " leading", "trailing ", "?!", "\u2028", "emoji 🙂", "\x7f", "null", "{}", "x" * 130]
)  # fmt: skip
texts = st.one_of(words, st.text(max_size=12), st.integers(0, 40).map(lambda i: f"Question {i}?"))
cells = st.one_of(texts, texts, texts, st.none(), st.integers(-3, 3), st.floats(allow_nan=False), st.booleans(),
                  st.just([]), st.just({"a": "b"}))  # fmt: skip
nonblank = texts.filter(lambda text: bool(text.strip()) and text.isprintable())
good = st.integers(0, 10**6).map(lambda i: f"Text {i} of many.")


def message(content):
    return st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": content})


@st.composite
def rows_of(draw, columns: dict[str, st.SearchStrategy]):
    """Rows of these columns; in some files a row has other cells, or lacks a column, or has one more."""
    rows = draw(st.lists(st.fixed_dictionaries(columns), min_size=3, max_size=14))
    if draw(st.integers(0, 3)) == 0:
        odd = st.dictionaries(st.sampled_from([*columns, "id", "system", "type"]), cells, min_size=1)
        rows.insert(draw(st.integers(0, len(rows))), {**draw(st.sampled_from(rows)), **draw(odd)})
    return rows


conversation = st.tuples(good, nonblank, good).map(
    lambda t: [{"role": "user", "content": t[0]}, {"role": "assistant", "content": t[1]},
               {"role": "user", "content": t[2]}, {"role": "assistant", "content": "Yes."}]
)  # fmt: skip
tables = st.one_of(
    rows_of({"question": st.one_of(good, good, nonblank), "answer": good}),
    rows_of({"question": good, "answer": st.one_of(good, good, nonblank)}),
    rows_of({"instruction": good, "input": st.sampled_from(["", "", "Some input.", " "]), "output": good}),
    rows_of({"prompt": good, "completion": st.one_of(good, good, nonblank)}),
    rows_of({"text": st.one_of(good, good, nonblank)}),
    rows_of({"messages": conversation}),
    rows_of({"messages": st.lists(message(st.one_of(good, texts)), max_size=4)}),
    rows_of({"id": st.text(max_size=5), "question": good, "type": st.sampled_from(["a", "b", " c ", "", "é"]),
             "answer": good}),
    rows_of({"system": st.sampled_from(["Be brief.", ""]), "context": good, "question": good, "answer": good}),
)  # fmt: skip


@st.composite
def files(draw):
    """The bytes of a JSONL file, with odd lines, escapes and ends."""
    ascii_only = draw(st.booleans())
    lines = []
    for row in draw(tables):
        line = json.dumps(row, ensure_ascii=ascii_only, separators=draw(st.sampled_from([(", ", ": "), (",", ":")])))
        lines.append(line.encode("utf-8", "surrogatepass"))
    odd = st.sampled_from([b"", b"  ", b"{", b'{"question": NaN, "answer": "x"}', b"[1]", b"\xff", b"\0", b'"x"',
                           b'{"question": "a\tb", "answer": "c"}', b'{"question": "\\u00e9", "answer": "\\/"}',
                           b'{"question": "x", "question": "Other?", "answer": "y"}', b"null",
                           b'{"text": "x"} {"text": "y"}', b'{"answer": "turned", "question": "Round?"}',
                           b'{"question": "ends in \\\\", "answer": "\\\\\\" quoted"}'])  # fmt: skip
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 1]))):
        lines.insert(draw(st.integers(0, len(lines))), draw(odd))
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n"]))
    bom = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"]))
    return bom + end.join(lines) + draw(st.sampled_from([b"", end]))


def import_both(tmp_path, monkeypatch, content: bytes, name: str = "a.jsonl", **options):
    """Imports a file in blocks and at once; returns what each gave: a dataset with its bytes, or an error."""
    results = []
    path = tmp_path / name
    path.write_bytes(content)
    for threshold in (0, 1 << 40):
        monkeypatch.setattr(dataset_preview, "STREAM_BYTES", threshold)
        workspace = Workspace(tmp_path / f"ws{threshold}")
        try:
            dataset = import_dataset(workspace, [path], "x", **options)
        except DataError as e:
            results.append((type(e), str(e)))
            assert not list((workspace.root / "datasets").glob(".*.partial"))
            continue
        folder = workspace.path("datasets", dataset.id)
        record = {key: getattr(dataset, key) for key in SAME}
        stored = {**dataset.files[0]}
        splits = [(folder / "splits" / f"{dataset.id}_{s}.jsonl").read_bytes() for s in ("train", "val", "test")]
        results.append((record, stored, (folder / "rows.jsonl").read_bytes(), splits))
    return results


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=files(), block=st.sampled_from([40, 300, 1 << 20]))
def test_blocks_give_the_dataset_or_the_error_of_all_rows(tmp_path_factory, content, block):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(source_copies, "BLOCK_BYTES", block)
        in_blocks, at_once = import_both(tmp_path_factory.mktemp("x"), monkeypatch, content)
    assert in_blocks == at_once
