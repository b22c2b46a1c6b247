"""JSON objects of other programs, and class numbers of parquet files, become rows with their texts."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.formats.readers import read_files
from core.errors import DataError

ROWS = [{"q": "one", "a": "1st"}, {"q": "two", "a": "2nd"}]


def read(tmp_path, value):
    (tmp_path / "a.json").write_text(json.dumps(value))
    return [row.values for row in read_files([tmp_path / "a.json"])]


@pytest.mark.parametrize(
    "value",
    [
        {"columns": ["q", "a"], "index": [0, 1], "data": [["one", "1st"], ["two", "2nd"]]},
        {"q": {"0": "one", "1": "two"}, "a": {"0": "1st", "1": "2nd"}},
        {"0": ROWS[0], "1": ROWS[1]},
        {"q": ["one", "two"], "a": ["1st", "2nd"]},
        {"features": [{"name": "q"}], "rows": [{"row_idx": i, "row": row} for i, row in enumerate(ROWS)]},
    ],
)
def test_tables_of_pandas_and_of_the_viewer_give_their_rows(tmp_path, value):
    assert read(tmp_path, value) == ROWS


def test_sections_give_their_improved_texts_in_order(tmp_path):
    paper = {"INTRODUCTION": {"original": "x", "improved": "one"}, "METHODS": {"improved": "two"}}
    assert read(tmp_path, {"p1": paper, "p2": {"RESULTS": {"improved": "three"}}}) == [
        {"improved": "one"},
        {"improved": "two"},
        {"improved": "three"},
    ]


@pytest.mark.parametrize(
    "value", [{"train": ROWS, "test": ROWS}, {"q": "one"}, {"q": ["one"], "a": ["1", "2"]}, {"0": {"x": 1}}]
)
def test_other_objects_are_refused(tmp_path, value):
    with pytest.raises(DataError, match="array") as caught:
        read(tmp_path, value)
    assert caught.value.fix


def test_a_row_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(DataError, match="a row is longer than 1,000,000 characters"):
        read(tmp_path, {"q": ["x" * 1_000_001, "y"], "a": ["1", "2"]})


def test_class_numbers_of_a_parquet_file_become_their_names(tmp_path):
    feature = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    meta = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    table = pa.table({"text": ["good", "bad", "none"], "label": [1, 0, -1]}).replace_schema_metadata(meta)
    pq.write_table(table, tmp_path / "a.parquet")
    rows = read_files([tmp_path / "a.parquet"])
    assert [row.values["label"] for row in rows] == ["pos", "neg", None]
    broken = table.replace_schema_metadata({"huggingface": "{" * 40})
    pq.write_table(broken, tmp_path / "b.parquet")
    assert [row.values["label"] for row in read_files([tmp_path / "b.parquet"])] == [1, 0, -1]
