"""Documents that are zip files: limits, no DTD, no entity, nothing left on the disk (T1, T3, T6, T7)."""

import inspect
import io
import os
import sys
import tempfile
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.documents import container_parts
from core.data.documents.docx import read_docx
from core.data.documents.epub import read_epub
from core.errors import DataError
from tests.core.data.document_makers import make_docx, make_epub, make_page, pack, paragraph, part, run

DOCX = make_docx(paragraph(run("Text."))).getvalue()
EPUB = make_epub({"a.xhtml": make_page("<p>Text.</p>")}).getvalue()
FORMATS = [(read_docx, DOCX), (read_epub, EPUB)]


def refused(read, data, words):
    with pytest.raises(DataError) as caught:
        read(io.BytesIO(data), "a.zip")
    assert words in str(caught.value) and caught.value.fix and caught.value.file == "a.zip"


def rewrite(data, changes):
    """A zip file with other contents of some members."""
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        return pack({**{name: z.read(name) for name in z.namelist()}, **changes}).getvalue()


@pytest.mark.parametrize(("read", "data"), FORMATS)
def test_too_many_members_are_refused(read, data, monkeypatch):
    monkeypatch.setattr(container_parts, "MEMBER_COUNT_LIMIT", 3)
    refused(read, data, "may have at most 3 parts")


@pytest.mark.parametrize(("read", "data"), FORMATS)
def test_a_list_of_members_beyond_the_limit_is_refused_unread(read, data, monkeypatch):
    monkeypatch.setattr(container_parts, "_DIRECTORY_LIMIT_BYTES", 100)
    refused(read, data, "the list of its parts")


@pytest.mark.parametrize(("read", "data"), FORMATS)
def test_parts_beyond_the_limits_of_size_are_refused(read, data, monkeypatch):
    monkeypatch.setattr(container_parts, "PART_LIMIT_BYTES", 100)
    refused(read, data, "one part may have at most 100 bytes")
    monkeypatch.undo()
    monkeypatch.setattr(container_parts, "READ_LIMIT_BYTES", 400)
    refused(read, data, "all that are read 400")
    monkeypatch.undo()
    monkeypatch.setattr(container_parts, "TOTAL_LIMIT_BYTES", 300)
    refused(read, data, "at most 300 bytes")


def test_a_part_that_compresses_too_well_is_refused():
    blank = part("document", "<w:body>" + " " * (2 << 20) + "</w:body>")
    refused(read_docx, rewrite(DOCX, {"word/document.xml": blank}), "compression ratio")
    page = make_page("<p>" + " " * (2 << 20) + "</p>")
    refused(read_epub, rewrite(EPUB, {"OEBPS/a.xhtml": page}), "compression ratio")


DTD = '<!DOCTYPE w:document [<!ENTITY x "y">]>'


@pytest.mark.parametrize(
    ("prolog", "encoding"),
    [
        (DTD, "utf-8"),
        ("<?xml version='1.0'?>\n<!-- c --><!DOCTYPE w:document SYSTEM 'a.dtd'>", "utf-8"),
        ("<?xml version='1.0'?>" + DTD, "utf-8-sig"),
        ("<?xml version='1.0' encoding='utf-16'?>" + DTD, "utf-16"),
        ('<!DOCTYPE w:document PUBLIC "a>b" "c" [<!ENTITY x "y">]>', "utf-8"),
    ],
)
@pytest.mark.parametrize("place", ["word/document.xml", "word/styles.xml", "_rels/.rels"])
def test_no_part_may_have_a_document_type(prolog, encoding, place):
    root = {"word/document.xml": "document", "word/styles.xml": "styles", "_rels/.rels": "rels"}[place]
    data = make_docx(paragraph(run("x")), {"styles": part("styles", "")}).getvalue()
    xml = (prolog + part(root, "")).encode(encoding)
    refused(read_docx, rewrite(data, {place: xml}), "document type (DTD)")


def test_an_encoding_that_could_hide_a_document_type_is_refused():
    xml = "<?xml version='1.0' encoding='utf-7'?>" + part("document", "<w:body/>")
    refused(read_docx, rewrite(DOCX, {"word/document.xml": xml}), "has the encoding 'utf-7'")


def test_a_word_about_document_types_in_the_text_is_text():
    body = paragraph("<w:r><w:t><![CDATA[<!DOCTYPE a [<!ENTITY b 'c'>]>]]></w:t></w:r>")
    assert read_docx(make_docx(body), "a.docx").text == "<!DOCTYPE a [<!ENTITY b 'c'>]>"


def test_tables_in_tables_are_refused_where_the_stack_ends():
    text = paragraph(run("x"))
    shallow = make_docx("<w:tbl><w:tr><w:tc>" * 2 + text + "</w:tc></w:tr></w:tbl>" * 2).getvalue()
    deep = make_docx("<w:tbl><w:tr><w:tc>" * 20 + text + "</w:tc></w:tr></w:tbl>" * 20).getvalue()
    assert "x" in read_docx(io.BytesIO(deep), "a.zip").text
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 70)
    try:
        assert "x" in read_docx(io.BytesIO(shallow), "a.zip").text
        refused(read_docx, deep, "nested too deeply")
    finally:
        sys.setrecursionlimit(before)


def test_an_encrypted_member_is_refused():
    data = bytearray(DOCX)
    place = data.rfind(b"PK\x01\x02", 0, data.rfind(b"word/document.xml"))
    data[place + 8] |= 1
    refused(read_docx, bytes(data), "encrypted")


def test_names_of_members_never_reach_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    (tmp_path / "temp").mkdir()
    monkeypatch.chdir(tmp_path)
    evil = {"../evil.xml": "x", "/abs.xml": "x", "C:\\x.xml": "x", "a\0b": "x", "CON": "x", "n" * 300: "x"}
    assert read_docx(io.BytesIO(rewrite(DOCX, evil)), "a.docx").text == "Text."
    assert read_epub(io.BytesIO(rewrite(EPUB, evil)), "a.epub").text == "Text."
    assert sorted(os.listdir(tmp_path)) == ["temp"] and os.listdir(tmp_path / "temp") == []


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(0, 3000), st.binary(min_size=1, max_size=4), st.booleans())
def test_a_damaged_file_gives_text_or_a_data_error(pair, place, noise, cut):
    read, data = pair
    place %= len(data)
    damaged = data[:place] if cut else data[:place] + noise + data[place + len(noise) :]
    try:
        read(io.BytesIO(damaged), "a.zip")
    except DataError as e:
        assert e.fix and e.file == "a.zip"
