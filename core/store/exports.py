"""Exports: files for other tools, with the certificate of what they say.

    exports/<id>/export.json   what was asked for, what was written, and the certificate
                 files/        what leaves: it can be copied as it is

The record appears before the first file, so that an export that a crash has interrupted is known and can be
continued. Folders of `exports` without a record belong to bundles and downloads.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from core.store.files import write_json
from core.store.record_types import Count, Time
from core.store.records import Damaged, load_items, read_record
from core.store.workspace import Workspace

KIND, RECORD, FILES = "exports", "export.json", "files"


@dataclass(frozen=True)
class ExportedFile:
    """A file of an export; `name` is its path under files/, with slashes."""

    name: str
    bytes: Count
    sha256: str


@dataclass(frozen=True)
class Export:
    """The content of export.json.

    Attributes:
        form: as in `ExportSpec`. spec: its other settings, as JSON.
        base, base_fingerprint: that the export is of.
        is_complete: whether every file was written.
        files: with their checksums, once it is complete.
        notes: what a reader should know, a sentence each.
        certificate: a `core.export.certificate.Certificate` as JSON; {} before the check.
        created: Unix seconds.
        address: of the commit with its last upload to the Hub; "" before one.
    """

    id: str
    name: str
    form: str
    spec: dict[str, Any]
    base: str = ""
    base_fingerprint: str = ""
    is_complete: bool = False
    files: list[ExportedFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    certificate: dict[str, Any] = field(default_factory=dict)
    created: Time = field(default_factory=time.time)
    address: str = ""

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(file.bytes for file in self.files)


def load(workspace: Workspace, export_id: str) -> Export:
    """Reads an export.

    Raises:
        NotFound, DamagedRecord
    """
    return read_record(workspace.find(KIND, export_id) / RECORD, Export, export_id)


def find(workspace: Workspace, export_id: str) -> Export | None:
    """Reads an export; None for a folder that holds something else.

    Raises:
        NotFound, DamagedRecord
    """
    return load(workspace, export_id) if (workspace.find(KIND, export_id) / RECORD).exists() else None


def load_all(workspace: Workspace) -> tuple[list[Export], list[Damaged]]:
    """(every export, the newest first; the damaged ones)"""
    found, damaged = load_items(workspace, KIND, find)
    exports = [export for export in found if export is not None]
    return sorted(exports, key=lambda e: e.created, reverse=True), damaged


def save(workspace: Workspace, export: Export) -> None:
    """Writes the record of an export.

    Raises:
        StorageError, DiskFull
    """
    write_json(workspace.path(KIND, export.id, RECORD), asdict(export))


def change(workspace: Workspace, export_id: str, **changes: Any) -> Export:
    """Replaces fields of a record, and returns it.

    Raises:
        NotFound, DamagedRecord, StorageError
    """
    with workspace.lock(KIND, export_id):
        changed = replace(load(workspace, export_id), **changes)
        save(workspace, changed)
    return changed


def files_folder(workspace: Workspace, export_id: str) -> Path:
    """The folder with the files of an export."""
    return workspace.path(KIND, export_id, FILES)
