"""The part of Go's text/template that exported Modelfiles use: if, else, range, variables, slice, len, eq."""

from __future__ import annotations

import re
from typing import Any

ACTION = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
WORD = re.compile(r'"[^"]*"|[()]|[^\s()]+')


def render_go(template: str, messages: list[dict[str, str]]) -> str:
    """Renders a template as Ollama does: `.System` has the system messages, `.Messages` all of them."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    root = {
        "System": system,
        "Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages],
    }
    parts = ACTION.split(template)
    nodes, rest = _parse([*zip(parts[::2], [*parts[1::2], None], strict=True)])
    assert not rest
    out: list[str] = []
    _run(nodes, root, {"$": root}, out)
    return "".join(out)


def _parse(pieces: list[tuple[str, str | None]]) -> tuple[list[Any], str]:
    """Nodes up to an `end` or `else`, which is returned too; the pieces are taken from the list."""
    nodes: list[Any] = []
    while pieces:
        text, action = pieces.pop(0)
        if text:
            nodes.append(("text", text))
        if action is None:
            break
        if action == "end" or action.startswith("else"):
            return nodes, action
        if action.startswith(("if ", "range ")):
            nodes.append(_parse_branch(action, pieces))
        else:
            nodes.append(("action", action))
    return nodes, ""


def _parse_branch(action: str, pieces: list[tuple[str, str | None]]) -> Any:
    body, closing = _parse(pieces)
    other: list[Any] = []
    if closing.startswith("else if "):
        other = [_parse_branch(closing.removeprefix("else "), pieces)]
    elif closing == "else":
        other, closing = _parse(pieces)
        assert closing == "end"
    return ("branch", action, body, other)


def _run(nodes: list[Any], dot: Any, names: dict[str, Any], out: list[str]) -> None:
    for kind, *node in nodes:
        if kind == "text":
            out.append(node[0])
        elif kind == "action":
            assigned = re.fullmatch(r"(\$\w+) :?= (.*)", node[0])
            if assigned:
                names[assigned[1]] = _value(assigned[2], dot, names)
            else:
                out.append(str(_value(node[0], dot, names)))
        elif node[0].startswith("if "):
            taken = node[1] if _value(node[0][3:], dot, names) else node[2]
            _run(taken, dot, names, out)
        else:
            index, item, source = re.fullmatch(r"range (\$\w+), (\$\w+) := (.*)", node[0]).groups()  # type: ignore[union-attr]
            for i, value in enumerate(_value(source, dot, names)):
                names |= {index: i, item: value}
                _run(node[1], value, names, out)


def _value(text: str, dot: Any, names: dict[str, Any]) -> Any:
    return _apply(WORD.findall(text), dot, names)


def _apply(words: list[str], dot: Any, names: dict[str, Any]) -> Any:
    values: list[Any] = []
    while words and words[0] != ")":
        word = words.pop(0)
        if word == "(":
            values.append(_apply(words, dot, names))
            words.pop(0)
        else:
            values.append(_lookup(word, dot, names))
    if len(values) == 1:
        return values[0]
    function, *arguments = values
    return {
        "eq": lambda a, b: a == b,
        "len": len,
        "slice": lambda items, begin: items[begin:],
    }[function](*arguments)


def _lookup(word: str, dot: Any, names: dict[str, Any]) -> Any:
    if word.startswith('"'):
        return word[1:-1]
    if word in ("true", "false"):
        return word == "true"
    if word.isdigit():
        return int(word)
    if word.startswith("."):
        return dot[word[1:]]
    if word.startswith("$"):
        name, _, key = word.partition(".")
        return names[name][key] if key else names[name]
    return word
