"""Roles that the cells suggest are asked, never assumed; ids and numbers are never learned as text."""

import random
import uuid

import pytest

from core.data.formats.readers import RawRow
from core.data.reading import read_rows
from core.data.roles.column_shapes import measure_column
from core.data.roles.proposals import propose
from core.errors import UnconfirmedRoles

WORDS = [
    "ferry",
    "lake",
    "harbour",
    "dog",
    "ticket",
    "morning",
    "evening",
    "bicycle",
    "captain",
    "island",
    "storm",
    "price",
    "timetable",
]


def raw(rows):
    return [RawRow(v, "f.csv", number) for number, v in enumerate(rows, start=2)]


def table(count=8, **columns):
    return raw([{name: cell(i) for name, cell in columns.items()} for i in range(count)])


def sentence(i, words=7):
    rng = random.Random(i)
    return f"The {' '.join(rng.choices(WORDS, k=words))} number {WORDS[i % len(WORDS)]}."


def question(i):
    return f"When does the {WORDS[i % len(WORDS)]} leave {WORDS[(i + 3) % len(WORDS)]}?"


def long_text(i):
    return " ".join(sentence(10 * i + k) for k in range(12))


def label(i):
    return ("good", "bad")[i % 2]


@pytest.mark.parametrize(
    ("columns", "kind", "roles", "reason"),
    [
        (
            {"x": question, "y": sentence},
            "task",
            {"question": "x", "answer": "y"},
            "100 % of the texts in 'x'",
        ),
        ({"y": sentence, "x": question}, "task", {"question": "x", "answer": "y"}, "question mark"),
        ({"en": sentence, "de": sentence}, "task", {"question": "en", "answer": "de"}, "only two columns"),
        ({"id": int, "k": str, "x": question, "y": sentence}, "task", {"question": "x", "answer": "y"}, ""),
        (
            {"text": sentence, "feeling": label},
            "task",
            {"question": "text", "answer": "feeling"},
            "2 different",
        ),
        (
            {"gist": sentence, "paper": long_text},
            "task",
            {"question": "paper", "answer": "gist"},
            "long texts",
        ),
        ({"text": long_text, "title": lambda i: f"The {WORDS[i]}"}, "domain", {"text": "text"}, "'title'"),
        ({"text": sentence, "heading": label}, "domain", {"text": "text"}, "'heading'"),
        ({"url": label, "title": sentence, "content": sentence}, "domain", {"text": "content"}, "'url'"),
        ({"field": sentence, "n": int}, "domain", {"text": "field"}, "'n'"),
    ],
)
def test_roles_of_any_names_are_proposed_with_a_reason(columns, kind, roles, reason):
    rows = table(**columns)
    reading = read_rows(rows)
    assert isinstance(reading.problem, UnconfirmedRoles)
    assert (reading.kind, reading.roles, reading.problem.roles) == (kind, roles, roles)
    assert reading.question.endswith("?") and reason in reading.reason
    assert len(reading.rows) >= len(rows), "what the roles would give can be shown"
    confirmed = read_rows(rows, kind, roles)
    assert confirmed.problem is None and confirmed.rows == reading.rows
    if kind == "task":
        swapped = read_rows(rows, kind, dict(zip(roles, reversed(roles.values()))))
        assert swapped.rows[0]["messages"][0]["content"] == reading.rows[0]["messages"][1]["content"]


@pytest.mark.parametrize(
    "columns",
    [
        {"a1": sentence, "b1": question, "c1": sentence},
        {"id": int, "when": lambda i: f"2026-01-0{i + 1}"},
        {"number": int},
        {"key": lambda i: str(uuid.UUID(int=i))},
        {"feeling": label},
    ],
)
def test_columns_that_say_nothing_are_refused_with_what_they_hold(columns):
    reading = read_rows(table(**columns))
    assert reading.rows == [] and "the columns do not say what to learn" in str(reading.problem)
    assert all(repr(name) in str(reading.problem) for name in columns) and "--role" in reading.problem.fix


@pytest.mark.parametrize("name", ["title", "author", "summary2", "source_text"])
def test_a_text_is_never_assumed_beside_another_column_of_texts(name):
    reading = read_rows(table(text=sentence, **{name: sentence}))
    assert isinstance(reading.problem, UnconfirmedRoles)


def test_a_text_beside_ids_numbers_dates_and_addresses_is_read():
    rows = table(id=int, text=sentence, url=lambda i: f"https://x.org/{i}",
                 date=lambda i: f"2026-01-0{i + 1}", lang=lambda i: "en")  # fmt: skip
    reading = read_rows(rows)
    assert reading.problem is None and reading.roles == {"text": "text"}
    assert reading.unread == ["id", "url", "date", "lang"]


def test_a_column_of_ids_is_not_learned_for_its_name():
    reading = read_rows(table(question=question, answer=lambda i: str(uuid.UUID(int=i << 90))))
    assert "'answer' would be learned by its name, but it holds ids" in str(reading.problem)


# ---------------------------------------------------------------- a property of generated tables

SHAPES = {
    "text": sentence,
    "question": question,
    "long": long_text,
    "label": label,
    "number": int,
    "float": lambda i: i / 7,
    "uuid": lambda i: str(uuid.UUID(int=(i + 1) << 80)),
    "code": lambda i: f"FR-{1000 + 7 * i}",
    "date": lambda i: f"2026-02-{i + 1:02d}",
    "url": lambda i: f"https://example.org/{i}",
    "constant": lambda i: "v1",
    "empty": lambda i: None,
    "list": lambda i: [i, i + 1],
    "bool": lambda i: bool(i % 2),
}
TEXTS = ("text", "question", "long")
NAMES = ("alpha", "beta_1", "Col C", "id", "idx", "text", "content", "note", "body", "Spalte", "ключ", "n",
         "uuid", "status", "created", "title", "description", "value", "comment", "x")  # fmt: skip


@pytest.mark.parametrize("seed", range(300))
def test_generated_tables_are_read_right_or_asked_or_refused(seed):
    rng = random.Random(seed)
    names = rng.sample(NAMES, rng.randint(1, 6))
    shapes = {name: rng.choice(list(SHAPES)) for name in names}
    reading = read_rows(table(12, **{name: SHAPES[shape] for name, shape in shapes.items()}))
    learned = [shapes.get(column, "") for column in reading.roles.values()]
    texts = [name for name in names if shapes[name] in TEXTS]
    labels = [name for name in names if shapes[name] in ("label", "bool")]
    if names in (["text"], ["content"], ["body"]):
        assert reading.roles in ({}, {"text": names[0]}), "a file of one column with such a name is a text"
    elif reading.problem is None:
        assert reading.kind == "domain" and learned[0] in TEXTS, (shapes, reading.roles)
        assert len(texts) == 1 and not labels, "beside other texts or labels the roles are asked"
        assert set(reading.unread) == set(names) - set(texts)
    elif isinstance(reading.problem, UnconfirmedRoles):
        assert set(learned) <= {*TEXTS, "label", "bool"} and learned[0] in TEXTS, (shapes, reading.roles)
        if len(texts) == 2 and reading.kind == "task":
            assert set(reading.roles.values()) == set(texts)
    else:
        assert reading.problem.fix
        assert len(texts) != 2 or len(names) == 1, "two columns of texts are always asked"


def test_shapes_are_measured_over_all_rows_in_bounded_time():
    rows = raw([{"x": sentence(i)} for i in range(2000)])
    assert measure_column(rows, "x").kind == "text"
    assert propose([measure_column(rows, "x")], "task") is None
