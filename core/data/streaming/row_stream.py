"""Many rows to canonical rows, block by block, under a plan that a sample of them decides.

    blocks of lines ─ json_lines ─┬─ lines of a known form ─ row_forms ──┬─> rows.jsonl, hashes of questions
                                  └─ all other lines ─ jsonrows, columns ┘

The layout and the roles are those that the reading of the sample gives (`reading`). A row that cannot be read
so joins the sample, which is then read again; if the plan changes, the files are read from the start. Nothing
holds all rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any

import numpy as np

from core.data.dataset_writer import RowsFile, to_line
from core.data.formats import json_rows
from core.data.formats.json_rows import LINE_LIMIT
from core.data.formats.readers import RawRow
from core.data.layouts.layout import EachRow
from core.data.notes import Notes
from core.data.reading import Plan
from core.data.roles.columns import describe_type_problem, to_canonical
from core.data.streaming.arrow_arrays import from_texts, offsets_of, repeat, to_mask
from core.data.streaming.json_lines import Lines
from core.data.streaming.question_hashes import hash_questions
from core.data.streaming.row_forms import (
    RowForm,
    is_plain_cell,
    make_cell_form,
    make_form,
    take_texts,
    write_cells,
)
from core.data.streaming.row_parts import Part, Types, merge_parts
from core.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

FORM_LIMIT = 32  # forms of one import
LEARN_LIMIT = 4  # lines of a block that are tried as the example of a form
PLACES = 20_000  # rows whose place in the files is kept, for checks that name it


class Restart(Exception):
    """Raised where another plan is needed: the files are read from the start.

    Args:
        plan: the new plan.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        super().__init__(plan)


class NeedsAllRows(Exception):
    """Raised where rows can only be read together, or as `readers` reads them."""


class Place(int):
    """A line number with the index of its row in the block: rows of a .json file may stand on one line.

    Layouts and errors carry the line number of a row along.

    Attributes:
        index: of the row in its block.
    """

    index: int

    @classmethod
    def of(cls, row: RawRow, index: int) -> RawRow:
        """The row with such a line."""
        place = cls(row.line)
        place.index = index
        return replace(row, line=place)


class RowStream:
    """Reads rows under a plan and writes them.

    Args:
        plan: layout and roles.
        file: receives the canonical rows.
        make_plan: adds a row to the sample and reads it again.

    Raises:
        NeedsAllRows: the layout reads all rows together.

    Attributes:
        raw: rows of the files so far.
        rows: canonical rows so far.
        notes: what was left out or changed so far.
        longest: bytes of the longest canonical row.
        places: file and line of the first rows.
    """

    def __init__(self, plan: Plan, file: RowsFile, make_plan: Callable[[RawRow], Plan]) -> None:
        if plan.layout is not None and not isinstance(plan.layout.rewrite, EachRow):
            raise NeedsAllRows
        self.plan, self.file, self._make_plan = plan, file, make_plan
        self.raw = self.rows = self.longest = 0
        self.notes = Notes()
        self.places: list[tuple[str, int]] = []
        self._forms: list[RowForm] = []
        self._questions: list[NDArray[np.uint64]] = []
        self._types = Types()
        self._cell_forms: dict[tuple[bool, ...], RowForm | None] = {}
        self._known = set(plan.columns)

    def take_questions(self) -> NDArray[np.uint64]:
        """Takes the hashes of what the rows ask out of the stream."""
        hashes = np.concatenate([*self._questions, np.zeros(0, np.uint64)])
        self._questions.clear()
        return hashes

    def type_ranks(self) -> NDArray[np.int64] | None:
        """For each row the place of its type among all types in alphabetical order; None without types."""
        return self._types.rank()

    @property
    def types(self) -> Counter[str]:
        """The rows of each type so far."""
        return self._types.counts

    # --- lines of JSON

    def read_lines(self, lines: Lines, first_line: int, file: str) -> None:
        """Reads a block of lines.

        Args:
            first_line: the number of its first line in the file.

        Raises:
            DataError: a line is not a complete object, or a row cannot be read. Restart: see there.
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
        texts = lines.find(form.form, remaining)
        texts = texts.select(form.select(lines, texts))
        columns = take_texts(lines, texts)
        if isinstance(form.label, int):
            is_label = self._find_literal(columns[form.label])
            if not is_label.all():
                texts = texts.select(is_label)
                columns = take_texts(lines, texts)
        if not len(texts.lines):
            return []
        remaining[texts.lines] = False
        return [self._fill(form, texts.lines, columns)]

    def _fill(self, form: RowForm, places: NDArray[np.int64], texts: Sequence[pa.StringArray]) -> Part:
        """Makes the rows of one form of their texts."""
        labels = None
        if isinstance(form.label, int):
            labels = texts[form.label]
        elif form.label is not None:
            labels = repeat(form.label, len(places))
        return Part(places, form.line.fill(texts), form.hash_questions(texts), labels)

    def _find_literal(self, labels: pa.StringArray) -> NDArray[np.bool_]:
        """Which types are read as they are written: without escapes, and without blanks around them."""
        import pyarrow.compute as pc

        names = [name for name in labels.unique().to_pylist() if name.strip() == name and "\\" not in name]
        return to_mask(pc.is_in(labels, value_set=from_texts(names)))

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
            rows = self._parse(lines, left[:1], first_line, file)
            if not rows or rows[0].values.keys() - self._known:
                continue
            form = make_form(lines.line(index), rows[0], self.plan.roles, self._convert_one)
            if form is not None and all(form.form != known.form for known in self._forms):
                self._forms.append(form)
                parts += self._apply(form, lines, remaining)
        return parts

    def _convert_one(self, row: RawRow) -> dict[str, Any] | None:
        notes = Notes()
        try:
            found = self._to_canonical([row], notes, [])
        except (DataError, Restart):
            return None
        return found[0] if len(found) == 1 and not notes.list_sentences() else None

    def _parse(self, lines: Lines, indices: NDArray[np.int64], first_line: int, file: str) -> list[RawRow]:
        def list_texts() -> Iterable[tuple[int, str]]:
            for index in indices.tolist():
                try:
                    text = lines.text(index)
                except UnicodeDecodeError:
                    raise NeedsAllRows from None
                if "\0" in text or len(text) > LINE_LIMIT:
                    raise NeedsAllRows
                yield first_line + index, text

        rows = [
            RawRow(values, file, number) for number, values in json_rows.read_jsonl(iter(list_texts()), file)
        ]
        for row in rows:
            if len(row.values) > json_rows.FIELD_LIMIT:
                raise NeedsAllRows
        return rows

    # --- rows

    def read_rows(self, rows: Sequence[RawRow]) -> None:
        """Reads a block of raw rows.

        Raises:
            DataError: a row cannot be read. Restart: see there.
        """
        self.raw += len(rows)
        if not rows:
            return
        parts: list[Part] = []
        others = np.ones(len(rows), np.bool_)
        if self.plan.layout is None:
            for form, columns, indices in self._group_cells(rows):
                texts = [write_cells(rows[i].values[column] for i in indices) for column in columns]
                parts.append(self._fill(form, np.array(indices), texts))
                others[indices] = False
        left = np.flatnonzero(others)
        if len(left):
            part = self._convert([Place.of(rows[i], index) for index, i in enumerate(left.tolist())])
            parts.append(replace(part, places=left[part.places]))
        self._write(parts, 0, rows[0].file, rows)

    def _group_cells(self, rows: Sequence[RawRow]) -> Iterator[tuple[RowForm, list[str], list[int]]]:
        """Yields the rows whose cells with a role are plain or empty texts, by the columns with a text."""
        columns = list(self.plan.roles.values())
        label = self.plan.roles.get("type", "")
        groups: dict[tuple[bool, ...], list[int]] = {}
        for index, row in enumerate(rows):
            values = row.values
            if values.keys() - self._known:
                continue
            cells = [values.get(column) for column in columns]
            if all(cell == "" or is_plain_cell(cell) for cell in cells):
                text = values.get(label, "")
                if text.strip() == text and encode_basestring(text) == f'"{text}"':
                    groups.setdefault(tuple(map(bool, cells)), []).append(index)
        for pattern, indices in groups.items():
            filled = [column for column, has_text in zip(columns, pattern) if has_text]
            if pattern not in self._cell_forms:
                self._cell_forms[pattern] = make_cell_form(rows[indices[0]], filled, self._convert_one)
            form = self._cell_forms[pattern]
            if form is not None:
                yield form, filled, indices

    def _convert(self, rows: Sequence[RawRow], first_line: int | None = None) -> Part:
        """Reads rows one by one.

        Args:
            first_line: the number of the block's first line; None for rows with a `Place`.
        """
        places: list[RawRow] = []
        canonical = self._to_canonical(rows, self.notes, places)
        if first_line is None:
            indices = np.array([place.line.index for place in places], np.int64)  # type: ignore[attr-defined]
        else:
            indices = np.array([place.line - first_line for place in places], np.int64)
        lines = from_texts(map(to_line, canonical))
        return Part(
            indices, lines, hash_questions(canonical), from_texts(row.get("type") for row in canonical)
        )

    def _to_canonical(
        self, rows: Sequence[RawRow], notes: Notes, places: list[RawRow]
    ) -> list[dict[str, Any]]:
        """Reads raw rows as the plan says."""
        for row in rows:
            if row.values.keys() - self._known:
                self._replan(row, None)
        source = rows
        try:
            if self.plan.layout is not None:
                source = self.plan.layout.rewrite(rows, self.plan.parts, notes)
            columns = self.plan.choices
            return to_canonical(source, self.plan.kind, self.plan.roles, notes, places, columns)
        except DataError as e:
            if e.what.endswith(describe_type_problem(self.plan.roles.get("type", ""))):
                raise Restart(self.plan.without_type()) from e
            if isinstance(e.line, Place):
                self._replan(rows[e.line.index], e)
            found = (row for row in rows if row.line == e.line and row.file == e.file)
            self._replan(next(found, rows[0]), e)
            raise

    def _replan(self, row: RawRow, problem: DataError | None) -> None:
        """Takes over what a row with new columns changes.

        Args:
            problem: why the row cannot be read under the plan; None if it only has new columns.

        Raises:
            Restart: the sample with this row is read in another way. DataError: it cannot be read.
        """
        plan = self._make_plan(row)
        if not plan.reads_like(self.plan):
            raise Restart(plan)
        if problem is not None:
            raise problem
        self.plan, self._known = plan, set(plan.columns)

    # --- writing

    def _write(
        self, parts: Sequence[Part], first_line: int, file: str, rows: Sequence[RawRow] | None = None
    ) -> None:
        """Writes the rows of a block in the order of the files."""
        part = merge_parts(parts)
        if part is None:
            return
        offsets = offsets_of(part.lines)
        lengths = np.diff(offsets).astype(np.uint32)
        self.file.write_lines(memoryview(part.lines.buffers()[2])[: offsets[-1]], lengths)
        self.longest = max(self.longest, int(lengths.max()))
        self._questions.append(part.questions)
        if not self._types.add(part.labels, len(part.places)):
            raise Restart(self.plan.without_type())
        if len(self.places) < PLACES:
            for place in part.places[: PLACES - len(self.places)].tolist():
                self.places.append(
                    (rows[place].file, rows[place].line) if rows else (file, first_line + place)
                )
        self.rows += len(part.lines)
