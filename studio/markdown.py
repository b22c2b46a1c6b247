"""Markdown to trees of plain nodes. Raw HTML, links and images of an answer stay text, so nothing is loaded.

A text may hold marks: places where a node of the caller stands, such as a change of the mix.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from studio.tree import Node, node

_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
# Characters that Unicode reserves for the inside of a program; they enclose the number of a mark.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_BLOCKS = {
    "paragraph": "p",
    "bullet_list": "ul",
    "ordered_list": "ol",
    "list_item": "li",
    "blockquote": "div",
    "table": "table",
    "thead": "thead",
    "tbody": "tbody",
    "tr": "tr",
    "th": "th",
    "td": "td",
    "em": "em",
    "strong": "strong",
    "s": "span",
}
_CLASSES = {"blockquote": "quote", "s": "struck"}


def render_markdown(text: str, marks: Sequence[tuple[int, Node]] = ()) -> list[Node]:
    """Renders a Markdown text, complete or still growing.

    Args:
        marks: (offset in the text, node that stands there), in order.

    Returns:
        one node per block. Line breaks stay; a link is its text with the address in brackets.
    """
    pieces, start = [], 0
    for number, (at, _) in enumerate(marks):
        pieces += [_strip(text[start:at]), f"{_OPEN}{number}{_CLOSE}"]
        start = at
    source = "".join([*pieces, _strip(text[start:])])
    nodes = [mark for _, mark in marks]
    return _render(_PARSER.parse(source), nodes)


def _strip(text: str) -> str:
    return text.replace(_OPEN, "").replace(_CLOSE, "")


def _render(tokens: Sequence[Token], marks: list[Node]) -> list[Any]:
    """The nodes of a flat list of tokens, in which opening and closing tokens enclose what is inside."""
    root: list[Any] = []
    levels: list[tuple[Node | None, list[Any]]] = [(None, root)]
    for token in tokens:
        kids = levels[-1][1]
        if token.nesting == 1:
            opened = _open(token)
            kids.append(opened)
            levels.append((opened, opened["kids"]))
        elif token.nesting == -1:
            if token.type == "link_close":
                kids.append(_close_link(levels[-1][0]))
            levels.pop()
        else:
            kids += _render_leaf(token, marks)
    return root


def _open(token: Token) -> Node:
    name = token.type.removesuffix("_open")
    if name == "heading":
        return node("h3" if token.tag in ("h1", "h2") else "h4")
    if name == "link":
        return node("span", cls="link-text", title=str(token.attrGet("href") or ""))
    if name == "paragraph" and token.hidden:  # of a list without blank lines
        return node("span")
    opened = node(_BLOCKS.get(name, "div"), cls=_CLASSES.get(name, ""))
    if name == "ordered_list" and (first := token.attrGet("start")):
        opened["vars"] = {"start": str(int(first) - 1)}
    return opened


def _close_link(link: Node | None) -> str:
    """The address of a link, unless its text is the address."""
    address = (link or {}).get("attrs", {}).get("title", "")
    text = "".join(k for k in (link or {}).get("kids", []) if isinstance(k, str))
    return f" ({address})" if address and address.removeprefix("mailto:") != text else ""


def _render_leaf(token: Token, marks: list[Node]) -> list[Any]:
    if token.type == "inline":
        return _render(token.children or [], marks)
    if token.type in ("fence", "code_block"):
        return [node("pre", node("code", *_place(token.content.rstrip("\n"), marks)))]
    if token.type == "code_inline":
        return [node("code", *_place(token.content, marks))]
    if token.type in ("softbreak", "hardbreak"):
        return ["\n"]
    if token.type == "hr":
        return [node("div", cls="rule")]
    if token.type == "image":
        return _place(f"{token.content or 'image'} ({token.attrGet('src')})", marks)
    return _place(token.content, marks)


def _place(text: str, marks: list[Node]) -> list[Any]:
    """A text with its marks replaced by their nodes."""
    parts: list[Any] = []
    for i, piece in enumerate(_MARK.split(text)):
        if i % 2 == 0:
            parts += [piece] if piece else []
        elif int(piece) < len(marks):
            parts.append(marks[int(piece)])
    return parts
