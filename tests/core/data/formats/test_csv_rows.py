"""CSV: the delimiter that fits several lines, headers that are rows, trailing delimiters, quotes in TSV."""

import pytest

from core.data.formats.csv_rows import Dialect, find_dialect, read_csv
from core.data.formats.headers import find_missing_header
from core.data.formats.read_log import ReadLog
from core.errors import DataError


def read(text, name="a.csv", log=None):
    return list(read_csv(iter(text.splitlines(keepends=True)), name, log or ReadLog()))


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("q,a\n1,2\n", ","),
        ("q;a\nWell, it is;Yes, it is\nAnd, so;No\n", ";"),
        ("question (a, b, c);answer\none;two\n", ";"),
        ("q\ta\none; two\tthree, four\n", "\t"),
        ("q|a\none, two|three\n", "|"),
        ("price;text\n1,5;2,5\n", ";"),
        ('q,a\n"x;y;z","1;2;3"\n', ","),
        ("text\nOne, two and three.\n", ","),
    ],
)
def test_the_delimiter_fits_header_and_rows(text, delimiter):
    assert find_dialect(text.splitlines(keepends=True)) == Dialect(delimiter)


def test_the_line_of_excel_that_names_the_delimiter_is_not_a_header():
    assert read("sep=;\r\nq;a\r\nb,c;d\r\n") == [(3, {"q": "b,c", "a": "d"})]


def test_an_empty_column_after_the_last_delimiter_is_dropped_and_said():
    log = ReadLog()
    assert read("q,a,\n1,2,\n3,4,\n", log=log) == [(2, {"q": "1", "a": "2"}), (3, {"q": "3", "a": "4"})]
    assert log.notes == ["a.csv: the empty columns after the last name are left out."]
    assert read("q,a,,\n1,2,,\n") == [(2, {"q": "1", "a": "2"})]
    assert read("q,a\n1,2,\n") == [(2, {"q": "1", "a": "2"})]
    with pytest.raises(DataError, match="column 3 has no name"):
        read("q,a,\n1,2,3\n")


@pytest.mark.parametrize(
    "text",
    [
        "When does it leave?,At six.\nDo dogs pay?,No.\n",
        "1,one\n2,two\n",
        "x" * 81 + ",a\nb,c\n",
        "First ferry,It leaves at six.\nDogs,They travel free.\n",
    ],
)
def test_a_file_without_a_header_is_refused_in_words(text):
    with pytest.raises(DataError, match="looks like a row, not like the names of the columns") as caught:
        read(text)
    assert "question,answer" in caught.value.fix and caught.value.line == 1


def test_questions_of_a_form_are_names_of_columns():
    names = ["Timestamp", "What is your question?", "What would you answer?"]
    rows = [["2026-01-01", "When does it leave?", "At six"], ["2026-01-02", "Where is it", "There"]]
    assert find_missing_header([names[0], names[2]], [[r[0], r[2]] for r in rows]) == ""
    assert find_missing_header(["year", "text"], [["2026", "x"]]) == ""


def test_an_unnamed_first_column_of_numbers_is_an_index():
    assert read(",q,a\n0,b,c\n1,d,e\n")[0] == (2, {"Unnamed: 0": "0", "q": "b", "a": "c"})


def test_quotes_of_a_tsv_are_characters_where_they_enclose_no_cell():
    log = ReadLog()
    text = 'q\ta\n"Go" he said\tHe "went"\n5" pipe\tYes\n'
    assert read(text, "a.tsv", log)[0] == (2, {"q": '"Go" he said', "a": 'He "went"'})
    assert "quotes are read as characters" in log.notes[0]
    assert read('q\ta\n"one\ttwo"\tthree\n', "a.tsv") == [(2, {"q": "one\ttwo", "a": "three"})]


def test_a_tsv_with_one_column_keeps_its_commas():
    assert read("text\nOne, two.\n", "a.tsv") == [(2, {"text": "One, two."})]


def test_lines_of_delimiters_only_are_left_out():
    assert read("q,a\n,\n1,2\n , \n") == [(3, {"q": "1", "a": "2"})]
