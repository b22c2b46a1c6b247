"""The conversation of the Mix tab: questions and answers, each answer stamped with the mix that wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from studio import answers
from studio.session import Exchange
from studio.tree import Node, button, empty, node
from studio.views.passages import link_citations, render_passages

NO_ANSWER = empty("No answer yet", "Ask something, then move a slider: the answer follows the mix.")


def render_conversation(exchanges: Sequence[Exchange], serial: int) -> Node:
    """Renders a conversation; the newest exchange is at the end, and stays visible while it grows.

    Args:
        serial: number of the answer; the browser drops what arrives with a lower one.
    """
    if not exchanges:
        return {**NO_ANSWER, "serial": serial}
    *earlier, last = exchanges
    turns = node(
        "div",
        *[_render_once(e) for e in earlier],
        _render_exchange(last),
        node(
            "p",
            "The answer is complete." if last.column and last.column.done else "",
            cls="hidden-text",
            role="status",
        ),
        cls="exchanges",
    )
    # The scrolled box runs from its end, so that the newest answer stays visible. The inner box keeps the
    # order of the document.
    return {
        **node("div", turns, cls="conversation", tabindex="0", role="region", aria_label="Conversation"),
        "serial": serial,
    }


def _render_once(exchange: Exchange) -> Node:
    """An earlier exchange, which does not change any more: rendered once, not for every frame."""
    if exchange.rendered is None or exchange.rendered[0] is not exchange.column:
        exchange.rendered = (exchange.column, _render_exchange(_end(exchange)))
    tree: Node = exchange.rendered[1]
    return tree


def _end(exchange: Exchange) -> Exchange:
    """An exchange with its answer marked as stopped, unless it is complete."""
    column = exchange.column
    if column is None or column.done:
        return exchange
    return replace(exchange, column=replace(column, done=True, reason="cancelled"))


def _render_exchange(exchange: Exchange) -> Node:
    about = "The text to continue" if exchange.continue_text else "You"
    question = node(
        "div",
        node("span", about, cls="hidden-text"),
        node("p", exchange.prompt),
        cls="question continued" if exchange.continue_text else "question",
    )
    return node("div", question, _note_left_out(exchange), _render_answer(exchange), cls="exchange")


def _note_left_out(exchange: Exchange) -> Node | None:
    count = exchange.left_out
    if not count:
        return None
    subject = "The oldest question does" if count == 1 else f"The {count} oldest questions do"
    verb = "was" if count == 1 else "were"
    return node("p", f"{subject} not fit into this base's context any more and {verb} left out.", cls="note")


def _render_answer(exchange: Exchange) -> Node:
    column = exchange.column
    if column is None:
        note = node("p", exchange.note, cls="quiet") if exchange.note else None
        return node("div", note, answers.skeleton(), cls="answer")
    if exchange.continue_text:
        cls = "answer-text" if column.done else "answer-text writing"
        text = node("p", *answers.render_parts(column, exchange.labels), cls=cls)
    else:
        text = answers.render_rich(column, exchange.labels)
    prompt = exchange.passages
    return node(
        "div",
        answers.render_column_fold(column),
        link_citations(text, len(prompt.used)) if prompt else text,
        render_passages(prompt),
        _render_foot(column, exchange),
        cls="answer",
    )


def _render_judgement(column: Any, exchange: Exchange) -> list[Node]:
    """The buttons that judge an answer, once it is complete."""
    if not column.done or column.reason == "cancelled" or not exchange.answer:
        return []
    return [
        button(
            text,
            {"do": "rate", "answer": exchange.answer, "good": is_good},
            "quiet small",
            title=f"Count this answer as {text.lower()}",
            aria_pressed=str(exchange.is_good is is_good).lower(),
        )
        for text, is_good in (("Good", True), ("Poor", False))
    ]


def _render_foot(column: Any, exchange: Exchange) -> Node:
    """The mix of an answer, its speed, a button that copies its text, and its stamp."""
    copy = None
    if column.done and column.text:
        copy = button("Copy", {"do": "copy", "text": column.text}, "quiet small", title="Copy this answer")
    return node(
        "div",
        node("span", answers.format_speed(column), cls="quiet"),
        copy,
        *_render_judgement(column, exchange),
        answers.render_stamp(column, exchange.labels),
        cls="answer-foot",
    )
