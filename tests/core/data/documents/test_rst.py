"""reStructuredText: the text through docutils, with nothing included, executed or printed."""

import io

import pytest
from docutils.parsers.rst import roles
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.documents.rst import parse_rst, read_rst, strip_roles
from core.errors import DataError, UnknownEncoding


def blocks(text):
    return [(b.kind, b.text) for b in parse_rst(text, "a.rst").blocks]


def test_headings_have_the_levels_of_their_sections():
    document = parse_rst(
        "=====\nTitle\n=====\n\nText.\n\nPart\n----\n\nSub\n~~~\n\nx\n\nNext\n----\n", "a.rst"
    )
    assert [(b.text, b.level) for b in document.blocks if b.level] == [
        ("Title", 1),
        ("Part", 2),
        ("Sub", 3),
        ("Next", 2),
    ]
    assert document.title == "Title"


def test_wrapped_lines_are_joined_and_markup_is_gone():
    text = (
        "Hello *big*\n**wide** ``code`` `link <http://x.invalid>`_, :ref:`Prices <p>`,"
        " :py:func:`~a.b` |s| [C]_.\n\n"
    )
    assert blocks(text + ".. |s| replace:: SUB\n.. [C] Cited.\n") == [
        ("paragraph", "Hello big wide code link, Prices, b SUB [C]."),
        ("footnote", "[C] Cited."),
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (":ref:`Prices <prices>`", "Prices"),
        (":func:`~a.b.c`", "c"),
        ("`x`_ and :doc:`/y`", "x and /y"),
        ("name_", "name"),
        ("snake_case_name", "snake_case_name"),
    ],
)
def test_roles_leave_their_text(text, shown):
    assert strip_roles(text) == shown


def test_lists_of_every_kind_keep_markers_and_nesting():
    text = (
        "- one\n- two\n\n  * in\n    side\n\n- three\n\n  more\n\n3. c\n4. d\n\n(a) x\n(b)"
        " y\n\nterm\n   Meaning.\n\n"
        ":Author: Me\n\n-o FILE  write\n-v       talk\n"
    )
    assert blocks(text) == [
        ("list", "- one\n- two\n  - in side\n- three\n  more"),
        ("list", "3. c\n4. d"),
        ("list", "(a) x\n(b) y"),
        ("list", "term\n  Meaning."),
        ("list", "Author: Me"),
        ("list", "-o FILE write\n-v talk"),
    ]


def test_tables_are_read_row_by_row_with_merged_cells_once():
    head = "+---+---+---+\n| A | B | C |\n+===+===+===+\n"
    grid = head + "| m | both  |\n|   +---+---+\n|   | x | y |\n+---+---+---+\n"
    csv = '\n.. csv-table:: Prices\n   :header: a, b\n\n   1, "x, y"\n'
    assert blocks(grid + csv) == [
        ("table", "A | B | C\nm | both\n| x | y"),
        ("paragraph", "Prices"),
        ("table", "a | b\n1 | x, y"),
    ]


def test_code_is_kept_as_it_is():
    text = (
        ".. code-block:: python\n   :emphasize-lines: 1\n\n   def f():\n       return"
        " 1\n\nSo::\n\n  a\n    b\n\n>>> 1\n1\n"
    )
    assert blocks(text) == [
        ("code", "def f():\n    return 1"),
        ("paragraph", "So:"),
        ("code", "a\n  b"),
        ("code", ">>> 1\n1"),
    ]


def test_a_note_follows_the_paragraph_with_its_mark():
    text = (
        "Text [#f]_, more.\n\n- item [1]_\n\nNext.\n\n.. [#f] The note.\n.. [1] Of the item.\n.. [9] Alone.\n"
    )
    assert blocks(text) == [
        ("paragraph", "Text, more."),
        ("footnote", "The note."),
        ("list", "- item"),
        ("footnote", "Of the item."),
        ("paragraph", "Next."),
        ("footnote", "Alone."),
    ]


def test_unknown_directives_keep_their_text():
    text = (
        ".. widget:: Argument *here*\n   :opt: 1\n\n   Body text.\n\n   - item\n\n.. versionadded::"
        " 3.2\n   New thing.\n\n"
        ".. tip:: Take care.\n\n.. seealso:: The other.\n\n.. toctree::\n\n   a\n   b\n\n.."
        " py:function:: f(x)\n\n   Does it.\n"
    )
    document = parse_rst(text, "a.rst")
    assert [b.text for b in document.blocks] == [
        "Argument here",
        "Body text.",
        "- item",
        "New in version 3.2: New thing.",
        "Tip: Take care.",
        "See also: The other.",
        "f(x)",
        "Does it.",
    ]
    assert document.notes == ("1 directive without text of its own was left out.",)


def test_no_file_is_included_and_nothing_is_printed(tmp_path, monkeypatch, capfd):
    secret = tmp_path / "secret.txt"
    secret.write_text("SECRET")
    (tmp_path / "docutils.conf").write_text("[general]\nfile_insertion_enabled: yes\nraw_enabled: yes\n")
    monkeypatch.chdir(tmp_path)
    text = (
        f".. include:: {secret}\n\n.. literalinclude:: {secret}\n\n.. csv-table:: T\n   :file: {secret}\n\n"
        f".. raw:: html\n   :file: {secret}\n\n.. raw:: html\n\n   <b>RAW</b>\n\nText *open\n\n===\nBad\n"
    )
    document = parse_rst(text, "a.rst")
    assert "SECRET" not in document.text and "RAW" not in document.text
    assert "Text *open" in document.text
    assert capfd.readouterr() == ("", "")


def test_a_role_of_one_document_does_not_exist_in_the_next():
    before = set(roles._roles)
    assert blocks(".. role:: mine(literal)\n\nA :mine:`x` b.\n") == [("paragraph", "A x b.")]
    assert set(roles._roles) == before


def test_comments_contents_and_pictures_are_left_out_and_counted():
    text = (
        "Title\n=====\n\n.. contents::\n\n.. a comment\n\n.. figure:: x.png\n\n   Caption.\n\n.."
        " image:: http://x.invalid/a.png\n"
    )
    document = parse_rst(text, "a.rst")
    assert document.text == "Title\n\nCaption."
    assert document.notes == (
        "1 contents list was left out.",
        "1 comment was left out.",
        "2 pictures were left out.",
    )


def test_encodings_are_honoured_or_left_to_the_user():
    assert read_rst(io.BytesIO("Zürich".encode("utf-16")), "a.rst").text == "Zürich"
    assert read_rst(io.BytesIO("Zürich".encode("cp1252")), "a.rst", "cp1252").text == "Zürich"
    with pytest.raises(UnknownEncoding):
        read_rst(io.BytesIO("Zürich".encode("cp1252")), "a.rst")


def test_deep_nesting_and_long_lines_are_refused_without_a_crash():
    with pytest.raises(DataError, match="nested too deeply"):
        parse_rst("\n\n".join(" " * i + "x" for i in range(700)), "a.rst")
    with pytest.raises(DataError, match="line 2: a line may have"):
        parse_rst("ok\n" + "x" * 100_001, "a.rst")


WORDS = st.lists(st.text("abcdxyzäé", min_size=1, max_size=8), min_size=2, max_size=6).map(" ".join)
BLOCK = st.one_of(
    st.tuples(st.just("paragraph"), WORDS),
    st.tuples(st.just("heading"), WORDS),
    st.tuples(st.just("list"), st.lists(WORDS, min_size=1, max_size=4)),
    st.tuples(st.just("code"), WORDS),
)


def write(kind, content):
    if kind == "heading":
        return f"{content}\n{'=' * len(content)}\n\n"
    if kind == "list":
        return "".join(f"- {line}\n" for line in content) + "\n..\n\n"
    if kind == "code":
        return f".. code-block:: text\n\n   {content}\n\n"
    return f"{content}\n\n"


@settings(max_examples=25, deadline=None)
@given(st.lists(BLOCK, min_size=1, max_size=6))
def test_written_documents_read_back(content):
    text = "".join(write(*block) for block in content)
    expected = [
        (kind, "\n".join(f"- {line}" for line in value) if kind == "list" else value)
        for kind, value in content
    ]
    assert blocks(text) == expected
