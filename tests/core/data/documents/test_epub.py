"""Books: the pages of the spine in its order, notes at their marks, nothing of contents and covers."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.documents.epub import read_epub
from core.errors import DataError
from tests.core.data.document_makers import make_epub, make_page, pack

XHTML11 = '<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN" "http://www.w3.org/TR/xhtml11/DTD/xhtml11.dtd">'
ENCRYPTION = (
    ""
    '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" xmlns:e="http://www.w3.org/2001/04/xmlenc#">'
    '<e:EncryptedData><e:EncryptionMethod Algorithm="{method}"/><e:CipherData>'
    '<e:CipherReference URI="{path}"/>'
    "</e:CipherData></e:EncryptedData></encryption>"
)


def read(pages, **options):
    return read_epub(
        make_epub({href: page and make_page(page) for href, page in pages.items()}, **options), "a.epub"
    )


def refused(file, words):
    with pytest.raises(DataError) as caught:
        read_epub(file, "a.epub")
    assert words in caught.value.what and caught.value.fix and caught.value.file == "a.epub"


def test_pages_come_in_the_order_of_the_spine():
    pages = {"c.xhtml": "<p>three</p>", "a%20b.xhtml": "<p>one</p>", "../up/%C3%A9.xhtml": "<p>two</p>"}
    document = read(pages, spine=[1, 2, 0])
    assert (document.text, document.title, document.notes) == ("one\n\ntwo\n\nthree", "Book", ())


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(5)))
def test_every_order_of_the_spine_is_kept(order):
    document = read({f"p{i}.xhtml": f"<h1>C{i}</h1><p>Text {i}.</p>" for i in range(5)}, spine=order)
    assert [b.text for b in document.blocks] == [text for i in order for text in (f"C{i}", f"Text {i}.")]


def test_contents_cover_and_pages_outside_the_order_are_left_out():
    links = "".join(f'<p><a href="{c}.xhtml">Chapter {c}</a></p>' for c in "abc")
    pages = {
        "cover.xhtml": '<img src="c.jpg"/>',
        "list.xhtml": f"<h1>Contents</h1>{links}",
        "nav.xhtml": "<p>links</p>",
        **{f"{c}.xhtml": f"<p>text {c}</p>" for c in "abc"},
        "extra.xhtml": "<p>aside</p>",
    }
    order = ["i0", "i1", "nav", "i3", "i4", "i5"]
    document = read(
        pages,
        spine_xml="".join(f'<itemref idref="{key}"/>' for key in order) + '<itemref idref="i6" linear="no"/>',
        manifest='<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>',
        extra='<guide><reference type="cover" href="cover.xhtml"/></guide>',
    )
    assert document.text == "text a\n\ntext b\n\ntext c"
    assert document.notes == (
        "2 contents pages were left out.",
        "1 cover was left out.",
        "1 page outside the reading order was left out.",
    )


@pytest.mark.parametrize(
    ("mark", "note"),
    [
        (
            '<a epub:type="noteref" href="n.xhtml#n1">1</a>',
            '<section epub:type="endnotes"><h2>Notes</h2><aside epub:type="footnote" id="n1">'
            "<p>1. The note.</p></aside>"
            "</section>",
        ),
        (
            '<sup><a id="r1" href="n.xhtml#n1">1</a></sup>',
            '<h2>Notes</h2><p><a id="n1" href="a.xhtml#r1">1</a>. The note.</p>',
        ),
    ],
)
def test_notes_of_another_page_follow_their_mark(mark, note):
    document = read({"a.xhtml": f"<p>Text{mark}, more.</p><p>Next.</p>", "n.xhtml": note})
    assert [(b.kind, b.text) for b in document.blocks] == [
        ("paragraph", "Text, more."),
        ("footnote", "The note."),
        ("paragraph", "Next."),
    ]


def test_notes_in_cells_follow_the_table_and_notes_without_mark_stay():
    page = (
        '<table><tr><td>a<a epub:type="noteref" href="#n">1</a></td><td>b</td></tr></table>'
        '<aside epub:type="footnote" id="n">Of a cell.</aside>'
        '<aside epub:type="footnote" id="m">Alone.</aside>'
    )
    document = read({"a.xhtml": page})
    assert [(b.kind, b.text) for b in document.blocks] == [
        ("table", "a | b"),
        ("footnote", "Of a cell."),
        ("footnote", "Alone."),
    ]


def test_page_numbers_of_the_printed_book_are_left_out():
    page = (
        '<p>One<span epub:type="pagebreak">12</span> two<span class="pagenum">[Pg 3]</span>.</p>'
        "<aside>Box</aside>"
    )
    document = read({"a.xhtml": page})
    assert document.text == "One two.\n\nBox" and document.notes == ("2 page numbers were left out.",)


@pytest.mark.parametrize(
    "page",
    [
        make_page("<p>x&nbsp;y &eacute;</p>", XHTML11),
        make_page("<p>x y é</p>", encoding="utf-16").encode("utf-16"),
        make_page("<p>x y é</p>", encoding="iso-8859-1").encode("latin-1"),
        "<html><body><p>x y <b>é</p></b></body></html>",
    ],
)
def test_pages_of_older_and_careless_books_are_read(page):
    assert read_epub(make_epub({"a.xhtml": page}), "a.epub").text == "x y é"


def test_an_encrypted_page_is_refused_and_an_obscured_font_is_not():
    pages = {"a.xhtml": make_page("<p>x</p>")}
    method = "http://www.w3.org/2001/04/xmlenc#aes128-cbc"
    parts = {"META-INF/encryption.xml": ENCRYPTION.format(method=method, path="OEBPS/a.xhtml")}
    refused(make_epub(pages, parts=parts), "encrypted (DRM)")
    font = ENCRYPTION.format(method="http://www.idpf.org/2008/embedding", path="OEBPS/f.otf")
    assert read_epub(make_epub(pages, parts={"META-INF/encryption.xml": font}), "a.epub").text == "x"


def test_a_page_with_entities_of_its_own_is_refused():
    page = make_page("<p>&x;</p>", '<!DOCTYPE html [<!ENTITY x "y">]>')
    refused(make_epub({"a.xhtml": page}), "document type")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (make_epub({"a.xhtml": None}), "'OEBPS/a.xhtml' is missing"),
        (make_epub({"a.xhtml": make_page('<img src="x"/>')}), "has no text"),
        (make_epub({}, spine_xml=" "), "no reading order"),
        (pack({"word/document.xml": "<x/>"}), "a Word document"),
        (pack({"META-INF/container.xml": "<container/>"}), "names no book"),
        (io.BytesIO(b"%PDF-1.4"), "a PDF file"),
        (io.BytesIO(b"PK\x03\x04"), "ends too early"),
    ],
)
def test_other_and_damaged_files_are_refused(file, words):
    refused(file, words)


def test_a_missing_page_among_others_is_said():
    document = read({"a.xhtml": "<p>x</p>", "b.xhtml": None})
    assert document.text == "x" and document.notes == ("The page OEBPS/b.xhtml is missing in the book.",)
