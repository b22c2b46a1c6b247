"""JSON arrays and compressed tables in blocks give the dataset, or the error, of reading them at once."""

from __future__ import annotations

import gzip
import io
import json
import random
import tempfile
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data import dataset_preview, source_copies
from core.data.datasets import import_dataset
from core.data.formats import compressed
from core.data.formats.readers import Source
from core.data.formats.table_sizes import estimate_rows, measure_tables
from core.data.streaming import streamed_import
from core.errors import DataError
from core.store.workspace import Workspace
from tests.core.data.streaming.test_streamed_import import (
    cancel_at_every_report,
    check_same,
    files,
    import_both,
    leftovers,
    tables,
)

EXAMPLES = 12  # `python -m benchmarks.compare_imports` tries more
BLOCKS = [40, 300, 1 << 20]
SUPPRESSED = list(HealthCheck)


@st.composite
def json_files(draw):
    """The bytes of a .json file: an array, in several ways to write it."""
    rows = draw(tables)
    if draw(st.integers(0, 4)) == 0:
        rows.insert(
            draw(st.integers(0, len(rows))), draw(st.sampled_from([[], "x", None, {"text": "other"}]))
        )
    text = json.dumps(
        rows,
        indent=draw(st.sampled_from([None, None, 2])),
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([(", ", ": "), (",", ":"), (",\n", ":")])),
    )
    text = text[: len(text) - draw(st.sampled_from([0, 0, 0, 1, 9]))]
    codec = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16"]))
    return text.encode(codec, "surrogatepass")


def pack(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SUPPRESSED)
@given(content=json_files(), block=st.sampled_from(BLOCKS), large=st.sampled_from([0, 200_000]))
def test_blocks_of_a_json_array_give_the_dataset_of_all_rows(tmp_path_factory, content, block, large):
    check_same(tmp_path_factory.mktemp("x"), content, block, large, "a.json")


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SUPPRESSED)
@given(content=files(), block=st.sampled_from(BLOCKS), large=st.sampled_from([0, 200_000]))
def test_blocks_of_a_gzip_file_give_the_dataset_of_all_rows(tmp_path_factory, content, block, large):
    check_same(tmp_path_factory.mktemp("x"), gzip.compress(content), block, large, "a.jsonl.gz")


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SUPPRESSED)
@given(first=files(), second=json_files(), block=st.sampled_from(BLOCKS), large=st.sampled_from([0, 200_000]))
def test_blocks_of_a_zip_give_the_dataset_of_all_rows(tmp_path_factory, first, second, block, large):
    packed = pack({"b/rows.json": second, "a/rows.jsonl": first, "README.md": b"About the data."})
    check_same(tmp_path_factory.mktemp("x"), packed, block, large, "a.zip")


def make_rows(count, seed=0):
    draw = random.Random(seed)
    return [{"question": f"Q{i}?", "answer": f"A{draw.randrange(10**6)}."} for i in range(count)]


def make_csv(rows) -> bytes:
    return ("question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in rows)).encode()


FILES = {
    "a.csv.gz": lambda rows: gzip.compress(make_csv(rows)),
    "a.tsv.gz": lambda rows: gzip.compress(make_csv(rows).replace(b",", b"\t")),
    "a.json": lambda rows: json.dumps(rows).encode(),
    "a.json.gz": lambda rows: gzip.compress(json.dumps(rows).encode()),
    "a.jsonl.gz": lambda rows: gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()),
    "a.zip": lambda rows: pack({"x/1.csv": make_csv(rows[:40]), "x/2.json": json.dumps(rows[40:]).encode()}),
}


@pytest.fixture
def in_blocks(monkeypatch):
    monkeypatch.setattr(dataset_preview, "STREAM_BYTES", 0)
    monkeypatch.setattr(streamed_import, "SAMPLE_ROWS", 3)
    monkeypatch.setattr(streamed_import, "ROW_BLOCK", 16)
    monkeypatch.setattr(source_copies, "BLOCK_BYTES", 200)


@pytest.mark.parametrize("name", FILES)
def test_every_compressed_table_gives_the_rows_of_the_plain_one(tmp_path, monkeypatch, name):
    rows = make_rows(100)
    (tmp_path / "plain").mkdir()
    plain, _ = import_both(
        tmp_path / "plain", monkeypatch, "".join(json.dumps(r) + "\n" for r in rows).encode()
    )
    streamed, at_once = import_both(tmp_path, monkeypatch, FILES[name](rows), name)
    assert streamed == at_once
    keys = ("rows", "splits", "sha256", "split_sha256", "roles", "duplicates", "notes")
    assert [streamed[0][key] for key in keys] == [plain[0][key] for key in keys]
    assert streamed[2:] == plain[2:]


@pytest.mark.parametrize("name", FILES)
def test_a_cancel_of_a_compressed_import_leaves_nothing(tmp_path, in_blocks, monkeypatch, name):
    temp = tmp_path / "temp"
    temp.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temp))
    path, workspace = tmp_path / name, Workspace(tmp_path / "ws")
    path.write_bytes(FILES[name](make_rows(100)))
    seen = []
    import_dataset(workspace, [path], "x", report=seen.append)
    shares = [p.done / p.total for p in seen]
    assert len(seen) >= 5 and shares == sorted(shares) and shares[-1] == 1.0 and seen[-1].rows == 100
    assert len({p.rows for p in seen}) > 3 and "Copying" in seen[0].text
    cancel_at_every_report(workspace, path, len(seen))
    assert len(leftovers(workspace)) == 1 and list(temp.iterdir()) == []


def test_rows_of_one_line_keep_their_order_beside_odd_ones(tmp_path, monkeypatch):
    """All rows of this array stand on one line; some are read by a form, others row by row."""
    rows = make_rows(60)
    for at in (3, 17, 18, 40):
        rows[at]["answer"] = ["in", "a list"][at % 2 :]
    for at in (5, 19):
        rows[at]["question"] = " [odd] " + rows[at]["question"]
    streamed, at_once = import_both(tmp_path, monkeypatch, json.dumps(rows).encode(), "a.json")
    assert streamed == at_once
    marked = [{"prompt": f"Q{i}?", "completion": f"A{i}.", "label": i % 7 != 3} for i in range(60)]
    streamed, at_once = import_both(tmp_path, monkeypatch, json.dumps(marked).encode(), "b.json")
    assert streamed == at_once and (streamed[0]["layout"], streamed[0]["left_out"]) == ("kto", 9)


def test_limits_of_archives_hold_while_a_member_is_read(tmp_path, in_blocks, monkeypatch):
    rows = make_rows(400)
    path, workspace = tmp_path / "a.jsonl.gz", Workspace(tmp_path / "ws")
    content = "".join(json.dumps(r) + "\n" for r in rows).encode()
    path.write_bytes(gzip.compress(content))
    monkeypatch.setattr(compressed, "MEMBER_LIMIT_BYTES", len(content))
    assert import_dataset(workspace, [path], "fits").rows == 400
    monkeypatch.setattr(compressed, "MEMBER_LIMIT_BYTES", len(content) - 1)
    with pytest.raises(DataError, match="a file inside has more than") as caught:
        import_dataset(workspace, [path], "x")
    assert caught.value.file == "a.jsonl.gz" and caught.value.fix
    monkeypatch.setattr(compressed, "MEMBER_LIMIT_BYTES", 1 << 30)
    monkeypatch.setattr(compressed, "RATIO_FLOOR_BYTES", 0)
    monkeypatch.setattr(compressed, "RATIO_LIMIT", 1)
    with pytest.raises(DataError, match="inflates to more than"):
        import_dataset(workspace, [path], "x")
    monkeypatch.setattr(compressed, "RATIO_LIMIT", 200)
    path.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(DataError, match="the archive is damaged or incomplete"):
        import_dataset(workspace, [path], "x")
    packed = pack({f"{i}.jsonl": content for i in range(3)})
    (tmp_path / "b.zip").write_bytes(packed)
    monkeypatch.setattr(compressed, "TOTAL_LIMIT_BYTES", 3 * len(content) - 1)
    with pytest.raises(DataError, match="the archive inflates to more than"):
        import_dataset(workspace, [tmp_path / "b.zip"], "x")
    assert len(leftovers(workspace)) == 1


def test_an_inflated_stream_can_be_read_again_from_its_beginning(tmp_path):
    content = bytes(range(256)) * 100
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(content))
    with open(path, "rb") as f:
        for stream, name in compressed.inflate_members(f, "a.csv.gz", (".csv",), None, (".csv",)):
            assert name == "a.csv" and stream.read(10) == content[:10]
            stream.seek(0)
            assert stream.read() == content
            with stream.reopen() as again:
                assert again.read(300) == content[:300]
            assert again.closed and stream.tell() == len(content)


def test_sizes_and_rows_of_compressed_tables_are_estimated(tmp_path):
    rows = make_rows(2000)
    for name, make in FILES.items():
        (tmp_path / name).write_bytes(make(rows))
        source = Source(tmp_path / name, name)
        size = measure_tables([source])
        assert size is not None and 25_000 < size < 110_000, name
        if name != "a.zip":  # its first file has 40 rows in another format
            assert abs(estimate_rows([source], 10_000) - 2000) < 150, name
    (tmp_path / "b.zip").write_bytes(pack({"a.csv": make_csv(rows), "notes.txt": b"A note."}))
    (tmp_path / "b.json").write_text(json.dumps({"rows": rows}))
    for name in ("b.zip", "b.json"):  # these are read at once
        assert measure_tables([Source(tmp_path / name, name)]) is None
