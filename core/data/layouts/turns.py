"""Conversations without message objects: texts with marked turns, lists of texts, and lists of pairs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from core.data.formats.readers import RawRow
from core.data.layouts.layout import Layout, Parts, Table, Values, each_row, take_list
from core.data.layouts.messages import Message
from core.data.notes import Notes, RowLeftOut
from core.data.roles.cells import read_cell, to_text
from core.errors import DataError

_LISTS = ("conversations", "conversation", "dialog", "dialogue", "messages", "chat", "data", "items")
_BETTER = ("completion", "response", "answer", "output", "chosen", "label", "messages", "conversations")
_USER_KEYS, _ASSISTANT_KEYS = (
    ("human", "user", "question", "prompt"),
    ("assistant", "bot", "answer", "response"),
)

# How the turns of a text are marked: the mark of a turn, whose first group is the speaker, and what ends it.
_MARKS = (
    (re.compile(r"<\|im_start\|>\s*(system|user|assistant)\s*\n"), ("<|im_end|>",)),
    (re.compile(r"<\|start_header_id\|>(system|user|assistant)<\|end_header_id\|>\s*"), ("<|eot_id|>",)),
    (re.compile(r"<start_of_turn>(user|model)\s*\n"), ("<end_of_turn>",)),
    (re.compile(r"<\|(system|user|assistant)\|>\s*\n?"), ("</s>", "<|end|>")),
    (re.compile(r"### ?(Human|User|Assistant|Instruction|Input|Response):?[ \n]"), ()),
    (re.compile(r"(?:\A|\n)(Human|User|USER|Assistant|ASSISTANT): ?"), ("</s>",)),
)
_ROLES = {"human": "user", "user": "user", "instruction": "user", "input": "user", "assistant": "assistant",
          "response": "assistant", "model": "assistant", "system": "system"}  # fmt: skip
_LLAMA = re.compile(r"\[INST\](.*?)\[/INST\](.*?)(?=<s>|</s>|\[INST\]|\Z)", re.S)
_LLAMA_SYSTEM = re.compile(r"<<SYS>>(.*?)<</SYS>>", re.S)


def split_turns(text: str) -> list[Message]:
    """Splits a text with marked turns into messages; empty if it has no user turn followed by an answer."""
    if "[/INST]" in text:
        return _split_llama(text)
    for mark, ends in _MARKS:
        parts = mark.split(text)
        if len(parts) < 5:  # what stands before, and two turns with their speakers
            continue
        messages: list[Message] = []
        for speaker, content in zip(parts[1::2], parts[2::2]):
            for end in ends:
                content = content.partition(end)[0]
            role, content = _ROLES[speaker.lower()], content.removesuffix("<|endoftext|>").strip()
            if messages and messages[-1]["role"] == role:
                messages[-1]["content"] += f"\n\n{content}"
            else:
                messages.append({"role": role, "content": content})
        if [m["role"] for m in messages if m["role"] != "system"][:2] == ["user", "assistant"]:
            return messages
    return []


def _split_llama(text: str) -> list[Message]:
    messages: list[Message] = []
    for question, answer in _LLAMA.findall(text):
        if system := _LLAMA_SYSTEM.search(question):
            messages.append({"role": "system", "content": system[1].strip()})
            question = question.replace(system[0], "")
        messages.append({"role": "user", "content": question.strip()})
        messages.append({"role": "assistant", "content": answer.strip()})
    return messages


def _match_marks(table: Table) -> Parts:
    text = table.find("text", "content", "prompt", "conversation", "chat", "formattedtext")
    if not text or table.find(*_BETTER):
        return {}
    return {"text": text} if table.every(text, lambda c: isinstance(c, str) and bool(split_turns(c))) else {}


def _rewrite_marks(row: RawRow, parts: Parts, notes: Notes) -> Values:
    return {"messages": split_turns(read_cell(row, parts["text"]))}


MARKED_TURNS = Layout(
    "marked-turns",
    "Texts with marked turns",
    _match_marks,
    each_row(_rewrite_marks),
    (
        "The marks of the turns, such as ### Human or [INST], are not learned: the turns become messages, "
        "and the base's own template writes them. Text before the first turn is left out.",
    ),
)


def _match_lists(table: Table) -> Parts:
    column = table.find(*_LISTS)
    if not column or table.find("answer", "answers", "completion", "response", "output", "summary"):
        return {}
    is_list = table.every(column, lambda c: _is_text_list(c) or _is_pair_list(c))
    return {"turns": column} if is_list and not _are_questions(table, column) else {}


def _are_questions(table: Table, column: str) -> bool:
    """Whether most second turns are questions, so that they do not answer the first ones."""
    cells = [c for row in table.rows[:1000] if _is_text_list(c := take_list(row.values.get(column)))]
    asking = [str(c[1]).rstrip().endswith(("?", "？")) for c in cells]
    return sum(asking) > len(cells) // 2


def _is_text_list(cell: Any) -> bool:
    return isinstance(cell, list) and len(cell) > 1 and all(isinstance(t, str) for t in cell)


def _is_pair_list(cell: Any) -> bool:
    return isinstance(cell, list) and bool(cell) and all(_find_pair(p) for p in cell)


def _find_pair(pair: Any) -> tuple[str, str] | None:
    """The keys of the question and the answer of a pair."""
    if not isinstance(pair, dict) or "role" in pair or "from" in pair:
        return None
    question = next((k for k in _USER_KEYS if k in pair), None)
    answer = next((k for k in _ASSISTANT_KEYS if k in pair), None)
    return (question, answer) if question and answer else None


def _rewrite_lists(row: RawRow, parts: Parts, notes: Notes) -> Values:
    messages: list[Message] = []
    what = f"a turn of the column {parts['turns']!r}"
    for item in take_list(row.values.get(parts["turns"])):
        texts = [item]
        if isinstance(item, dict):
            pair = _find_pair(item)
            texts = [item[key] for key in pair or ()]
        for text in texts:
            role = "assistant" if len(messages) % 2 else "user"
            messages.append({"role": role, "content": to_text(text, what, row)})
    if len(messages) < 2:
        raise RowLeftOut("the conversation has no answer")
    return {"messages": messages}


TURN_LISTS = Layout(
    "turn-lists",
    "Lists of turns",
    _match_lists,
    each_row(_rewrite_lists),
    ("The texts of each list are read as turns of a user and an assistant, who take turns.",),
)


def _match_instances(table: Table) -> Parts:
    parts = table.find_parts(instruction=("instruction",), instances=("instances",))
    return parts if parts and table.every(parts["instances"], lambda c: isinstance(c, list)) else {}


def _rewrite_instances(rows: Sequence[RawRow], parts: Parts, notes: Notes) -> list[RawRow]:
    rewritten = []
    for row in rows:
        for instance in take_list(row.values.get(parts["instances"])):
            if not isinstance(instance, dict) or "output" not in instance:
                raise DataError(
                    f"an item of the column {parts['instances']!r} has no output.",
                    "Write each item as an object with input and output.",
                    file=row.file,
                    line=row.line,
                )
            values = {"instruction": row.values.get(parts["instruction"]), "input": instance.get("input"),
                      "output": instance["output"]}  # fmt: skip
            rewritten.append(RawRow(values, row.file, row.line))
    return rewritten


INSTANCES = Layout(
    "instances", "Instructions with lists of inputs and outputs", _match_instances, _rewrite_instances
)
