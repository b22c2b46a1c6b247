"""Exports of chat programs: ChatGPT, Claude, trees of OASST, intents of chatbots. Group chats are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from core.data.formats.readers import RawRow
from core.data.layouts.layout import Layout, Parts, Table, Values, each_row, take_list, take_object
from core.data.layouts.messages import Message
from core.data.notes import Notes, RowLeftOut
from core.data.roles.cells import is_blank
from core.errors import DataError

PATH_LIMIT = 10_000  # messages of one conversation

# ---------------------------------------------------------------- ChatGPT


def _match_chatgpt(table: Table) -> Parts:
    parts = table.find_parts(mapping=("mapping",), leaf=("currentnode",))
    return parts if parts and table.every(parts["mapping"], lambda c: isinstance(c, dict)) else {}


def _rewrite_chatgpt(row: RawRow, parts: Parts, notes: Notes) -> Values:
    """Follows the shown branch from its last message to its first."""
    nodes = take_object(row.values.get(parts["mapping"]))
    name = row.values.get(parts["leaf"])
    path: list[dict[str, Any]] = []
    seen: set[str] = set()
    while isinstance(name, str) and name in nodes and name not in seen and len(path) < PATH_LIMIT:
        seen.add(name)
        node = take_object(nodes[name])
        path.append(take_object(node.get("message")))
        name = node.get("parent")
    messages = [m for message in reversed(path) if (m := _read_node(message, row, notes))]
    joined: list[Message] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1]["content"] += f"\n\n{message['content']}"
        else:
            joined.append(message)
    if [m["role"] for m in joined if m["role"] != "system"][:2] != ["user", "assistant"]:
        raise RowLeftOut("the conversation has no question with an answer in text")
    return {"messages": joined}


def _read_node(message: dict[str, Any], row: RawRow, notes: Notes) -> Message | None:
    """Reads a message that the user saw as text; None for a hidden one, a tool's, or one without text."""
    role = take_object(message.get("author")).get("role")
    content = take_object(message.get("content"))
    if role not in ("user", "assistant") or message.get("recipient", "all") != "all":
        return None
    if take_object(message.get("metadata")).get("is_visually_hidden_from_conversation"):
        return None
    parts = take_list(content.get("parts"))
    text = "\n".join(p for p in parts if isinstance(p, str)).strip()
    if content.get("content_type") not in ("text", "multimodal_text") or not text:
        return None
    if any(not isinstance(p, str) for p in parts):
        notes.count("have images or files in a message; only the text is read", row)
    return {"role": role, "content": text}


CHATGPT = Layout(
    "chatgpt",
    "Export of ChatGPT",
    _match_chatgpt,
    each_row(_rewrite_chatgpt),
    ("Of each conversation the branch that was shown last is read, without tools and hidden messages.",),
)


# ---------------------------------------------------------------- OASST


def _match_message_tree(table: Table) -> Parts:
    parts = table.find_parts(tree=("prompt",), id=("messagetreeid",))
    return parts if parts and table.every(parts["tree"], lambda c: isinstance(c, dict)) else {}


def _rewrite_message_tree(row: RawRow, parts: Parts, notes: Notes) -> Values:
    messages: list[Message] = []
    message = take_object(row.values.get(parts["tree"]))
    while message and len(messages) < PATH_LIMIT:
        messages.append({"role": message.get("role"), "content": message.get("text")})
        replies = [r for r in map(take_object, take_list(message.get("replies"))) if not r.get("deleted")]
        message = min(replies, key=_rank_reply, default={})
    if len(messages) < 2:
        raise RowLeftOut("the tree has no reply")
    return {"messages": messages}


def _rank_reply(reply: dict[str, Any]) -> float:
    rank = reply.get("rank")
    return float(rank) if isinstance(rank, (int, float)) else float("inf")


NESTED_TREES = Layout(
    "nested-trees",
    "Nested trees of messages (OASST)",
    _match_message_tree,
    each_row(_rewrite_message_tree),
    ("Each tree becomes one conversation, along the replies of the best rank.",),
)


# ---------------------------------------------------------------- intents


def _match_intents(table: Table) -> Parts:
    parts = table.find_parts(
        questions=("patterns", "examples", "utterances"), answers=("responses", "answers")
    )
    if not parts:
        return {}
    return parts if all(table.every(c, _is_text_list) for c in parts.values()) else {}


def _is_text_list(cell: Any) -> bool:
    return isinstance(cell, list) and all(isinstance(t, str) for t in cell)


def _rewrite_intents(rows: Sequence[RawRow], parts: Parts, notes: Notes) -> list[RawRow]:
    rewritten = []
    for row in rows:
        questions = [q for q in take_list(row.values.get(parts["questions"])) if not is_blank(q)]
        answers = [a for a in take_list(row.values.get(parts["answers"])) if not is_blank(a)]
        if not questions or not answers:
            notes.leave_out("the intent has no pattern or no response", row)
            continue
        for number, question in enumerate(questions):
            values = {"question": question, "answer": answers[number % len(answers)]}
            rewritten.append(RawRow(values, row.file, row.line))
    return rewritten


INTENTS = Layout(
    "intents",
    "Intents with patterns and responses",
    _match_intents,
    _rewrite_intents,
    ("Each pattern is learned with one of the responses of its intent, in turn.",),
)


# ---------------------------------------------------------------- chats of several people


def _match_group_chat(table: Table) -> Parts:
    """The columns of Discord (DiscordChatExporter), Telegram and Slack."""
    for names in (
        {"text": ("content",), "who": ("author",), "a": ("timestamp",), "b": ("attachments", "embeds")},
        {"text": ("text",), "who": ("from",), "a": ("fromid",), "b": ("date",)},
        {"text": ("text",), "who": ("user",), "a": ("ts",), "b": ("type",)},
    ):
        if parts := table.find_parts(**names):
            return parts
    return {}


def _refuse_group_chat(rows: Sequence[RawRow], parts: Parts, notes: Notes) -> NoReturn:
    raise DataError(
        "this is a chat of several people: the file does not say whose messages are questions and whose are "
        "answers.",
        f"Write columns named question and answer; or choose the role text = {parts['text']} to learn all "
        "messages as texts.",
        file=rows[0].file,
        line=rows[0].line,
    )


_refuse: Callable[[Sequence[RawRow], Parts, Notes], list[RawRow]] = _refuse_group_chat
GROUP_CHATS = Layout("group-chat", "Chats of several people", _match_group_chat, _refuse)
