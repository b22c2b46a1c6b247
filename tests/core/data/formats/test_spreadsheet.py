"""Workbooks: the sheet with the columns, stored values, dates, merged cells; hostile parts are refused."""

import datetime
import io
import re
import zipfile

import openpyxl
import pytest

from core.data.formats import spreadsheet
from core.data.formats.read_log import ReadLog
from core.data.formats.readers import read_files
from core.errors import DataError


@pytest.fixture
def save(tmp_path):
    def put(*sheets, name="a.xlsx", change=None):
        book = openpyxl.Workbook()
        book.remove(book.active)
        for title, rows in sheets:
            sheet = book.create_sheet(title)
            for row in rows:
                sheet.append(row)
        if change:
            change(book)
        book.save(tmp_path / name)
        return tmp_path / name

    return put


def read(path):
    log = ReadLog()
    return [(r.line, r.values) for r in read_files([path], log=log)], log.notes


def refused(path, *parts):
    with pytest.raises(DataError) as caught:
        read_files([path])
    assert caught.value.file == path.name and caught.value.fix
    for part in parts:
        assert part in str(caught.value)


def replace_part(path, part, change):
    """Writes a workbook again with one changed part."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info.filename, change(data) if info.filename == part else data)
    path.write_bytes(out.getvalue())
    return path


def test_values_are_read_as_a_person_sees_them(save):
    rows = [
        ["q", "a", "when"],
        ["x", 3.0, datetime.datetime(2026, 1, 1)],
        ["y", 1.5, datetime.datetime(2026, 1, 1, 7, 10)],
        [],
        ["z", True, datetime.time(7, 10)],
        ["007", None, "as typed"],
    ]
    assert read(save(("Sheet", rows)))[0] == [
        (2, {"q": "x", "a": 3, "when": "2026-01-01"}),
        (3, {"q": "y", "a": 1.5, "when": "2026-01-01 07:10:00"}),
        (5, {"q": "z", "a": "TRUE", "when": "07:10"}),
        (6, {"q": "007", "a": None, "when": "as typed"}),
    ]


def test_the_sheet_with_the_columns_is_read_and_said(save):
    path = save(
        ("Cover", [["Internal"], ["Draft"], ["Old"], ["x"]]),
        ("FAQ", [["Question", "Answer"], ["q", "a"]]),
        ("Prices", [["what", "euro"], ["dog", 1], ["bicycle", 2]]),
    )
    rows, notes = read(path)
    assert rows == [(2, {"Question": "q", "Answer": "a"})]
    assert notes == [
        "a.xlsx: read is the sheet 'FAQ', whose columns fit best. Not read: 'Cover', 'Prices'. "
        "Save a sheet as a file of its own to read it."
    ]


def test_sheets_with_the_same_columns_are_all_read_but_not_hidden_ones(save):
    def hide(book):
        book["Old"].sheet_state = "hidden"

    sheets = [(title, [["Question", "Answer"], [title, "a"]]) for title in ("May", "June", "Old")]
    rows, notes = read(save(*sheets, change=hide))
    assert [values["Question"] for _, values in rows] == ["May", "June"]
    assert (
        "the hidden sheet 'Old' is left out" in notes[0] and "'May', 'June' have the same columns" in notes[1]
    )


def test_a_title_above_the_header_is_left_out_and_said(save):
    path = save(("S", [["Ferry FAQ 2026"], [], ["Question", "Answer"], ["q", "a"]]))
    assert read(path) == (
        [(4, {"Question": "q", "Answer": "a"})],
        ["a.xlsx, sheet 'S': the header is in row 3; what is above it is left out."],
    )


def test_the_value_of_merged_cells_holds_for_all_their_rows(save):
    rows = [["Category", "Question", "Answer"], ["fares", "q1", "a"], [None, "q2", "a"], [None, "q3", "a"]]
    got, notes = read(save(("S", rows), change=lambda book: book["S"].merge_cells("A2:A3")))
    assert [values["Category"] for _, values in got] == ["fares", "fares", None]
    assert notes == ["a.xlsx, sheet 'S': the value of merged cells is repeated in their other rows (1)."]


def test_formulas_give_their_stored_value_or_are_named(save):
    path = save(("S", [["q", "a"], ["x", "=1+2"], ["y", "=3+4"], ["z", "#N/A"]]))
    rows, notes = read(path)
    assert [values["a"] for _, values in rows] == [None, None, None]
    assert "formulas without a stored value are read as empty cells (B2, B3; 2 in all)" in notes[0]
    assert "an error such as #N/A are read as empty (1)" in notes[1]
    stored = replace_part(
        path,
        "xl/worksheets/sheet1.xml",
        lambda xml: re.sub(rb"(<f>1.2</f>)<v ?(/>|></v>)", rb"\1<v>3</v>", xml),
    )
    assert read(stored)[0][0] == (2, {"q": "x", "a": 3})


def test_a_text_that_begins_like_a_formula_stays_a_text(save):
    def write(book):
        book["S"]["B2"].value = "=1+2"
        book["S"]["B2"].data_type = "s"

    assert read(save(("S", [["q", "a"], ["x", "y"]]), change=write))[0] == [(2, {"q": "x", "a": "=1+2"})]


def test_what_the_file_says_about_its_size_is_not_believed(save):
    path = save(("S", [["q", "a"], ["x", "y"]]))
    replace_part(
        path, "xl/worksheets/sheet1.xml", lambda xml: xml.replace(b'ref="A1:B2"', b'ref="A1:XFD1048576"')
    )
    assert read(path)[0] == [(2, {"q": "x", "a": "y"})]
    replace_part(path, "xl/worksheets/sheet1.xml", lambda xml: xml.replace(b"A1:XFD1048576", b"A1"))
    assert read(path)[0] == [(2, {"q": "x", "a": "y"})]


def test_a_workbook_without_a_header_is_refused_in_words(save):
    refused(save(("S", [["Is it late?", "No"], ["Do dogs pay?", "No"]])), "looks like a row")
    refused(save(("S", [["q", "a"]])), "no sheet has rows")


def test_an_index_of_pandas_is_a_column_of_its_own(save):
    rows = [[None, "question", "answer"], [0, "q", "a"], [1, "q2", "a2"]]
    assert read(save(("S", rows)))[0][0] == (2, {"Unnamed: 0": 0, "question": "q", "answer": "a"})


def test_t1_declarations_in_a_part_are_refused(save):
    path = save(("S", [["q", "a"], ["x", "y"]]))
    replace_part(
        path, "xl/workbook.xml", lambda xml: b'<!DOCTYPE x [<!ENTITY a "b">]>' + xml.partition(b"?>")[2]
    )
    refused(path, "document type declaration")
    replace_part(path, "xl/workbook.xml", lambda xml: b'<?xml version="1.0" encoding="UTF-7"?>' + xml)
    refused(path, "an unusual encoding")


def test_t1_a_workbook_that_inflates_too_far_is_refused(save, monkeypatch):
    path = save(("S", [["q", "a"], *([f"question {n}", "a"] for n in range(200))]))
    monkeypatch.setattr(spreadsheet, "PART_LIMIT_BYTES", 5000)
    refused(path, "may inflate to at most", "csv")
    monkeypatch.setattr(spreadsheet, "PARTS_LIMIT_BYTES", 5000)
    refused(path, "inflate to")


def test_t1_a_row_number_out_of_range_does_not_keep_the_reader_busy(save, monkeypatch):
    path = save(("S", [["q", "a"], ["x", "y"], ["z", "w"]]))
    replace_part(
        path,
        "xl/worksheets/sheet1.xml",
        lambda xml: (
            xml.replace(b'<row r="3">', b'<row r="9000">').replace(b'r="A3"', b"").replace(b'r="B3"', b"")
        ),
    )
    monkeypatch.setattr(spreadsheet, "ROW_LIMIT", 8000)
    refused(path, "more rows or cells than are read")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\xd0\xcf\x11\xe0" + b"\0" * 600, "has a password, or is an old .xls"),
        (b"PK\x03\x04 nonsense", "damaged"),
        (b"question,answer\n", "damaged"),
    ],
)
def test_t3_files_that_are_not_workbooks_are_refused(tmp_path, data, what):
    (tmp_path / "a.xlsx").write_bytes(data)
    refused(tmp_path / "a.xlsx", what)


def test_t3_a_workbook_without_its_parts_is_refused(save):
    path = save(("S", [["q", "a"], ["x", "y"]]))
    replace_part(path, "xl/workbook.xml", lambda xml: b"<workbook/>")
    refused(path, "a.xlsx")
