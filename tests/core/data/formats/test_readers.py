"""Readers: every format gives rows with file and line; every error names file, line, cause and remedy."""

import json
import os
import socket
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.formats import parquet, readers
from core.data.formats.read_log import ReadLog
from core.data.formats.readers import find_files, read_files
from core.errors import DataError, UnknownEncoding


@pytest.fixture
def write(tmp_path):
    def put(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


def refused(path, *parts, line="any", encoding="utf-8"):
    """Reads a file and expects a DataError that names the file and the line and contains each of `parts`."""
    with pytest.raises(DataError) as caught:
        read_files([path], encoding)
    error = caught.value
    assert error.file == path.name and str(error).startswith(path.name)
    if line != "any":
        assert error.line == line
    assert error.fix, "an error needs a remedy"
    for part in parts:
        assert part in str(error)
    return error


def table(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


# ------------------------------------------------------------ formats


def test_a_text_file_is_one_document(write):
    rows = read_files([write("a.txt", "\n\nFirst line.\r\n\r\nSecond.  \n\n")])
    assert [(r.values, r.file, r.line) for r in rows] == [({"text": "First line.\n\nSecond."}, "a.txt", 3)]


def test_a_line_of_dashes_between_blank_lines_divides_documents(write):
    rows = read_files(
        [write("a.md", "One.\n\n---\n\nTwo.\nHeading\n---\nstill two\n\n---\n\nThree.\n\n---\n")]
    )
    assert [(r.values["text"], r.line) for r in rows] == [
        ("One.", 1),
        ("Two.\nHeading\n---\nstill two", 5),
        ("Three.", 12),
    ]


@pytest.mark.parametrize("front", ["---\ntitle: A\n---\n", "---\ntitle: A\ntags:\n  - b\n\n---\n"])
def test_markdown_front_matter_is_not_a_divider(write, front):
    rows = read_files([write("a.md", f"{front}\nBody.\n\n---\n\nNext.\n")])
    assert [r.values["text"] for r in rows] == [f"{front}\nBody.", "Next."]


def test_prose_after_a_leading_line_of_dashes_is_not_front_matter(write):
    rows = read_files([write("a.txt", "---\nOnce upon a time\nthere was.\n\n---\n\nNext.\n")])
    assert [r.values["text"] for r in rows] == ["---\nOnce upon a time\nthere was.", "Next."]


def test_jsonl_gives_one_object_per_line_and_skips_blank_lines(write):
    rows = read_files([write("a.jsonl", '{"q": "1"}\n\n{"q": "2\\u2028", "n": 3}')])
    assert [(r.values, r.line) for r in rows] == [({"q": "1"}, 1), ({"q": "2\u2028", "n": 3}, 3)]


def test_json_gives_the_array_with_the_line_of_each_object(write):
    rows = read_files([write("a.json", '[\n {"q": "1"},\n {\n  "q": "2"\n }\n,{"q": "3"}]\n')])
    assert [(r.values["q"], r.line) for r in rows] == [("1", 2), ("2", 3), ("3", 6)]


def test_json_with_one_object_per_line_is_read_as_lines(write):
    rows = read_files([write("a.json", '\n{"text": "one"}\n{"text": "two"}\n')])
    assert [(r.line, r.values["text"]) for r in rows] == [(2, "one"), (3, "two")]


def test_json_gives_the_one_array_of_an_outer_object(write):
    rows = read_files(
        [write("a.json", '{"version": {"a": [1]}, "n": 2,\n"data": [{"q": "1"},\n{"q": "2"}], "end": null}')]
    )
    assert [(r.values["q"], r.line) for r in rows] == [("1", 2), ("2", 3)]


def test_csv_reads_quotes_and_line_ends_and_gives_the_first_line_of_a_row(write):
    rows = read_files([write("a.csv", 'q,a\r\n"one, ""two""","x\r\ny"\r\n\r\nthree,z\r\n')])
    assert [(r.values, r.line) for r in rows] == [
        ({"q": 'one, "two"', "a": "x\r\ny"}, 2),
        ({"q": "three", "a": "z"}, 5),
    ]


@pytest.mark.parametrize("divider", [",", ";", "\t"])
def test_csv_is_divided_by_comma_semicolon_or_tab(write, divider):
    assert read_files([write("a.csv", f"q{divider}a\n1{divider}2\n")])[0].values == {"q": "1", "a": "2"}


def test_csv_cells_may_be_longer_than_the_standard_limit(write):
    assert len(read_files([write("a.csv", "text\n" + "x" * 200_000)])[0].values["text"]) == 200_000


def test_parquet_gives_texts_numbers_dates_and_messages(tmp_path):
    import datetime

    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    path = table(
        tmp_path / "a.parquet",
        {
            "t": ["x", None],
            "n": [1, 2],
            "f": [0.5, 1.5],
            "b": [True, False],
            "d": [datetime.date(2025, 11, 1)] * 2,
            "messages": [messages, []],
        },
    )
    rows = read_files([path])
    assert rows[0].values == {"t": "x", "n": 1, "f": 0.5, "b": True, "d": "2025-11-01", "messages": messages}
    assert (rows[1].values["t"], rows[1].values["messages"], rows[1].line) == (None, [], 2)


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_LENGTH_BYTE_ARRAY"])
def test_parquet_reads_texts_that_are_not_in_a_dictionary(tmp_path, encoding):
    path = table(
        tmp_path / "a.parquet",
        {"t": [f"row {i}" for i in range(2000)]},
        use_dictionary=False,
        column_encoding={"t": encoding},
    )
    assert [r.values["t"] for r in read_files([path])] == [f"row {i}" for i in range(2000)]


def test_many_files_keep_their_order_and_a_folder_is_sorted(write, tmp_path):
    (
        write("f/b.txt", "b"),
        write("f/a/z.md", "z"),
        write("f/A.TXT", "A"),
        write("f/.hidden.txt", "no"),
        write("f/picture.png", "no"),
    )
    first = write("x.txt", "x")
    assert [(r.file, r.values["text"]) for r in read_files([first, tmp_path / "f"])] == [
        ("x.txt", "x"),
        ("A.TXT", "A"),
        ("a/z.md", "z"),
        ("b.txt", "b"),
    ]


def test_a_file_given_twice_is_read_once(write, tmp_path):
    assert len(read_files([write("a.txt", "a"), tmp_path / "a.txt", tmp_path])) == 1


def test_a_hundred_thousand_jsonl_rows_take_seconds(write):
    path = write("a.jsonl", "".join(f'{{"question": "q {i}", "answer": "a {i}"}}\n' for i in range(100_000)))
    start = time.process_time()
    assert len(read_files([path])) == 100_000
    assert time.process_time() - start < 5


# ------------------------------------------------------------ T1 bombs, counts, sizes


@pytest.mark.parametrize("name", ["a.tar", "a.7z", "a.jsonl.bz2", "a.exe", "a"])
def test_t1_other_archives_and_formats_are_refused(write, name):
    refused(write(name, b"\x1f\x8b"), ".jsonl", ".zip")


def test_t1_a_small_parquet_that_decodes_to_gigabytes_is_refused(tmp_path):
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["z" * 1_000_000]))
    path = table(tmp_path / "bomb.parquet", {"text": repeated})
    assert path.stat().st_size < 100_000
    refused(path, "decodes to more than 67,108,864 bytes", "Split it")


def test_t1_a_parquet_bomb_inside_messages_is_refused(tmp_path):
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["z" * 1_000_000]))
    turns = pa.StructArray.from_arrays([pa.array(["user"] * 5000), repeated], ["role", "content"])
    path = table(
        tmp_path / "bomb.parquet",
        {"messages": pa.ListArray.from_arrays(pa.array([0, 5000], pa.int32()), turns)},
    )
    refused(path, "decodes to more than 67,108,864 bytes")


def test_t1_a_parquet_bomb_is_refused_before_it_is_decoded(tmp_path):
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array(["z" * 1_000_000]))
    # Without the Arrow schema, the file does not say that the column is a dictionary.
    path = table(tmp_path / "bomb.parquet", {"text": repeated}, store_schema=False)
    default_pool, counting_pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(counting_pool)
    try:
        refused(path, "decodes to more than 67,108,864 bytes")
    finally:
        pa.set_memory_pool(default_pool)
    assert 0 < counting_pool.max_memory() < 50_000_000


def test_t1_highly_repetitive_texts_are_still_read(tmp_path):
    path = table(tmp_path / "a.parquet", {"text": ["the same " * 50] * 20_000})
    assert len(read_files([path])) == 20_000


def test_t1_a_parquet_encoding_of_unbounded_size_is_refused(tmp_path):
    path = table(
        tmp_path / "a.parquet",
        {"t": ["x", "y"]},
        use_dictionary=False,
        column_encoding={"t": "DELTA_BYTE_ARRAY"},
    )
    refused(path, "'t'", "DELTA_BYTE_ARRAY", "default encodings")


def test_t1_a_file_above_the_size_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.txt"
    with open(path, "wb") as f:
        f.truncate((1 << 30) + 1)  # sparse: takes no space
    refused(path, "at most 1,073,741,824 bytes, got 1,073,741,825", "Split it")


def test_t1_a_json_file_has_a_smaller_limit_because_it_is_read_whole(tmp_path):
    path = tmp_path / "a.json"
    with open(path, "wb") as f:
        f.truncate((256 << 20) + 1)
    refused(path, "at most 268,435,456 bytes, got 268,435,457", "Save it as .jsonl")


def test_t1_too_many_rows_files_and_bytes_are_refused(write, tmp_path, monkeypatch):
    path, other = write("a.jsonl", '{"a": "b"}\n' * 6), write("b.txt", "x")
    monkeypatch.setattr(readers, "ROW_LIMIT", 5)
    refused(path, "more than 5 rows", "several datasets", line=6)
    monkeypatch.setattr(readers, "TOTAL_LIMIT_BYTES", 60)
    with pytest.raises(DataError, match="One import may have at most 60 bytes, got 67"):
        read_files([path, other])
    monkeypatch.setattr(readers, "FILE_COUNT_LIMIT", 1)
    with pytest.raises(DataError, match="One import may have at most 1 files"):
        read_files([path, other])
    with pytest.raises(DataError, match="One import may have at most 1 files"):
        read_files([tmp_path])


def test_t1_too_many_parquet_rows_and_columns_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_LIMIT", 5)
    refused(table(tmp_path / "a.parquet", {"t": ["x"] * 6}), "at most 5 rows, got 6", "Split it")
    refused(
        table(tmp_path / "b.parquet", {f"c{i}": ["x"] for i in range(65)}),
        "at most 64 columns, got 65",
        "Remove",
    )


# ------------------------------------------------------------ T2 nesting


@pytest.mark.parametrize("text", ["[" * 33, '{"a":' * 33, '{"a": ' + "[" * 32 + "]" * 32 + "}"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_t2_json_nested_deeper_than_32_levels_is_refused(write, text, suffix):
    error = refused(
        write("a" + suffix, '{"a": "b"}\n' * (suffix == ".jsonl") + text),
        "nested deeper than 32 levels",
        "Flatten it",
    )
    assert error.line == (2 if suffix == ".jsonl" else 1)


def test_t2_json_nested_32_levels_deep_is_read(write):
    nested = '{"a": ' + "[" * 31 + "]" * 31 + "}"
    assert list(read_files([write("a.jsonl", nested)])[0].values) == ["a"]
    assert list(
        read_files([write("b.json", f"[{nested.replace('[', '', 1).replace(']', '', 1)}]")])[0].values
    )


def test_t2_depth_is_counted_outside_texts_only(write):
    text = '\\"[[[[{{{{' * 5
    rows = read_files([write("a.jsonl", '{"a": "%s", "b": %s}' % (text, "[" * 31 + "]" * 31))])
    assert rows[0].values["a"].count("[") == 20


def test_t2_a_line_of_a_million_quotes_is_refused_quickly(write):
    path = write("a.jsonl", '{"a": ' + "[" * 20 + '"' + '\\"' * 499_900 + "{" * 20)
    start = time.process_time()
    refused(path, "the JSON is incomplete", line=1)
    assert time.process_time() - start < 3


# ------------------------------------------------------------ T3 encodings and broken files


@pytest.mark.parametrize(
    ("data", "line", "offer"),
    [
        ("ok\ncafé".encode("latin-1"), 2, "latin-1"),
        ("ok\n\n“quoted”".encode("cp1252"), 3, "cp1252"),
    ],
)
def test_t3_an_encoding_is_offered_never_assumed(write, data, line, offer):
    path = write("a.txt", data)
    refused(path, "not valid utf-8", "Choose the encoding", offer, "UTF-8", "--encoding", line=line)


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_t3_a_file_that_identifies_its_encoding_is_read_and_said(write, codec):
    log = ReadLog()
    rows = read_files([write("a.txt", "plain".encode(codec))], log=log)
    assert rows[0].values == {"text": "plain"}
    assert codec[:6].upper() in log.notes[0] and len(log.notes) == 1


def test_t3_the_exact_line_is_named_far_into_a_file(write):
    refused(write("a.jsonl", b'{"a": "b"}\n' * 5000 + b'{"a": "\xff"}\n'), line=5001)


@pytest.mark.parametrize(
    ("encoding", "codec"),
    [("latin-1", "latin-1"), ("utf-16", "utf-16"), ("cp1252", "cp1252"), ("utf-8", "utf-8-sig")],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv"])
def test_t3_a_chosen_encoding_is_read(write, encoding, codec, name):
    text = {
        "a.txt": "café",
        "a.jsonl": '{"text": "café"}',
        "a.json": '[{"text": "café"}]',
        "a.csv": "text\ncafé\n",
    }[name]
    assert read_files([write(name, text.encode(codec))], encoding)[0].values == {"text": "café"}


def test_t3_a_wrongly_chosen_encoding_is_refused(write):
    refused(write("a.txt", "plain text"), "not valid utf-16", encoding="utf-16", line=1)
    with pytest.raises(DataError, match="Encoding must be one of utf-8, .*cp1252.*, got 'zip'"):
        read_files([write("b.txt", "x")], "zip")


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.json", "a.jsonl", "a.csv", "a.parquet"])
@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_t3_an_empty_file_is_refused(write, name, data):
    if name == "a.parquet" and data:
        refused(write(name, data), "the parquet file cannot be read", "Copy or write the file again")
    else:
        refused(write(name, data), "the file is empty", "leave it out")


def test_t3_a_csv_with_only_a_header_and_an_empty_array_are_refused(write):
    refused(write("a.csv", "q,a\n"), "has no rows")
    refused(write("a.json", "[ ]"), "has no rows")


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.jsonl", "a.csv"])
def test_t3_nul_is_refused_in_every_text_format(write, name):
    refused(write(name, '{"x": "x"}\n' + "y" * 100 + "\0"), "NUL", "Remove it", line=2)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_t3_nan_and_infinity_are_refused_with_their_line(write, number):
    refused(
        write("a.jsonl", '{"a": 1}\n{"a": %s}\n' % number), f"{number} is not a JSON number", "null", line=2
    )
    refused(write("a.json", '[{"a": 1},\n{"a": %s}]' % number), f"{number} is not a JSON number", line=2)


def test_t3_half_a_line_is_reported_as_incomplete(write):
    refused(
        write("a.jsonl", '{"a": "b"}\n{"a": "hal'), "the JSON is incomplete", "column 7", "truncated", line=2
    )
    refused(write("a.json", '[{"a": "b"},\n{"a": "c"},'), "the JSON is incomplete", line=2)
    refused(write("b.jsonl", '{"a": "b"}\n{"a": \n'), "the JSON is incomplete", "column 6", line=2)
    refused(write("b.json", '[{"a": "b"},\n{"a": "c"},\n\n'), "the JSON is incomplete", line=2)


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ('{"a": "b"}\n{a: "b"}', "Expecting property name", 2),
        ('{"a": "b"} {"a": "c"}', "Extra data", 1),
        ('{"a": "b"}\n["b"]', "the row is a list, not an object", 2),
        ('{"a": "b"}\n"b"', "the row is a text, not an object", 2),
        ("3", "the row is a number", 1),
        ("[\n{}\n]", "name it .json", 1),
        ('{"a": %s}' % ("1" * 5000), "not valid JSON", 1),
    ],
)
def test_t3_a_line_that_is_not_an_object_is_refused(write, text, what, line):
    refused(write("a.jsonl", text), what, line=line)


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ('[{"a": "b"},\n"c"]', "the row is a text", 2),
        ('[{"a": "b"}\n{"a": "c"}]', "Expecting ',' delimiter", 2),
        ('[{"a": "b"},\n]', "Illegal trailing comma", 2),
        ('[{"a": "b"}]\n[]', "Extra data", 2),
        ('"text"', "the file is a text, not an object", 1),
        ('{"a": "b"}', "the outer object has no array", 1),
        ('{"a": [], "b": []}', "2 arrays (a, b)", 1),
        ('{"a": [{}],}', "not valid JSON", 1),
    ],
)
def test_t3_a_json_file_of_another_form_is_refused(write, text, what, line):
    refused(write("a.json", text), what, line=line)


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("q,a\n1,2\n1,2,3\n", "the row has 3 cells, but the header has 2 (q, a)", 3),
        ('q,a\n"x\ny",2\n1\n', "1 cells, but the header has 2", 4),
        ('q,a\n1,2\n"open,2\n3,4\n', "unexpected end of data", 3),
        ('q,a\n"x"y,2\n', "expected after", 2),
        ("q,q\n1,2\n", "two columns are named 'q'", 1),
        ("q,\n1,2\n", "column 2 has no name", 1),
        (",".join(f"c{i}" for i in range(65)) + "\n", "at most 64 columns, got 65", 1),
    ],
)
def test_t3_ragged_and_broken_csv_is_refused(write, text, what, line):
    refused(write("a.csv", text), what, line=line)


def test_t3_a_damaged_parquet_is_refused(tmp_path):
    path = table(tmp_path / "a.parquet", {"t": [f"row {i}" for i in range(1000)]})
    whole = path.read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        whole[:4] + b"\xff" * 200 + whole[204:],
        b"PAR1" + b"x" * 50 + b"PAR1",
    ):
        path.write_bytes(damaged)
        refused(path, "the parquet file cannot be read", "write the file again")


def test_a_parquet_column_of_another_type_is_left_unread(tmp_path):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.5, 1.5, 2.5, 3.5]), 2)
    image = [{"bytes": b"x", "path": "a.png"}] * 2
    path = table(tmp_path / "a.parquet", {"image": image, "t": ["x", "y"], "emb": vectors, "raw": [b"z"] * 2})
    rows = read_files([path])
    assert [r.values["t"] for r in rows] == ["x", "y"]
    assert list(rows[0].values) == ["image", "t", "emb", "raw"]
    assert [str(rows[0].values[c]) for c in ("image", "emb", "raw")] == [
        "(struct<bytes: binary, path: string>, not read)",
        "(fixed_size_list<element: double>[2], not read)",
        "(binary, not read)",
    ]


def test_t3_a_parquet_file_without_a_column_that_can_be_read_is_refused(tmp_path):
    refused(table(tmp_path / "a.parquet", {"image": [b"x"]}), "'image' (binary)", "Write texts")


def test_t1_an_unread_parquet_column_is_not_decoded(tmp_path):
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), pa.array([b"z" * 1_000_000]))
    path = table(tmp_path / "a.parquet", {"t": ["x"] * 5000, "raw": repeated})
    assert len(read_files([path])) == 5000


def test_parquet_reads_messages_with_tool_calls(tmp_path):
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "q", "tool_calls": None},
        {"role": "assistant", "content": "a", "tool_calls": [call]},
    ]
    path = table(tmp_path / "a.parquet", {"messages": [messages]})
    assert read_files([path])[0].values == {"messages": messages}


def test_parquet_writes_times_with_their_offset(tmp_path):
    import datetime
    from zoneinfo import ZoneInfo

    time_of_day = datetime.datetime(2026, 1, 1, 7, 10, tzinfo=ZoneInfo("Europe/Oslo"))
    path = table(tmp_path / "a.parquet", {"t": pa.array([time_of_day], pa.timestamp("us", "Europe/Oslo"))})
    assert read_files([path])[0].values == {"t": "2026-01-01 07:10:00+01:00"}


def test_t3_too_many_fields_are_refused(write):
    refused(
        write("a.jsonl", json.dumps({f"c{i}": "x" for i in range(65)})),
        "at most 64 fields, got 65",
        "Remove",
        line=1,
    )


# ------------------------------------------------------------ T4 huge lines


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_t4_a_huge_line_is_refused_without_reading_it_whole(write, name):
    import tracemalloc

    path = write(name, '{"x": 1}\n' + "y" * 30_000_000)
    tracemalloc.start()
    refused(path, "longer than 1,000,000 characters", "Split it", line=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_t4_a_huge_object_of_a_json_file_is_refused(write):
    refused(
        write("a.json", '[{"a": "b"},\n{"a": "%s"}]' % ("y" * 1_000_001)),
        "longer than 1,000,000 characters",
        line=2,
    )


def test_t4_a_csv_quote_that_never_closes_does_not_swallow_the_file(write):
    refused(
        write("a.csv", 'q\n"' + "open line\n" * 150_000), "field larger than field limit", "quotes", line=2
    )


# ------------------------------------------------------------ T6, T7 names, links, pipes, devices


@pytest.mark.parametrize("name", ["gone.txt", "x\0.txt", "x" * 300 + ".txt"])
def test_t6_an_impossible_path_is_refused(tmp_path, name):
    with pytest.raises(DataError) as caught:
        read_files([tmp_path / name])
    assert caught.value.fix


def test_t6_names_with_glob_characters_are_plain_names(write):
    assert read_files([write("[a]*?.txt", "x")])[0].file == "[a]*?.txt"


def test_t7_a_link_is_refused_and_in_a_folder_skipped(write, tmp_path):
    secret = write("secret.txt", "secret")
    (tmp_path / "f").mkdir()
    link, folder_link = tmp_path / "f" / "link.txt", tmp_path / "f" / "away"
    link.symlink_to(secret)
    folder_link.symlink_to(tmp_path)
    refused(link, "not a regular file", "not a link")
    refused(folder_link, "not a regular file")
    refused(tmp_path / "f", "the folder has no supported file")
    write("f/real.txt", "real")
    assert [s.name for s in find_files([tmp_path / "f"])] == ["real.txt"]


def test_t7_pipes_sockets_and_devices_are_refused_without_waiting(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.txt")
    refused(tmp_path / "pipe.txt", "not a regular file")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.txt")
        refused(tmp_path / "socket.txt", "not a regular file")
    with pytest.raises(DataError, match="not a regular file"):
        read_files(["/dev/zero"])


def test_t7_a_file_that_turns_into_a_link_after_the_check_is_refused(write, tmp_path, monkeypatch):
    path = write("a.txt", "a")
    honest = os.lstat(path)
    path.unlink()
    path.symlink_to(write("secret.txt", "secret"))
    monkeypatch.setattr(readers.os, "lstat", lambda p, **_: honest)
    refused(path, "cannot be opened")


# ------------------------------------------------------------ several files


def test_a_text_that_cannot_be_read_is_skipped_and_the_rest_goes_on(write, tmp_path):
    write("n/a.txt", "one")
    write("n/b.md", b"x\0y")
    write("n/c.txt", "")
    write("n/d.docx", b"not a document")
    write("n/e.png", b"x")
    log = ReadLog()
    rows = read_files([tmp_path / "n", write("f.exe", b"x")], log=log)
    assert [r.values for r in rows] == [{"text": "one"}]
    assert [s["file"] for s in log.skipped] == ["f.exe", "b.md", "c.txt", "d.docx"]
    assert log.skipped[1]["reason"].startswith("line 1: the line has a NUL character. Remove it.")
    assert log.notes == ["n: files of other formats are left out (.png; 1 in all)."]


def test_a_table_that_cannot_be_read_is_an_error_also_beside_others(write):
    paths = [write("a.txt", "one"), write("b.csv", "q,a\n1\n")]
    with pytest.raises(DataError, match="b.csv, line 2: the row has 1 cells"):
        read_files(paths)


def test_if_no_file_can_be_read_the_first_error_is_raised(write):
    with pytest.raises(DataError, match="a.txt, line 1: the line has a NUL"):
        read_files([write("a.txt", b"x\0y"), write("b.txt", "")])
    with pytest.raises(DataError, match=".exe files are not supported"):
        read_files([write("a.exe", b"x"), write("b.png", b"x")])


def test_an_unknown_encoding_is_asked_also_beside_other_files(write):
    with pytest.raises(UnknownEncoding, match="b.txt, line 1"):
        read_files([write("a.txt", "one"), write("b.txt", "Fähre".encode("cp1252"))])


def test_no_files_at_all_is_refused():
    with pytest.raises(DataError, match="No files were given"):
        read_files([])
