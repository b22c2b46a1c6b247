"""Views of the Data tab: the preview of files, a dataset with its splits and rows, an example as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.data.layouts.known_layouts import TITLES
from studio import formatting
from studio.tree import Node, button, chip, details, empty, facts, node, table, title

SPLITS = {"train": "Training", "val": "Validation", "test": "Test"}
KIND_NAMES = {"domain": "Domain: text to learn from", "task": "Task: questions with answers"}
PREVIEW_ROWS = 12
PART = "▫"  # a token that is a part of a character
CELL_LIMIT = 240  # characters of a table cell
CUT_ROWS = 40  # documents whose cuts are listed, and skipped files
OPEN_CUTS = 4  # more are folded away
HOW = {
    "headings": "at headings",
    "paragraphs": "at headings and between paragraphs",
    "sentences": "also between sentences, where a paragraph is long",
}
OPERATIONS = {
    "dedup": "by removing repeated rows",
    "redact": "by redacting personal data",
    "merge": "by merging them",
    "leave_out": "by leaving out rows",
}
NO_DATASET = empty(
    "No data yet",
    "Documents (text, PDF, Word, web pages) teach language and facts. Tables of questions with answers teach "
    "how to answer. Drop either of them, or try the sample data, which has both.",
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


def render_dataset(dataset: Any, names: Mapping[str, str]) -> Node:
    """A dataset: what it is, where it comes from, the sizes of its splits; ids and hashes behind "Details".

    Args:
        names: names of the datasets that it may be made from, by id.
    """
    held_out = dataset.purpose == "evaluation"
    head = node(
        "div",
        node("h2", dataset.name),
        chip(dataset.kind, dataset.kind),
        chip("for evaluation only", "mix") if held_out else None,
        cls="row",
    )
    about = facts(
        [
            ("Rows", f"{dataset.rows:,}"),
            ("Imported" if not dataset.parents else "Made", formatting.format_time(dataset.created)),
            ("Layout", TITLES.get(dataset.layout, dataset.layout)),
            ("Types", ", ".join(f"{k} {n:,}" for k, n in dataset.types.items())),
            *list_row_facts(dataset),
        ]
    )
    return node(
        "div",
        head,
        _render_lineage(dataset, names),
        None if held_out else _render_sizes(dataset),
        about,
        render_notes(dataset.notes),
        render_skipped_files(dataset.skipped),
        render_cuts(dataset.cuts),
        details("Details", facts(_list_details(dataset))),
    )


def _render_lineage(dataset: Any, names: Mapping[str, str]) -> Node | None:
    if not dataset.parents:
        return None
    parents = " and ".join(names.get(p, "a dataset that was deleted") for p in dataset.parents)
    return node(
        "p", f"Made from {parents} {OPERATIONS.get(dataset.operation, '')}".strip() + ".", cls="quiet"
    )


def _render_sizes(dataset: Any) -> Node:
    total = max(1, sum(dataset.splits.values()))
    parts = []
    for name, label in SPLITS.items():
        size = dataset.splits.get(name, 0)
        share = {"share": f"{100 * size / total:.2f}%"}
        parts.append(
            node("div", node("span", label), node("strong", f"{size:,}"), cls=f"part {name}", vars=share)
        )
    return node("div", *parts, cls="parts", aria_label="Split sizes in rows", role="group")


def _list_details(dataset: Any) -> list[tuple[str, Any]]:
    files = ", ".join(f["name"] for f in dataset.files)
    return [
        ("Files", files[:200] + " …" if len(files) > 200 else files),
        ("Columns read", ", ".join(f"{c} ({role})" for role, c in dataset.roles.items())),
        ("Encoding", "" if dataset.encoding == "utf-8" else dataset.encoding),
        ("Split seed", dataset.seed),
        ("Id", dataset.id),
        ("sha256", dataset.sha256),
    ]


def render_split(dataset: Any, split: str, rows: Sequence[dict[str, Any]]) -> Node:
    """The first rows of a split."""
    if not rows:
        return node("p", "This split has no rows.", cls="quiet")
    size = dataset.splits.get(split, len(rows))
    caption = f"First {len(rows):,} of {size:,} rows" if size > len(rows) else ""
    return render_rows(dataset.kind, caption, rows)


# ---------------------------------------------------------------- parts of a dataset and of a preview


def render_cuts(cuts: Sequence[Mapping[str, Any]]) -> Node | None:
    """Where long documents are cut into sections."""
    if not cuts:
        return None
    sections = sum(int(c["sections"]) for c in cuts)
    rows = [
        [c["document"], f"{c['sections']:,}", HOW.get(str(c["how"]), str(c["how"]))] for c in cuts[:CUT_ROWS]
    ]
    more = f" The first {CUT_ROWS} of them:" if len(cuts) > CUT_ROWS else ""
    verb = "is" if len(cuts) == 1 else "are"
    text = (
        f"{formatting.count(len(cuts), 'document')} {verb} cut into {formatting.count(sections, 'section')}, "
        f"so that training, validation and test each get some.{more}"
    )
    listed = table(["Document", "Sections", "Cut"], rows, numeric=frozenset({1}))
    if len(cuts) > OPEN_CUTS:
        listed = details("Where each document is cut", listed)
    return node("div", node("p", text, cls="quiet above"), listed)


def render_skipped_files(skipped: Sequence[Mapping[str, str]]) -> Node | None:
    """Files that cannot be read, with the reasons."""
    if not skipped:
        return None
    verb = "is" if len(skipped) == 1 else "are"
    text = f"{formatting.count(len(skipped), 'file')} cannot be read and {verb} left out:"
    items = [node("li", node("strong", s["file"]), f": {s['reason']}") for s in skipped[:CUT_ROWS]]
    if len(skipped) > CUT_ROWS:
        items.append(node("li", f"and {len(skipped) - CUT_ROWS:,} more"))
    return node("div", node("p", text), node("ul", *items), cls="note warn", aria_label="Skipped files")


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
        node("span", _show_token(t), cls="tok trained" if t.trained else "tok", title=f"Token {t.token}")
        for t in tokens
    ]
    trained = sum(t.trained for t in tokens)
    share = formatting.format_percent(trained / max(1, len(tokens)))
    parts = f"; {PART} is a part of a character" if any("\ufffd" in t.text for t in tokens) else ""
    return node(
        "div",
        head,
        node("div", *spans, cls="tokens", role="group", aria_label="Tokens of a training example"),
        node("p", f"{len(tokens)} tokens, {trained} of them in the loss ({share}){parts}", cls="quiet"),
    )


def _show_token(token: Any) -> str:
    """A token's text; line ends are visible, and a token that is a part of a character is a small square."""
    return str(token.text).replace("\n", "⏎\n").replace("\ufffd", PART)
