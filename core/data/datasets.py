"""Importing files as a dataset: atomically, split once. The face of the datasets of a workspace.

File formats are in `readers`, column roles in `columns`, the rule of the split in `splits`, large tables in
`streamed_import`, and the records on disk in `dataset_records`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.data.dataset_preview import Check, Preview, is_large, preview
from core.data.dataset_records import (
    DAMAGED,
    NOTE_LIMIT,
    Dataset,
    SourceFile,
    add_notes,
    annotate_dataset,
    compute_fingerprint,
    iterate_split,
    list_datasets,
    load_dataset,
    read_split,
    rename_dataset,
    verify_dataset,
)
from core.data.formats.read_log import ReadLog
from core.data.formats.readers import OWNER, Limits, RawRow, Source, find_files, open_source, read_sources
from core.data.reading import read_rows
from core.data.split_record import SplitRecord, find_record
from core.data.split_rows import PURPOSES, assign_splits, check_purpose
from core.data.splits import RATIOS, SPLITS
from core.errors import DataError
from core.progress import ReadProgress, Report
from core.spec.settings import SEED
from core.store.files import delete, ensure_space, write_json
from core.store.workspace import Draft, Workspace, check_name

__all__ = [
    "DAMAGED",
    "NOTE_LIMIT",
    "PURPOSES",
    "Check",
    "Dataset",
    "Preview",
    "SourceFile",
    "add_notes",
    "annotate_dataset",
    "import_dataset",
    "list_datasets",
    "load_dataset",
    "preview",
    "iterate_split",
    "read_split",
    "rename_dataset",
    "verify_dataset",
]

CUT_LIMIT = 1000  # documents whose cuts are recorded
_compute_fingerprint = compute_fingerprint


def import_dataset(
    workspace: Workspace,
    paths: Sequence[Path | str],
    name: str,
    kind: str | None = None,
    roles: Mapping[str, str] | None = None,
    seed: int = SEED,
    encoding: str = "utf-8",
    check: Check | None = None,
    purpose: str = "training",
    report: Report | None = None,
    limits: Limits = OWNER,
) -> Dataset:
    """Imports files as a dataset: copies them, reads the copies, splits the rows, and publishes the folder.

    The dataset appears complete or not at all.

    Args:
        workspace: workspace that gets the dataset.
        paths: files or folders; links are never followed.
        name: display name.
        kind: "domain" or "task"; None guesses it from the columns.
        roles: role to column; None guesses them from the columns.
        seed: seed of the split.
        encoding: encoding of the text files.
        check: a further check of the rows, such as whether the base's chat template accepts them. It raises
            DataError, or returns sentences for the dataset's notes.
        purpose: "training", or "evaluation" for data that is never trained on.
        report: receives the progress once a block. What it raises, such as Cancelled, ends the import, and
            nothing is left.
        limits: rows and bytes that the user may import.

    Raises:
        DataError: a file or row cannot be read; names file, line and remedy.
        InvalidName: the name cannot be used.
        StorageError: the disk is full or cannot be written.
    """
    name = check_name(name)
    check_purpose(purpose)
    log = ReadLog()
    sources = find_files(paths, log, limits)
    source_bytes = sum(source.path.lstat().st_size for source in sources)
    ensure_space(workspace.root, 4 * source_bytes)
    with workspace.build("datasets", name) as draft:
        job = _Import(
            draft, sources, source_bytes, kind, roles, seed, encoding, check, purpose, report, log, limits
        )
        written = job.stream() if is_large(sources) else job.read()
        dataset = Dataset(
            id=draft.id,
            name=name,
            seed=seed,
            ratios=RATIOS,
            created=time.time(),
            encoding=encoding,
            skipped=log.skipped,
            **{"purpose": purpose, **written},
        )
        write_json(draft.path / "dataset.json", dataclasses.asdict(dataset))
        draft.expect("dataset.json", "rows.jsonl", *(f"source/{f['stored']}" for f in dataset.files))
        draft.expect(*(f"splits/{draft.id}_{s}.jsonl" for s in SPLITS))
    return dataset


@dataclass(frozen=True)
class _Import:
    """One import: what it reads, and where it writes; see `import_dataset`."""

    draft: Draft
    sources: Sequence[Source]
    source_bytes: int
    kind: str | None
    roles: Mapping[str, str] | None
    seed: int
    encoding: str
    check: Check | None
    purpose: str
    report: Report | None
    log: ReadLog
    limits: Limits

    def read(self) -> dict[str, Any]:
        """Reads all rows at once, and writes them; returns the fields of the record that follow from them."""
        copies, files = _copy(self.sources, self.draft.path / "source", self.source_bytes, self.report)
        record = find_record(copies, self.log)
        return self._write(files, self._read_rows(copies), record)

    def _read_rows(self, copies: Sequence[Source]) -> list[RawRow]:
        def report(name: str, rows: int) -> None:
            self._report_stage(1, f"Reading {name}", rows)

        return read_sources(copies, self.encoding, self.log, report)

    def _write(
        self, files: list[dict[str, Any]], raw: list[RawRow], record: SplitRecord | None = None
    ) -> dict[str, Any]:
        folder, dataset_id = self.draft.path, self.draft.id
        self._report_stage(2, "Reading the rows", len(raw))
        result = read_rows(raw, self.kind, self.roles, record)
        if result.problem is not None:
            raise result.problem
        rows = result.rows
        parts, duplicates = assign_splits(result, self.seed, self.purpose)
        notes = [*self.log.list_notes(), *result.notes, *(self.check(result) if self.check else ())]
        self._report_stage(3, "Writing the splits", len(rows))
        lines = [_to_line(row) for row in rows]
        ensure_space(folder, 2 * sum(map(len, lines)))
        _write(folder / "rows.jsonl", lines)
        digests = {
            s: _write(folder / "splits" / f"{dataset_id}_{s}.jsonl", (lines[i] for i in parts[s]))
            for s in SPLITS
        }
        return {
            "kind": result.kind,
            "rows": len(rows),
            "splits": {s: len(parts[s]) for s in SPLITS},
            "sha256": _compute_fingerprint(folder / "rows.jsonl", self.seed, RATIOS),
            "roles": result.roles,
            "columns": result.columns,
            "files": files,
            "types": dict(Counter(row["type"] for row in rows if "type" in row).most_common()),
            "duplicates": duplicates,
            "split_sha256": digests,
            "layout": result.layout,
            "unread": result.unread,
            "notes": notes,
            "left_out": result.left_out,
            "cuts": [dict(cut) for cut in result.cuts[:CUT_LIMIT]],
            "purpose": "evaluation" if "evaluation" in (result.purpose, self.purpose) else "training",
        }

    def _report_stage(self, quarter: int, text: str, rows: int) -> None:
        if self.report:
            done = quarter * self.source_bytes
            self.report(ReadProgress(done, 4 * self.source_bytes, text, rows=rows))

    def stream(self) -> dict[str, Any]:
        """Reads and writes large tables in blocks; returns what `read` returns."""
        # numpy: small imports do not need it
        from core.data.streaming.row_stream import NeedsAllRows
        from core.data.streaming.streamed_import import StreamedImport

        job = StreamedImport(self.sources, self.draft.path, self.encoding, self.report, self.limits)
        try:
            stream, file = job.read(self.kind, self.roles, self.log)
        except NeedsAllRows:
            delete(self.draft.path / "rows.jsonl")
            return self._write(job.files, self._read_rows(job.copies))
        sizes, digests, duplicates = job.split(stream, file, self.draft.id, self.seed, self.purpose)
        plan = stream.plan
        checked = self.check(job.read_first_rows(stream, file)) if self.check else ()
        sentences = [*self.log.list_notes(), *plan.notes, *stream.notes.list_sentences(), *checked]
        return {
            "kind": plan.kind,
            "rows": stream.rows,
            "splits": sizes,
            "sha256": file.fingerprint(self.seed, RATIOS),
            "roles": plan.roles,
            "columns": plan.columns,
            "files": job.files,
            "types": dict(stream.types.most_common()),
            "duplicates": duplicates,
            "split_sha256": digests,
            "layout": plan.layout.name if plan.layout else "",
            "unread": plan.unread,
            "notes": list(dict.fromkeys(sentences)),
            "left_out": stream.notes.left_out,
        }


def _copy(
    sources: Sequence[Source], folder: Path, total: int, report: Report | None
) -> tuple[list[Source], list[dict[str, Any]]]:
    """Copies the files under numbered names; the copies are hashed here and read afterwards."""
    folder.mkdir()
    copies, files = [], []
    done = 0
    for number, source in enumerate(sources, start=1):
        target = folder / f"{number:04d}{source.suffix}"
        sha, size = hashlib.sha256(), 0
        with open_source(source) as original, open(target, "xb") as copy:
            while block := original.read(1 << 20):
                size += len(block)
                if source.byte_limit is not None and size > source.byte_limit:
                    raise DataError(
                        "the file grows while it is read.", "Wait until it is complete.", file=source.name
                    )
                sha.update(block)
                copy.write(block)
                done += len(block)
                if report:
                    report(ReadProgress(done, 4 * total, f"Copying {source.name}"))
        copies.append(replace(source, path=target))
        files.append({"name": source.name, "bytes": size, "sha256": sha.hexdigest(), "stored": target.name})
    return copies, files


def _to_line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _write(path: Path, lines: Iterable[bytes]) -> str:
    """Writes lines into the unpublished folder; returns their sha256."""
    path.parent.mkdir(exist_ok=True)
    sha = hashlib.sha256()
    with open(path, "xb") as f:
        for line in lines:
            sha.update(line)
            f.write(line)
    return sha.hexdigest()
