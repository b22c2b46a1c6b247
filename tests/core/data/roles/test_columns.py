"""Columns: roles are guessed and can be corrected; errors name file and line of a bad cell."""

import datetime

import pytest

from core.data.formats.readers import RawRow
from core.data.roles.columns import (
    ROLE_SETS,
    ROLES,
    check_roles,
    guess_kind,
    guess_roles,
    list_columns,
    to_canonical,
)
from core.errors import DataError


def raw(*values, file="f.jsonl"):
    return [RawRow(v, file, number) for number, v in enumerate(values, start=1)]


def pair(user, assistant):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


@pytest.mark.parametrize(
    ("columns", "kind", "roles"),
    [
        (["id", "prompt", "completion"], "task", {"prompt": "prompt", "completion": "completion"}),
        (
            ["Prompt", "Response", "Category"],
            "task",
            {"prompt": "Prompt", "completion": "Response", "type": "Category"},
        ),
        (
            ["question", "answer", "context", "type"],
            "task",
            {"question": "question", "answer": "answer", "context": "context", "type": "type"},
        ),
        (["Q", "A"], "task", {"question": "Q", "answer": "A"}),
        (
            ["instruction", "input", "output", "text"],
            "task",
            {"instruction": "instruction", "output": "output", "input": "input"},
        ),
        (
            ["instruction", "output", "system_prompt"],
            "task",
            {"instruction": "instruction", "output": "output", "system": "system_prompt"},
        ),
        (["conversations", "id"], "task", {"messages": "conversations"}),
        (["messages", "prompt", "completion"], "task", {"messages": "messages"}),
        (["id", "Text"], "domain", {"text": "Text"}),
        (["content", "title"], "domain", {"text": "content"}),
        (["whatever"], "domain", {"text": "whatever"}),
        (["question", "id"], "domain", {}),
    ],
)
def test_kind_and_roles_are_guessed_from_the_names(columns, kind, roles):
    rows = raw(dict.fromkeys(columns, "x"))
    assert guess_kind(rows) == kind
    assert guess_roles(columns, kind) == roles


def test_an_incomplete_guess_keeps_the_roles_it_matched():
    assert guess_roles(["question", "reply_text"], "task") == {"question": "question"}


def test_every_role_set_is_built_from_known_roles():
    assert ROLES == {
        "domain": ("text",),
        "task": (
            "messages",
            "system",
            "type",
            "prompt",
            "completion",
            "question",
            "answer",
            "context",
            "instruction",
            "output",
            "input",
        ),
    }
    assert [str(s) for s in ROLE_SETS] == [
        "text",
        "messages",
        "prompt + completion",
        "question + answer",
        "instruction + output",
    ]


def test_columns_are_the_union_in_order_of_appearance():
    assert list_columns(raw({"b": 1}, {"b": 1}, {"a": 1, "b": 2})) == ["b", "a"]
    with pytest.raises(
        DataError, match=r"f.jsonl, line 65: the rows up to this line have more than 64 different columns"
    ):
        list_columns(raw(*({f"c{i}": 1} for i in range(70))))


# ------------------------------------------------------------ canonical rows


def test_domain_rows_are_texts_only():
    assert to_canonical(raw({"text": " a ", "id": 1}, {"text": "b"}), "domain", {"text": "text"}) == [
        {"text": " a "},
        {"text": "b"},
    ]


@pytest.mark.parametrize(
    ("values", "roles", "messages"),
    [
        ({"p": "hi", "c": "yo"}, {"prompt": "p", "completion": "c"}, pair("hi", "yo")),
        ({"q": "hi", "a": "yo"}, {"question": "q", "answer": "a"}, pair("hi", "yo")),
        (
            {"q": "hi", "a": "yo", "c": "ctx"},
            {"question": "q", "answer": "a", "context": "c"},
            pair("ctx\n\nhi", "yo"),
        ),
        (
            {"q": "hi", "a": "yo", "c": None},
            {"question": "q", "answer": "a", "context": "c"},
            pair("hi", "yo"),
        ),
        (
            {"i": "do", "n": "this", "o": "yo"},
            {"instruction": "i", "input": "n", "output": "o"},
            pair("do\n\nthis", "yo"),
        ),
        (
            {"i": "do", "n": " ", "o": "yo"},
            {"instruction": "i", "input": "n", "output": "o"},
            pair("do", "yo"),
        ),
        ({"q": "7 times 6?", "a": 42}, {"question": "q", "answer": "a"}, pair("7 times 6?", "42")),
        ({"q": "half?", "a": 0.5}, {"question": "q", "answer": "a"}, pair("half?", "0.5")),
    ],
)
def test_pairs_become_a_user_and_an_assistant_message(values, roles, messages):
    columns = dict.fromkeys(roles.values(), "x")
    assert to_canonical(raw(values, columns), "task", roles)[0] == {"messages": messages}


def test_a_type_is_kept_and_an_empty_one_left_out():
    rows = to_canonical(
        raw({"q": "1", "a": "2", "t": " easy "}, {"q": "1", "a": "2", "t": ""}, {"q": "1", "a": "2"}),
        "task",
        {"question": "q", "answer": "a", "type": "t"},
    )
    assert [r.get("type") for r in rows] == ["easy", None, None]


def test_a_system_text_comes_first_once():
    roles = {"messages": "m", "system": "s"}
    own = [{"role": "system", "content": "own"}, *pair("hi", "yo")]
    rows = to_canonical(
        raw(
            {"m": pair("hi", "yo"), "s": "be kind"},
            {"m": own, "s": "be kind"},
            {"m": pair("hi", "yo"), "s": ""},
        ),
        "task",
        roles,
    )
    assert [r["messages"][0]["content"] for r in rows] == ["be kind", "own", "hi"]


@pytest.mark.parametrize(
    "cell",
    [
        [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}],
        '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]',
        [{"role": "user", "content": "hi", "weight": 1}, {"role": "assistant", "content": "yo"}],
    ],
)
def test_messages_come_in_both_usual_forms_and_as_json_text(cell):
    assert to_canonical(raw({"m": cell}), "task", {"messages": "m"}) == [{"messages": pair("hi", "yo")}]


def test_an_empty_role_means_that_it_is_not_used():
    assert to_canonical(
        raw({"q": "1", "a": "2"}), "task", {"question": "q", "answer": "a", "context": "", "type": ""}
    ) == [{"messages": pair("1", "2")}]


# ------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        ({}, "missing"),
        ({"text": None}, "is null"),
        ({"text": ""}, "is empty"),
        ({"text": " \n\t"}, "is empty"),
        ({"text": float("nan")}, "is NaN"),
        ({"text": float("inf")}, "is infinite, not text"),
        ({"text": True}, "is true or false, not text"),
        ({"text": ["x"]}, "is a list, not text"),
        ({"text": {"x": 1}}, "is an object, not text"),
        ({"text": datetime.date(2025, 1, 1)}, "is date, not text"),
        ({"text": "a\0b"}, "U+0000"),
        ({"text": "a\ud800b"}, "U+D800"),
    ],
)
def test_t3_a_bad_cell_is_refused_with_file_and_line(cell, what):
    with pytest.raises(DataError) as caught:
        to_canonical(raw({"text": "fine"}, cell), "domain", {"text": "text"})
    error = caught.value
    assert (error.file, error.line) == ("f.jsonl", 2)
    assert "the column 'text'" in error.what and what in error.what and error.fix


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        (None, "missing or empty"),
        ([], "missing or empty"),
        ("hello", "not a list of messages"),
        (["hello"], "message 1 is not an object"),
        (
            [{"role": "narrator", "content": "x"}],
            "the role of message 1 must be system, user or assistant, got 'narrator'",
        ),
        ([{"role": "tool", "content": "x"}], "the role of the last message must be assistant, got tool"),
        (
            [{"role": ["user"], "content": "x"}],
            "the role of message 1 must be system, user or assistant, got ['user']",
        ),
        ([{"content": "x"}], "the role of message 1 must be system, user or assistant, got None"),
        (pair("hi", ""), "message 2 of the column 'm' is empty"),
        ([{"role": "user"}, {"role": "assistant", "content": "x"}], "message 1 of the column 'm' is null"),
        (
            [{"role": "user", "content": "x"}],
            "the role of the last message must be assistant, got user: the adapter learns to write",
        ),
        ([{"role": "assistant", "content": "x"}], "no message has the role user"),
        (
            pair("hi", "yo") + [{"role": "system", "content": "x"}],
            "message 3 has the role system; only the first message may have it",
        ),
        ("[" * 33 + "]" * 33, "nested deeper than 32"),
        ('[{"role": ', "the JSON is incomplete"),
    ],
)
def test_t2_t3_bad_messages_are_refused_with_file_and_line(cell, what):
    with pytest.raises(DataError) as caught:
        to_canonical(raw({"m": pair("a", "b")}, {"m": cell}), "task", {"messages": "m"})
    assert (caught.value.file, caught.value.line) == ("f.jsonl", 2)
    assert what in str(caught.value) and caught.value.fix


def test_missing_roles_name_the_columns_and_the_required_roles():
    with pytest.raises(DataError) as caught:
        to_canonical(raw({"frage": "1", "antwort": "2"}), "task", {})
    text = str(caught.value)
    assert "The columns are: frage, antwort." in text
    assert "prompt + completion" in text and "question + answer (optional: context, system, type)" in text
    assert "Assign columns to these roles" in text


@pytest.mark.parametrize(
    ("kind", "roles", "what"),
    [
        ("task", {"question": "q"}, "Roles given: question = q"),
        ("task", {"question": "q", "answer": "x"}, "The column 'x' does not exist. The columns are: q, a."),
        ("task", {"question": "q", "answer": "q"}, "The column 'q' has two roles"),
        ("task", {"text": "q"}, "'text' is not a role of task data. Choose from: messages"),
        ("task", {"question": "q", "completion": "a"}, "do not form task data"),
        ("task", {"question": "q", "answer": "a", "input": "b"}, "The column 'b' does not exist"),
        ("domain", {"question": "q"}, "'question' is not a role of domain data"),
        ("domain", {}, "Assign columns to these roles: text. Questions with answers are task data"),
        ("poem", {}, "The kind of a dataset must be domain or task, got 'poem'."),
    ],
)
def test_roles_that_do_not_fit_are_refused(kind, roles, what):
    with pytest.raises(DataError) as caught:
        check_roles(["q", "a"], kind, roles)
    assert what in str(caught.value) and caught.value.fix


def test_a_column_that_is_not_a_type_is_refused():
    roles = {"question": "q", "answer": "a", "type": "t"}
    with pytest.raises(DataError, match="f.jsonl, line 1001: the column 't' does not look like a type"):
        to_canonical(raw(*({"q": "1", "a": "2", "t": f"id {i}"} for i in range(1001))), "task", roles)
    with pytest.raises(DataError, match="f.jsonl, line 1: .* longer than 120"):
        to_canonical(raw({"q": "1", "a": "2", "t": "x" * 121}), "task", roles)
