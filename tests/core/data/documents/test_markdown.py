"""Markdown: the text stays as it was typed; its blocks are known, and code is never cut."""

import io

from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.documents.markdown import parse_markdown, plain_heading, read_markdown, read_markdown_blocks

TEXT = """---
title: x
---

# Head
Right below.

Steps:
- a
- b

1. one

   more

2. two

```python
# not a heading

x = 1
```

| a | b |
|---|---|
| 1 | 2 |

Under
=====

[x]: http://x.invalid

[^1]: A note.

    # indented
"""

LINES = [
    "", "", "# H", "## H ##", "text", "more text", "- a", "  - b", "1. x", "   y", "```", "~~~", "> q",
    "| a | b |", "|---|---|", "---", "===", "    code", "\tx", "<div>", "</div>", "[a]: b", "[^1]: n", "***",
    "* * *", "\\", "&amp;", "<!--", "-->", "a: b",
]  # fmt: skip


def lines(text):
    return [line for line in text.split("\n") if line.strip()]


def test_every_kind_of_block_is_known():
    assert [(b.kind, b.level, b.text.split("\n")[0]) for b in read_markdown_blocks(TEXT)] == [
        ("code", 0, "---"),
        ("heading", 1, "# Head"),
        ("paragraph", 0, "Right below."),
        ("list", 0, "Steps:"),
        ("list", 0, "1. one"),
        ("list", 0, "2. two"),
        ("code", 0, "```python"),
        ("table", 0, "| a | b |"),
        ("heading", 1, "Under"),
        ("paragraph", 0, "[x]: http://x.invalid"),
        ("footnote", 0, "[^1]: A note."),
        ("code", 0, "    # indented"),
    ]
    assert lines(parse_markdown(TEXT).text) == lines(TEXT)


def test_headings_without_their_marks_name_sections():
    assert [plain_heading(t) for t in ("## Prices ##", "Prices\n---", "# C#", "#")] == [
        "Prices",
        "Prices",
        "C#",
        "",
    ]
    assert parse_markdown("## Low\n\n# High\n").title == "High"


def test_a_file_is_read_with_its_byte_order_mark():
    assert read_markdown(io.BytesIO("# Ä\n\nx".encode("utf-8-sig")), "a.md").text == "# Ä\n\nx"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=25).map("\n".join))
def test_blocks_joined_by_blank_lines_are_the_text(text):
    assert lines(parse_markdown(text).text) == lines(text)


@settings(max_examples=50, deadline=None)
@given(st.text("#-*`~> \n\t|a1.[]:<!", max_size=80))
def test_any_text_keeps_all_its_lines(text):
    assert lines(parse_markdown(text).text) == lines(text)
