"""Large tables are read in blocks; the dataset is the one that reading all rows at once gives."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.data import dataset_preview, source_copies, split_rows
from core.data.datasets import import_dataset, read_split, verify_dataset
from core.data.formats.readers import Limits, read_files
from core.data.splits import SPLITS
from core.data.streaming import json_lines, question_hashes, row_parts, streamed_import
from core.errors import Cancelled, DataError
from core.store.workspace import Workspace

EXAMPLES = 30  # `python -m benchmarks.compare_imports` tries more
SAME = (
    "kind",
    "rows",
    "splits",
    "sha256",
    "roles",
    "columns",
    "types",
    "duplicates",
    "split_sha256",
    "layout",
    "unread",
    "notes",
    "left_out",
    "cuts",
)

words = st.sampled_from(
    [
        "Where is the lamp?",
        "where  is the LAMP",
        "On the shelf.",
        "",
        " ",
        "\n",
        "[1, 2]",
        '["role"]',
        "naïve",
        "Straße",
        "\u00a0x",
        "\u3000",
        "“quoted”",
        'a "b" c',
        "back\\slash",
        "tab\there",
        "line\nbreak",
        "é",
        "日本語",
        " leading",
        "trailing ",
        "?!",
        "\u2028",
        "emoji 🙂",
        "\x7f",
        "null",
        "{}",
        "x" * 130,
    ]
)
texts = st.one_of(words, st.text(max_size=12), st.integers(0, 40).map(lambda i: f"Question {i}?"))
cells = st.one_of(
    texts,
    texts,
    texts,
    st.none(),
    st.integers(-3, 3),
    st.floats(allow_nan=False),
    st.booleans(),
    st.just([]),
    st.just({"a": "b"}),
)
nonblank = texts.filter(lambda text: bool(text.strip()) and text.isprintable())
good = st.integers(0, 10**6).map(lambda i: f"Text {i} of many.")


def message(content):
    return st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system"]), "content": content}
    )


@st.composite
def rows_of(draw, columns: dict[str, st.SearchStrategy]):
    """Rows of these columns; in some files a row has other cells, or lacks a column, or has one more."""
    rows = draw(st.lists(st.fixed_dictionaries(columns), min_size=3, max_size=14))
    if draw(st.integers(0, 3)) == 0:
        odd = st.dictionaries(st.sampled_from([*columns, "id", "system", "type"]), cells, min_size=1)
        rows.insert(draw(st.integers(0, len(rows))), {**draw(st.sampled_from(rows)), **draw(odd)})
    return rows


conversation = st.tuples(good, nonblank, good).map(
    lambda t: [
        {"role": "user", "content": t[0]},
        {"role": "assistant", "content": t[1]},
        {"role": "user", "content": t[2]},
        {"role": "assistant", "content": "Yes."},
    ]
)
tables = st.one_of(
    rows_of({"question": st.one_of(good, good, nonblank), "answer": good}),
    rows_of({"question": good, "answer": st.one_of(good, good, nonblank)}),
    rows_of({"instruction": good, "input": st.sampled_from(["", "", "Some input.", " "]), "output": good}),
    rows_of({"prompt": good, "completion": st.one_of(good, good, nonblank)}),
    rows_of({"text": st.one_of(good, good, nonblank)}),
    rows_of({"messages": conversation}),
    rows_of({"messages": st.lists(message(st.one_of(good, texts)), max_size=4)}),
    rows_of(
        {
            "id": st.text(max_size=5),
            "question": good,
            "type": st.sampled_from(["a", "b", " c ", "", "é"]),
            "answer": good,
        }
    ),
    rows_of(
        {"system": st.sampled_from(["Be brief.", ""]), "context": good, "question": good, "answer": good}
    ),
)


@st.composite
def files(draw):
    """The bytes of a JSONL file, with odd lines, escapes and ends."""
    ascii_only = draw(st.booleans())
    lines = []
    for row in draw(tables):
        line = json.dumps(
            row, ensure_ascii=ascii_only, separators=draw(st.sampled_from([(", ", ": "), (",", ":")]))
        )
        lines.append(line.encode("utf-8", "surrogatepass"))
    odd = st.sampled_from(
        [
            b"",
            b"  ",
            b"{",
            b'{"question": NaN, "answer": "x"}',
            b"[1]",
            b"\xff",
            b"\0",
            b'"x"',
            b'{"question": "a\tb", "answer": "c"}',
            b'{"question": "\\u00e9", "answer": "\\/"}',
            b'{"question": "x", "question": "Other?", "answer": "y"}',
            b"null",
            b'{"text": "x"} {"text": "y"}',
            b'{"answer": "turned", "question": "Round?"}',
            b'{"question": "ends in \\\\", "answer": "\\\\\\" quoted"}',
        ]
    )
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
            assert leftovers(workspace) == []
            continue
        folder = workspace.path("datasets", dataset.id)
        record = {key: getattr(dataset, key) for key in SAME}
        splits = [(folder / "splits" / f"{dataset.id}_{s}.jsonl").read_bytes() for s in SPLITS]
        results.append((record, dataset.files, (folder / "rows.jsonl").read_bytes(), splits))
        verify_dataset(workspace, dataset.id)
    return results


def cancel_at_every_report(workspace, path, count):
    """Imports a file `count` times, and cancels at its first report, at its second, and so on."""
    for last in range(count):
        calls = []

        def cancel(progress, calls=calls, last=last):
            calls.append(progress)
            if len(calls) > last:
                raise Cancelled("The import was cancelled.")

        with pytest.raises(Cancelled):
            import_dataset(workspace, [path], "y", report=cancel)


def leftovers(workspace: Workspace) -> list[str]:
    return sorted(p.name for p in (workspace.root / "datasets").iterdir())


def check_same(folder, content, block, large, name="a.jsonl"):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(source_copies, "BLOCK_BYTES", block)
        monkeypatch.setattr(json_lines, "CHUNK_BYTES", max(1, block // 5))
        monkeypatch.setattr(question_hashes, "CHUNK_BYTES", max(1, block // 5))
        monkeypatch.setattr(streamed_import, "LARGE", large)
        monkeypatch.setattr(split_rows, "LARGE", large)
        in_blocks, at_once = import_both(folder, monkeypatch, content, name)
    assert in_blocks == at_once


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=files(), block=st.sampled_from([40, 300, 1 << 20]), large=st.sampled_from([0, 200_000]))
def test_blocks_give_the_dataset_or_the_error_of_all_rows(tmp_path_factory, content, block, large):
    check_same(tmp_path_factory.mktemp("x"), content, block, large)


@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.tuples(st.one_of(good, nonblank), st.one_of(good, nonblank)), min_size=3, max_size=9),
    contexts=st.lists(st.sampled_from(["", "", "Some context.", " "]), min_size=9, max_size=9),
    types=st.lists(st.sampled_from(["a", "b", " c", "d\n", 'e"']), min_size=9, max_size=9),
    large=st.sampled_from([0, 200_000]),
)
def test_blocks_of_a_csv_file_give_the_dataset_of_all_rows(tmp_path_factory, rows, contexts, types, large):
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["question", "answer", "context", "type"])
    writer.writerows([*row, c, t] for row, c, t in zip(rows, contexts, types, strict=False))
    check_same(tmp_path_factory.mktemp("x"), out.getvalue().encode("utf-8"), 1 << 20, large, "a.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"question,answer\ra,b\rc,d\r"),
        ("a.csv", b'question,answer\r\na,b\r\n"c\r\n2",d\r\ne,f'),
        ("a.tsv", b"question\tanswer\na\tb\rc\td\n"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": "b"}\r\n{"text": "c"}'.encode("utf-16")),
    ],
)
def test_each_row_of_a_streamed_format_has_its_own_line(tmp_path, name, content):
    """So that `row_stream` knows a row by its file and line."""
    (tmp_path / name).write_bytes(content)
    lines = [row.line for row in read_files([tmp_path / name])]
    assert len(lines) >= 2 and len({*lines}) == len(lines)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def in_blocks(monkeypatch):
    monkeypatch.setattr(dataset_preview, "STREAM_BYTES", 0)
    monkeypatch.setattr(streamed_import, "SAMPLE_ROWS", 3)
    monkeypatch.setattr(source_copies, "BLOCK_BYTES", 200)


def test_a_row_that_contradicts_the_sample_changes_the_plan(tmp_path, in_blocks):
    """The first rows have a usable type; a later one has a list there, so that no row has a type."""
    rows = [{"question": f"Q{i}?", "answer": f"A{i}.", "type": f"t{i % 2}"} for i in range(20)]
    rows[15]["type"] = ["a", "list"]
    workspace = Workspace(tmp_path / "ws")
    dataset = import_dataset(workspace, [write_rows(tmp_path / "a.jsonl", rows)], "x")
    assert (dataset.rows, dataset.types, dataset.unread) == (20, {}, ["type"])
    assert dataset.notes == ["Not used as type: a.jsonl, line 16: the column 'type' is a list, not text."]
    stored = (workspace.path("datasets", dataset.id) / "rows.jsonl").read_text().splitlines()
    assert len(stored) == 20 and not any("type" in json.loads(line) for line in stored)


def test_a_column_that_begins_late_is_listed(tmp_path, in_blocks):
    rows = [{"question": f"Q{i}?", "answer": f"A{i}."} for i in range(12)]
    rows[9]["source"] = "a book"
    dataset = import_dataset(Workspace(tmp_path / "ws"), [write_rows(tmp_path / "a.jsonl", rows)], "x")
    assert dataset.columns == ["question", "answer", "source"] and dataset.unread == ["source"]


def test_a_type_with_too_many_values_is_left_out(tmp_path, in_blocks, monkeypatch):
    monkeypatch.setattr(row_parts, "TYPE_LIMIT", 5)
    rows = [{"question": f"Q{i}?", "answer": f"A{i}.", "type": f"t{i}"} for i in range(30)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    dataset = import_dataset(Workspace(tmp_path / "ws"), [path], "x")
    assert dataset.rows == 30 and dataset.types == {} and "does not look like a type" in dataset.notes[0]
    chosen = {"question": "question", "answer": "answer", "type": "type"}
    with pytest.raises(DataError, match="does not look like a type"):
        import_dataset(Workspace(tmp_path / "ws2"), [path], "x", "task", chosen)


def test_an_error_names_the_line_and_leaves_nothing(tmp_path, in_blocks):
    rows = [{"question": f"Q{i}?", "answer": f"A{i}."} for i in range(40)]
    rows[33]["answer"] = " "
    workspace = Workspace(tmp_path / "ws")
    with pytest.raises(DataError, match="a.jsonl, line 34: the column 'answer' is empty"):
        import_dataset(workspace, [write_rows(tmp_path / "a.jsonl", rows)], "x")
    assert leftovers(workspace) == []


def test_a_cancel_at_any_block_leaves_nothing(tmp_path, in_blocks):
    rows = [{"question": f"Q{i}?", "answer": f"A{i}."} for i in range(30)]
    path, workspace = write_rows(tmp_path / "a.jsonl", rows), Workspace(tmp_path / "ws")
    seen = []
    import_dataset(workspace, [path], "x", report=seen.append)
    shares = [p.done / p.total for p in seen]
    assert len(seen) >= 8 and shares == sorted(shares) and shares[-1] == 1.0 and seen[-1].rows == 30
    cancel_at_every_report(workspace, path, len(seen))
    assert len(leftovers(workspace)) == 1


def test_limits_of_a_user_hold_in_blocks(tmp_path, in_blocks):
    path = write_rows(tmp_path / "a.jsonl", [{"text": f"Text {i}"} for i in range(30)])
    with pytest.raises(DataError, match="line 30: the data has more than 20 rows") as caught:
        import_dataset(Workspace(tmp_path / "ws"), [path], "x", limits=Limits(20, None, None))
    assert caught.value.line <= 30


def test_a_large_file_is_previewed_by_its_first_rows(tmp_path, monkeypatch):
    rows = [{"question": f"Question {i:05}?", "answer": f"Answer {i:05}."} for i in range(5000)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    monkeypatch.setattr(dataset_preview, "STREAM_BYTES", 1000)
    monkeypatch.setattr(dataset_preview, "HEAD_BYTES", 10_000)
    preview = dataset_preview.preview([path])
    assert preview.is_sample and preview.problem == "" and abs(preview.total - 5000) < 50
    assert "The import reads and checks all." in preview.notes[0] and preview.roles["question"] == "question"
    monkeypatch.setattr(dataset_preview, "STREAM_BYTES", 1 << 40)
    assert dataset_preview.preview([path]).total == 5000


def test_a_page_of_a_split_is_found_by_its_index(tmp_path, in_blocks, monkeypatch):
    rows = [{"text": f"Text number {i}"} for i in range(9000)]
    workspace = Workspace(tmp_path / "ws")
    monkeypatch.setattr(source_copies, "BLOCK_BYTES", 1 << 20)
    dataset = import_dataset(workspace, [write_rows(tmp_path / "a.jsonl", rows)], "x")
    every = read_split(workspace, dataset.id, "train")
    for offset in (0, 1, 999, 1000, 3456, len(every) - 2, len(every) + 5):
        assert read_split(workspace, dataset.id, "train", 3, offset) == every[offset : offset + 3]
    index = workspace.path("datasets", dataset.id, "splits", f"{dataset.id}_train.offsets")
    assert index.stat().st_size == 8 * -(-len(every) // 1000)
    index.write_bytes(b"\xff" * 56)  # a damaged index is not used
    assert read_split(workspace, dataset.id, "train", 3, 3456) == every[3456:3459]
    index.unlink()
    assert read_split(workspace, dataset.id, "train", 3, 3456) == every[3456:3459]


def test_the_terminal_imports_a_large_file_without_the_model_libraries(tmp_path):
    """16 MB are read in blocks; the child prints which of these modules it has loaded."""
    rows = [{"question": f"Question {i}? {'word ' * 20}", "answer": "y" * 5000} for i in range(3400)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    code = (
        "import sys; from core.cli.main import main\n"
        f"code = main(['data', 'add', {str(path)!r}, '--workspace', {str(tmp_path / 'ws')!r}])\n"
        "heavy = ('torch', 'transformers', 'datasets', 'pandas', 'gradio')\n"
        "print([m for m in heavy if m in sys.modules], code)"
    )
    root = Path(dataset_preview.__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[] 0" and "3400 task rows" in out.stdout
