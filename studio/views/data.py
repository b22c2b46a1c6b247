"""Views of the Data tab: the preview of files, a dataset with its splits and rows, an example as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.data.layouts import TITLES
from studio import formatting
from studio.tree import Node, button, chip, empty, facts, node, table, title

SPLITS = {"train": "Training", "val": "Validation", "test": "Test"}
KIND_NAMES = {"domain": "Domain: text to learn from", "task": "Task: questions with answers"}
PREVIEW_ROWS = 12
CELL_LIMIT = 240  # characters of a table cell
NO_DATASET = empty(
    "No data yet",
    "Domain data is plain text (.txt, .md), which teaches language and facts. Task data is labelled pairs "
    "(.jsonl, .csv, …), such as questions and answers. The sample data includes both.",
    button("Use the sample data", {"do": "sample"}, "primary"),
)


def render_notes(notes: Sequence[str]) -> Node | None:
    """Notes of an import as a list."""
    if not notes:
        return None
    return node("div", node("ul", *[node("li", note) for note in notes]), cls="note", aria_label="Notes")


def list_row_facts(data: Any) -> list[tuple[str, Any]]:
    """What a preview or a dataset says about rows and columns that are not as the others."""
    return [
        ("Rows left out", f"{data.left_out:,}" if data.left_out else ""),
        ("Rows that repeat a question or text", f"{data.duplicates:,}" if data.duplicates else ""),
        ("Columns that are not read", ", ".join(data.unread)),
    ]


def render_dataset(dataset: Any, split: str, rows: Sequence[dict[str, Any]]) -> Node:
    """A dataset's facts, the sizes of its splits, and rows of one split."""
    total = max(1, sum(dataset.splits.values()))
    parts = []
    for name, label in SPLITS.items():
        size = dataset.splits.get(name, 0)
        share = {"share": f"{100 * size / total:.2f}%"}
        parts.append(
            node("div", node("span", label), node("strong", f"{size:,}"), cls=f"part {name}", vars=share)
        )
    about = facts(
        [
            ("Rows", f"{dataset.rows:,}"),
            ("Files", ", ".join(f["name"] for f in dataset.files)[:200]),
            ("Split seed", dataset.seed),
            ("Types", ", ".join(f"{k} {n:,}" for k, n in dataset.types.items())),
            ("Layout", TITLES.get(dataset.layout, dataset.layout)),
            *list_row_facts(dataset),
            ("sha256", dataset.sha256[:16]),
        ]
    )
    caption = f"First rows of the {SPLITS.get(split, split).lower()} split"
    return node(
        "div",
        node("div", node("h2", dataset.name), chip(dataset.kind, dataset.kind), cls="row"),
        node("div", *parts, cls="parts", aria_label="Split sizes", role="group"),
        about,
        render_notes(dataset.notes),
        render_rows(dataset.kind, caption, rows),
    )


def render_rows(kind: str, caption: str, rows: Sequence[dict[str, Any]]) -> Node:
    """Canonical rows as a table: texts, or prompts with the answers that are trained on."""
    if kind == "domain":
        return table(["Text"], [[shorten(r.get("text"))] for r in rows], caption)
    has_types = any(r.get("type") for r in rows)
    lines = []
    for row in rows:
        *prompt, answer = row["messages"]
        line = [shorten(_write_prompt(prompt)), shorten(_write_answer(answer))]
        lines.append([*line, row.get("type", "")] if has_types else line)
    headings = ["Prompt", "Answer (trained on)"]
    return table([*headings, "Type"] if has_types else headings, lines, caption)


def _write_prompt(messages: Sequence[dict[str, Any]]) -> str:
    """What comes before the answer; with several messages, each one under its role."""
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n".join(f"{_name_message(m)}: {m['content']}" for m in messages)


def _name_message(message: dict[str, Any]) -> str:
    if message["role"] != "assistant":
        return str(message["role"]).capitalize()
    return "Assistant (trained on)" if message.get("weight", 1) else "Assistant (context)"


def _write_answer(message: dict[str, Any]) -> str:
    thought = message.get("thought")
    return f"(Thought: {thought})\n{message['content']}" if thought else str(message["content"])


def shorten(value: Any) -> str:
    """A cell's text, at most CELL_LIMIT characters of it."""
    text = "" if value is None else str(value)
    return text[:CELL_LIMIT] + " …" if len(text) > CELL_LIMIT else text


def render_example(tokens: Sequence[Any] | None, note: str = "") -> Node:
    """A training example as tokens; those that the loss covers are marked.

    Args:
        tokens: with `text`, `token` (its id) and `trained`; None shows `note` in their place.
    """
    about = "A training example as the model sees it. Only the marked tokens are trained on."
    head = node(
        "div",
        title("One example as tokens", about),
        button("Next example", {"do": "another"}),
        cls="row spread",
    )
    if tokens is None:
        return node("div", head, node("p", note, cls="note"))
    spans = [
        node(
            "span",
            t.text.replace("\n", "⏎\n"),
            cls="tok trained" if t.trained else "tok",
            title=f"Token {t.token}",
        )
        for t in tokens
    ]
    trained = sum(t.trained for t in tokens)
    share = formatting.format_percent(trained / max(1, len(tokens)))
    return node(
        "div",
        head,
        node("div", *spans, cls="tokens", role="group", aria_label="Tokens of a training example"),
        node("p", f"{len(tokens)} tokens, {trained} of them in the loss ({share})", cls="quiet"),
    )
