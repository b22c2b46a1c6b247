"""Layouts of annotation tools: Label Studio, Argilla, doccano, Prodigy.

Only finished annotations are learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from core.data.cells import is_blank, parse_cell
from core.data.columns import find_columns
from core.data.layout_pairs import FIRST, TEXTS, name_pair
from core.data.layout_preferences import parse_or_none
from core.data.layout_table import (
    Layout,
    Parts,
    Table,
    Values,
    each_row,
    take_first_text,
    take_list,
    take_object,
    write_value,
)
from core.data.notes import Notes, RowLeftOut
from core.data.readers import RawRow
from core.errors import DataError

_STUDIO_META = (
    "id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "completed_by",
)  # fmt: skip
_ARGILLA_META = ("id", "status", "_server_id", "external_id")


# ---------------------------------------------------------------- Label Studio


def _match_studio(table: Table) -> Parts:
    parts = table.find_parts(data=("data",), annotations=("annotations",))
    is_export = (
        parts
        and table.every(parts["data"], lambda c: isinstance(c, dict))
        and table.every(parts["annotations"], lambda c: isinstance(c, list))
    )
    return parts if is_export else {}


def _rewrite_studio(row: RawRow, parts: Parts, notes: Notes) -> Iterator[Values]:
    """Gives one row per finished annotation of a task; only the ground truth, where there is one."""
    data = take_object(row.values.get(parts["data"]))
    done = []
    for annotation in map(take_object, take_list(row.values.get(parts["annotations"]))):
        if annotation.get("was_cancelled"):
            notes.count("have an annotation that was skipped or cancelled; it is not read", row)
        elif not annotation.get("result"):
            notes.count("have an annotation without a result; it is not read", row)
        else:
            done.append(annotation)
    if not done:
        raise RowLeftOut("the task has no finished annotation")
    best = [a for a in done if a.get("ground_truth")]
    if best and len(best) < len(done):
        notes.count("have a ground truth; the other annotations of these tasks are not read", row)
    for annotation in best or done:
        values = _read_results(annotation["result"], row, notes)
        if "answer" not in values and "answer" not in data:
            raise RowLeftOut("the annotation has no text and no choice")
        yield name_pair({**data, **values})


def _read_results(results: Any, row: RawRow, notes: Notes) -> Values:
    """Reads the results of an annotation: its first text (or choice) is the answer, the others keep names."""
    texts: dict[str, list[Any]] = {}
    kinds: dict[str, str] = {}
    for result in map(take_object, take_list(results)):
        name, value = str(result.get("from_name")), result.get("value")
        kind = str(result.get("type"))
        if isinstance(value, dict) and kind in ("textarea", "choices"):
            texts.setdefault(name, []).append(value.get("text" if kind == "textarea" else "choices"))
            kinds[name] = kind
    answers = [n for n in texts if kinds[n] == "textarea"] or list(texts)
    values: Values = {}
    for name in texts:
        key = "answer" if name == answers[0] else name
        what = "answers" if key == "answer" else f"values of {name}"
        values[key] = take_first_text(texts[name], row, notes, what)
    return values


LABEL_STUDIO = Layout("label-studio", "Label Studio", _match_studio, each_row(_rewrite_studio))


def _match_studio_rows(table: Table) -> Parts:
    parts = table.find_parts(id=("annotationid",), seconds=("leadtime",))
    if not parts:
        return {}
    columns = [c for c in table.columns if c not in _STUDIO_META]
    answers = [c for role in ("answer", "output", "completion") for c in find_columns(role, columns)]
    answers += [c for c in ("label", "labels", "summary") if c in columns]
    parts |= {"answer": answers[0]} if answers else {}
    return parts | ({"question": question} if (question := table.find(*FIRST)) else {})


def _rewrite_studio_row(row: RawRow, parts: Parts, notes: Notes) -> Values:
    if is_blank(row.values.get(parts["id"])):
        raise RowLeftOut("the task has no finished annotation")
    values: Values = {}
    for column, cell in row.values.items():
        if column not in _STUDIO_META and column != parts.get("answer"):
            values[column] = _join_values(cell)
    if "answer" in parts:
        cell = parse_or_none(row.values.get(parts["answer"]))
        answer = take_first_text(cell, row, notes, "answers")
        if not answer.strip():
            raise RowLeftOut("the annotation has no answer")
        name = parts["answer"] if _is_answer_name(parts["answer"]) else "answer"
        values[name] = answer
    return name_pair(values)


def _is_answer_name(column: str) -> bool:
    return any(find_columns(role, [column]) for role in ("answer", "output", "completion"))


def _join_values(cell: Any) -> Any:
    """Joins the choices of a cell with commas; leaves any other cell as it is."""
    parsed = parse_or_none(cell)
    parsed = parsed.get("choices") if isinstance(parsed, dict) else parsed
    if isinstance(parsed, list) and all(isinstance(p, (str, int)) for p in parsed):
        return ", ".join(map(write_value, parsed))
    return cell


LABEL_STUDIO_ROWS = Layout(
    "label-studio-rows", "Label Studio (JSON_MIN or CSV)", _match_studio_rows, each_row(_rewrite_studio_row)
)


# ---------------------------------------------------------------- Argilla


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
    if _is_answer_name(answer):
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


# ---------------------------------------------------------------- doccano and Prodigy


def _match_label_lists(table: Table) -> Parts:
    parts = table.find_parts(text=TEXTS, label=("label", "labels"))
    return parts if parts and table.every(parts["label"], lambda c: isinstance(c, list)) else {}


def _rewrite_label_list(row: RawRow, parts: Parts, notes: Notes) -> Values:
    labels = row.values.get(parts["label"])
    if any(isinstance(label, (list, dict)) for label in labels or []):
        raise DataError(
            f"the column {parts['label']!r} marks spans of the text; spans cannot be learned as an answer.",
            "Write prompt and completion columns, or import the texts as domain data.",
            file=row.file,
            line=row.line,
        )
    if is_blank(labels):
        raise RowLeftOut(f"the column {parts['label']!r} is empty")
    return {
        "question": row.values.get(parts["text"]),
        "answer": take_first_text(labels, row, notes, "labels"),
    }


LABEL_LISTS = Layout(
    "label-lists",
    "Texts with lists of labels (doccano)",
    _match_label_lists,
    each_row(_rewrite_label_list),
    ("The first label of each text is learned as its answer.",),
)


def _match_prodigy(table: Table) -> Parts:
    parts = table.find_parts(task=("taskhash",), decision=("answer",))
    if not parts:
        return {}
    for part, names in (
        ("text", TEXTS), ("label", ("label",)), ("choice", ("accept",)), ("options", ("options",)),
        ("typed", ("userinput", "fieldid", "notes", "transcript")),
    ):  # fmt: skip
        if column := table.find(*names):
            parts[part] = column
    return parts


def _rewrite_prodigy(rows: Sequence[RawRow], parts: Parts, notes: Notes) -> list[RawRow]:
    if "text" not in parts or not any(p in parts for p in ("label", "choice", "typed")):
        raise DataError(
            "this is an export of Prodigy without labels of whole texts.",
            "Write prompt and completion columns, or import the texts as domain data.",
            file=rows[0].file,
            line=rows[0].line,
        )

    def rewrite(row: RawRow, parts: Parts, notes: Notes) -> Values:
        decision = row.values.get(parts["decision"])
        if decision != "accept":
            raise RowLeftOut(f"the answer of the annotator is {decision!r}, not 'accept'")
        label = parse_cell(row.values.get(_find_decision(parts)), row)
        if "options" in parts:
            label = _name_options(label, take_list(parse_cell(row.values.get(parts["options"]), row)))
        answer = take_first_text(label, row, notes, "labels")
        if not answer:
            raise RowLeftOut("the text has no label")
        return {"question": row.values.get(parts["text"]), "answer": answer}

    return each_row(rewrite)(rows, parts, notes)


def _find_decision(parts: Parts) -> str:
    """The column of what the annotator chose or typed."""
    return next(parts[p] for p in ("typed", "choice", "label") if p in parts)


def _name_options(chosen: Any, options: Sequence[Any]) -> Any:
    """Replaces the ids of chosen options with their texts."""
    texts = {o["id"]: o.get("text", o.get("label", o["id"])) for o in map(take_object, options) if "id" in o}
    if isinstance(chosen, list):
        return [texts.get(c, c) if isinstance(c, (str, int)) else c for c in chosen]
    return chosen


PRODIGY = Layout(
    "prodigy",
    "Prodigy",
    _match_prodigy,
    _rewrite_prodigy,
    ("Only accepted labels are learned.",),
)
