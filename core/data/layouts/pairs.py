"""Layouts of labelled pairs whose columns are not named as a question and an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.data.formats.readers import RawRow
from core.data.layouts.layout import Layout, Parts, Table, Values, each_row, write_value
from core.data.notes import Notes, RowLeftOut
from core.data.roles.cells import is_blank, read_cell
from core.data.roles.columns import guess_roles, match_role_set, normalize_name
from core.errors import DataError

TEXTS = ("text", "sentence", "content", "review", "tweet", "comment", "utterance", "headline")
FIRST = (
    "prompt",
    "instruction",
    "question",
    "query",
    "input",
    "inputs",
    "inputtext",
    "questiontext",
    *TEXTS,
    "source",
    "src",
    "user",
    "human",
)
_SECOND = (
    "answer", "answers", "response", "responses", "completion", "completions", "output", "outputs", "target",
    "targets", "tgt", "reply", "outputtext", "correctanswer", "referenceanswer", "answertext",
    "bestanswer", "finalanswer", "assistant", "bot",
)  # fmt: skip
_PAIR_NAMES = (("question", "answer"), ("instruction", "output"))
LABELS_NAMES = ("labeltext", "labelname", "label", "labels", "sentiment", "intent", "class")
_QUESTIONS = ("question", "instruction", "prompt", "messages", "conversations", "query")


def is_label(cell: Any) -> bool:
    """Whether a cell can be the label of a text: a text, a whole number, or true or false."""
    return isinstance(cell, (str, int))


def _match_labels(table: Table) -> Parts:
    parts = table.find_parts(text=TEXTS, label=LABELS_NAMES)
    if not parts or table.find(*_QUESTIONS):
        return {}
    return parts if table.every(parts["label"], is_label) else {}


def _rewrite_labels(row: RawRow, parts: Parts, notes: Notes) -> Values:
    return {"question": read_cell(row, parts["text"]), "answer": _read_label(row, parts)}


def _read_label(row: RawRow, parts: Parts) -> str:
    label = row.values.get(parts["label"])
    if is_blank(label):
        raise RowLeftOut(f"the column {parts['label']!r} is empty")
    return write_value(label)


LABELS = Layout(
    "text-label",
    "Texts with labels",
    _match_labels,
    each_row(_rewrite_labels),
    ("The label of each text is learned as its answer.",),
)


def _match_sentence_pairs(table: Table) -> Parts:
    for first, second in (("premise", "hypothesis"), ("sentence1", "sentence2"), ("text1", "text2")):
        parts = table.find_parts(first=(first,), second=(second,), label=LABELS_NAMES)
        if parts and table.every(parts["label"], is_label):
            return parts
    return {}


def _rewrite_sentence_pair(row: RawRow, parts: Parts, notes: Notes) -> Values:
    texts = [read_cell(row, parts["first"]), read_cell(row, parts["second"])]
    return {"question": "\n\n".join(texts), "answer": _read_label(row, parts)}


SENTENCE_PAIRS = Layout(
    "sentence-pairs",
    "Pairs of sentences with labels",
    _match_sentence_pairs,
    each_row(_rewrite_sentence_pair),
    ("The label of each pair of sentences is learned as its answer.",),
)


def _match_summaries(table: Table) -> Parts:
    parts = table.find_parts(
        text=("document", "article", "dialogue", "dialog", "text", "report", "content", "maintext", "body"),
        summary=("summary", "highlights", "abstract", "tldr"),
    )
    return {} if table.find(*_QUESTIONS[:3], "response", "completion") else parts


def _rewrite_summary(row: RawRow, parts: Parts, notes: Notes) -> Values:
    return {"prompt": row.values.get(parts["text"]), "completion": row.values.get(parts["summary"])}


SUMMARIES = Layout(
    "summaries",
    "Texts with summaries",
    _match_summaries,
    each_row(_rewrite_summary),
    ("The summary of each text is learned as its answer.",),
)


def _match_translations(table: Table) -> Parts:
    parts = table.find_parts(pair=("translation",))
    is_pair = parts and table.every(parts["pair"], lambda c: isinstance(c, dict) and len(c) == 2)
    return parts if is_pair else {}


def _rewrite_translation(row: RawRow, parts: Parts, notes: Notes) -> Values:
    pair = row.values.get(parts["pair"])
    if not isinstance(pair, dict):
        raise DataError(
            "the translation is missing.", "Fill it in or delete the row.", file=row.file, line=row.line
        )
    (source, text), (target, translation) = pair.items()
    notes.say(f"Learned: from {source} to {target}. For the other direction, write prompt and completion.")
    return {"prompt": text, "completion": translation}


TRANSLATIONS = Layout("translations", "Translations", _match_translations, each_row(_rewrite_translation))


def find_pair(columns: Sequence[str]) -> Parts:
    """Finds a question and an answer under less usual names; empty if the usual names form a pair already."""
    if match_role_set(guess_roles(columns, "task"), "task"):
        return {}
    return Table(columns, ()).find_parts(text=FIRST, answer=_SECOND)


def name_pair(values: Values) -> Values:
    """Renames the question and the answer of a row to their usual names, unless it has such names."""
    parts = find_pair(list(values))
    names = _PAIR_NAMES[normalize_name(parts["text"]) == "instruction"] if parts else ("", "")
    new = {parts["text"]: names[0], parts["answer"]: names[1]} if parts else {}
    return {new.get(column, column): value for column, value in values.items()}


def _rewrite_input_output(row: RawRow, parts: Parts, notes: Notes) -> Values:
    return name_pair({column: row.values.get(column) for column in parts.values()})


INPUT_OUTPUT = Layout(
    "input-output",
    "Inputs and outputs",
    lambda table: find_pair(table.columns),
    each_row(_rewrite_input_output),
)
