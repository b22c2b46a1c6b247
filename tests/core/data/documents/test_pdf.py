"""PDF files as readable text: hyphens, running headers, columns, tables, footnotes, and what is refused."""

from __future__ import annotations

import io
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reportlab.lib.pagesizes import A4
from reportlab.pdfgen import canvas

from core.data.documents.document import Document
from core.data.documents.pdf import _join, draw_first_page, read_pdf
from core.data.documents.pdf_bidi import Glyph, read_glyphs, read_left_to_right
from core.data.documents.pdf_layout import Run, order_lines
from core.errors import DataError

LEFT, TOP, LEADING = 72, 700, 14
WORDS = (
    "the ferry office of lomen opens at seven and sells tickets for boats dogs travel free in calm weather"
)


def sentence(seed: int, words: int = 14) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS.split()) for _ in range(words)).capitalize() + f" {seed}."


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters; a long word at the end of a line is hyphenated."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 <= width:
            lines[-1] = f"{lines[-1]} {word}".strip()
        elif word.isalpha() and word.islower() and len(word) > 5 and len(lines[-1]) + 5 < width:
            lines[-1] += f" {word[:3]}-"
            lines.append(word[3:])
        else:
            lines.append(word)
    return lines


class Writer:
    """Draws lines of text at given places; an independent way to make a PDF."""

    def __init__(self, **options) -> None:
        self.file = io.BytesIO()
        self.canvas = canvas.Canvas(self.file, pagesize=A4, **options)

    def line(self, x: float, y: float, text: str, size: float = 10, font: str = "Helvetica") -> None:
        self.canvas.setFont(font, size)
        self.canvas.drawString(x, y, text)

    def column(self, x: float, lines: list[str], y: float = TOP) -> float:
        for line in lines:
            self.line(x, y, line)
            y -= LEADING
        return y

    def page(self) -> None:
        self.canvas.showPage()

    def read(self) -> Document:
        self.canvas.save()
        self.file.seek(0)
        return read_pdf(self.file, "file.pdf")


def test_hyphens_at_line_ends_are_joined_and_compounds_stay():
    writer = Writer()
    writer.column(
        LEFT, ["A well-known boat crosses the lake, and the weather is un-", "usually calm. It is well-"]
    )
    writer.column(LEFT, ["known on both shores, since 1990-", "1995 at least."], TOP - 2 * LEADING)
    document = writer.read()
    assert document.text == (
        "A well-known boat crosses the lake, and the weather is unusually calm. It is well-known on both "
        "shores, since 1990-1995 at least."
    )
    assert "1 word was joined across a line end." in document.notes


def test_running_headers_and_page_numbers_are_removed_and_counted():
    writer = Writer()
    for page in range(4):
        writer.line(LEFT, 805, f"Ferry Handbook, chapter {page}")
        writer.line(290, 30, f"Page {page + 1} of 4")
        writer.column(LEFT, [sentence(page), sentence(10 + page)])
        writer.page()
    document = writer.read()
    assert "Handbook" not in document.text and "Page" not in document.text
    assert "4 running headers and footers were removed." in document.notes
    assert "4 page numbers were removed." in document.notes
    assert all(sentence(i) in document.text for i in range(4))


def test_columns_that_are_drawn_line_by_line_are_read_one_after_the_other():
    left, right = wrap(" ".join(map(sentence, range(4))), 40), wrap(" ".join(map(sentence, range(4, 8))), 40)
    writer = Writer()
    writer.line(LEFT, TOP + 40, "A title that is longer than the left column and crosses the gutter", 16)
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        writer.line(LEFT, TOP - i * LEADING, a)
        writer.line(320, TOP - i * LEADING, b)
    rest = TOP - min(len(left), len(right)) * LEADING
    longer, x = (left, LEFT) if len(left) > len(right) else (right, 320)
    writer.column(x, longer[min(len(left), len(right)) :], rest)
    text = " ".join(writer.read().text.split())
    assert text.endswith(" ".join(map(sentence, range(8))))


def test_a_table_is_read_row_by_row():
    rows = [("Boat", "Day", "Fare"), ("Moon goose", "Monday", "3"), ("Button crow", "Tuesday", "12")]
    writer = Writer()
    for i, row in enumerate(rows):
        for x, cell in zip((72, 200, 330), row, strict=True):
            writer.line(x, TOP - 18 * i, cell)
    (table,) = writer.read().blocks
    assert (table.kind, table.text) == ("table", "\n".join(" | ".join(row) for row in rows))


def test_a_wrapped_cell_belongs_to_its_row():
    writer = Writer()
    for x, y, cell in (
        (72, 700, "Moon goose"), (200, 700, "Leaves early in the morning"), (200, 688, "when it is calm"),
        (72, 660, "Button crow"), (200, 660, "Carries letters of the office"), (200, 648, "and newspapers"),
    ):  # fmt: skip
        writer.line(x, y, cell)
    assert writer.read().text == (
        "Moon goose | Leaves early in the morning when it is calm\n"
        "Button crow | Carries letters of the office and newspapers"
    )


def test_a_footnote_follows_the_paragraph_that_refers_to_it():
    writer = Writer()
    writer.line(LEFT, TOP, "The bag holds forty letters")
    writer.line(LEFT + 122, TOP + 4, "1", 6)
    writer.column(LEFT, ["and a stamp. " + sentence(1), sentence(2)], TOP - LEADING)
    writer.column(LEFT, [sentence(3)], TOP - 5 * LEADING)
    writer.line(LEFT, 100, "1", 5)
    writer.line(LEFT + 4, 98, "Sometimes more than that.", 7)
    blocks = writer.read().blocks
    assert [b.kind for b in blocks] == ["paragraph", "footnote", "paragraph"]
    assert blocks[0].text.startswith("The bag holds forty letters[1] and a stamp.")
    assert blocks[1].text == "[1] Sometimes more than that."


def test_a_paragraph_goes_on_over_a_page():
    writer = Writer()
    writer.column(LEFT, ["The boat leaves the harbour at seven and comes back with the mail of all the"], 100)
    writer.page()
    writer.column(LEFT, ["other towns. " + sentence(1)])
    assert writer.read().text.startswith(
        "The boat leaves the harbour at seven and comes back with the mail of all the other towns."
    )


def test_headings_have_levels():
    writer = Writer()
    writer.line(LEFT, 760, "Rules of the lake", 20)
    writer.line(LEFT, 730, "Places", 14)
    writer.column(LEFT, [sentence(1), sentence(2)])
    writer.line(LEFT, 640, "Days", 14)
    writer.column(LEFT, [sentence(3)], 620)
    headings = [(b.text, b.level) for b in writer.read().blocks if b.kind == "heading"]
    assert headings == [("Rules of the lake", 1), ("Places", 2), ("Days", 2)]


@pytest.mark.parametrize("columns", [1, 2, 3])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_text_of_any_length_in_columns_is_read_in_order(columns, data):
    count = data.draw(st.integers(4 * columns, 9 * columns), label="sentences")
    seed = data.draw(st.integers(0, 10_000), label="seed")
    width = {1: 84, 2: 40, 3: 25}[columns]
    text = " ".join(sentence(seed + i, 10 + i % 5) for i in range(count))
    lines = wrap(text, width)
    height = -(-len(lines) // columns)
    step = 460 / columns
    runs = []
    for i, line in enumerate(lines):
        x, y = LEFT + step * (i // height), TOP - LEADING * (i % height)
        runs.append(Run(line, x, y, x + len(line) * (step - 20) / width, y + 10))
    random.Random(seed).shuffle(runs)
    assert [line.text for line in order_lines(runs)] == lines


def test_an_encrypted_file_is_refused():
    from reportlab.lib.pdfencrypt import StandardEncryption

    writer = Writer(encrypt=StandardEncryption("secret", strength=128))
    writer.line(LEFT, TOP, "Secret")
    with pytest.raises(DataError, match="encrypted with a password"):
        writer.read()


def test_a_file_of_pictures_is_refused():
    writer = Writer()
    writer.canvas.rect(100, 100, 200, 200)
    writer.page()
    with pytest.raises(DataError, match="no text: its pages are pictures"):
        writer.read()


@pytest.mark.parametrize("content", [b"%PDF-1.7\n", b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n%%EOF", b"hello", b""])
def test_a_damaged_file_is_refused(content):
    with pytest.raises(DataError, match="damaged|not a PDF file"):
        read_pdf(io.BytesIO(content), "file.pdf")


def test_the_first_page_is_drawn_as_a_png():
    writer = Writer()
    writer.line(LEFT, TOP, "Hello")
    writer.canvas.save()
    writer.file.seek(0)
    assert draw_first_page(writer.file, "file.pdf").startswith(b"\x89PNG")


def test_the_two_column_sample_is_read_rightly():
    sample = Path(__file__).parents[5] / "shared" / "data_samples" / "two_columns_line_by_line.pdf"
    if not sample.exists():
        pytest.skip("the sample is not beside this checkout")
    with open(sample, "rb") as file:
        document = read_pdf(file, sample.name)
    assert [b.text for b in document.blocks[:2]] == [
        "The ferry office of Lomen is open from six. "
        "Passengers buy tickets at the window behind the fish market.",
        "Bicycles travel free. Dogs pay nothing at all. "
        "The crossing takes thirty-eight minutes in calm weather.",
    ]


def test_headers_with_chapter_names_and_roman_numbers_are_removed():
    writer = Writer()
    for page in range(6):
        number = ("ii", "iii", "iv", "v", "vi", "vii")[page]
        if page == 0:
            writer.line(300, 60, number)  # the first page of a chapter has its number at the foot
        elif page % 2:
            writer.line(LEFT, 790, number)
            writer.line(400, 790, "PART ONE" if page < 3 else "PART TWO")
        else:
            writer.line(LEFT, 790, f"1.{page} OF BOATS")
            writer.line(500, 790, number)
        writer.column(LEFT, [sentence(page), sentence(10 + page)])
        writer.page()
    document = writer.read()
    for part in ("PART", "OF BOATS", "iii", "vii"):
        assert part not in document.text
    assert "6 page numbers were removed." in document.notes
    assert all(sentence(i) in document.text for i in range(6))


def test_numbered_titles_of_pages_stay():
    writer = Writer()
    for page in range(4):
        writer.line(LEFT, 790, f"{page + 1}. The way to pier {'ABCD'[page]}")
        writer.column(LEFT, [sentence(page), sentence(10 + page)])
        writer.page()
    text = writer.read().text
    assert all(f"{i + 1}. The way to pier {'ABCD'[i]}" in text for i in range(4))


def test_code_keeps_its_lines_and_indentation():
    writer = Writer()
    writer.column(LEFT, [sentence(1), sentence(2)])
    for i, (indent, text) in enumerate(
        [(0, "def ferry(day):"), (4, "if day.calm:"), (8, "sail()"), (4, "stop()")]
    ):
        writer.line(LEFT + 6 * indent, 640 - 12 * i, text, 10, "Courier")
    writer.column(LEFT, [sentence(3)], 570)
    (code,) = [b.text for b in writer.read().blocks if b.kind == "code"]
    assert code == "def ferry(day):\n    if day.calm:\n        sail()\n    stop()"


def test_text_of_a_turned_page_is_read():
    for turns in (90, 180, 270):
        writer = Writer()
        writer.canvas.translate(300, 400)
        writer.canvas.rotate(turns)
        writer.line(-150, 50, "The boat leaves the harbour of the old town")
        writer.line(-150, 36, "at seven and comes back at noon.")
        assert (
            writer.read().text
            == "The boat leaves the harbour of the old town at seven and comes back at noon."
        )


def test_a_sidebar_with_a_rhythm_of_its_own_is_a_column():
    writer = Writer()
    for i, text in enumerate(["Pier Road 7", "Lomen", "Sailing", "Bookkeeping", "German", "French"]):
        writer.line(LEFT, TOP - 19 * i, text)
    body = [sentence(i, 9) for i in range(9)]
    for i, text in enumerate(body):
        writer.line(240, TOP - 13 - 14 * i, text)
    text = " ".join(writer.read().text.split())
    assert "Pier Road 7 Lomen Sailing Bookkeeping German French" in text and " ".join(body) in text


def test_lines_of_a_contents_list_are_left_out():
    writer = Writer()
    for i, title in enumerate(["Boats", "Days", "Fares"]):
        writer.line(LEFT, TOP - 14 * i, f"{title} " + ". " * 40 + str(i + 3))
    writer.column(LEFT, [sentence(1)], 500)
    document = writer.read()
    assert document.text == sentence(1)
    assert "3 lines of contents lists were left out." in document.notes


def test_an_exponent_does_not_take_the_footnote_of_a_word():
    writer = Writer()
    writer.line(LEFT, TOP, "It holds that x")
    writer.line(LEFT + 67, TOP + 4, "1", 6)
    writer.line(LEFT + 74, TOP, "is what the bag weighs")
    writer.line(LEFT + 178, TOP + 4, "1", 6)
    writer.column(LEFT, [sentence(1), sentence(2)], TOP - LEADING)
    writer.line(LEFT, 100, "1", 5)
    writer.line(LEFT + 4, 98, "In spring.", 7)
    assert "weighs[1]" in writer.read().text.replace(" [", "[")


def test_right_to_left_letters_are_read_from_their_places():
    def glyphs(visual: str) -> list[Glyph]:
        return [Glyph(c, 10.0 * i, 0.0, 10.0 * i + 10, 12.0, i) for i, c in enumerate(visual)]

    logical = "שלום (עד 30) Brook עולם"
    visual = "םלוע Brook (30 דע) םולש"
    assert read_glyphs(glyphs(visual), 12.0) == logical
    assert read_left_to_right(glyphs("abc de"), 12.0) == "abc de"


def test_chinese_lines_are_joined_without_spaces():
    assert _join("渡船在七点", "开始营业。", Counter()) == ("渡船在七点开始营业。", False)
    assert _join("at seven", "o'clock", Counter()) == ("at seven o'clock", False)
