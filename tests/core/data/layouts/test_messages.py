"""Messages: the forms of other tools give the same canonical conversation; what is not learned is said."""

import json

import pytest

from core.data.formats.readers import RawRow
from core.data.notes import Notes
from core.data.roles.columns import to_canonical
from core.errors import DataError

QUESTION = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yo"}


def read(messages, notes=None, **columns):
    """Reads one row with a column of messages; returns its canonical messages."""
    row = RawRow({"messages": messages, **columns}, "f.jsonl", 3)
    roles = {"messages": "messages", **{c: c for c in columns}}
    (canonical,) = to_canonical([row], "task", roles, notes)
    return canonical["messages"]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("system", "system"),
        ("developer", "system"),
        ("user", "user"),
        ("human", "user"),
        ("Human", "user"),
        ("prompter", "user"),
        ("tool", "tool"),
        ("function", "tool"),
        ("observation", "tool"),
        ("ipython", "tool"),
        ("assistant", "assistant"),
        ("gpt", "assistant"),
        ("bot", "assistant"),
        ("model", "assistant"),
        ("ai", "assistant"),
    ],
)
def test_roles_of_other_tools_are_read(name, role):
    before = [{"from": name, "value": "x"}] if role == "system" else [QUESTION, {"from": name, "value": "x"}]
    messages = read([*before, QUESTION, ANSWER])
    assert [m["role"] for m in messages if m["content"] == "x"] == [role]
    assert messages[-2:] == [QUESTION, ANSWER]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("one", "one"),
        (["one", "two"], "one\ntwo"),
        ([{"type": "text", "text": "one"}], "one"),
        ([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "one\ntwo"),
        ([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}], "one two"),
        ([{"type": "input_text", "text": "one"}, {"text": "\ntwo"}], "one\ntwo"),
        ({"type": "text", "text": "one"}, "one"),
        (7, "7"),
    ],
)
def test_content_parts_are_joined(content, text):
    assert read([{"role": "user", "content": content}, ANSWER]) == [{"role": "user", "content": text}, ANSWER]
    assert read([QUESTION, {"role": "assistant", "content": content}])[-1]["content"] == text


@pytest.mark.parametrize(
    "part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "image"}, 3, None]
)
def test_a_part_that_is_not_text_is_refused_in_words(part):
    with pytest.raises(DataError) as caught:
        read([{"role": "user", "content": [{"type": "text", "text": "what is this?"}, part]}, ANSWER])
    assert (caught.value.file, caught.value.line) == ("f.jsonl", 3)
    assert "part 2 of message 1" in caught.value.what and "only text can be read" in caught.value.what
    assert caught.value.fix


def test_an_empty_content_is_refused():
    with pytest.raises(DataError, match="message 1 of the column 'messages' is empty"):
        read([{"role": "user", "content": []}, ANSWER])


# ------------------------------------------------------------ weights


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
@pytest.mark.parametrize("value", [0, 0.0, False])
def test_a_turn_of_weight_0_is_context_and_carries_it(key, value):
    first = {"role": "assistant", "content": "Hm.", key: value}
    last = {"role": "assistant", "content": "Here.", key: 1}
    assert read([QUESTION, first, QUESTION, last]) == [
        QUESTION,
        {"role": "assistant", "content": "Hm.", "weight": 0},
        QUESTION,
        {"role": "assistant", "content": "Here."},
    ]


@pytest.mark.parametrize("weight", [1, 1.0, True, None])
def test_a_turn_of_weight_1_reads_as_one_without_a_weight(weight):
    assert read([QUESTION, {**ANSWER, "weight": weight}]) == [QUESTION, ANSWER]


def test_a_weight_of_a_turn_that_is_not_an_answer_is_ignored():
    assert read([{**QUESTION, "weight": 0}, ANSWER]) == [QUESTION, ANSWER]


@pytest.mark.parametrize("weight", [0.5, 2, -1, "0", "no", [0]])
def test_a_weight_that_is_not_0_or_1_is_refused(weight):
    with pytest.raises(DataError, match="weight of message 2 of the column 'messages' must be 0 or 1, got"):
        read([QUESTION, {**ANSWER, "weight": weight}])


def test_a_last_message_of_weight_0_is_dropped_and_never_learned():
    notes = Notes()
    messages = read([QUESTION, ANSWER, QUESTION, {"role": "assistant", "content": "x", "weight": 0}], notes)
    assert messages == [QUESTION, ANSWER]
    assert notes.list_sentences() == [
        "1 row ends with messages after the last trained answer; these are dropped (first: f.jsonl, line 3)."
    ]


def test_a_last_message_of_the_user_is_dropped_and_counted():
    notes = Notes()
    assert read([QUESTION, ANSWER, {"role": "user", "content": "thanks"}], notes) == [QUESTION, ANSWER]
    assert "after the last trained answer" in notes.list_sentences()[0]


def test_rows_without_a_trained_answer_are_left_out_and_counted():
    context = [QUESTION, {**ANSWER, "weight": 0}]
    rows = [RawRow({"m": m}, "f.jsonl", i) for i, m in enumerate([context, [QUESTION, ANSWER], context], 1)]
    notes, places = Notes(), []
    assert to_canonical(rows, "task", {"messages": "m"}, notes, places) == [{"messages": [QUESTION, ANSWER]}]
    assert places == [rows[1]] and notes.left_out == 2
    assert notes.list_sentences() == ["2 rows left out: every answer has weight 0 (first: f.jsonl, line 1)."]


def test_data_without_any_trained_answer_is_refused():
    with pytest.raises(DataError, match="f.jsonl, line 3: no row can be learned: every answer has weight 0"):
        read([QUESTION, {**ANSWER, "weight": 0}])


# ------------------------------------------------------------ thoughts, tools, system messages


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "thought", "reasoning"])
def test_a_thought_beside_an_answer_is_kept(key):
    assert read([QUESTION, {**ANSWER, key: " because \n"}]) == [QUESTION, {**ANSWER, "thought": "because"}]
    assert read([QUESTION, {**ANSWER, key: ""}]) == [QUESTION, ANSWER]


def test_a_thought_as_a_part_is_kept():
    parts = [{"type": "thinking", "thinking": "because"}, {"type": "text", "text": "yo"}]
    assert read([QUESTION, {"role": "assistant", "content": parts}]) == [
        QUESTION,
        {**ANSWER, "thought": "because"},
    ]


def test_a_thought_of_a_user_is_not_read():
    assert read([{**QUESTION, "thinking": "because"}, ANSWER]) == [QUESTION, ANSWER]


CALL = {"id": "1", "type": "function", "function": {"name": "next_ferry", "arguments": '{"after": "8:00"}'}}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "function_call": CALL["function"]},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
    ],
)
def test_a_tool_call_is_context_as_json_text(turn):
    notes = Notes()
    messages = read([QUESTION, turn, {"role": "tool", "content": "8:10"}, ANSWER], notes)
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "assistant"]
    assert json.loads(messages[1]["content"]) == CALL["function"] and messages[1]["weight"] == 0
    assert messages[2:] == [{"role": "tool", "content": "8:10"}, ANSWER]
    assert notes.list_sentences() == [
        "1 row has tool calls; a tool call is context and not learned (first: f.jsonl, line 3)."
    ]


def test_a_tool_call_beside_a_text_is_counted_and_the_text_learned():
    notes = Notes()
    assert read([QUESTION, {**ANSWER, "tool_calls": [CALL]}], notes) == [QUESTION, ANSWER]
    assert "1 row has tool calls beside the text of an answer; only the text is read" in str(
        notes.list_sentences()
    )


def test_leading_system_messages_are_joined_and_blank_ones_dropped():
    head = [{"role": "system", "content": "Be kind."}, {"role": "developer", "content": "Be brief."}]
    assert read([*head, QUESTION, ANSWER])[0] == {"role": "system", "content": "Be kind.\n\nBe brief."}
    assert read([{"role": "system", "content": " "}, QUESTION, ANSWER]) == [QUESTION, ANSWER]


# ------------------------------------------------------------ prompt and completion


@pytest.mark.parametrize("as_text", [False, True])
def test_prompt_and_completion_may_be_lists_of_messages(as_text):
    prompt, completion = [{"role": "system", "content": "s"}, QUESTION], [ANSWER]
    values = (
        {"p": json.dumps(prompt), "c": json.dumps(completion)} if as_text else {"p": prompt, "c": completion}
    )
    rows = to_canonical([RawRow(values, "f", 1)], "task", {"prompt": "p", "completion": "c"})
    assert rows == [{"messages": [*prompt, *completion]}]


def test_answers_inside_a_prompt_are_context():
    values = {"p": [QUESTION, {"role": "assistant", "content": "Hm."}, QUESTION], "c": [ANSWER]}
    (row,) = to_canonical([RawRow(values, "f", 1)], "task", {"prompt": "p", "completion": "c"})
    assert [m.get("weight") for m in row["messages"]] == [None, 0, None, None]


@pytest.mark.parametrize("values", [{"p": [QUESTION], "c": "yo"}, {"p": "hi", "c": [ANSWER]}])
def test_a_prompt_of_messages_and_a_completion_of_text_go_together(values):
    (row,) = to_canonical([RawRow(values, "f", 1)], "task", {"prompt": "p", "completion": "c"})
    assert row["messages"] == [QUESTION, ANSWER]


def test_a_text_that_only_looks_like_a_list_is_a_text():
    values = {"p": "[1, 2] is what?", "c": "[a list]"}
    (row,) = to_canonical([RawRow(values, "f", 1)], "task", {"prompt": "p", "completion": "c"})
    assert [m["content"] for m in row["messages"]] == ["[1, 2] is what?", "[a list]"]
