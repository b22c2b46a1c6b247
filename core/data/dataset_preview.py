"""A trial import that writes nothing: what the files hold, and how they would be read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.data.documents.sections import Cut
from core.data.formats.read_log import ReadLog
from core.data.formats.readers import OWNER, Limits, Source, find_files, read_source_rows, read_sources
from core.data.formats.table_sizes import estimate_rows, measure_tables
from core.data.reading import Reading, read_rows
from core.data.split_record import find_record
from core.data.split_rows import assign_splits
from core.errors import StudioError, UnconfirmedRoles
from core.spec.settings import SEED

if TYPE_CHECKING:
    from core.data.inspection.split_tokens import SplitTokens

STREAM_BYTES = 16 << 20  # bytes of tables from which on they are read in blocks, and a preview reads a sample
SAMPLE_ROWS = 300  # of a large table, which decide on its layout and roles
HEAD_BYTES = 1 << 20  # of a file, whose lines are counted for an estimate

Check = Callable[[Reading], Sequence[str]]  # raises DataError, or returns sentences for the notes
# Counts the tokens of the splits, which are given as indices of rows; None without a base.
CountTokens = Callable[[Reading, Mapping[str, Sequence[int]]], "SplitTokens | None"]


@dataclass(frozen=True)
class Preview:
    """Result of a trial import that writes nothing.

    Attributes:
        kind: "domain" or "task", as given or guessed.
        columns: columns of the files.
        roles: role to column, as given or guessed.
        rows: the first raw rows, column to value.
        total: rows of all files; an estimate if only a sample was read.
        canonical: the first canonical rows.
        problem: why an import would be refused; empty if it would succeed.
        choices: columns that can have a role; those of the files, or those that the layout gives.
        layout: what the page calls the layout that was recognized; "" for plain columns.
        unread: columns of the files that nothing reads.
        notes: sentences about what is left out, changed or chosen.
        read: rows that an import would store.
        left_out: rows that cannot be learned.
        duplicates: rows that ask what an earlier one asks, or read as an earlier one.
        cuts: the documents that an import cuts into sections.
        skipped: name ("file") and "reason" of files that cannot be read, beside others that can.
        split_shares: share of train, val and test in characters.
        split_tokens: tokens of train, val and test; None where they are not known.
        question: what the user has to confirm before an import, with the reason; "" if nothing.
        is_sample: whether only the first rows were read, because the files are large.
    """

    kind: str
    columns: list[str]
    roles: dict[str, str]
    rows: list[dict[str, Any]]
    total: int
    canonical: list[dict[str, Any]]
    problem: str
    choices: list[str] = field(default_factory=list)
    layout: str = ""
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read: int = 0
    left_out: int = 0
    duplicates: int = 0
    cuts: list[Cut] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    split_shares: dict[str, float] = field(default_factory=dict)
    question: str = ""
    is_sample: bool = False
    split_tokens: SplitTokens | None = None


def is_large(sources: Sequence[Source]) -> bool:
    """Whether files are tables that are read in blocks."""
    size = measure_tables(sources)
    return size is not None and size >= STREAM_BYTES


def preview(
    paths: Sequence[Path | str],
    kind: str | None = None,
    roles: Mapping[str, str] | None = None,
    limit: int = 20,
    encoding: str = "utf-8",
    check: Check | None = None,
    purpose: str = "training",
    limits: Limits = OWNER,
    count_tokens: CountTokens | None = None,
) -> Preview:
    """Reads the files as an import would, without writing anything.

    Args:
        paths: files or folders.
        kind: "domain" or "task"; None guesses it from the columns.
        roles: role to column; None guesses them from the columns.
        limit: how many raw and canonical rows to return.
        encoding: encoding of the text files.
        check: a further check of the rows, see `import_dataset`.
        purpose: "training" or "evaluation", see `Dataset`.
        limits: rows and bytes that the user may import.
        count_tokens: counts the tokens of the splits.

    Raises:
        DataError: a file cannot be read at all. Problems with roles and cells are in `Preview.problem`.
    """
    log = ReadLog()
    sources = find_files(paths, log, limits)
    is_sample = is_large(sources)
    record = None if is_sample else find_record(sources, log)
    if is_sample:
        raw = list(itertools.islice(read_source_rows(sources, encoding, log), SAMPLE_ROWS))
    else:
        raw = read_sources(sources, encoding, log)
    total = estimate_rows(sources, HEAD_BYTES) if is_sample else len(raw)
    result = read_rows(raw, kind, roles, record)
    problem, notes, duplicates, shares = "", [*log.list_notes(), *result.notes], 0, dict[str, float]()
    if is_sample:
        notes.insert(
            0, f"Seen: the first {len(raw):,} rows of about {total:,}. The import reads and checks all."
        )
    question, tokens = "", None
    try:
        if result.problem is not None:
            raise result.problem
        parts, duplicates = assign_splits(result, SEED, purpose)
        shares = _measure_shares(result.rows, parts)
        if count_tokens and not is_sample:
            tokens = count_tokens(result, parts)
        notes = [*notes, *(check(result) if check else ())]
    except StudioError as e:
        problem = str(e)
        question = e.what if isinstance(e, UnconfirmedRoles) else ""
    return Preview(
        kind=result.kind,
        columns=result.columns,
        roles=result.roles,
        rows=[r.values for r in raw[:limit]],
        total=total,
        canonical=list(result.rows[:limit]),
        problem=problem,
        choices=result.choices,
        layout=result.title,
        unread=result.unread,
        notes=notes,
        read=total * len(result.rows) // max(1, len(raw)),
        left_out=result.left_out,
        duplicates=duplicates,
        cuts=result.cuts,
        skipped=log.skipped,
        split_shares=shares,
        question=question,
        is_sample=is_sample,
        split_tokens=tokens,
    )


def _measure_shares(
    rows: Sequence[Mapping[str, Any]], parts: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """The share of each split in characters."""
    lengths = [
        len(row["text"]) if "text" in row else sum(len(m["content"]) for m in row["messages"]) for row in rows
    ]
    total = max(1, sum(lengths))
    return {name: sum(lengths[i] for i in indices) / total for name, indices in parts.items()}
