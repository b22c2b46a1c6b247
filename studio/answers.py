"""Shows answers: their text, speed and stamp (the mix that wrote them), and a comparison as Markdown."""

from __future__ import annotations

from typing import Any

from studio import formatting
from studio.session import Session
from studio.tree import Node, node

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


def render_parts(column: Any) -> list[Node]:
    """Renders the text of an answer, with a mark wherever its mix changed."""
    pieces, start = [], 0
    for turn in column.mix_changes:
        active = " ".join(f"{i} {w:+.2f}" for i, w in turn.stamp["weights"].items()) or "base"
        pieces += [
            node("span", column.text[start : turn.at]),
            node("span", turn.mix, cls="turn", title=f"From here on: {active}", role="note"),
        ]
        start = turn.at
    rest = column.text[start:]
    if not rest and not pieces:
        rest = placeholder(column)
    return [*pieces, node("span", rest)]


def placeholder(column: Any) -> str:
    """The text to show for an answer that has no text."""
    if column.thought and column.done:
        return "The answer is empty: it ended inside its thought."
    return "(empty answer)" if column.reason == "end" else "…"


def format_stamp(column: Any) -> str:
    """Formats what was active for an answer in one line: adapters, weights, tilts and digests."""
    active = column.stamp.get("weights") or {}
    digests = column.stamp.get("adapters") or {}
    tilts = column.stamp.get("tilt") or {}
    parts = ["base"]
    for adapter, weight in active.items():
        tilt = f" @{tilts[adapter]:g}" if adapter in tilts else ""
        parts.append(f"{adapter} {weight:+.2f}{tilt} ({_short_digest(digests.get(adapter, ''))})")
    return " · ".join(parts)


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
    for name, column in zip(session.names, session.frame.columns, strict=True):
        body = "\n".join("> " + escape(line) for line in column.text.splitlines() or [""])
        stamp = f"`{format_stamp(column)}`"
        lines += [f"## {escape(name)}", "", body, "", f"{format_speed(column)}  ", stamp, ""]
    first = session.frame.columns[0].stamp if session.frame.columns else {}
    lines += ["---", "", f"Base model: {escape(str(first.get('base', '')))}  "]
    settings = first.get("sampling") or {}
    if isinstance(settings, dict):
        lines.append("Sampling: " + ", ".join(f"{k} = {v}" for k, v in settings.items()))
    return "\n".join(lines) + "\n"
