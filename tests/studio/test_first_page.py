"""The first page of a document is shown as a picture and as the text that is read from it."""

import base64
import shutil
from pathlib import Path

import pytest

from core.data.documents.document import Block
from studio import first_page
from studio.views import data_preview

PAPERS = Path(__file__).parents[1] / "data/own/papers"


@pytest.fixture
def papers(tmp_path):
    shutil.copytree(PAPERS, tmp_path / "papers")
    (tmp_path / "papers/notes.txt").write_text("plain")
    (tmp_path / "broken.pdf").write_bytes(b"not a pdf")
    return tmp_path


def test_documents_with_pages_are_listed_first_and_texts_not_at_all(papers):
    names = first_page.list_documents(papers)
    assert names[0] == "broken.pdf" and names[1].endswith(".pdf") and names[-1].endswith(".docx")
    assert not any(n.endswith(".txt") for n in names)


def test_a_pdf_shows_its_picture_beside_the_blocks_of_page_one(papers):
    page = first_page.read_first_page(papers, "papers/harbour.pdf")
    assert base64.b64decode(page.picture)[:8] == b"\x89PNG\r\n\x1a\n" and page.problem == ""
    assert page.blocks[0] == Block("heading", "Rules of the lake", page.blocks[0].level, 1)
    assert {b.page for b in page.blocks} == {1}
    tree = data_preview.render_first_page(page, ["papers/harbour.pdf"])
    image = tree["kids"][1]["kids"][0]["kids"][0]
    assert image["tag"] == "img" and image["attrs"]["src"] == f"data:image/png;base64,{page.picture}"


def test_a_docx_shows_how_it_begins_with_its_headings(papers):
    page = first_page.read_first_page(papers, "papers/cards.docx")
    assert page.picture == "" and page.blocks[0].kind == "heading"
    assert 0 < sum(len(b.text) for b in page.blocks) <= first_page.CHARACTERS
    tags = [n["tag"] for n in data_preview.render_first_page(page, ["a", "b"])["kids"][1]["kids"][0]["kids"]]
    assert tags[:2] == ["h4", "p"]


def test_a_document_that_cannot_be_read_says_why(papers):
    page = first_page.read_first_page(papers, "broken.pdf")
    assert page.blocks == [] and page.picture == "" and "broken.pdf" in page.problem


def test_a_table_is_drawn_row_by_row():
    tree = data_preview._render_block(Block("table", "Quay | Crane\n1 | 7"))
    rows = tree["kids"][0]["kids"]
    assert [[c["kids"][0] for c in r["kids"]] for r in rows] == [["Quay", "Crane"], ["1", "7"]]
