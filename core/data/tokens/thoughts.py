"""Thoughts of reasoning models: the part of an answer between markers such as `<think>` and `</think>`.

    <think>\\nThe bell hangs north.\\n</think>\\n\\nIn the north room.
             thought                           answer

How a chat template writes a thought is found by `core.data.tokens.rendering`.
"""

from __future__ import annotations

# What opens a thought, and what closes it: Qwen3, DeepSeek-R1 and MiniMax-M2; Magistral; Kimi; others.
MARKERS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
)
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")  # of a message, the first one counts


def split_thoughts(text: str, is_open: bool = False) -> tuple[str, str]:
    """Splits a generated text into its thought and its answer.

    The thought stands at the beginning, between two markers of one kind. A thought that is not closed runs to
    the end of the text. A closing marker without an opening one before it ends a thought that the prompt has
    opened.

    Args:
        text: the generated text, complete or still growing.
        is_open: whether the prompt ends inside a thought. A text without a closing marker is then a thought.

    Returns:
        (thought, answer), each without the blanks around it; a text without a thought is returned as it is,
        with "" as its thought.

    Example:
        >>> split_thoughts("<think>North.</think>In the north room.")
        ('North.', 'In the north room.')
    """
    start = text.lstrip()
    for opening, closing in MARKERS:
        if start.startswith(opening):
            thought, _, answer = start[len(opening) :].partition(closing)
            return thought.strip(), answer.lstrip()
    ends = [(at, closing) for _, closing in MARKERS if (at := text.find(closing)) >= 0]
    if ends:
        at, closing = min(ends)
        opening = next(o for o, c in MARKERS if c == closing)
        if opening not in text[:at]:
            return text[:at].strip(), text[at + len(closing) :].lstrip()
    if is_open:
        return text.strip(), ""
    return "", text


def find_written_thoughts(content: str) -> tuple[str, str, str, str] | None:
    """Finds the complete thought at the beginning of an answer of the data.

    Returns:
        (opening, thought, closing, answer): the markers with the blanks around them, the rest without; None
        where the answer does not begin with a complete thought.
    """
    start = len(content) - len(content.lstrip())
    for opening, closing in MARKERS:
        if not content.startswith(opening, start):
            continue
        begin, end = start + len(opening), content.find(closing, start + len(opening))
        if end < 0:
            continue
        thought, answer = content[begin:end], content[end + len(closing) :]
        if not thought.strip():
            return content[:begin], "", closing, answer.lstrip()
        first = begin + len(thought) - len(thought.lstrip())
        last = begin + len(thought.rstrip())
        rest = len(content) - len(answer.lstrip())
        return content[start:first], content[first:last], content[last:rest], content[rest:]
    return None
