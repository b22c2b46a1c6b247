"""Markdown of answers: blocks become nodes, everything else stays text."""

from __future__ import annotations

import json
import random

import pytest

from studio.markdown import render_markdown
from studio.tree import node

SAMPLE = (
    "# Title\nSome **bold** and `code` and [a link](http://host/page).\n\n- one\n- two\n\n3. three\n4. four\n"
    "\n```py\nprint('<b>')\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n> said\n\n---\n"
    "<img src=x onerror=alert(1)>"
)
TAGS = {"h3", "h4", "p", "span", "ul", "ol", "li", "pre", "code", "em", "strong", "div"}
TAGS |= {"table", "thead", "tbody", "tr", "th", "td"}


def texts(tree) -> str:
    return tree if isinstance(tree, str) else "".join(texts(k) for k in tree["kids"])


def nodes(trees):
    for tree in trees:
        if isinstance(tree, dict):
            yield tree
            yield from nodes(tree["kids"])


def test_blocks_become_nodes_and_line_breaks_stay() -> None:
    made = render_markdown(SAMPLE)
    assert {"h3", "p", "ul", "ol", "li", "pre", "code", "table", "strong"} <= {n["tag"] for n in nodes(made)}
    assert texts(render_markdown("one\ntwo")[0]) == "one\ntwo"
    numbered = next(n for n in nodes(made) if n["tag"] == "ol")
    assert numbered["vars"] == {"start": "2"} and [texts(k) for k in numbered["kids"]] == ["three", "four"]


def test_t18_html_stays_text_and_a_link_shows_its_address() -> None:
    made = render_markdown(SAMPLE)
    whole = "".join(map(texts, made))
    assert "<img src=x onerror=alert(1)>" in whole and "a link (http://host/page)" in whole
    assert "http://host/a (http" not in "".join(map(texts, render_markdown("<http://host/a>")))
    assert {n["tag"] for n in nodes(made)} <= TAGS
    assert not any({"href", "src"} & set(n.get("attrs", {})) for n in nodes(made))
    image = "".join(map(texts, render_markdown("![picture](http://host/x.png)")))
    assert image == "picture (http://host/x.png)"


@pytest.mark.parametrize("seed", range(30))
def test_every_beginning_of_a_text_renders_with_its_marks(seed: int) -> None:
    """An answer grows by single characters, and its mix may change anywhere."""
    rng = random.Random(seed)
    pieces = ["*", "`", "#", "|", "\n", "[a](b)", "~~", "- ", "word ", "<", "\ufdd0", ">"]
    text = "".join(rng.choice(pieces) for _ in range(60)) + SAMPLE
    end = rng.randint(0, len(text))
    at = sorted(rng.randint(0, end) for _ in range(3))
    made = render_markdown(text[:end], [(a, node("span", f"mark{i}", cls="turn")) for i, a in enumerate(at)])
    assert "\ufdd0" not in json.dumps(made, ensure_ascii=False)
    assert {n["tag"] for n in nodes(made)} <= TAGS


def test_marks_stand_at_their_offsets() -> None:
    text = "One **two three** four"
    made = render_markdown(text, [(10, node("span", "HERE")), (20, node("span", "THERE"))])
    assert texts(made[0]) == "One two HEREthree foTHEREur"
    assert [n["tag"] for n in nodes(made)] == ["p", "strong", "span", "span"]
