"""Plain text: paragraphs stay as they were typed; chapters and titles are headings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.documents.text_blocks import read_blocks


def kinds(text, name="a.txt"):
    return [(b.kind, b.level) for b in read_blocks(text, name)]


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("CHAPTER IV", 2),
        ("CHAPTER I.\nDown the Rabbit-Hole", 2),
        ("Chapter 3 The Whale", 2),
        ("Chapter One: The start", 2),
        ("BOOK ONE", 1),
        ("PART THE FIRST", 1),
        ("Letter 4", 2),
        ("SCENE II. A wood near Athens.", 2),
        ("Kapitel 3", 2),
        ("Capítulo primero", 2),
        ("Глава 5", 2),
        ("第三章 海", 2),
        ("Appendix B: Tables", 2),
        ("PROLOGUE", 2),
        ("XIV", 2),
        ("II. THE BOAT", 2),
        ("1.2 Scope", 2),
        ("OPENING HOURS", 3),
        ("Title\n=====", 1),
        ("Title\n-----", 2),
        ("## Marked", 2),
    ],
)
def test_headings_of_books_and_notes_are_found(text, level):
    assert kinds(f"Before.\n\n{text}\n\nAfter.") == [("paragraph", 0), ("heading", level), ("paragraph", 0)]


@pytest.mark.parametrize(
    "text",
    [
        "Chapter 3 was long, and the men were tired.",
        "Book lovers unite today",
        "Letter a friend wrote",
        "Book I read last summer",
        "Part of the problem is here",
        "1. Buy milk",
        '"STOP!"',
        "STOP!",
        "12",
        "I am",
        "It was the best of times, it was\nthe worst of times.",
        "~~~~~~~~~~",
    ],
)
def test_sentences_are_not_headings(text):
    assert kinds(text) == [("paragraph", 0)]


def test_lists_and_fences_are_known():
    assert kinds("- a\n- b\n\n```\nx\n\ny\n```\nz") == [("list", 0), ("code", 0), ("paragraph", 0)]


def test_markdown_is_known_by_its_suffix():
    text = "Title\n\n- a\n\n- b\n\n    code"
    assert [b.kind for b in read_blocks(text, "a.md")] == ["paragraph", "list", "list"]
    assert [b.kind for b in read_blocks("1) a\n2) b", "a.md, text 2")] == ["list"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["", "CHAPTER I", "word by word", "TITLE OF IT", "====", "- x",
                                 "    indented", "I", "a.  b"]),
                max_size=20).map("\n".join))  # fmt: skip
def test_blocks_joined_by_blank_lines_are_the_text(text):
    joined = "\n\n".join(block.text for block in read_blocks(text, "a.txt"))
    assert [x for x in joined.split("\n") if x.strip()] == [x for x in text.split("\n") if x.strip()]
