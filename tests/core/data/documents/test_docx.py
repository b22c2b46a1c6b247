"""Word documents: the text of the accepted document in its order; the rest is left out and counted."""

import io

import docx as python_docx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.documents.docx import read_docx
from core.errors import DataError
from tests.core.data.document_makers import (
    NAMESPACES,
    RELATIONS,
    cell,
    field,
    make_docx,
    pack,
    paragraph,
    part,
    run,
)


def read(body, parts=None):
    return read_docx(make_docx(body, parts), "a.docx")


def texts(body, parts=None):
    return [block.text for block in read(body, parts).blocks]


def item(text, number, depth=0):
    return paragraph(run(text), f'<w:numPr><w:ilvl w:val="{depth}"/><w:numId w:val="{number}"/></w:numPr>')


def style(kind, key, content):
    return f'<w:style w:type="{kind}" w:styleId="{key}">{content}</w:style>'


# ------------------------------------------------------------ tracked changes


def test_insertions_are_in_and_deletions_out():
    body = paragraph(
        run("Dogs travel ")
        + '<w:del><w:r><w:delText>not </w:delText></w:r></w:del><w:ins w:id="1">'
        + run("quite ")
        + "</w:ins>"
        + run("free.")
    )
    document = read(body)
    assert document.text == "Dogs travel quite free."
    assert document.notes == ("1 tracked deletion was left out.",)


def test_a_deleted_end_of_paragraph_joins_two_paragraphs():
    deleted = "<w:rPr><w:del w:id='1'/></w:rPr>"
    assert texts(paragraph(run("One "), deleted) + paragraph(run("two."))) == ["One two."]
    assert texts(paragraph(run("Last."), deleted)) == ["Last."]


def test_moved_text_stands_once_at_its_new_place():
    body = paragraph("<w:moveFrom>" + run("MOVED") + "</w:moveFrom>" + run("stays"))
    document = read(body + paragraph("<w:moveTo>" + run("MOVED") + "</w:moveTo>"))
    assert document.text == "stays\n\nMOVED" and document.notes == ()


def test_a_deleted_table_row_is_left_out():
    rows = "<w:tr>" + cell(paragraph(run("a"))) + cell(paragraph(run("b"))) + "</w:tr>"
    gone = (
        "<w:tr><w:trPr><w:del/></w:trPr>" + cell(paragraph(run("x"))) + cell(paragraph(run("y"))) + "</w:tr>"
    )
    document = read(f"<w:tbl>{rows}{gone}</w:tbl>")
    assert document.text == "a | b" and document.notes == ("1 deleted table row was left out.",)


# ------------------------------------------------------------ headings, lists


def test_headings_are_found_by_name_base_and_outline_level():
    styles = part(
        "styles",
        style("paragraph", "berschrift1", '<w:name w:val="heading 1"/>')
        + style("paragraph", "Mine", '<w:name w:val="My chapter"/><w:basedOn w:val="berschrift1"/>')
        + style("paragraph", "Deep", '<w:name w:val="Deep"/><w:pPr><w:outlineLvl w:val="2"/></w:pPr>')
        + style("paragraph", "T2", '<w:name w:val="Titre 2"/>')
        + style("paragraph", "loop", '<w:name w:val="l"/><w:basedOn w:val="loop"/>'),
    )
    cases = [
        ("berschrift1", "", 1),
        ("Mine", "", 1),
        ("Deep", "", 3),
        ("T2", "", 2),
        ("loop", "", 0),
        ("Heading2", "", 2),
    ]
    cases += [("", '<w:outlineLvl w:val="1"/>', 2), ("Mine", '<w:outlineLvl w:val="9"/>', 0)]
    body = "".join(paragraph(run("x"), f'<w:pStyle w:val="{key}"/>{direct}') for key, direct, _ in cases)
    assert [b.level for b in read(body, {"styles": styles}).blocks] == [level for *_, level in cases]


def test_numbers_of_lists_are_counted_as_word_does():
    levels = "".join(
        f'<w:lvl w:ilvl="{i}"><w:start w:val="{start}"/><w:numFmt w:val="{kind}"/>'
        f'<w:lvlText w:val="{text}"/></w:lvl>'
        for i, (start, kind, text) in enumerate(
            [(1, "decimal", "%1."), (1, "lowerLetter", "%2)"), (4, "upperRoman", "%1-%3")]
        )
    )
    numbering = part(
        "numbering",
        f'<w:abstractNum w:abstractNumId="0">{levels}</w:abstractNum>'
        '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>'
        '<w:num w:numId="2"><w:abstractNumId w:val="0"/><w:lvlOverride w:ilvl="0">'
        '<w:startOverride w:val="1"/>'
        "</w:lvlOverride></w:num>",
    )
    body = item("a", 1) + item("b", 1, 1) + item("c", 1, 1) + item("d", 1) + item("e", 1, 1) + item("f", 1, 2)
    body += paragraph(run("between")) + item("g", 1) + item("h", 2) + item("i", 2) + item("not", 0)
    assert texts(body, {"numbering": numbering}) == [
        "1. a\n  a) b\n  b) c\n2. d\n  a) e\n    2-IV f",
        "between",
        "3. g",
        "1. h\n2. i",
        "not",
    ]


# ------------------------------------------------------------ tables


def test_merged_cells_stand_once_and_rows_in_content_controls_too():
    body = (
        "<w:tbl><w:tr>" + cell(paragraph(run("Port")))
        + cell(paragraph(run("First")) + paragraph(run("boat")))
        + "</w:tr><w:sdt><w:sdtContent><w:tr>"
        + cell(paragraph(run("tall")), '<w:vMerge w:val="restart"/>')
        + "<w:sdt><w:sdtContent>" + cell(paragraph(run("6:10")))
        + "</w:sdtContent></w:sdt></w:tr></w:sdtContent></w:sdt>"
        + "<w:tr>" + cell(paragraph(""), "<w:vMerge/>") + cell(paragraph(run("7:10"))) + "</w:tr>"
        + "<w:tr>" + cell(paragraph(run("wide")), '<w:gridSpan w:val="2"/>') + "</w:tr></w:tbl>"
    )  # fmt: skip
    (block,) = read(body).blocks
    assert (block.kind, block.text) == ("table", "Port | First boat\ntall | 6:10\n| 7:10\nwide")


def test_a_table_in_a_cell_and_a_frame_of_one_cell_keep_their_text():
    inner = "<w:tbl><w:tr>" + cell(paragraph(run("x"))) + cell(paragraph(run("y"))) + "</w:tr></w:tbl>"
    outer = "<w:tbl><w:tr>" + cell(inner + paragraph("")) + cell(paragraph(run("z"))) + "</w:tr></w:tbl>"
    assert texts(outer) == ["x | y | z"]
    frame = "<w:tbl><w:tr>" + cell(paragraph(run("One.")) + paragraph(run("Two."))) + "</w:tr></w:tbl>"
    assert texts(frame) == ["One.", "Two."]


# ------------------------------------------------------------ notes, boxes, fields, characters


def test_notes_follow_the_paragraph_that_refers_to_them():
    footnotes = part(
        "footnotes",
        '<w:footnote w:type="separator" w:id="-1">' + paragraph(run("LINE"))
        + '</w:footnote><w:footnote w:id="1">' + paragraph("<w:r><w:footnoteRef/></w:r>" + run(" The note."))
        + paragraph(run("More.")) + "</w:footnote>",
    )  # fmt: skip
    endnotes = part("endnotes", '<w:endnote w:id="1">' + paragraph(run("At the end.")) + "</w:endnote>")
    refer = "<w:r><w:{}noteReference w:id='1'/></w:r>"
    body = paragraph(run("A word") + refer.format("foot") + run(" and ") + refer.format("end") + run("on."))
    document = read(body + paragraph(run("Next.")), {"footnotes": footnotes, "endnotes": endnotes})
    assert [(b.kind, b.text) for b in document.blocks] == [
        ("paragraph", "A word and on."),
        ("footnote", "The note.\nMore."),
        ("footnote", "At the end."),
        ("paragraph", "Next."),
    ]


def test_a_text_box_that_is_stored_twice_is_read_once():
    def box(text):
        return f"<w:txbxContent>{paragraph(run(text))}</w:txbxContent>"

    drawing = f"<w:drawing><wps:txbx>{box('BOX')}</wps:txbx></w:drawing>"
    older = f"<w:pict><v:textbox>{box('BOX')}</v:textbox></w:pict>"
    twice = (
        f'<w:r><mc:AlternateContent><mc:Choice Requires="wps">{drawing}</mc:Choice>'
        f"<mc:Fallback>{older}</mc:Fallback></mc:AlternateContent></w:r>"
    )
    assert texts(paragraph(run("Host") + twice + run(" text."))) == ["Host text.", "BOX"]
    assert texts(paragraph(f"<w:r>{older}</w:r>")) == ["BOX"]


def test_results_of_fields_are_in_and_codes_out():
    nested = field(" IF x ", run("link ") + field("PAGE", run("3")))
    assert texts(paragraph(run("See ") + field(" PAGEREF a ", run("12")) + run("."))) == ["See 12."]
    assert texts(paragraph(nested)) == ["link 3"]
    open_field = '<w:r><w:fldChar w:fldCharType="begin"/></w:r>'
    assert texts(paragraph(open_field + run("kept")) + paragraph(run("too"))) == ["kept", "too"]


def test_a_contents_list_is_left_out():
    toc = field(' TOC \\o "1-3" ', run("Chapter 1 ... 3"))
    control = (
        '<w:sdt><w:sdtPr><w:docPartObj><w:docPartGallery w:val="Table of Contents"/></w:docPartObj></w:sdtPr>'
        f"<w:sdtContent>{paragraph(run('Chapter 1'))}</w:sdtContent></w:sdt>"
    )
    document = read(paragraph(toc) + control + paragraph(run("Text.")))
    assert document.text == "Text." and document.notes == ("2 contents lists were left out.",)


def test_content_controls_are_in_and_their_placeholders_out():
    filled = "<w:sdt><w:sdtContent>" + run("FILLED") + "</w:sdtContent></w:sdt>"
    empty = (
        "<w:sdt><w:sdtPr><w:showingPlcHdr/></w:sdtPr><w:sdtContent>"
        + run("Click")
        + "</w:sdtContent></w:sdt>"
    )
    assert texts(paragraph(filled + empty)) == ["FILLED"]


def test_hidden_text_comments_and_headers_are_left_out_and_counted():
    styles = part("styles", style("character", "H", '<w:name w:val="h"/><w:rPr><w:vanish/></w:rPr>'))
    body = paragraph(
        run("a") + run("HID", "<w:vanish/>") + run("HID", '<w:rStyle w:val="H"/>')
        + run("b", '<w:rStyle w:val="H"/><w:vanish w:val="0"/>') + "<w:r><w:commentReference w:id='0'/></w:r>"
    )  # fmt: skip
    comments = part("comments", '<w:comment w:id="0">' + paragraph(run("WHY")) + "</w:comment>")
    header = f"<w:hdr {NAMESPACES}>{paragraph(run('HEAD'))}</w:hdr>"
    document = read(body, {"styles": styles, "comments": comments, "header1": header})
    assert document.text == "ab"
    assert document.notes == (
        "2 passages of hidden text were left out.",
        "1 comment was left out.",
        "1 header or footer was left out.",
    )


def test_breaks_tabs_hyphens_and_symbols_are_characters():
    body = paragraph(
        "<w:r><w:t>a</w:t><w:br/><w:t>b</w:t><w:tab/><w:t>c</w:t><w:noBreakHyphen/><w:t>d</w:t><w:sof"
        "tHyphen/><w:t>e</w:t>"
        '<w:sym w:font="Wingdings" w:char="F0FE"/><w:sym w:font="Symbol" w:char="F061"/>'
        '<w:sym w:font="Odd" w:char="F0FE"/>'
        "<w:t>\u00a0f\u00ad</w:t></w:r>"
    )
    document = read(body)
    assert document.text == "a\nb\tc-de☑α f"
    assert document.notes == ("1 symbol of a picture font was left out.",)


def test_an_equation_is_one_line():
    body = paragraph(
        "<m:oMath><m:f><m:num><m:r><m:t>a+b</m:t></m:r></m:num><m:den><m:r><m:t>c</m:t></m:r></m:den>"
        "</m:f><m:sSup><m:e>"
        "<m:r><m:t>x</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r></m:sup></m:sSup></m:oMath>"
    )
    assert texts(body) == ["(a+b)/cx^2"]


def test_wrappers_around_text_do_not_hide_it():
    body = paragraph(
        "<w:hyperlink>" + run("link") + "</w:hyperlink><w:smartTag>" + run(" tag")
        + "</w:smartTag><w:fldSimple w:instr='DATE'>"
        + run(" date") + "</w:fldSimple><w:bdo>" + run(" bdo") + "</w:bdo>"
    )  # fmt: skip
    assert texts(body + f"<w:customXml>{paragraph(run('block'))}</w:customXml>") == [
        "link tag date bdo",
        "block",
    ]


def test_the_strict_form_of_the_format_is_read():
    parts = {
        "_rels/.rels": f"<Relationships xmlns='{RELATIONS}'><Relationship "
        "Id='a' Type='http://purl.oclc.org/ooxml/officeDocument/relationships/officeDocument'"
        " Target='/word/main.xml'/>"
        "</Relationships>",
        "word/main.xml": "<w:document xmlns:w='http://purl.oclc.org/ooxml/wordprocessingml/main'><w:body><w:p><w:r><w:t>"
        "Strict.</w:t></w:r></w:p></w:body></w:document>",
    }
    assert read_docx(pack(parts), "a.docx").text == "Strict."


# ------------------------------------------------------------ files of python-docx

WORDS = st.text("abcdefgz äß.,;0123", min_size=1, max_size=30).map(lambda t: " ".join(t.split())).filter(bool)
BLOCK = st.one_of(
    st.tuples(st.just("paragraph"), WORDS),
    st.tuples(st.just("heading"), WORDS, st.integers(1, 9)),
    st.tuples(st.just("list"), st.lists(WORDS, min_size=1, max_size=4)),
    st.tuples(st.just("table"), st.lists(st.lists(WORDS, min_size=3, max_size=3), min_size=1, max_size=4)),
)


@settings(max_examples=10, deadline=None)
@given(st.lists(BLOCK, max_size=8))
def test_documents_of_python_docx_read_back(blocks):
    document = python_docx.Document()
    expected = []
    for kind, content, *level in blocks:
        if kind == "paragraph":
            document.add_paragraph(content)
            expected.append((kind, content, 0))
        elif kind == "heading":
            document.add_heading(content, level[0])
            expected.append((kind, content, level[0]))
        elif kind == "list":
            for line in content:
                document.add_paragraph(line, style="List Bullet")
            lines = "\n".join(f"- {line}" for line in content)
            if expected and expected[-1][0] == "list":
                lines = f"{expected.pop()[1]}\n{lines}"
            expected.append((kind, lines, 0))
        else:
            table = document.add_table(len(content), 3)
            for y, row in enumerate(content):
                for x, text in enumerate(row):
                    table.cell(y, x).text = text
            expected.append((kind, "\n".join(" | ".join(row) for row in content), 0))
    file = io.BytesIO()
    document.save(file)
    found = [(b.kind, b.text, b.level) for b in read_docx(file, "a.docx").blocks]
    assert found == expected


# ------------------------------------------------------------ other files under this name


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"%PDF-1.7 x", "a PDF file"),
        (b"<!DOCTYPE html><p>x", "an HTML file"),
        (b"{\\rtf1 x}", "an RTF file"),
        (b"plain words", "another format"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "older format .doc"),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + "EncryptedPackage".encode("utf-16-le"),
            "password",
        ),
        (pack({"xl/workbook.xml": "<x/>"}).getvalue(), "a spreadsheet"),
        (pack({"mimetype": "x", "content.xml": "<x/>"}).getvalue(), "an OpenDocument file"),
        (make_docx(paragraph(run("x"))).getvalue()[:-30], "ends too early"),
        (pack({"word/document.xml": "<w:document"}).getvalue(), "cannot be read"),
    ],
)
def test_other_files_are_refused_with_a_remedy(content, words):
    with pytest.raises(DataError, match="a.docx") as caught:
        read_docx(io.BytesIO(content), "a.docx")
    assert words in caught.value.what and caught.value.fix
