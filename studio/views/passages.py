"""The passages of an answer: numbered, folded, with the words that matched marked; and citations of them.

The lamp is in the north room [1].       a click on [1] opens the passage
Passages
> [1] notes.md, The north room
> [2] log.txt
"""

from __future__ import annotations

from typing import Any

from core.retrieve.passages import Passage
from core.retrieve.prompt import PassagePrompt, find_citations
from studio.tree import Node, node

NO_PASSAGE = "No passage of these documents answers this question, so the answer is the model's own."


def render_passages(prompt: PassagePrompt | None) -> Node | None:
    """The passages that an answer was given, and those that did not fit; None without documents."""
    if prompt is None:
        return None
    if not prompt.used and not prompt.left_out:
        return node("p", NO_PASSAGE, cls="note passages")
    items = [node("li", _render_passage(number, passage)) for number, passage in enumerate(prompt.used, 1)]
    listed = node("ol", *items, cls="passage-list", aria_label="Passages") if items else None
    return node("div", listed, _note_left_out(prompt), cls="passages")


def _render_passage(number: int, passage: Passage) -> Node:
    place = f"{passage.dataset_name}, characters {passage.start:,} to {passage.end:,}"
    return node(
        "details",
        node("summary", node("strong", f"[{number}] "), passage.title),
        node("p", *mark_words(passage), cls="passage-text"),
        node("p", place, cls="quiet"),
        cls="passage",
    )


def mark_words(passage: Passage) -> list[Any]:
    """The text of a passage with its matched words as marks."""
    pieces: list[Any] = []
    at = 0
    for start, end in passage.marks:
        pieces += [passage.text[at:start], node("mark", passage.text[start:end])]
        at = end
    return [piece for piece in [*pieces, passage.text[at:]] if piece != ""]


def _note_left_out(prompt: PassagePrompt) -> Node | None:
    if not prompt.left_out:
        return None
    titles = ", ".join(dict.fromkeys(passage.title for passage in prompt.left_out))
    count = len(prompt.left_out)
    subject = "1 passage does" if count == 1 else f"{count} passages do"
    verb = "was" if count == 1 else "were"
    return node("p", f"{subject} not fit into this base's context and {verb} left out: {titles}.", cls="note")


def link_citations(tree: Node, count: int) -> Node:
    """A tree with a button in the place of every citation of an existing passage.

    Args:
        count: passages of the answer. Code keeps its text.
    """
    if tree.get("tag") in ("pre", "code", "button") or not count:
        return tree
    kids: list[Any] = []
    for kid in tree.get("kids", []):
        kids += [link_citations(kid, count)] if isinstance(kid, dict) else _split_citations(kid, count)
    return {**tree, "kids": kids}


def _split_citations(text: str, count: int) -> list[Any]:
    pieces: list[Any] = []
    at = 0
    for citation in find_citations(text, count):
        pieces.append(text[at : citation.start])
        pieces += [_make_button(number) for number in citation.numbers]
        at = citation.end
    return [piece for piece in [*pieces, text[at:]] if piece != ""]


def _make_button(number: int) -> Node:
    act = {"do": "cite", "passage": number}
    return node("button", f"[{number}]", cls="cite", act=act, aria_label=f"Open passage {number}")
