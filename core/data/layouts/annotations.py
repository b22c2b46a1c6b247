"""Layouts of annotation tools: Label Studio, doccano, Prodigy (Argilla: `layout_argilla`).

Only finished annotations are learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from core.data.formats.readers import RawRow
from core.data.layouts.layout import (
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
from core.data.layouts.pairs import FIRST, TEXTS, name_pair
from core.data.layouts.preferences import parse_or_none
from core.data.notes import Notes, RowLeftOut
from core.data.roles.cells import is_blank, parse_cell
from core.data.roles.columns import find_columns
from core.errors import DataError

_STUDIO_META = (
    "id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "completed_by",
)  # fmt: skip


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
        name = parts["answer"] if is_answer_name(parts["answer"]) else "answer"
        values[name] = answer
    return name_pair(values)


def is_answer_name(column: str) -> bool:
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
