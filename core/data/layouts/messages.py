"""Lists of messages to canonical messages: the role names of other tools, content parts, weights, thoughts.

    role        read as                            content     read as
    system      system, developer                  text        itself
    user        user, human, prompter              parts       the texts of the parts, joined
    assistant   assistant, gpt, bot, model, ai     tool call   its JSON text, as context
    tool        tool, function, observation, ipython

An assistant message that is not trained on carries `"weight": 0`. A canonical conversation ends with a
trained assistant message: what follows it cannot be learned and is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from core.data.formats.readers import RawRow
from core.data.notes import Notes, RowLeftOut
from core.data.roles.cells import is_blank, is_missing, parse_cell, to_text
from core.data.tokens.thoughts import THOUGHT_KEYS
from core.errors import DataError

Message = dict[str, Any]

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "agent": "assistant",
    "customer": "user",
    "client": "user",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "function_call": "call",
    "tool_call": "call",
}
_ROLE_KEYS = ("role", "from", "sender", "speaker")
_CONTENT_KEYS = ("content", "value", "text", "parts", "message", "utterance")
_TEXT_PARTS = ("text", "input_text", "output_text")
_WEIGHT_KEYS = ("weight", "train", "loss")  # OpenAI; axolotl; ms-swift
_FORM = (
    'Write it as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]. '
    "Roles of other tools are read too: developer, human, gpt, bot, model, tool, function."
)


def read_conversation(row: RawRow, column: str, notes: Notes) -> list[Message]:
    """Reads a column with a list of messages, or such a list as JSON text.

    Raises:
        DataError: the cell is not a conversation. RowLeftOut: none of its answers is trained on.
    """
    return finish(list_messages(row.values.get(column), row, column, notes), row, column, notes)


def is_message_list(cell: Any) -> bool:
    """Whether a cell is a list of messages: objects with a role, or JSON text of such a list."""
    if isinstance(cell, str):
        return cell.lstrip().startswith("[") and any(f'"{key}"' in cell for key in _ROLE_KEYS)
    return isinstance(cell, list) and all(
        isinstance(m, dict) and any(k in m for k in _ROLE_KEYS) for m in cell
    )


def list_messages(cell: Any, row: RawRow, column: str, notes: Notes) -> list[Message]:
    """Reads messages one by one, without the rules for a whole conversation (see `finish`).

    Raises:
        DataError: the cell is not a list of messages, or one of them cannot be read.
    """
    cell = parse_cell(cell, row)
    if not isinstance(cell, list) or not cell:
        raise _error("it is missing or empty." if not cell else "it is not a list of messages.", row, column)
    return [
        message
        for number, item in enumerate(cell, start=1)
        for message in _read_message(item, number, row, column, notes)
    ]


def finish(messages: Sequence[Message], row: RawRow, column: str, notes: Notes) -> list[Message]:
    """Checks a conversation, joins its system messages, and ends it with its last trained answer.

    Raises:
        DataError: it has no user or assistant message, or a system message after another one.
        RowLeftOut: none of its answers is trained on.
    """
    head: list[str] = []
    rest: list[Message] = []
    for number, message in enumerate(messages, start=1):
        if message["role"] != "system":
            rest.append(message)
        elif rest:
            raise _error(
                f"message {number} has the role system; only the first message may have it.", row, column
            )
        else:
            head.append(message["content"])
    answers = [i for i, m in enumerate(rest) if m["role"] == "assistant"]
    trained = [i for i in answers if weight_of(rest[i])]
    if not answers:
        last = rest[-1]["role"] if rest else "system"
        raise _error(
            f"the role of the last message must be assistant, got {last}: "
            "the adapter learns to write the last message.",
            row,
            column,
        )
    if not trained:
        raise RowLeftOut("every answer has weight 0")
    if len(rest) > trained[-1] + 1:
        notes.count("end with messages after the last trained answer; these are dropped", row)
    rest = rest[: trained[-1] + 1]
    if not any(m["role"] == "user" for m in rest):
        raise _error("no message has the role user.", row, column)
    system = [{"role": "system", "content": "\n\n".join(head)}] if head else []
    return [*system, *rest]


def weight_of(message: Message) -> int:
    """The weight of a message: 0 for context, 1 for a message that is trained on."""
    return int(message.get("weight", 1))


def mark_context(messages: Sequence[Message]) -> list[Message]:
    """Marks all assistant messages as context, for example those of a prompt."""
    return [{**m, "weight": 0} if m["role"] == "assistant" else m for m in messages]


def _read_message(item: Any, number: int, row: RawRow, column: str, notes: Notes) -> Iterator[Message]:
    """Reads one message; a message with nothing to read, such as an empty system text, gives none."""
    if not isinstance(item, dict):
        raise _error(f"message {number} is not an object.", row, column)
    name = next((item[key] for key in _ROLE_KEYS if item.get(key) is not None), None)
    role = _ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise _error(
            f"the role of message {number} must be system, user or assistant, got {name!r}.",
            row,
            column,
        )
    what = f"message {number} of the column {column!r}"
    content = next((item[key] for key in _CONTENT_KEYS if not is_blank(item.get(key))), None)
    if content is None:
        content = next((item[key] for key in _CONTENT_KEYS if item.get(key) is not None), None)
    calls = item.get("tool_calls") or item.get("function_call") or None
    text, thought = _read_content(content, what, row)
    if role == "system" and not text.strip() and content is not None:
        return
    if role == "call" or (calls and not text.strip()):
        if role not in ("call", "assistant"):
            raise _error(f"message {number} has tool calls, but its role is {role}.", row, column)
        notes.count("have tool calls; a tool call is context and not learned", row)
        text = text if role == "call" else _write_calls(calls)
        yield {"role": "assistant", "content": to_text(text, what, row), "weight": 0}
        return
    if calls:
        notes.count("have tool calls beside the text of an answer; only the text is read", row)
    message: Message = {"role": role, "content": to_text(None if content is None else text, what, row)}
    if role == "assistant":
        thought = thought or _find_thought_of(item, what, row)
        if thought:
            message["thought"] = thought
        if _read_weight(item, what, row) == 0:
            message["weight"] = 0
    yield message


def _read_content(content: Any, what: str, row: RawRow) -> tuple[str, str]:
    """Reads a content as (text, thought): a text, or a list of parts of which all are texts or thoughts."""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return "" if is_missing(content) else to_text(content, what, row, required=False), ""
    text, thoughts = "", []
    for number, part in enumerate(content, start=1):
        if isinstance(part, str):
            piece: Any = part
        elif isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS:
            piece = part.get("text")
        elif isinstance(part, dict) and part.get("type") in ("thinking", "reasoning"):
            thoughts.append(to_text(part.get("thinking") or part.get("text"), what, row))
            continue
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise DataError(
                f"part {number} of {what} has the type {kind!r}; only text can be read.",
                "Keep the parts of type text, or delete the row.",
                file=row.file,
                line=row.line,
            )
        piece = to_text(piece, f"part {number} of {what}", row, required=False)
        needs_break = text and piece and not (text[-1].isspace() or piece[0].isspace())
        text += "\n" + piece if needs_break else piece
    return text, "\n\n".join(thoughts)


def _find_thought_of(item: Message, what: str, row: RawRow) -> str:
    key = next((k for k in THOUGHT_KEYS if not is_blank(item.get(k))), "")
    return to_text(item[key], f"{key} of {what}", row).strip() if key else ""


def _read_weight(item: Message, what: str, row: RawRow) -> int:
    """Reads whether an assistant message is trained on: weight, train or loss; 0 or 1, false or true."""
    for key in _WEIGHT_KEYS:
        weight = item.get(key)
        if is_missing(weight):
            continue
        if weight not in (0, 1) or not isinstance(weight, (int, float)):
            raise DataError(
                f"{key} of {what} must be 0 or 1, got {weight!r}.",
                "Write 0 for a message that is context, and 1 for one that is learned.",
                file=row.file,
                line=row.line,
            )
        return int(weight)
    return 1


def _write_calls(calls: Any) -> str:
    """Writes tool calls as JSON text, one per line: {"name": ..., "arguments": ...}."""
    lines = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else call
        if isinstance(function, dict):
            function = {k: function[k] for k in ("name", "arguments") if k in function} or function
        lines.append(function if isinstance(function, str) else json.dumps(function, ensure_ascii=False))
    return "\n".join(lines)


def _error(what: str, row: RawRow, column: str) -> DataError:
    return DataError(f"the column {column!r}: {what}", _FORM, file=row.file, line=row.line)
