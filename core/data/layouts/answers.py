"""Layouts of question answering: SQuAD, answers as lists, and multiple choice."""

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
    write_value,
)
from core.data.notes import Notes, RowLeftOut
from core.data.roles.cells import is_blank, is_missing
from core.data.roles.columns import guess_roles, match_role_set
from core.data.roles.literals import parse_literal
from core.errors import DataError

_QUESTIONS = ("question", "query", "prompt", "sentence", "instruction")
CHOICE_QUESTIONS = (*_QUESTIONS, "questionstem", "questiontext", "stem", "ctx", "goal", "premise",
                    "startphrase", "pregunta", "frage")  # fmt: skip
CHOICE_ANSWERS = (
    "answer", "answers", "answerkey", "answeridx", "answerindex", "correctanswer", "correctoption",
    "correctchoice", "correct", "label", "cop", "gold", "goldlabel", "key", "target",
)  # fmt: skip


def _match_squad(table: Table) -> Parts:
    parts = table.find_parts(paragraphs=("paragraphs",))
    return parts if parts and table.every(parts["paragraphs"], lambda c: isinstance(c, list)) else {}


def _rewrite_squad(row: RawRow, parts: Parts, notes: Notes) -> Iterator[Values]:
    for paragraph in take_list(row.values.get(parts["paragraphs"])):
        questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(questions, list) or not all(isinstance(q, dict) for q in questions):
            raise DataError(
                "a paragraph has no list of questions named qas.",
                "Write each paragraph as SQuAD does: context and qas.",
                file=row.file,
                line=row.line,
            )
        for question in questions:
            answer = take_first_text(question.get("answers"), row, notes, "answers")
            if not answer:
                notes.leave_out("the question has no answer", RawRow({}, row.file, row.line))
                continue
            yield {
                "context": paragraph.get("context"),
                "question": question.get("question"),
                "answer": answer,
            }


SQUAD = Layout("squad", "SQuAD: paragraphs with questions", _match_squad, each_row(_rewrite_squad))


def _match_answers(table: Table) -> Parts:
    parts = table.find_parts(answer=("answer", "answers", "response", "output"))
    question = table.find(*_QUESTIONS, "input")
    if not parts or not question or not table.every(parts["answer"], _is_answer_list):
        return {}
    names_fit = match_role_set(guess_roles([question, parts["answer"]], "task"), "task")
    return parts if names_fit else {**parts, "question": question}


def _is_answer_list(cell: Any) -> bool:
    """Whether a cell is a list of texts, or an object with a list of texts; or the text of one of these."""
    if isinstance(cell, str):
        literal = parse_literal(cell)
        is_squad = isinstance(literal, dict) and "text" in literal
        return is_squad and isinstance(literal["text"], list)
    if isinstance(cell, dict):
        cell = cell.get("text", cell.get("value"))
        return isinstance(cell, (str, list))
    if not isinstance(cell, list) or any(isinstance(a, dict) and "role" in a for a in cell):
        return False
    return all(
        isinstance(a, (str, int, float)) or (isinstance(a, dict) and ("text" in a or "answer" in a))
        for a in cell
    )


def _rewrite_answers(row: RawRow, parts: Parts, notes: Notes) -> Values:
    cell = row.values.get(parts["answer"])
    if isinstance(cell, str):
        cell = parse_literal(cell)
    best = _find_best(cell)
    if best is not None:
        notes.count("have answers with a mark or a score; the best one is read", row)
        cell = best.get("text", best.get("answer"))
    answer = take_first_text(cell, row, notes, "answers")
    if not answer.strip():
        raise RowLeftOut("the question has no answer")
    if "question" in parts:
        return {"question": row.values.get(parts["question"]), "answer": answer}
    return {parts["answer"]: answer}


def _find_best(cell: Any) -> dict[str, Any] | None:
    """Finds the best of several answers: the accepted one, else by the highest score or the lowest rank."""
    if isinstance(cell, dict) and isinstance(cell.get("score"), list) and isinstance(cell.get("text"), list):
        cell = [{"text": t, "score": s} for t, s in zip(cell["text"], cell["score"])]
    if not isinstance(cell, list) or len(cell) < 2 or not all(isinstance(a, dict) for a in cell):
        return None
    for key in ("selected", "is_accepted", "accepted"):
        if accepted := [a for a in cell if a.get(key) is True]:
            return dict(accepted[0])
    for key, sign in (("pm_score", 1), ("score", 1), ("rank", -1)):
        if all(isinstance(a.get(key), (int, float)) for a in cell):
            return dict(max(cell, key=lambda a: sign * a[key]))
    return None


SQUAD_ANSWERS = Layout(
    "answer-lists", "Questions with lists of answers", _match_answers, each_row(_rewrite_answers)
)


def _match_choices(table: Table) -> Parts:
    parts = table.find_parts(
        question=CHOICE_QUESTIONS,
        choices=("choices", "options", "endings", "candidates"),
        answer=CHOICE_ANSWERS,
    )
    if not parts or not table.every(parts["answer"], lambda c: isinstance(c, (str, int))):
        return {}
    can_read = table.every(parts["choices"], lambda c: bool(_list_choices(c)))
    # Numbers and letters beside choices that cannot be read are refused row by row, never learned.
    return parts if can_read or table.every(parts["answer"], _is_index) else {}


def _is_index(cell: Any) -> bool:
    text = str(cell).strip()
    return text.isdecimal() or (len(text) == 1 and text.isalpha())


def _list_choices(cell: Any) -> list[tuple[str, str]]:
    """The choices as (label, text): from [text], [{label, text}], {text: [], label: []}, or {label: text}."""
    if isinstance(cell, str):
        literal = parse_literal(cell)
        cell = literal if not isinstance(literal, (list, tuple)) or len(literal) > 1 else None
        cell = list(cell) if isinstance(cell, tuple) else cell
    if isinstance(cell, dict) and isinstance(cell.get("text"), list):
        texts, labels = cell["text"], cell.get("label") or []
        items = [(_letter(i) if i >= len(labels) else str(labels[i]), t) for i, t in enumerate(texts)]
    elif isinstance(cell, dict):
        items = list(cell.items())
    elif isinstance(cell, list) and all(isinstance(c, dict) for c in cell):
        items = [(str(c.get("label", _letter(i))), c.get("text")) for i, c in enumerate(cell)]
    elif isinstance(cell, list):
        items = [(_letter(i), t) for i, t in enumerate(cell)]
    else:
        return []
    if any(is_blank(t) or not isinstance(t, (str, int, float)) for _, t in items):
        return []
    return [(label, write_value(t)) for label, t in items]


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index)


def _rewrite_choices(row: RawRow, parts: Parts, first: int) -> Values:
    choices = _list_choices(row.values.get(parts["choices"]))
    answer = row.values.get(parts["answer"])
    if is_missing(answer) or answer == -1 or answer == "":
        raise RowLeftOut("the question has no answer")
    index = _find_choice(answer, choices, first)
    if not choices:
        raise DataError(
            f"the column {parts['choices']!r} is not a list of choices.",
            'Write it as ["first", "second"], or write the text of the right choice as the answer.',
            file=row.file,
            line=row.line,
        )
    if index is None:
        raise DataError(
            f"the answer {answer!r} is not one of the {len(choices)} choices.",
            "Write it as the number of the choice, its letter, or its text.",
            file=row.file,
            line=row.line,
        )
    question = row.values.get(parts["question"])
    listing = "\n".join(f"{label}. {text}" for label, text in choices)
    return {"question": f"{question}\n\n{listing}", "answer": choices[index][1]}


def _find_choice(answer: Any, choices: list[tuple[str, str]], first: int) -> int | None:
    """Finds the choice that an answer names: by its text, its label, its letter, or its number."""
    text = str(answer).strip()
    if isinstance(answer, str):
        for names in ([t for _, t in choices], [label for label, _ in choices]):
            if text in names:
                return names.index(text)
        letters = [_letter(i) for i in range(len(choices))]
        if text.upper() in letters:
            return letters.index(text.upper())
    if not isinstance(answer, bool) and text.isdecimal() and 0 <= int(text) - first < len(choices):
        return int(text) - first
    return None


def rewrite_choices(rows: Sequence[RawRow], parts: Parts, notes: Notes) -> list[RawRow]:
    """Rewrites all rows; numbers count from 1 if one equals the number of choices and none is 0."""
    numbers = [
        (int(answer), len(_list_choices(row.values.get(parts["choices"]))))
        for row in rows
        if (answer := str(row.values.get(parts["answer"]))).isdecimal()
    ]
    counts_from_one = any(n == size for n, size in numbers) and all(n > 0 for n, _ in numbers)
    if counts_from_one:
        notes.say("The numbers of the right choices count from 1.")
    elif numbers and all(n > 0 for n, _ in numbers):
        notes.say("The numbers of the right choices are read as counting from 0.")

    def rewrite(row: RawRow, parts: Parts, notes: Notes) -> Values:
        return _rewrite_choices(row, parts, int(counts_from_one))

    return each_row(rewrite)(rows, parts, notes)


CHOICES = Layout(
    "multiple-choice",
    "Multiple choice",
    _match_choices,
    rewrite_choices,
    ("The choices are part of the question, and the text of the right choice is learned.",),
)


def _match_booleans(table: Table) -> Parts:
    parts = table.find_parts(
        question=("question", "query", "prompt", "instruction", "input", "claim", "passage"),
        answer=("answer", "label", "output", "response", "completion"),
    )
    rest = Table([c for c in table.columns if c != parts.get("answer")], table.rows)
    if not parts or rest.find("answer", "answers", "output", "response", "completion", "reply"):
        return {}
    return parts if table.every(parts["answer"], lambda c: isinstance(c, bool)) else {}


def _rewrite_boolean(row: RawRow, parts: Parts, notes: Notes) -> Values:
    answer = row.values.get(parts["answer"])
    if is_missing(answer):
        raise RowLeftOut("the question has no answer")
    return {"question": row.values.get(parts["question"]), "answer": "yes" if answer else "no"}


BOOLEAN_ANSWERS = Layout(
    "boolean-answers",
    "Questions with true or false",
    _match_booleans,
    each_row(_rewrite_boolean),
    ("true is learned as yes, and false as no.",),
)


def _match_targets(table: Table) -> Parts:
    parts = table.find_parts(question=_QUESTIONS, targets=("mc1targets", "mctargets"))
    return parts if parts and table.every(parts["targets"], lambda c: isinstance(c, dict)) else {}


def _rewrite_targets(row: RawRow, parts: Parts, notes: Notes) -> Values:
    targets = row.values.get(parts["targets"]) or {}
    choices, labels = take_list(targets.get("choices")), take_list(targets.get("labels"))
    if len(choices) != len(labels) or labels.count(1) != 1:
        raise RowLeftOut("no choice, or more than one, is marked as right")
    answer = {"choices": choices, "answer": labels.index(1), "question": row.values.get(parts["question"])}
    return _rewrite_choices(
        RawRow(answer, row.file, row.line),
        {"question": "question", "choices": "choices", "answer": "answer"},
        0,
    )


CHOICE_TARGETS = Layout(
    "choice-targets",
    "Multiple choice with marks (TruthfulQA)",
    _match_targets,
    each_row(_rewrite_targets),
    ("The choices are part of the question, and the text of the right choice is learned.",),
)
