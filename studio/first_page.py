"""The first page of a dropped document: its picture, where the format has pages, and its text."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.data.documents.document import Block
from core.data.documents.document_formats import READERS, read_document
from core.errors import DataError

SUFFIXES = tuple(READERS)
BYTES_LIMIT = 64 << 20  # a larger file is not read a second time for its first page
CHARACTERS = 2600  # of the beginning of a document without pages


@dataclass(frozen=True)
class FirstPage:
    """The first page of a document.

    Attributes:
        name: of the file.
        picture: PNG in base64; "" for formats without pages.
        blocks: of its text.
        problem: why the text or the picture is missing, or "".
    """

    name: str
    picture: str
    blocks: Sequence[Block]
    problem: str = ""


def list_documents(folder: Path) -> list[str]:
    """Names of the documents of a drop whose first page can be shown, those with pages first."""
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES]
    return sorted(names, key=lambda n: (SUFFIXES.index(Path(n).suffix.lower()), n))


def read_first_page(folder: Path, name: str, encoding: str = "utf-8") -> FirstPage:
    """Reads the first page of a document of a drop; what fails is said in `problem`."""
    path = folder / name
    suffix = path.suffix.lower()
    if path.stat().st_size > BYTES_LIMIT:
        return FirstPage(name, "", (), f"Files above {BYTES_LIMIT >> 20} MB are not shown here.")
    picture, problem, blocks = "", "", list[Block]()
    try:
        with open(path, "rb") as file:
            blocks = list(read_document(file, name, suffix).blocks)
        if suffix == ".pdf":
            from core.data.documents.pdf import draw_first_page

            with open(path, "rb") as file:
                picture = base64.b64encode(draw_first_page(file, name)).decode()
    except (DataError, OSError) as e:
        problem = e.what if isinstance(e, DataError) else "This document cannot be shown."
    return FirstPage(name, picture, _take_first(blocks), problem)


def _take_first(blocks: Sequence[Block]) -> list[Block]:
    """The blocks of page 1, or the beginning of a document without pages."""
    pages = [b.page for b in blocks if b.page]
    if pages:
        return [b for b in blocks if b.page == min(pages)]
    taken: list[Block] = []
    length = 0
    for block in blocks:
        if taken and length + len(block.text) > CHARACTERS:
            break
        taken.append(block)
        length += len(block.text)
    return taken
