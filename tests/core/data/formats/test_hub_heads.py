"""The first rows of a dataset of the Hub: by range requests, of every format, without its download."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.dataset_preview import preview
from core.data.formats import hub_heads
from core.data.formats.hub_datasets import list_splits
from core.data.formats.hub_heads import HEAD_ROWS, read_head
from core.errors import DataError
from tests import mock_hub
from tests.mock_hub import MAIN, serve_hub

COUNT = 6_000
PAIRS = [{"question": f'Where is dog {n}?\nAnd "why"?', "answer": f"At quay {n}."} for n in range(COUNT)]


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with serve_hub() as address:
        yield address


def write_csv() -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["question", "answer"])
    writer.writeheader()
    writer.writerows(PAIRS)
    return out.getvalue().encode()


def write_parquet() -> bytes:
    out = io.BytesIO()
    noise = [bytes([n % 256, n // 256 % 256, 7, 9]) * 40 for n in range(COUNT)]
    columns = {k: [p[k] for p in PAIRS] for k in PAIRS[0]}
    pq.write_table(pa.table({**columns, "picture": noise}), out, compression="none", use_dictionary=False)
    return out.getvalue()


LINES = "".join(json.dumps(p) + "\n" for p in PAIRS).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", LINES),
        ("train.csv", write_csv()),
        ("train.jsonl.gz", gzip.compress(LINES, 0)),
        ("train.parquet", write_parquet()),
    ],
)
def test_the_first_rows_are_read_without_the_rest(hub, tmp_path, monkeypatch, name, content):
    monkeypatch.setitem(mock_hub.REPOS, "a/big", {MAIN: {name: content}})
    monkeypatch.setattr(hub_heads, "HEAD_BYTES", 60_000)
    monkeypatch.setattr(hub_heads, "READ_BYTES", 1 << 14)
    mock_hub.Handler.asked.clear()
    head = read_head(list_splits("a/big", endpoint=hub).choose(), tmp_path, hub)
    rows = [json.loads(line) for line in head.read_text(encoding="utf-8").splitlines()]
    assert rows == PAIRS[:HEAD_ROWS]
    ranges = [a.split(" ")[1].split("-") for a in mock_hub.Handler.asked if " " in a]
    fetched = sum(int(end) - int(begin) + 1 for begin, end in ranges)
    assert 0 < fetched < len(content) / 2, "the rest of the file is not fetched"
    assert preview([tmp_path]).roles == {"question": "question", "answer": "answer"}


def test_a_small_file_is_read_to_its_end(hub, tmp_path, monkeypatch):
    assert (
        len(read_head(list_splits("a/rows", endpoint=hub).choose(), tmp_path, hub).read_text().splitlines())
        == 30
    )
    array = json.dumps(PAIRS[:5]).encode()
    monkeypatch.setitem(mock_hub.REPOS, "a/array", {MAIN: {"train.json": array}})
    head = read_head(list_splits("a/array", endpoint=hub).choose(), tmp_path, hub)
    assert [json.loads(line) for line in head.read_text().splitlines()] == PAIRS[:5]


def test_what_cannot_be_read_by_its_beginning_is_said(hub, tmp_path, monkeypatch):
    monkeypatch.setitem(mock_hub.REPOS, "a/array", {MAIN: {"train.json": json.dumps(PAIRS[:50]).encode()}})
    monkeypatch.setattr(hub_heads, "WHOLE_BYTES", 100)
    with pytest.raises(DataError, match="cannot be read by themselves. Import it without a preview"):
        read_head(list_splits("a/array", endpoint=hub).choose(), tmp_path, hub)
    monkeypatch.setitem(mock_hub.REPOS, "a/table", {MAIN: {"train.parquet": write_parquet()}})
    monkeypatch.setattr(hub_heads, "PARQUET_BYTES", 5000)
    monkeypatch.setattr(hub_heads, "READ_BYTES", 1 << 12)
    with pytest.raises(DataError, match="too large for a preview"):
        read_head(list_splits("a/table", endpoint=hub).choose(), tmp_path, hub)
    monkeypatch.setitem(mock_hub.REPOS, "a/bad", {MAIN: {"train.jsonl": b"{\n"}})
    with pytest.raises(DataError, match="train.jsonl, line 1"):
        read_head(list_splits("a/bad", endpoint=hub).choose(), tmp_path, hub)


def test_a_listing_says_what_has_to_be_chosen(hub):
    named = list_splits("a/configs", endpoint=hub)
    assert (named.find_config(), named.find_split("plain")) == ("plain", "train")
    assert {config: list(splits) for config, splits in named.groups.items()} == {
        "plain": ["train", "test"],
        "other": ["train"],
    }
    converted = list_splits("a/script", endpoint=hub)
    assert (converted.find_config(), converted.find_split(""), converted.revision) == ("", "", "")
    assert named.revision == MAIN, "the import gets the files that were previewed"
