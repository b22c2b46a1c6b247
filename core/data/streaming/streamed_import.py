"""Large tables as a dataset without holding their rows: copied, read, checked and written in one pass.

    source files ─ source_copies ─> blocks ─ row_stream ─> rows.jsonl ─ the split of every row ─> splits

`datasets` reads smaller files at once; both give the same dataset. One thing differs: a sample of the rows
decides on layout and roles, see `row_stream`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from core.data.dataset_preview import SAMPLE_ROWS
from core.data.dataset_writer import RowsFile, write_splits
from core.data.formats.read_log import ReadLog
from core.data.formats.readers import (
    OWNER,
    Limits,
    RawRow,
    Source,
    open_archives,
    open_source,
    read_source_rows,
)
from core.data.formats.text_encodings import choose_codec
from core.data.reading import Plan, Reading, make_plan
from core.data.source_copies import SourceCopy, cut_lines
from core.data.split_rows import LARGE
from core.data.splits import SPLITS, hash_question, sort_key, split
from core.data.stored_rows import StoredRows
from core.data.streaming.json_lines import Lines
from core.data.streaming.large_splits import count_equal, count_splits, split_hashes
from core.data.streaming.row_stream import NeedsAllRows, Restart, RowStream
from core.errors import DataError
from core.progress import ReadProgress, Report
from core.store.files import delete

ROW_BLOCK = 5000  # raw rows that are read together
PLAN_LIMIT = 12  # plans that are tried
CUT_SHARE = 0.02  # a text with a larger share of all text is cut into sections, which needs all rows


class StreamedImport:
    """Reads large tables into the folder of a draft.

    Args:
        sources: tables.
        folder: the folder of the draft.
        encoding: of text files that do not identify themselves.
        report: receives the progress once a block.
        limits: rows and bytes that the user may import.

    Attributes:
        copies: the copied files, once `read` has returned or raised NeedsAllRows.
        files: their records.
        total: bytes of the files.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        folder: Path,
        encoding: str = "utf-8",
        report: Report | None = None,
        limits: Limits = OWNER,
    ) -> None:
        self._sources, self._folder, self._encoding = sources, folder, encoding
        self._row_limit, self._report = limits.rows, report
        self.total = sum(source.path.lstat().st_size for source in sources)
        self.copies: list[Source] = []
        self.files: list[dict[str, Any]] = []
        self._copying: list[SourceCopy] = []
        self._done = 0
        self._stream: RowStream | None = None
        self._text, self._is_copying = "", False
        self._has_no_type = False

    def read(
        self, kind: str | None, roles: Mapping[str, str] | None, log: ReadLog
    ) -> tuple[RowStream, RowsFile]:
        """Reads all rows and writes rows.jsonl.

        Args:
            kind, roles: as the user chose; None guesses them.
            log: gets notes about files.

        Raises:
            DataError: a file or a row cannot be read. NeedsAllRows: see there; the files are copied.
        """
        sample = self._take_sample()

        def plan_with(row: RawRow) -> Plan:
            sample.append(row)
            plan = make_plan(sample, kind, roles)
            return plan.without_type() if self._has_no_type and "type" in plan.roles else plan

        (self._folder / "source").mkdir()
        try:
            for number, source in enumerate(self._sources, start=1):
                target = self._folder / "source" / f"{number:04d}{source.suffix}"
                self._copying.append(SourceCopy(source, target, self._count))
            try:
                plan = make_plan(sample, kind, roles)
                for _ in range(PLAN_LIMIT):
                    try:
                        return self._read_all(plan, plan_with, log)
                    except Restart as e:
                        self._has_no_type |= "type" in plan.roles and "type" not in e.plan.roles
                        plan = e.plan
                        for copying in self._copying:
                            copying.restart()
                raise NeedsAllRows
            finally:
                self.files = [copying.finish() for copying in self._copying]
                self.copies = [copying.copy for copying in self._copying]
        finally:
            for copying in self._copying:
                copying.close()

    def split(
        self, stream: RowStream, file: RowsFile, dataset_id: str, seed: int, purpose: str
    ) -> tuple[dict[str, int], dict[str, str], int]:
        """Splits the rows and writes the splits.

        Returns:
            The rows of each split; the sha256 of its file; how many rows ask what an earlier one asks.

        Raises:
            DataError: there are fewer than three different questions.
        """
        pa.default_memory_pool().release_unused()  # what reading the blocks has left
        questions, lengths = stream.take_questions(), file.lengths()
        duplicates = count_equal(questions)
        if purpose == "evaluation":
            chosen = np.full(stream.rows, SPLITS.index("test"), np.uint8)
        elif stream.rows < LARGE:
            rows = StoredRows(file.path, lengths)
            keys = [(hash_question(row), sort_key(row, seed)) for row in rows]
            parts = split(rows, seed, questions=[q for q, _ in keys], keys=[key for _, key in keys])
            chosen = np.empty(stream.rows, np.uint8)
            for index, name in enumerate(SPLITS):
                chosen[parts[name]] = index
        else:
            chosen = split_hashes(questions, stream.type_ranks(), seed)
        del questions
        self._text, self._done = "Writing the splits", 0

        def report(count: int) -> None:
            self._done += count
            if self._report:
                done = self.total + self.total * self._done // max(1, file.size)
                self._report(ReadProgress(done, 2 * self.total, self._text, rows=stream.raw))

        digests = write_splits(file.path, lengths, chosen, self._folder, dataset_id, report)
        return count_splits(chosen), digests, duplicates

    def read_first_rows(self, stream: RowStream, file: RowsFile) -> Reading:
        """The first rows as a reading, for checks that name the places of rows."""
        plan = stream.plan
        return Reading(
            kind=plan.kind,
            roles=plan.roles,
            columns=plan.columns,
            choices=plan.choices,
            layout=plan.layout.name if plan.layout else "",
            title=plan.layout.title if plan.layout else "",
            unread=plan.unread,
            notes=[],
            left_out=0,
            rows=StoredRows(file.path, file.lengths()[: len(stream.places)]),
            places=[RawRow({}, name, line) for name, line in stream.places],
            problem=None,
        )

    def _take_sample(self) -> list[RawRow]:
        rows = read_source_rows(self._sources, self._encoding, ReadLog())
        return list(itertools.islice(rows, SAMPLE_ROWS))

    def _read_all(self, plan: Plan, plan_with: Any, log: ReadLog) -> tuple[RowStream, RowsFile]:
        rows_file = self._folder / "rows.jsonl"
        delete(rows_file)
        self._done = 0
        with RowsFile(rows_file) as file:
            self._stream = stream = RowStream(plan, file, plan_with)
            for copying in self._copying:
                if copying.copy.suffix == ".jsonl" and _is_utf8(copying.source, self._encoding):
                    self._text = f"Reading {copying.copy.name}"
                    self._read_lines(copying.blocks(), stream, copying.copy.name)
                else:
                    self._read_copy(copying, stream, log)
        if plan.kind == "domain" and stream.longest > CUT_SHARE * file.size / 4:  # bytes of a character
            raise NeedsAllRows
        return stream, file

    def _read_copy(self, copying: SourceCopy, stream: RowStream, log: ReadLog) -> None:
        """Copies a file, and reads the copy, or the files of an archive."""
        self._text, self._is_copying = f"Copying {copying.copy.name}", True
        copying.finish()
        self._is_copying = False
        begin, size = self._done, copying.size
        with open(copying.copy.path, "rb") as f:

            def report() -> None:
                place = os.lseek(f.fileno(), 0, os.SEEK_CUR)  # where the reader is, which shares this place
                self._done = max(self._done, begin + min(place, size))
                self._report_progress()

            opened = replace(copying.copy, inflated=f)
            with contextlib.closing(open_archives([opened], log)) as members:
                for member in members:
                    self._text = f"Reading {member.name}"
                    self._read_member(member, stream, log, report)
        self._done = begin + size

    def _read_member(
        self, source: Source, stream: RowStream, log: ReadLog, report: Callable[[], None]
    ) -> None:
        """Reads a table that is open: lines of JSON as they are, other formats row by row."""
        before = stream.raw
        if source.suffix == ".jsonl" and _is_utf8(source, self._encoding):
            with open_source(source) as f:

                def fill(space: memoryview) -> int:
                    report()
                    return int(f.readinto(space))  # type: ignore[attr-defined]

                self._read_lines(cut_lines(fill), stream, source.name)
            return
        for rows in _cut_blocks(read_source_rows([source], self._encoding, log)):
            stream.read_rows(rows)
            report()
            self._check_rows(stream, rows[-1].file, rows[-1].line)
        _check_for_rows(source.name, stream.raw - before)

    def _read_lines(self, blocks: Iterator[tuple[memoryview, bool]], stream: RowStream, name: str) -> None:
        line, before = 1, stream.raw
        for block, is_end_added in blocks:
            if block[-1] != 0x0A:
                raise NeedsAllRows
            lines = Lines(block, is_end_added)
            stream.read_lines(lines, line, name)
            line += len(lines)
            self._check_rows(stream, name, line - 1)
        _check_for_rows(name, stream.raw - before)

    def _check_rows(self, stream: RowStream, file: str, line: int) -> None:
        if self._row_limit is not None and stream.raw > self._row_limit:
            raise DataError(
                f"the data has more than {self._row_limit:,} rows.",
                "Split it into several datasets.",
                file=file,
                line=line,
            )

    def _count(self, count: int) -> None:
        """Counts the bytes of a block, unless it is only copied and read afterwards, and reports."""
        if not self._is_copying:
            self._done += count
        self._report_progress()

    def _report_progress(self) -> None:
        if self._report:
            rows = self._stream.raw if self._stream else 0
            self._report(ReadProgress(min(self._done, self.total), 2 * self.total, self._text, rows=rows))


def _is_utf8(source: Source, encoding: str) -> bool:
    with open_source(source) as f:
        codec, how = choose_codec(f, encoding)
    return codec in ("utf-8", "utf-8-sig") and not how


def _check_for_rows(name: str, rows: int) -> None:
    if not rows:
        raise DataError("the file is empty: it has no rows.", "Add rows, or leave it out.", file=name)


def _cut_blocks(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    while block := list(itertools.islice(rows, ROW_BLOCK)):
        yield block
