"""Many rows to canonical rows, block by block, under a plan that a sample of them decides.

    blocks of lines ─ json_lines ─┬─ lines of a known form ─ row_forms ─┬─> rows.jsonl, hashes of the questions
                                  └─ all other lines ─ jsonrows, columns ┘

The layout and the roles are those that the reading of the sample gives (`reading`). A row that cannot be read so
joins the sample, which is then read again: the plan may change, and the files are read from the start, at most
PLAN_LIMIT times. Nothing holds all rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from core.data import jsonrows
from core.data.columns import TYPE_LENGTH, TYPE_LIMIT, list_columns, to_canonical
from core.data.dataset_writer import RowsFile, to_line
from core.data.json_lines import Lines
from core.data.jsonrows import LINE_LIMIT
from core.data.notes import Notes
from core.data.question_hashes import hash_questions
from core.data.readers import RawRow
from core.data.reading import Plan
from core.data.row_forms import RowForm, make_form, take_texts
from core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

FORM_LIMIT = 32  # forms of one import
LEARN_LIMIT = 4  # lines of a block that are tried as the example of a form
PLACES = 100_000  # rows whose place in the files is kept, for checks that name it


class Contradiction(Exception):
    """Raised for a row that cannot be read under the plan.

    Args:
        row: the row.
        problem: why.
    """

    def __init__(self, row: RawRow, problem: DataError | None = None) -> None:
        self.row, self.problem = row, problem
        super().__init__(row, problem)


class NeedsAllRows(Exception):
    """Raised where rows can only be read together, or as `readers` reads them."""


@dataclass
class Part:
    """Rows of a block that were read in one way.

    Attributes:
        places: (N,) for each row the index of its line or raw row in the block, ascending.
        lines: (N,) lines of rows.jsonl.
        questions: (N,) hashes.
        labels: (N,) types, null where a row has none; None if no row has one.
    """

    places: NDArray[np.int64]
    lines: pa.StringArray
    questions: NDArray[np.uint64]
    labels: pa.StringArray | None


class RowStream:
    """Reads rows under a plan and writes them.

    Args:
        plan: layout and roles.
        file: receives the canonical rows.

    Attributes:
        raw: rows of the files so far.
        rows: canonical rows so far.
        notes: what was left out or changed so far.
        types: rows of each type so far.
        longest: bytes of the longest canonical row.
        places: file and line of the first rows.
    """

    def __init__(self, plan: Plan, file: RowsFile) -> None:
        self.plan, self.file = plan, file
        self.raw = self.rows = self.longest = 0
        self.notes = Notes()
        self.types: Counter[str] = Counter()
        self.places: list[tuple[str, int]] = []
        self._forms: list[RowForm] = []
        self._questions: list[NDArray[np.uint64]] = []
        self._codes: list[NDArray[np.int64]] = []
        self._code_of: dict[str, int] = {}
        self._known = set(plan.columns)

    def questions(self) -> NDArray[np.uint64]:
        """The hash of what each row asks."""
        return np.concatenate(self._questions) if self._questions else np.zeros(0, np.uint64)

    def type_ranks(self) -> NDArray[np.int64] | None:
        """For each row the place of its type among all types in alphabetical order; None without types."""
        if not self._code_of:
            return None
        order = {label: rank for rank, label in enumerate(sorted({"", *self._code_of}))}
        ranks = np.array([order[""], *(order[label] for label in self._code_of)])
        return ranks[np.concatenate(self._codes) + 1]

    # --- lines of JSON

    def read_lines(self, lines: Lines, first_line: int, file: str) -> None:
        """Reads a block of lines.

        Args:
            first_line: the number of its first line in the file.

        Raises:
            DataError: a line is not a complete object. Contradiction: see there.
            NeedsAllRows: a line is not valid text.
        """
        remaining = np.ones(len(lines), np.bool_)
        parts: list[Part] = []
        if self.plan.layout is None:
            for form in self._forms:
                parts += self._apply(form, lines, remaining)
            parts += self._learn(lines, remaining, first_line, file)
        others = np.flatnonzero(remaining)
        rows = self._parse(lines, others, first_line, file) if len(others) else []
        self.raw += len(lines) - len(others) + len(rows)
        if rows:
            parts.append(self._convert(rows, first_line))
        self._write(parts, first_line, file)

    def _apply(self, form: RowForm, lines: Lines, remaining: NDArray[np.bool_]) -> list[Part]:
        """Reads the lines of a form, and clears them from the remaining ones."""
        import pyarrow as pa

        texts = lines.find(form.form, remaining)
        can = form.select(lines, texts)
        if not can.any():
            return []
        if not can.all():
            texts = texts.select(can)
        remaining[texts.lines] = False
        columns = take_texts(lines, texts)
        labels = None
        if isinstance(form.label, str):
            labels = pa.array([form.label] * len(texts.lines), pa.string())
        elif form.label is not None:
            labels = columns[form.label]
            self._check_labels(labels)
        return [Part(texts.lines, form.line.fill(columns), form.hash_questions(columns), labels)]

    def _learn(self, lines: Lines, remaining: NDArray[np.bool_], first_line: int, file: str) -> list[Part]:
        """Makes forms of lines that have none yet."""
        parts: list[Part] = []
        untried = remaining & lines.is_plain
        for _ in range(LEARN_LIMIT):
            left = np.flatnonzero(untried & remaining)
            if not len(left) or len(self._forms) >= FORM_LIMIT:
                break
            index = int(left[0])
            untried[index] = False
            (row, *_) = self._parse(lines, left[:1], first_line, file) or [None]
            if row is None or row.values.keys() - self._known:
                continue
            form = make_form(lines.line(index), row, self.plan.roles, self._convert_one)
            if form is not None and all(form.form != known.form for known in self._forms):
                self._forms.append(form)
                parts += self._apply(form, lines, remaining)
        return parts

    def _convert_one(self, row: RawRow) -> dict[str, Any] | None:
        notes = Notes()
        try:
            found = self._to_canonical([row], notes, [])
        except (DataError, Contradiction):
            return None
        return found[0] if len(found) == 1 and not notes.list_sentences() else None

    def _parse(
        self, lines: Lines, indices: NDArray[np.int64], first_line: int, file: str
    ) -> list[RawRow]:
        def numbered() -> Iterable[tuple[int, str]]:
            for index in indices.tolist():
                try:
                    text = lines.line(index).decode("utf-8")
                except UnicodeDecodeError:
                    raise NeedsAllRows from None
                if "\0" in text or len(text) > LINE_LIMIT:
                    raise NeedsAllRows
                yield first_line + index, text

        rows = [RawRow(values, file, number) for number, values in jsonrows.read_jsonl(iter(numbered()), file)]
        for row in rows:
            if len(row.values) > jsonrows.FIELD_LIMIT:
                raise NeedsAllRows
        return rows

    # --- rows

    def read_rows(self, rows: Sequence[RawRow]) -> None:
        """Reads a block of raw rows.

        Raises:
            Contradiction: see there.
        """
        self.raw += len(rows)
        if rows:
            self._write([self._convert(rows)], 0, rows[0].file, rows)

    def _convert(self, rows: Sequence[RawRow], first_line: int | None = None) -> Part:
        import pyarrow as pa

        places: list[RawRow] = []
        canonical = self._to_canonical(rows, self.notes, places)
        if first_line is None:
            index_of = {(row.file, row.line): index for index, row in enumerate(rows)}
            indices = np.array([index_of[p.file, p.line] for p in places], np.int64)
        else:
            indices = np.array([place.line - first_line for place in places], np.int64)
        lines = pa.array([to_line(row) for row in canonical], pa.binary()).cast(pa.string())
        labels = [row.get("type") for row in canonical]
        if any(label is not None for label in labels):
            self._check_labels(label_array := pa.array(labels, pa.string()))
            return Part(indices, lines, hash_questions(canonical), label_array)
        return Part(indices, lines, hash_questions(canonical), None)

    def _to_canonical(
        self, rows: Sequence[RawRow], notes: Notes, places: list[RawRow]
    ) -> list[dict[str, Any]]:
        """Reads raw rows as the plan says."""
        for row in rows:
            if row.values.keys() - self._known:
                raise Contradiction(row)
        padded = [_pad(row, self.plan.columns) for row in rows]
        source = padded
        try:
            if self.plan.layout is not None:
                source = self.plan.layout.rewrite(padded, self.plan.parts, notes)
                if not source:
                    return []
                source = [_pad(row, self.plan.choices) for row in source]
            return to_canonical(source, self.plan.kind, self.plan.roles, notes, places, allow_none=True)
        except DataError as e:
            row = next((row for row in rows if row.line == e.line and row.file == e.file), rows[0])
            raise Contradiction(row, e) from e

    def _check_labels(self, labels: pa.StringArray) -> None:
        """Checks that types read as they are written, and that they are types."""
        for label in labels.unique().to_pylist():
            if label is not None and (label.strip() != label or "\\" in label):
                raise NeedsAllRows
            if label is not None and (len(label) > TYPE_LENGTH or len(self._code_of) > TYPE_LIMIT):
                raise NeedsAllRows

    # --- writing

    def _write(
        self, parts: Sequence[Part], first_line: int, file: str, rows: Sequence[RawRow] | None = None
    ) -> None:
        """Writes the rows of a block in the order of the files."""
        import pyarrow as pa

        parts = [part for part in parts if len(part.places)]
        if not parts:
            return
        part = parts[0]
        if len(parts) > 1:
            places = np.concatenate([p.places for p in parts])
            order = np.argsort(places, kind="stable")
            every = pa.array(order)
            labels = None
            if any(p.labels is not None for p in parts):
                nulls = [p.labels if p.labels is not None else pa.nulls(len(p.places), pa.string()) for p in parts]
                labels = pa.concat_arrays(nulls).take(every)
            part = Part(
                places[order],
                pa.concat_arrays([p.lines for p in parts]).take(every),
                np.concatenate([p.questions for p in parts])[order],
                labels,
            )
        offsets = np.frombuffer(part.lines.buffers()[1], np.int32)[: len(part.lines) + 1]
        lengths = np.diff(offsets).astype(np.uint32)
        self.file.write_lines(memoryview(part.lines.buffers()[2])[: offsets[-1]], lengths)
        self.longest = max(self.longest, int(lengths.max()))
        self._questions.append(part.questions)
        self._count_types(part)
        if len(self.places) < PLACES:
            for place in part.places[: PLACES - len(self.places)].tolist():
                self.places.append((rows[place].file, rows[place].line) if rows else (file, first_line + place))
        self.rows += len(part.lines)

    def _count_types(self, part: Part) -> None:
        if part.labels is None:
            if self._code_of:
                self._codes.append(np.full(len(part.places), -1))
            return
        if not self._code_of and self.rows:
            self._codes.append(np.full(self.rows, -1))
        found = part.labels.dictionary_encode()
        names = found.dictionary.to_pylist()
        for name in names:
            self._code_of.setdefault(name, len(self._code_of))
        codes = np.array([self._code_of[name] for name in names] + [-1])
        indices = found.indices.fill_null(len(names)).to_numpy(zero_copy_only=False)
        self._codes.append(codes[indices])
        counts = np.bincount(indices, minlength=len(names))
        for name, count in zip(names, counts.tolist()):
            self.types[name] += count


def _pad(row: RawRow, columns: Sequence[str]) -> RawRow:
    """A row with a cell in each of these columns: a missing one has no value."""
    if all(column in row.values for column in columns):
        return row
    values: Mapping[str, Any] = {**row.values, **{c: None for c in columns if c not in row.values}}
    return RawRow(dict(values), row.file, row.line, row.document)
