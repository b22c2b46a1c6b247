"""The readers of document formats by file suffix. Their libraries are imported when a file needs them."""

from __future__ import annotations

import importlib
from typing import IO

from core.data.documents.document import Document

# suffix -> (module, function); those of TEXT_FORMATS also take the encoding that the user chose
READERS = {
    ".pdf": ("core.data.documents.pdf", "read_pdf"),
    ".docx": ("core.data.documents.docx", "read_docx"),
    ".epub": ("core.data.documents.epub", "read_epub"),
    ".html": ("core.data.documents.html", "read_html"),
    ".htm": ("core.data.documents.html", "read_html"),
    ".xhtml": ("core.data.documents.html", "read_html"),
    ".rst": ("core.data.documents.rst", "read_rst"),
}
TEXT_FORMATS = (".html", ".htm", ".xhtml", ".rst")


def read_document(file: IO[bytes], name: str, suffix: str, encoding: str = "utf-8") -> Document:
    """Reads a document.

    Args:
        file: the open file.
        name: the file name that errors show.
        suffix: a key of READERS.
        encoding: of a format that is plain text and does not say its encoding.

    Raises:
        DataError: the file cannot be read.
    """
    module, function = READERS[suffix]
    reader = getattr(importlib.import_module(module), function)
    document: Document = reader(file, name, encoding) if suffix in TEXT_FORMATS else reader(file, name)
    return document
