"""Gzip and zip files of data: members are read one by one; hostile ones are refused; nothing stays."""

import gzip
import io
import stat
import tempfile
import zipfile

import pytest

from core.data.formats import compressed
from core.data.formats.read_log import ReadLog
from core.data.formats.readers import read_files
from core.errors import DataError, DiskFull

CSV = b"question,answer\nq1,a1\n"
FILES = {
    "a.jsonl": b'{"text": "one"}\n',
    "a.json": b'[{"text": "one"}]',
    "a.csv": b"text\none\n",
    "a.tsv": b"text\tn\none\t1\n",
    "a.txt": b"one",
    "a.md": b"one",
}


@pytest.fixture
def temp(tmp_path, monkeypatch):
    """An own folder for temporary files, which a test expects to be empty at the end."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def put_zip(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as z:
        for name, data in members:
            z.writestr(name, data)
    return path


def read(path, log=None):
    return [row.values for row in read_files([path], log=log)]


def refused(path, *parts):
    with pytest.raises(DataError) as caught:
        read_files([path])
    assert caught.value.fix and caught.value.file
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_gzip_and_zip_of_every_text_format_give_its_rows(tmp_path, temp, name):
    (tmp_path / name).write_bytes(FILES[name])
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(FILES[name]))
    plain = read(tmp_path / name)
    assert plain[0]["text"] == "one"
    assert read(tmp_path / f"{name}.gz") == plain
    assert read(put_zip(tmp_path / "z.zip", [(f"folder/{name}", FILES[name])])) == plain


def test_a_zip_gives_its_members_by_name_with_their_path(tmp_path, temp):
    path = put_zip(tmp_path / "z.zip", [("b/2.csv", CSV), ("a/1.csv", CSV.replace(b"1", b"2")), ("a/", b"")])
    rows = read_files([path])
    assert [(r.file, r.line, r.values["question"]) for r in rows] == [
        ("z.zip/a/1.csv", 2, "q2"),
        ("z.zip/b/2.csv", 2, "q1"),
    ]


def test_parquet_and_workbooks_inside_archives_are_read(tmp_path, temp):
    import openpyxl
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")
    book = openpyxl.Workbook()
    book.active.append(["text"])
    book.active.append(["two"])
    book.save(tmp_path / "b.xlsx")
    members = [(n, (tmp_path / n).read_bytes()) for n in ("a.parquet", "b.xlsx")]
    assert read(put_zip(tmp_path / "z.zip", members)) == [{"text": "one"}, {"text": "two"}]


def test_hidden_members_other_formats_and_a_readme_are_left_out_and_said(tmp_path, temp):
    members = [("__MACOSX/._a.csv", b"x"), (".DS_Store", b"x"), ("p.png", b"x"), ("q.png", b"x"),
               ("README.md", b"about"), ("a.csv", CSV)]  # fmt: skip
    log = ReadLog()
    assert read(put_zip(tmp_path / "z.zip", members), log) == [{"question": "q1", "answer": "a1"}]
    assert log.notes == [
        "z.zip: 2 files are left out, of other formats (.png).",
        "z.zip: 1 file is left out, about the data, such as README.",
    ]


@pytest.mark.parametrize("name", ["../a.csv", "/a.csv", "x/../../a.csv", "C:/a.csv", "a\\b.csv"])
def test_t6_names_that_leave_the_archive_are_left_out_and_counted(tmp_path, temp, name):
    log = ReadLog()
    info = zipfile.ZipInfo("x")
    info.filename = name
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as z:
        z.writestr(info, CSV)
        z.writestr("a.csv", CSV)
    assert len(read(tmp_path / "z.zip", log)) == 1
    assert log.notes == ["z.zip: 1 file is left out, with a path that leaves the archive."]


def test_t7_links_and_devices_in_a_zip_are_left_out_and_counted(tmp_path, temp):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as z:
        for number, kind in enumerate((stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO)):
            info = zipfile.ZipInfo(f"{number}.csv")
            info.external_attr = (kind | 0o777) << 16
            z.writestr(info, "/etc/hostname")
        z.writestr("a.csv", CSV)
    log = ReadLog()
    assert len(read(tmp_path / "z.zip", log)) == 1
    assert log.notes == ["z.zip: 3 files are left out, links or devices."]


def test_t1_an_archive_inside_an_archive_is_refused(tmp_path, temp):
    inner = io.BytesIO()
    put_zip(inner, [("a.csv", CSV)])
    refused(
        put_zip(tmp_path / "z.zip", [("b.zip", inner.getvalue())]), "b.zip is an archive inside", "Unpack"
    )
    refused(put_zip(tmp_path / "y.zip", [("b.csv.gz", gzip.compress(CSV))]), "an archive inside")
    (tmp_path / "a.zip.gz").write_bytes(gzip.compress(inner.getvalue()))
    refused(tmp_path / "a.zip.gz", "an archive (.zip) inside a gzip file")
    (tmp_path / "a.gz").write_bytes(gzip.compress(CSV))
    refused(tmp_path / "a.gz", "does not say which format", "data.jsonl.gz")


def test_t1_sizes_and_ratio_are_counted_while_inflating(tmp_path, temp, monkeypatch):
    monkeypatch.setattr(compressed, "RATIO_FLOOR_BYTES", 100_000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "x"}\n' * 20_000, mtime=0))
    refused(path, "bytes inflates to more than 1")
    monkeypatch.setattr(compressed, "RATIO_LIMIT", 10_000)
    assert len(read(path)) == 20_000
    monkeypatch.setattr(compressed, "MEMBER_LIMIT_BYTES", 100_000)
    refused(path, "a file inside has more than 100,000 bytes")
    monkeypatch.setattr(compressed, "MEMBER_LIMIT_BYTES", 1 << 30)
    monkeypatch.setattr(compressed, "TOTAL_LIMIT_BYTES", 100_000)
    refused(put_zip(tmp_path / "z.zip", [(f"{n}.txt", b"x" * 40_000) for n in range(3)]), "inflates to more")


def test_t1_too_many_members_and_a_large_directory_are_refused(tmp_path, temp, monkeypatch):
    path = put_zip(tmp_path / "z.zip", [(f"{n}.txt", b"x") for n in range(6)])
    monkeypatch.setattr(compressed, "COUNT_LIMIT", 5)
    refused(path, "at most 5 files, got 6")
    monkeypatch.setattr(compressed, "DIRECTORY_LIMIT_BYTES", 100)
    refused(path, "list of files has", "at most 100")


@pytest.mark.parametrize("cut", [10, 40, 60])
def test_t3_damaged_archives_are_refused(tmp_path, temp, cut):
    packed = gzip.compress(b"".join(b'{"text": "row %d"}\n' % n for n in range(100)))
    (tmp_path / "a.jsonl.gz").write_bytes(packed[:cut])
    refused(tmp_path / "a.jsonl.gz", "damaged or incomplete")
    whole = put_zip(tmp_path / "z.zip", [("a.csv", CSV)]).read_bytes()
    (tmp_path / "y.zip").write_bytes(whole[:cut])
    refused(tmp_path / "y.zip", "damaged or incomplete")
    at = whole.find(b"a.csv") + len("a.csv")
    (tmp_path / "x.zip").write_bytes(whole[:at] + b"\xff\xff\xff" + whole[at + 3 :])
    refused(tmp_path / "x.zip", "damaged or incomplete")


def test_an_encrypted_member_is_refused(tmp_path, temp):
    data = bytearray(put_zip(tmp_path / "z.zip", [("a.csv", CSV)]).read_bytes())
    data[6] |= 1
    data[data.find(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "z.zip").write_bytes(data)
    refused(tmp_path / "z.zip", "a.csv is encrypted", "password")


def test_other_compression_methods_are_refused(tmp_path, temp):
    refused(put_zip(tmp_path / "z.zip", [("a.csv", CSV)], zipfile.ZIP_LZMA), "method that is not supported")


def test_an_archive_without_a_supported_file_is_refused(tmp_path, temp):
    refused(put_zip(tmp_path / "z.zip", [("a.png", b"x")]), "no supported file", ".csv")


def test_an_error_in_a_member_names_the_member_and_leaves_nothing(tmp_path, temp):
    path = put_zip(tmp_path / "z.zip", [("a.csv", CSV), ("b.csv", b"q,a\n1\n")])
    with pytest.raises(DataError) as caught:
        read_files([path])
    assert (caught.value.file, caught.value.line) == ("z.zip/b.csv", 2)


def test_a_full_temp_folder_is_said(tmp_path, temp, monkeypatch):
    def full(folder, need):
        raise DiskFull("The disk is full.", "Free some space.")

    monkeypatch.setattr(compressed, "ensure_space", full)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one"))
    with pytest.raises(DiskFull):
        read_files([tmp_path / "a.txt.gz"])


def test_a_text_that_cannot_be_read_is_skipped_beside_others(tmp_path, temp):
    log = ReadLog()
    path = put_zip(tmp_path / "z.zip", [("a.txt", b"one"), ("b.txt", b"x\0y"), ("c.txt", b"")])
    assert read(path, log) == [{"text": "one"}]
    assert [s["file"] for s in log.skipped] == ["z.zip/b.txt", "z.zip/c.txt"]
    assert "NUL" in log.skipped[0]["reason"] and "empty" in log.skipped[1]["reason"]
    refused(put_zip(tmp_path / "y.zip", [("b.txt", b"x\0y"), ("c.txt", b"")]), "NUL")
