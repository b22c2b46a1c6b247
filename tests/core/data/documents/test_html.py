"""HTML pages: the text that a reader sees, without what belongs to the page around it."""

import html
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.documents import html as html_reader
from core.data.documents.html import read_html
from core.errors import DataError, UnknownEncoding


def read(page, **options):
    return read_html(io.BytesIO(page if isinstance(page, bytes) else page.encode()), "a.html", **options)


def blocks(page):
    return [(block.kind, block.text) for block in read(page).blocks]


# ------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("page", "texts"),
    [
        ("<p>a<b>b</b>c <i> d </i> e</p>", ["abc d e"]),
        ("<div>x<p>y</p>z</div>w<span>q</span>", ["x", "y", "z", "wq"]),
        ("<p>one<br>two<br><br>three", ["one\ntwo", "three"]),
        ("<p>a</p>\n b\n c<section>d</section>e", ["a", "b c", "d", "e"]),
        (
            "<p>&lt;b&gt; R&amp;D &copy;&nbsp;x &#8212; &#x1F600; so\u00adft w<wbr>br",
            ["<b> R&D © x — 😀 soft wbr"],
        ),
        ("<h2>A<br>B <small>c</small></h2>", ["A B c"]),
        ("<p>x<script>1</script>y<style>z</style><!-- c --></p><template>t</template>", ["xy"]),
        (
            "<p><ruby>漢<rp>(</rp><rt>kan</rt></ruby>字 <q>q</q> <ins>new</ins><del>old</del></p>",
            ["漢字 “q” new"],
        ),
        ("<my-el>one</my-el><my-el>two</my-el>", ["onetwo"]),
        ("<table><tr><td>lone</table>", ["lone"]),
        ("just text &amp; more", ["just text & more"]),
    ],
)
def test_words_are_neither_glued_nor_split(page, texts):
    assert [text for _, text in blocks(page)] == texts


def test_lists_have_their_markers_and_levels():
    page = (
        "<ul><li>One<li>Two<ol type=a start=3><li>x<li value=7>y</ol><li><p>Three<p>more</ul>"
        "<ol reversed><li>b<li>a</ol><dl><dt>T<dd>D</dl>"
    )
    assert blocks(page) == [
        ("list", "- One\n- Two\n  c. x\n  g. y\n- Three\n  more"),
        ("list", "2. b\n1. a"),
        ("list", "T\n  D"),
    ]


def test_tables_are_read_row_by_row_with_merged_cells_once():
    page = (
        "<table><caption>Boats</caption><tfoot><tr><td>sum<td>2</tfoot><thead><tr><th>A<th>B</thead><tbody>"
        "<tr><td rowspan=2>m<td>1<br>2<tr><td>y<tr><td colspan=2>both</table>"
    )
    assert blocks(page) == [("paragraph", "Boats"), ("table", "A | B\nm | 1 2\n| y\nboth\nsum | 2")]


def test_a_table_that_only_places_text_is_not_a_table():
    page = "<table><tr><td><table><tr><td>a<td>b</table></td><td><p>side</td></tr></table>"
    assert blocks(page) == [("table", "a | b"), ("paragraph", "side")]


def test_code_keeps_its_lines_and_indentation():
    page = (
        "<pre><code>\n<span>def</span> f():\n\treturn &lt;1&gt;\n\n  # é</code></pre><p>a <code>b  c</code>"
    )
    assert blocks(page) == [("code", "def f():\n\treturn <1>\n\n  # é"), ("paragraph", "a b c")]


# ------------------------------------------------------------ what is left out


def test_what_belongs_to_the_page_is_left_out_and_counted():
    page = (
        "<header>Site</header><nav>menu</nav><main><article><header><h1>Title</h1></header><p>Text.<a"
        "side>side</aside>"
        "<footer>By me</footer></article></main><form><label>Search</label><input><p>Go</form><div"
        " role=search>s</div>"
        "<footer>Imprint</footer><img src=http://x.invalid/a.png><p hidden>h<p style='color:red;"
        " Display: none'>n"
    )
    document = read(page)
    assert document.text == "Title\n\nText.\n\nBy me" and document.title == "Title"
    assert document.notes == (
        "1 page header was left out.",
        "1 navigation menu was left out.",
        "1 aside was left out.",
        "1 form or form field was left out.",
        "1 search form was left out.",
        "1 page footer was left out.",
        "1 picture was left out.",
        "2 hidden elements were left out.",
    )


def test_a_title_in_the_header_of_the_page_is_not_lost():
    assert blocks("<header><h1>Ferries</h1><p>slogan</header><p>Text.") == [
        ("heading", "Ferries"),
        ("paragraph", "Text."),
    ]
    assert blocks("<header><h1>Site</h1></header><h1>Own</h1>") == [("heading", "Own")]


def test_text_outside_the_main_part_of_a_page_is_left_out_and_said():
    document = read(
        "<div>Press S</div><main><h1>T</h1><p>Long text of the page.</p></main><div>cookies</div>"
    )
    assert document.text == "T\n\nLong text of the page."
    assert document.notes == ("14 characters outside the main part of the page were left out.",)
    assert blocks("<p>Long text of the page.</p><main>x</main>") == [
        ("paragraph", "Long text of the page."),
        ("paragraph", "x"),
    ]


def test_a_form_around_the_whole_page_is_not_left_out():
    assert blocks("<form action=/><h1>T</h1><p>Text.<input></form>") == [
        ("heading", "T"),
        ("paragraph", "Text."),
    ]


# ------------------------------------------------------------ notes

PANDOC = (
    '<p>Text<a href="#fn1" class="footnote-ref" id="r1" role="doc-noteref"><sup>1</sup>'
    "</a>, more.</p><p>Next.</p>"
    '<section class="footnotes" role="doc-endnotes"><hr><ol><li id="fn1">'
    '<p>The note.<a href="#r1" role="doc-backlink">↩</a>'
    "</p></li></ol></section>"
)
WIKI = (
    '<p>Text<sup id="c-1"><a href="#n-1">[1]</a></sup>, more<sup id="c-2"><a href="#n-1">[1]</a>'
    "</sup>.</p><p>Next.</p>"
    '<h2>References</h2><ol><li id="n-1"><b><a href="#c-1">^</a></b> <span>The note.</span></li></ol>'
)
OLD = (
    '<p>Text <a name="r1" href="#n1">*</a>, more.</p><p>Next.</p><p>'
    '<a name="n1" href="#r1">*</a> The note.</p>'
)


@pytest.mark.parametrize("page", [PANDOC, WIKI, OLD])
def test_a_note_follows_the_paragraph_with_its_mark(page):
    found = blocks(page)
    assert found[1:] == [("footnote", "The note."), ("paragraph", "Next.")]
    assert found[0][1].startswith("Text, more") and found[0][1].endswith(".")


@pytest.mark.parametrize("text", ["1 May was a Friday.", "(see page 3)", "1.5 litres", "[sic] of old"])
def test_a_note_keeps_its_own_first_words(text):
    page = f'<p>T<a href="#n" id="r">1</a>.</p><p id="n"><a href="#r">1</a> {text}</p>'
    assert blocks(page) == [("paragraph", "T."), ("footnote", text)]


def test_links_of_a_contents_list_are_not_notes():
    page = '<ul><li><a href="#c1" id="t1">1</a></ul><div id=c1><h2><a href="#t1">1</a></h2><p>Chapter.</div>'
    assert blocks(page) == [("list", "- 1"), ("heading", "1"), ("paragraph", "Chapter.")]


# ------------------------------------------------------------ encodings


@pytest.mark.parametrize(
    ("codec", "head"),
    [
        ("cp1251", "<meta charset=windows-1251>"),
        ("cp932", '<meta http-equiv="Content-Type" content="text/html; charset=Shift_JIS">'),
        ("utf-8", ""),
        ("utf-8-sig", "<meta charset=latin-1>"),
        ("utf-16", ""),
        ("koi8-r", '<?xml version="1.0" encoding="koi8-r"?>'),
    ],
)
def test_the_encoding_that_a_page_declares_is_used(codec, head):
    assert read(f"{head}<p>Привет</p>".encode(codec)).text == "Привет"


def test_latin_1_means_windows_1252_as_in_browsers():
    document = read("<meta charset=iso-8859-1><p>“x” – é".encode("cp1252"))
    assert document.text == "“x” – é"
    assert document.notes == ("Read as Western European (Windows-1252), as the page declares.",)


def test_an_encoding_that_is_not_declared_is_the_users_choice():
    page = "<p>Zürich, Köln, Łódź".encode("cp1250")
    with pytest.raises(UnknownEncoding) as caught:
        read(page)
    assert "cp1250" in [c.encoding for c in caught.value.candidates] + [
        s for c in caught.value.candidates for s in c.same
    ]
    assert read(page, encoding="cp1250").text == "Zürich, Köln, Łódź"


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (b"<meta charset=utf-8><p>\xff", "declares utf-8, but"),
        (b"<meta charset=nonsense-5><p>x", "unknown encoding"),
        (b"", "is empty"),
    ],
)
def test_pages_that_cannot_be_decoded_are_refused(page, words):
    with pytest.raises(DataError) as caught:
        read(page)
    assert words in caught.value.what and caught.value.fix and caught.value.file == "a.html"


def test_a_page_that_nests_deeper_than_the_limit_is_refused(monkeypatch):
    assert read("<div>" * 60 + "deep").text == "deep"
    monkeypatch.setattr(html_reader, "DEPTH_LIMIT", 40)
    assert read("<div>" * 38 + "deep").text == "deep", "html and body are the other two levels"
    with pytest.raises(DataError, match="nested too deeply") as caught:
        read("<div>" * 39 + "deep")
    assert caught.value.fix == "Simplify the page." and caught.value.file == "a.html"


def test_the_items_of_a_deep_list_are_not_indented_without_end():
    pages = ["<ul><li>" * 2, "<ul><li>" * 13, "<ul><li>" * 14, "<ul><li>" * 30]
    sizes = [len(read(page + "x").text) for page in pages]
    assert sizes[0] < sizes[1] == sizes[2] == sizes[3] < 40


# ------------------------------------------------------------ a page that an independent writer writes

WORDS = st.text("abc XYZ<>&\"'é漢.-", min_size=1, max_size=30).map(lambda t: " ".join(t.split())).filter(bool)
BLOCK = st.one_of(
    st.tuples(st.just("paragraph"), WORDS),
    st.tuples(st.just("heading"), WORDS),
    st.tuples(st.just("code"), WORDS),
    st.tuples(st.just("list"), st.lists(WORDS, min_size=1, max_size=4)),
    st.tuples(st.just("table"), st.lists(st.lists(WORDS, min_size=2, max_size=2), min_size=1, max_size=3)),
)
TAGS = {"paragraph": "p", "heading": "h2", "code": "pre"}


def write(kind, content):
    if kind == "list":
        return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in content) + "</ul>"
    if kind == "table":
        rows = ("".join(f"<td>{html.escape(text)}</td>" for text in row) for row in content)
        return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
    return f"<{TAGS[kind]}>{html.escape(content)}</{TAGS[kind]}>"


def expect(kind, content):
    if kind == "list":
        return kind, "\n".join(f"- {line}" for line in content)
    if kind == "table":
        return kind, "\n".join(" | ".join(row) for row in content)
    return kind, content


@settings(max_examples=60, deadline=None)
@given(st.lists(BLOCK, min_size=1, max_size=8), st.sampled_from(["", "\n", "\n  "]))
def test_written_pages_read_back(content, gap):
    page = "<!DOCTYPE html><html><body>" + gap.join(write(*block) for block in content) + "</body></html>"
    assert blocks(page) == [expect(*block) for block in content]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.text("<>/ab p=\"'&#;!-x1\x00é", max_size=200).map(str.encode))
def test_any_bytes_give_text_or_a_data_error(data):
    try:
        read(b"<meta charset=utf-8>" + data)
    except DataError as e:
        assert e.fix
