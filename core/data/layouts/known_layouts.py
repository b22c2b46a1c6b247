"""Layouts of other tools: recognized by their columns, and rewritten into rows with the usual columns.

    rows of the files ─ find_layout ─> rows with question, answer, ... ─ columns ─> canonical rows

The first layout of LAYOUTS that matches is used. A layout keeps the columns that it does not read, so that
they can still have a role, such as the type. A kind or a column that the user chose and that the layout does
not have switches it off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.data.formats.readers import RawRow
from core.data.layouts.annotations import LABEL_LISTS, LABEL_STUDIO, LABEL_STUDIO_ROWS, PRODIGY
from core.data.layouts.answers import BOOLEAN_ANSWERS, CHOICE_TARGETS, CHOICES, SQUAD, SQUAD_ANSWERS
from core.data.layouts.argilla import ARGILLA, ARGILLA_FEEDBACK, ARGILLA_RECORDS, ARGILLA_VALIDATED
from core.data.layouts.chats import HISTORY, MESSAGE_TREES
from core.data.layouts.exports import CHATGPT, GROUP_CHATS, INTENTS, NESTED_TREES
from core.data.layouts.layout import Layout, Table
from core.data.layouts.nested_sections import SECTIONS
from core.data.layouts.options import OPTION_COLUMNS
from core.data.layouts.pairs import INPUT_OUTPUT, LABELS, SENTENCE_PAIRS, SUMMARIES, TRANSLATIONS
from core.data.layouts.preferences import KTO, OPENAI_PREFERENCE, PREFERENCE
from core.data.layouts.turns import INSTANCES, MARKED_TURNS, TURN_LISTS
from core.data.notes import Notes
from core.data.roles.columns import list_columns
from core.errors import DataError

LAYOUTS: tuple[Layout, ...] = (
    LABEL_STUDIO,
    LABEL_STUDIO_ROWS,
    ARGILLA,
    ARGILLA_RECORDS,
    ARGILLA_FEEDBACK,
    ARGILLA_VALIDATED,
    PRODIGY,
    OPENAI_PREFERENCE,
    PREFERENCE,
    KTO,
    MESSAGE_TREES,
    NESTED_TREES,
    CHATGPT,
    GROUP_CHATS,
    SECTIONS,
    INTENTS,
    INSTANCES,
    SQUAD,
    CHOICES,
    CHOICE_TARGETS,
    OPTION_COLUMNS,
    SQUAD_ANSWERS,
    HISTORY,
    TURN_LISTS,
    LABEL_LISTS,
    SENTENCE_PAIRS,
    LABELS,
    BOOLEAN_ANSWERS,
    SUMMARIES,
    TRANSLATIONS,
    INPUT_OUTPUT,
    MARKED_TURNS,
)


TITLES = {layout.name: layout.title for layout in LAYOUTS}


@dataclass(frozen=True)
class Rewrite:
    """Rows that a layout has rewritten.

    Attributes:
        layout: the layout.
        rows: the new rows; each has the file and line of the row that it comes from.
        reads: columns of the files that the layout has read.
        notes: what was left out or chosen.
    """

    layout: Layout
    rows: list[RawRow]
    reads: tuple[str, ...]
    notes: Notes


def find_layout(
    rows: Sequence[RawRow], kind: str | None = None, roles: Mapping[str, str] | None = None
) -> Rewrite | None:
    """Finds the first layout that matches, and rewrites the rows with it.

    Args:
        rows: rows of the files.
        kind: the kind that the user chose, or None.
        roles: role to column, as the user chose.

    Returns:
        None if no layout matches, or if the user chose a kind or a column that the layout does not have.

    Raises:
        DataError: the layout matches, but a row cannot be read, or no row is left.
    """
    table = Table(list_columns(rows), rows)
    for layout in LAYOUTS:
        parts = layout.match(table)
        if not parts:
            continue
        if kind not in (None, layout.kind):
            return None
        notes = Notes()
        for sentence in layout.notes:
            notes.say(sentence)
        rewritten = layout.rewrite(rows, parts, notes)
        if not rewritten:
            raise DataError(
                f"{layout.title}: no row can be learned. {' '.join(notes.list_sentences())}".strip(),
                "Choose another file, or assign the columns by hand.",
                file=rows[0].file,
                line=rows[0].line,
            )
        columns = list_columns(rewritten)
        if any(column not in columns for column in (roles or {}).values()):
            return None
        return Rewrite(layout, rewritten, layout.list_columns_read(parts), notes)
    return None
