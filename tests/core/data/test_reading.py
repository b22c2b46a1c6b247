"""Readings: any rows give canonical rows or an error in words; choices of the user are final."""

from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.formats.readers import RawRow
from core.data.reading import read_rows
from core.errors import DataError

NAMES = (
    "text", "content", "messages", "conversations", "prompt", "completion", "question", "answer", "answers",
    "instruction", "input", "output", "context", "system", "type", "response", "history", "label", "labels",
    "kto_tag", "chosen", "rejected", "preferred_output", "choices", "paragraphs", "data", "annotations",
    "annotation_id", "lead_time", "answer.responses", "answer.responses.status", "fields", "responses",
    "message_id", "parent_id", "role", "rank", "summary", "translation", "premise", "hypothesis", "source",
    "target", "_task_hash", "accept", "spans", "id",
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 3),
    st.floats(),
    st.sampled_from(
        ["", " ", "x", "A", "user", "human", "assistant", "gpt", "accept", "submitted", '["a"]', "{"]
    ),
)
KEYS = st.sampled_from(
    ["role", "from", "content", "value", "text", "weight", "tool_calls", "qas", "answers", "question",
     "label", "result", "type", "choices", "from_name", "context", "ground_truth", "was_cancelled",
     "messages", "thinking"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
ROWS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True).flatmap(
    lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, VALUES)), min_size=1, max_size=4)
)


def raw(*values):
    return [RawRow(v, "f.jsonl", number) for number, v in enumerate(values, start=1)]


def pair(user, assistant):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def check_canonical(reading):
    """Checks what every canonical row must hold."""
    assert len(reading.rows) == len(reading.places)
    for row in reading.rows:
        if reading.kind == "domain":
            assert set(row) == {"text"} and row["text"].strip()
            continue
        assert set(row) <= {"messages", "type"}
        messages = row["messages"]
        assert messages[-1]["role"] == "assistant" and "weight" not in messages[-1]
        assert any(m["role"] == "user" for m in messages)
        assert all(m["role"] != "system" for m in messages[1:])
        for m in messages:
            assert set(m) <= {"role", "content", "weight", "thought"} and isinstance(m["content"], str)
            assert m["role"] in ("system", "user", "assistant", "tool")
            assert "weight" not in m or (m["role"], m["weight"]) == ("assistant", 0)


@given(values=ROWS, kind=st.sampled_from([None, "domain", "task"]))
@settings(max_examples=250, deadline=None)
def test_any_rows_give_canonical_rows_or_an_error_with_a_remedy(values, kind):
    reading = read_rows(raw(*values), kind)
    assert set(reading.unread) <= set(reading.columns)
    if reading.problem is None:
        assert reading.rows
        check_canonical(reading)
    else:
        assert isinstance(reading.problem, DataError) and reading.problem.fix


@given(values=ROWS, data=st.data())
@settings(max_examples=150, deadline=None)
def test_roles_that_the_user_chose_are_never_replaced(values, data):
    columns = list(values[0])
    role = data.draw(st.sampled_from(["text", "messages", "question"]))
    roles = {role: data.draw(st.sampled_from(columns))}
    reading = read_rows(raw(*values), None, roles)
    assert reading.roles == roles
    if reading.problem is None:
        check_canonical(reading)
