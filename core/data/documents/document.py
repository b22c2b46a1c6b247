"""Documents: what a reader of a document format returns, as blocks in reading order.

One module per format (`document_docx`, `document_epub`, ...) reads a file into a `Document`; `sections` cuts
long documents into sections, and `readers` makes rows of them.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_KINDS = ("heading", "paragraph", "list", "table", "code", "footnote")


@dataclass(frozen=True)
class Block:
    """One block of a document.

    Attributes:
        kind: one of BLOCK_KINDS.
        text: its text; a table has one line per row, with cells joined by " | ".
        level: of a heading, from 1 for the highest; 0 for other blocks.
        page: the page that it begins on, from 1; 0 where the format has no pages.
    """

    kind: str
    text: str
    level: int = 0
    page: int = 0


@dataclass(frozen=True)
class Document:
    """A document as blocks in reading order.

    Attributes:
        blocks: the blocks.
        title: of the document; "" if it has none.
        notes: sentences for the user about what was left out or changed.
    """

    blocks: tuple[Block, ...]
    title: str = ""
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The blocks, separated by blank lines."""
        return "\n\n".join(block.text for block in self.blocks if block.text.strip())
