"""Layouts of Argilla, whose exports differ by version. Only finished responses are learned."""

from __future__ import annotations

from collections.abc import Sequence

from core.data.formats.readers import RawRow
from core.data.layouts.annotations import is_answer_name
from core.data.layouts.layout import (
    Layout,
    Parts,
    Table,
    Values,
    each_row,
    take_first_text,
    take_list,
    take_object,
)
from core.data.layouts.pairs import FIRST, TEXTS, name_pair
from core.data.notes import Notes, RowLeftOut
from core.data.roles.columns import find_columns


def _match_argilla(table: Table) -> Parts:
    questions = [c for c in table.columns if c.endswith(".responses") and f"{c}.status" in table.columns]
    parts = {c: c for name in questions for c in (name, f"{name}.status")}
    question = table.find(*FIRST) if parts else ""
    return parts | ({"question": question} if question else {})


def _rewrite_argilla(row: RawRow, parts: Parts, notes: Notes) -> Values:
    """Reads the first submitted response of each question; the first question with a text is the answer."""
    values: Values = {}
    for column in (c for c in parts if c.endswith(".responses")):
        responses = take_list(row.values.get(column))
        statuses = take_list(row.values.get(f"{column}.status"))
        given = [r for r, s in zip(responses, statuses) if s == "submitted"]
        name = column.removesuffix(".responses")
        values[name] = take_first_text(given, row, notes, f"responses of {name}")
    answer = _find_answer(list(values))
    if not values.get(answer):
        raise RowLeftOut("no response was submitted")
    fields = {c: v for c, v in row.values.items() if c not in parts}
    if "question" in parts:
        fields[parts["question"]] = row.values.get(parts["question"])
    return name_pair({**fields, **_name_answer(values, answer)})


def _name_answer(values: Values, answer: str) -> Values:
    """Names the response that is the answer so, unless its own name says it."""
    if is_answer_name(answer):
        return values
    return {"answer" if name == answer else name: value for name, value in values.items()}


def _find_answer(questions: Sequence[str]) -> str:
    """Finds the question of a record whose response is the answer: by its name, else the first one."""
    names = [c for role in ("answer", "output") for c in find_columns(role, questions)]
    return [*names, *questions, ""][0]


ARGILLA = Layout(
    "argilla",
    "Argilla",
    _match_argilla,
    each_row(_rewrite_argilla),
    ("Only submitted responses are learned; suggestions, drafts and discarded responses are not read.",),
)


def _match_argilla_records(table: Table) -> Parts:
    parts = table.find_parts(fields=("fields",), responses=("responses",))
    is_export = parts and all(table.every(c, lambda v: isinstance(v, dict)) for c in parts.values())
    return parts if is_export else {}


def _rewrite_argilla_record(row: RawRow, parts: Parts, notes: Notes) -> Values:
    fields = take_object(row.values.get(parts["fields"]))
    values: Values = {}
    for name, responses in take_object(row.values.get(parts["responses"])).items():
        values[name] = take_first_text(responses, row, notes, f"responses of {name}")
    answer = _find_answer(list(values))
    if not values.get(answer):
        raise RowLeftOut("the record has no response")
    return name_pair({**fields, **_name_answer(values, answer)})


ARGILLA_RECORDS = Layout(
    "argilla-records",
    "Argilla records",
    _match_argilla_records,
    each_row(_rewrite_argilla_record),
    (
        "This export does not say which responses were submitted, drafts, or discarded: all are read. "
        "Export with to_list(flatten=True) to learn the submitted ones only.",
    ),
)


def _match_feedback(table: Table) -> Parts:
    """Questions of Argilla 1: lists of responses with their status."""
    questions = [c for c in table.columns if f"{c}-suggestion" in table.columns]
    if not questions or not all(table.every(c, lambda v: isinstance(v, (list, dict))) for c in questions):
        return {}
    parts = {f"response {c}": c for c in questions}
    rest = Table([c for c in table.columns if not c.startswith(tuple(questions))], table.rows)
    return parts | ({"question": question} if (question := rest.find(*FIRST)) else {})


def _rewrite_feedback(row: RawRow, parts: Parts, notes: Notes) -> Values:
    values: Values = {}
    questions = [column for part, column in parts.items() if part.startswith("response ")]
    for name in questions:
        cell = row.values.get(name)
        if isinstance(cell, dict):  # of lists, as datasets writes a list of objects
            keys = list(cell)
            cell = [dict(zip(keys, items)) for items in zip(*(take_list(cell[k]) for k in keys))]
        given = [r.get("value") for r in map(take_object, take_list(cell)) if r.get("status") == "submitted"]
        values[name] = take_first_text(given, row, notes, f"responses of {name}")
    answer = _find_answer(list(values))
    if not values.get(answer):
        raise RowLeftOut("no response was submitted")
    fields = {c: v for c, v in row.values.items() if not c.startswith(tuple(questions))}
    return name_pair({**fields, **_name_answer(values, answer)})


ARGILLA_FEEDBACK = Layout(
    "argilla-feedback",
    "Argilla 1, feedback datasets",
    _match_feedback,
    each_row(_rewrite_feedback),
    ("Only submitted responses are learned; suggestions, drafts and discarded responses are not read.",),
)


def _match_validation(table: Table) -> Parts:
    parts = table.find_parts(text=TEXTS, answer=("annotation",), status=("status",))
    known = ("Validated", "Default", "Edited", "Discarded")
    return parts if parts and table.every(parts["status"], lambda c: c in known) else {}


def _rewrite_validation(row: RawRow, parts: Parts, notes: Notes) -> Values:
    status = row.values.get(parts["status"])
    if status != "Validated":
        raise RowLeftOut(f"the status is {status!r}, not 'Validated'")
    answer = take_first_text(row.values.get(parts["answer"]), row, notes, "annotations")
    if not answer:
        raise RowLeftOut("the record has no annotation")
    return {"question": row.values.get(parts["text"]), "answer": answer}


ARGILLA_VALIDATED = Layout(
    "argilla-validated",
    "Argilla 1, texts with annotations",
    _match_validation,
    each_row(_rewrite_validation),
    ("Only validated annotations are learned; predictions are not read.",),
)
