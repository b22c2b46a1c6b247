"""Text files of other programs: notes of Anki are a table; chats and quizzes are named for what they are."""

import pytest

from core.data.formats.read_log import ReadLog
from core.data.formats.readers import read_files
from core.data.reading import read_rows
from core.errors import DataError, UnconfirmedRoles

CHAT = "\n".join(
    f"[28.11.26, 09:{n:02}:33] {who}: Is the ferry late?" for n, who in enumerate(["Ann", "Bo"] * 4)
)
QUIZ = "::Q1:: When does it leave? {=At six ~At seven}\n\nDogs pay. {=No ~Yes}\n\nIs it late? {=No ~Yes}\n"


def read(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    log = ReadLog()
    return read_files([tmp_path / "a.txt"], log=log), log.notes


def test_notes_of_anki_are_a_table_whose_roles_are_asked(tmp_path):
    head = "#separator:tab\n#html:true\n#tags column:3\n"
    text = head + "When does<br>it leave?\tAt <b>six</b> &amp; 7\tferry\n"
    rows, notes = read(tmp_path, text + '"Do dogs\n""pay""?"\tThey do not\tferry\n')
    assert [(r.line, r.values) for r in rows] == [
        (4, {"field 1": "When does\nit leave?", "field 2": "At six & 7", "tags": "ferry"}),
        (5, {"field 1": 'Do dogs\n"pay"?', "field 2": "They do not", "tags": "ferry"}),
    ]
    assert "HTML; their tags are left out" in notes[0]
    reading = read_rows(rows)
    assert isinstance(reading.problem, UnconfirmedRoles)
    assert reading.roles == {"question": "field 1", "answer": "field 2"}


def test_names_of_the_fields_of_anki_are_used(tmp_path):
    rows, _ = read(tmp_path, "#separator:semicolon\n#columns:Question;Answer\nq;a\n")
    assert rows[0].values == {"Question": "q", "Answer": "a"} and read_rows(rows).problem is None


def test_broken_notes_of_anki_are_refused_with_their_line(tmp_path):
    with pytest.raises(DataError, match="a.txt, line 2: not a note of Anki"):
        read(tmp_path, '#separator:tab\n"open\tq\n')
    with pytest.raises(DataError, match="the separator '::' is not supported"):
        read(tmp_path, "#separator:::\na::b\n")


@pytest.mark.parametrize(("text", "what"), [(CHAT, "an exported chat"), (QUIZ, "Moodle's GIFT format")])
def test_a_chat_and_a_quiz_are_read_as_text_and_said(tmp_path, text, what):
    rows, notes = read(tmp_path, text)
    assert (
        rows[0].values["text"].startswith(text[:20])
        and what in notes[0]
        and "question and answer" in notes[0]
    )


def test_prose_with_dates_and_braces_is_not_an_export(tmp_path):
    assert read(tmp_path, "On 28.11.26, 09:12 the ferry left: late.\n\nf(x) = {x}\n" * 10)[1] == []
