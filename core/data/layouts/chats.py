"""Layouts of conversations: pairs with a history, and trees of messages."""

from __future__ import annotations

from collections.abc import Sequence

from core.data.formats.readers import RawRow
from core.data.layouts.layout import Layout, Parts, Table, Values, each_row
from core.data.layouts.messages import Message
from core.data.notes import Notes
from core.data.roles.cells import is_blank, parse_cell, read_cell, to_text
from core.errors import DataError


def _match_history(table: Table) -> Parts:
    parts = table.find_parts(
        history=("history",),
        question=("instruction", "prompt", "question", "query"),
        answer=("output", "response", "completion", "answer"),
    )
    if not parts or not table.every(parts["history"], lambda c: isinstance(c, (list, str))):
        return {}
    extra = table.find("input", "query", "context")
    return {**parts, "input": extra} if extra and extra not in parts.values() else parts


def _rewrite_history(row: RawRow, parts: Parts, notes: Notes) -> Values:
    messages: list[Message] = []
    cell = row.values.get(parts["history"])
    history = [] if is_blank(cell) else parse_cell(cell, row)
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise DataError(
                f"item {number} of the column {parts['history']!r} is not a pair of question and answer.",
                'Write the history as [["question", "answer"], ...].',
                file=row.file,
                line=row.line,
            )
        what = f"item {number} of the column {parts['history']!r}"
        messages.append({"role": "user", "content": to_text(pair[0], what, row)})
        messages.append({"role": "assistant", "content": to_text(pair[1], what, row)})
    question = read_cell(row, parts["question"])
    extra = read_cell(row, parts["input"], required=False) if "input" in parts else ""
    content = "\n\n".join(text for text in (question, extra) if text.strip())
    messages.append({"role": "user", "content": content})
    messages.append({"role": "assistant", "content": read_cell(row, parts["answer"])})
    return {"messages": messages}


HISTORY = Layout("history", "Pairs with a history", _match_history, each_row(_rewrite_history))


def _match_trees(table: Table) -> Parts:
    parts = table.find_parts(
        id=("messageid",), parent=("parentid",), role=("role",), text=("text", "content", "message")
    )
    rank = table.find("rank")
    return {**parts, "rank": rank} if parts and rank else parts


def _rewrite_trees(rows: Sequence[RawRow], parts: Parts, notes: Notes) -> list[RawRow]:
    """Follows each tree from its root to a leaf along the replies of the best rank."""
    children: dict[str, list[RawRow]] = {}
    for row in rows:
        parent = row.values.get(parts["parent"])
        children.setdefault("" if is_blank(parent) else str(parent), []).append(row)

    def rank_of(row: RawRow) -> float:
        rank = row.values.get(parts.get("rank", ""))
        return float(rank) if isinstance(rank, (int, float)) and rank == rank else float("inf")

    conversations: list[RawRow] = []
    used = 0
    for root in children.get("", []):
        path, seen, replies = [root], {str(root.values.get(parts["id"]))}, [root]
        while replies:
            replies = [
                r
                for r in children.get(str(path[-1].values.get(parts["id"])), [])
                if str(r.values.get(parts["id"])) not in seen
            ]
            if replies:
                path.append(min(replies, key=rank_of))
                seen.add(str(path[-1].values.get(parts["id"])))
        messages: list[Message] = [
            {"role": r.values.get(parts["role"]), "content": r.values.get(parts["text"])} for r in path
        ]
        if any(str(m["role"]).lower() in ("assistant", "gpt", "bot", "model") for m in messages):
            conversations.append(RawRow({"messages": messages}, root.file, root.line))
            used += len(messages)
    notes.say(
        f"Each tree becomes one conversation, along the replies of the best rank: {used:,} of {len(rows):,} "
        "messages are read."
    )
    return conversations


MESSAGE_TREES = Layout("message-trees", "Trees of messages (OASST)", _match_trees, _rewrite_trees)
