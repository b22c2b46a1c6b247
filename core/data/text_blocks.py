"""Plain text and Markdown to blocks: paragraphs, headings, lists, code. The text stays as it was typed."""

from __future__ import annotations

import re

from core.data.documents import Block

_HEADING = re.compile(r"#{1,6}\s+\S")
_CHAPTER = re.compile(
    r"(?:chapter|part|book|section|kapitel|teil|chapitre|cap[ií]tulo|capitolo)\s+[\w.]+.{0,60}$", re.I
)
_FENCE = re.compile(r"\s{0,3}(```+|~~~+)")


def read_blocks(text: str) -> list[Block]:
    """Cuts a text at its blank lines; fenced code stays one block.

    Args:
        text: plain text or Markdown.
    """
    blocks: list[Block] = []
    lines: list[str] = []
    fence = ""

    def close() -> None:
        if any(line.strip() for line in lines):
            blocks.append(_classify("\n".join(lines).strip("\n")))
        lines.clear()

    for line in text.split("\n"):
        if match := _FENCE.match(line):
            if not fence:
                close()
                fence = match[1]
                lines.append(line)
                continue
            if line.strip().startswith(fence):
                fence = ""
                lines.append(line)
                close()
                continue
        if fence or line.strip():
            if not fence and _HEADING.match(line):
                close()
                lines.append(line)
                close()
            else:
                lines.append(line)
        else:
            close()
    close()
    return blocks


def _classify(text: str) -> Block:
    first = text.lstrip()
    if _HEADING.match(first):
        return Block("heading", text, len(first) - len(first.lstrip("#")))
    if "\n" not in text and len(text) < 80 and (_CHAPTER.match(first)):
        return Block("heading", text, 1)
    if _FENCE.match(text):
        return Block("code", text)
    return Block("paragraph", text)
