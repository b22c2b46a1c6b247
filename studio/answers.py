"""Shows answers: their text, speed and stamp (the mix that wrote them), and a comparison as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.engine.gates import describe_decisions, read_decisions
from studio import formatting
from studio.markdown import render_markdown
from studio.session import Session
from studio.tree import Node, node

LIVE_MARKDOWN = 4000  # characters of an unfinished answer that are rendered as Markdown in every frame
DELETED = "a deleted adapter"
ENDINGS = {"length": ", cut at the limit", "cancelled": ", stopped"}


def render_fold(thought: str, tokens: int, is_done: bool = True) -> Node | None:
    """Renders what a reasoning model wrote before its answer, folded away; None without a thought.

    Args:
        tokens: of the thought.
        is_done: whether the thought is complete.
    """
    if not thought:
        return None
    summary = f"Thought for {tokens} tokens" if is_done else f"Thinking, {tokens} tokens so far"
    return node("details", node("summary", summary), node("p", thought, cls="thought-text"), cls="thought")


def render_column_fold(column: Any) -> Node | None:
    """Renders the thought of a column."""
    return render_fold(column.thought, column.thought_tokens, bool(column.done or column.text))


def render_parts(column: Any, labels: Mapping[str, str] | None = None) -> list[Node]:
    """Renders the text of an answer as it is, with a mark wherever its mix changed.

    Args:
        labels: adapter id -> name.
    """
    pieces, start = [], 0
    for at, mark in _list_marks(column, labels):
        pieces += [node("span", column.text[start:at]), mark]
        start = at
    rest = column.text[start:]
    if not rest and not pieces:
        rest = placeholder(column)
    return [*pieces, node("span", rest)]


def render_rich(column: Any, labels: Mapping[str, str] | None = None) -> Node:
    """Renders the text of an answer as Markdown, with a mark wherever its mix changed.

    A long answer is plain text until it is complete, because Markdown is read again for every frame.
    """
    writing = "" if column.done else " writing"
    if not column.text or not (column.done or len(column.text) <= LIVE_MARKDOWN):
        return node("div", *render_parts(column, labels), cls=f"answer-text{writing}")
    blocks = render_markdown(column.text, _list_marks(column, labels))
    return node("div", *blocks, cls=f"answer-text rich{writing}")


def _list_marks(column: Any, labels: Mapping[str, str] | None = None) -> list[tuple[int, Node]]:
    """The marks of the changes of an answer's mix, each with its offset in the text.

    A mark says the new mix, and where weights of it are on Auto, the weights that they have from there on.
    """
    marks = []
    for change in column.mix_changes:
        text = format_stamp(change, labels, digests=False) if read_decisions(change.stamp) else change.mix
        marks.append((change.at, node("span", text, cls="turn", title=f"From here on: {text}", role="note")))
    return marks


def skeleton(label: str = "Waiting for the first word") -> Node:
    """Grey lines in the place of an answer that has not begun."""
    lines = [node("span", cls="skeleton-line") for _ in range(3)]
    return node("div", *lines, cls="skeleton", role="status", aria_label=label)


def placeholder(column: Any) -> str:
    """The text to show for an answer that has no text."""
    if column.thought and column.done:
        return "The answer is empty: it ended inside its thought."
    return "(empty answer)" if column.reason == "end" else "…"


def format_stamp(column: Any, labels: Mapping[str, str] | None = None, digests: bool = True) -> str:
    """Formats what was active for an answer in one line: adapters by name, weights, tilts and digests.

    Args:
        labels: adapter id -> name.
        digests: whether the beginning of each adapter's sha256 stands behind its weight.
    """
    active = column.stamp.get("weights") or {}
    known = column.stamp.get("adapters") or {}
    tilts = column.stamp.get("tilt") or {}
    gated = read_decisions(column.stamp)
    parts = ["base"]
    for adapter in dict.fromkeys([*active, *gated]):
        tilt = f" @{tilts[adapter]:g}" if adapter in tilts else ""
        name = (labels or {}).get(adapter, DELETED)
        digest = f" ({_short_digest(known.get(adapter, ''))})" if digests and adapter in known else ""
        weight = f"auto {active.get(adapter, 0.0):.2f}" if adapter in gated else f"{active[adapter]:+.2f}"
        parts.append(f"{name} {weight}{tilt}{digest}")
    return " · ".join(parts)


def list_gates(column: Any, labels: Mapping[str, str] | None = None) -> list[str]:
    """Why each weight on Auto was what it was, one sentence per adapter."""
    sentences = describe_decisions(read_decisions(column.stamp), labels)
    return [formatting.end_sentence(s) for s in sentences.values()]


def render_stamp(column: Any, labels: Mapping[str, str] | None = None) -> Node:
    """Renders what was active for an answer, and why where a weight is on Auto.

    Its name and its checksums are folded away.
    """
    reasons = [node("p", sentence, cls="gate-reason") for sentence in list_gates(column, labels)]
    details = node(
        "details",
        node("summary", "Details"),
        node("p", str(column.stamp.get("mix", "")), cls="quiet"),
        node("p", format_stamp(column, labels), cls="checksums"),
        cls="stamp-fold",
    )
    return node("div", node("p", format_stamp(column, labels, digests=False), cls="stamp"), *reasons, details)


def _short_digest(digest: str) -> str:
    """The start of a sha256; a text with a space is not a digest but a note on a trainee, and stays whole."""
    return digest if " " in digest else digest[:8] or "in training"


def format_speed(column: Any) -> str:
    """Formats the tokens and the tokens per second of a column."""
    rate = column.tokens / column.seconds if column.seconds else 0.0
    thought = f", {column.thought_tokens} of them a thought" if column.thought else ""
    return f"{column.tokens} tokens{thought} · {rate:.0f} tokens/s{ENDINGS.get(column.reason, '')}"


def to_markdown(session: Session) -> str:
    """The session's last comparison as a Markdown document, every text escaped; empty when there is none."""
    if session.frame is None:
        return ""
    escape = formatting.escape_markdown
    lines = ["# Comparison", "", f"**Prompt:** {escape(session.prompt)}", ""]
    prompts = session.frame.prompts or (None,) * len(session.frame.columns)
    for name, column, prompt in zip(session.names, session.frame.columns, prompts, strict=True):
        body = "\n".join("> " + escape(line) for line in column.text.splitlines() or [""])
        stamp = f"`{format_stamp(column, session.labels)}`".replace("\n", " ")
        reasons = [escape(sentence) for sentence in list_gates(column, session.labels)]
        lines += [f"## {escape(name)}", "", body, "", f"{format_speed(column)}  ", stamp, *reasons, ""]
        for number, passage in enumerate(prompt.used if prompt else (), 1):
            text = escape(" ".join(passage.text.split()))
            lines += [f"\\[{number}\\] {escape(passage.title)}: {text}", ""]
    first = session.frame.columns[0].stamp if session.frame.columns else {}
    lines += ["---", "", f"Base model: {escape(str(first.get('base', '')))}  "]
    settings = first.get("sampling") or {}
    if isinstance(settings, dict):
        lines.append("Sampling: " + ", ".join(f"{k} = {v}" for k, v in settings.items()))
    return "\n".join(lines) + "\n"
