"""Bases that were converted from a file: folders of a workspace, named after the sha256 of the file.

bases/<id>/source.json     what it was converted from
           config.json, generation_config.json, model*.safetensors, tokenizer files
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from core.store.files import write_json
from core.store.record_types import Count, Time
from core.store.records import load_items, read_record
from core.store.workspace import Workspace

KIND, RECORD = "bases", "source.json"
DIGEST_DIGITS = 12  # of the sha256, in an id
STEM_LENGTH = 44


@dataclass(frozen=True)
class ConvertedBase:
    """The content of source.json.

    Attributes:
        name: the name to show.
        source: where the file came from: its path, a package, or a name in Ollama.
        file: its path when it was converted; mtime_ns, bytes: of it then.
        sha256: of the file.
        architecture, quantization: of the file.
        parameters: how many numbers the weights have.
        notes: what was left out or assumed, a sentence each.
        licence: "" where it is not known.
        created: Unix seconds.
    """

    id: str
    name: str
    source: str
    file: str
    sha256: str
    bytes: Count
    mtime_ns: Count = 0
    architecture: str = ""
    quantization: str = ""
    parameters: Count = 0
    notes: list[str] = field(default_factory=list)
    licence: str = ""
    created: Time = field(default_factory=time.time)


def make_base_id(name: str, sha256: str) -> str:
    """The id of the base that a file becomes: the same for the same content."""
    return f"{_make_stem(name)}-{sha256[:DIGEST_DIGITS]}"


def _make_stem(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:STEM_LENGTH].strip("-") or "base"


def load(workspace: Workspace, base_id: str) -> ConvertedBase:
    """Reads one record.

    Raises:
        DamagedRecord, NotFound
    """
    return read_record(workspace.find(KIND, base_id) / RECORD, ConvertedBase, base_id)


def load_all(workspace: Workspace) -> list[ConvertedBase]:
    """All bases whose record can be read, oldest first."""
    return load_items(workspace, KIND, load)[0]


def folder_of(workspace: Workspace, base: ConvertedBase) -> Path:
    """The folder that transformers loads."""
    return workspace.path(KIND, base.id)


def find_by_digest(bases: Sequence[ConvertedBase], sha256: str) -> ConvertedBase | None:
    """The base that a file of this content became."""
    return next((b for b in bases if b.sha256 == sha256), None)


def find_by_file(bases: Sequence[ConvertedBase], path: Path) -> ConvertedBase | None:
    """The base that this file became, judged by its place, size and time, without reading it."""
    try:
        status = path.stat()
    except OSError:
        return None
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    return next((b for b in bases if (b.file, b.bytes, b.mtime_ns) == key), None)


def write(folder: Path, base: ConvertedBase) -> None:
    """Writes the record into the draft of a base."""
    write_json(folder / RECORD, asdict(base))
