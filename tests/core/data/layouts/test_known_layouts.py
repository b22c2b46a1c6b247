"""Layouts: files of other tools give their own reading; bad and skipped answers are not learned."""

import pytest

from core.data.formats.readers import RawRow
from core.data.layouts.known_layouts import LAYOUTS, find_layout
from core.data.reading import read_rows


def raw(*values):
    return [RawRow(v, "f.jsonl", number) for number, v in enumerate(values, start=1)]


def turns(row):
    """The turns of a canonical row, as "role: content"; a turn of weight 0 is in parentheses."""
    texts = [f"{m['role']}: {m['content']}" for m in row["messages"]]
    return [f"({t})" if m.get("weight") == 0 else t for t, m in zip(texts, row["messages"])]


def read(*values, layout, kind=None, unread=(), left_out=0, notes=()):
    """Reads rows, checks what the reading says, and returns the turns of every canonical row."""
    reading = read_rows(raw(*values), kind)
    assert reading.problem is None, reading.problem
    assert (reading.layout, reading.unread, reading.left_out) == (layout, list(unread), left_out)
    assert bool(reading.title) == bool(layout)
    for note in notes:
        assert any(note in n for n in reading.notes), reading.notes
    return [turns(row) for row in reading.rows]


def ask(question, answer):
    return [f"user: {question}", f"assistant: {answer}"]


Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
BAD = {"role": "assistant", "content": "bad"}


def test_every_layout_has_a_name_of_its_own():
    assert len({layout.name for layout in LAYOUTS}) == len({x.title for x in LAYOUTS}) == len(LAYOUTS)


# ------------------------------------------------------------ plain columns


def test_the_four_columns_of_dolly_keep_their_context():
    row = {"instruction": "q", "context": "c", "response": "a", "category": "open_qa"}
    reading = read_rows(raw(row, {**row, "context": ""}))
    assert reading.roles == {
        "instruction": "instruction",
        "output": "response",
        "context": "context",
        "type": "category",
    }
    assert [turns(r) for r in reading.rows] == [ask("c\n\nq", "a"), ask("q", "a")]
    assert reading.unread == [] and reading.rows[0]["type"] == "open_qa"


def test_columns_that_nothing_reads_are_named():
    row = {"messages": [Q, A], "tools": [{"name": "f"}], "id": 7, "parallel_tool_calls": False}
    assert read(row, layout="", unread=("tools", "id", "parallel_tool_calls")) == [ask("q", "a")]


def test_alpaca_with_system_and_history_gives_one_conversation():
    row = {
        "instruction": "q",
        "input": "i",
        "output": "a",
        "system": "s",
        "history": [["q0", "a0"], ["q1", "a1"]],
    }
    assert read(row, layout="history") == [
        ["system: s", *ask("q0", "a0"), *ask("q1", "a1"), *ask("q\n\ni", "a")]
    ]
    empty = {**row, "history": [], "input": "", "system": ""}
    assert read(row, empty, layout="history")[1] == ask("q", "a")


def test_a_history_that_is_not_made_of_pairs_is_refused():
    row = {"instruction": "q", "output": "a", "history": [["q0", "a0", "x"]]}
    problem = read_rows(raw(row)).problem
    assert "item 1 of the column 'history' is not a pair" in str(problem) and problem.line == 1


# ------------------------------------------------------------ good and bad answers


def test_openai_preferences_learn_the_preferred_output():
    row = {"input": {"messages": [Q], "tools": []}, "preferred_output": [A], "non_preferred_output": [BAD]}
    assert read(
        row, layout="openai-preference", unread=("non_preferred_output",), notes=["Only the preferred"]
    ) == [ask("q", "a")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a"},
        {"prompt": [Q], "chosen": [A]},
        {"prompt": "q", "chosen": [Q, A]},
        {"chosen": [Q, A]},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}},
        {"chosen": "\n\nHuman: q\n\nAssistant: a"},
        {"chosen": "Human: q\n\nAssistant: a"},
        {"question": "q", "chosen": "a"},
    ],
)
def test_preference_pairs_learn_the_chosen_answer_only(row):
    row = {**row, "rejected": "bad"}
    assert read(row, layout="preference", unread=("rejected",), notes=["rejected ones are not read"]) == [
        ask("q", "a")
    ]


def test_a_chosen_conversation_learns_its_last_answer_only():
    row = {"chosen": [Q, {"role": "assistant", "content": "hm"}, Q, A], "rejected": [Q, BAD]}
    assert read(row, layout="preference", unread=("rejected",)) == [
        ["user: q", "(assistant: hm)", "user: q", "assistant: a"]
    ]


@pytest.mark.parametrize("mark", ["kto_tag", "label"])
@pytest.mark.parametrize("good, bad", [(True, False), ("true", "False")])
def test_answers_marked_bad_are_left_out_and_counted(mark, good, bad):
    rows = [
        {"messages": [Q, A], mark: good},
        {"messages": [Q, BAD], mark: bad},
        {"messages": [Q, BAD], mark: None},
    ]
    notes = [f"1 row left out: the column '{mark}' marks the answer as bad (first: f.jsonl, line 2)."]
    assert read(*rows, layout="kto", left_out=2, notes=notes) == [ask("q", "a")]


def test_kto_rows_of_prompt_and_completion_are_read():
    rows = [{"prompt": "q", "completion": c, "label": good} for c, good in (("a", True), ("bad", False))]
    assert read(*rows, layout="kto", left_out=1) == [ask("q", "a")]


def test_data_of_bad_answers_alone_is_refused():
    problem = read_rows(raw({"messages": [Q, BAD], "kto_tag": False})).problem
    assert "no row can be learned" in str(problem) and "marks the answer as bad" in str(problem)


# ------------------------------------------------------------ questions with answers


CHOICE = {"question": "q", "choices": ["x", "y"]}


@pytest.mark.parametrize(
    "row",
    [
        {**CHOICE, "answer": 1},
        {**CHOICE, "answer": "1"},
        {**CHOICE, "answer": "B"},
        {**CHOICE, "answer": "y"},
        {"question": "q", "choices": '["x", "y"]', "answer": 1},
        {"question": "q", "options": {"A": "x", "B": "y"}, "answer_idx": "B"},
        {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        {
            "question": "q",
            "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}],
            "answerKey": "B",
        },
    ],
)
def test_multiple_choice_learns_the_text_never_the_index(row):
    assert read(row, layout="multiple-choice") == [ask("q\n\nA. x\nB. y", "y")]


def test_labels_that_are_numbers_name_their_choice():
    row = {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"}
    assert read(row, layout="multiple-choice") == [ask("q\n\n1. x\n2. y", "x")]


def test_choices_that_count_from_one_are_found_over_all_rows():
    rows = [{**CHOICE, "answer": n} for n in (1, 2, 1)]
    answers = read(*rows, layout="multiple-choice", notes=["count from 1"])
    assert [a[-1] for a in answers] == ["assistant: x", "assistant: y", "assistant: x"]


def test_a_choice_that_does_not_exist_is_refused_with_its_line():
    problem = read_rows(raw({**CHOICE, "answer": 0}, {**CHOICE, "answer": 7})).problem
    assert problem.line == 2 and "the answer 7 is not one of the 2 choices" in str(problem)


def test_squad_gives_one_row_per_question():
    qas = [
        {"id": "1", "question": "q1", "answers": [{"text": "a1", "answer_start": 0}]},
        {"id": "2", "question": "q2", "answers": [], "is_impossible": True},
        {"id": "3", "question": "q3", "answers": [{"text": "a3"}, {"text": "a3"}]},
    ]
    row = {"title": "T", "paragraphs": [{"context": "c", "qas": qas}]}
    notes = ["1 row left out: the question has no answer"]
    assert read(row, layout="squad", unread=("title",), left_out=1, notes=notes) == [
        ask("c\n\nq1", "a1"),
        ask("c\n\nq3", "a3"),
    ]


@pytest.mark.parametrize(
    ("answers", "several"),
    [
        ({"text": ["a"], "answer_start": [0]}, False),
        ({"text": ["a", "a"]}, False),
        (["a", "b"], True),
        ([{"text": "a"}, {"text": "b"}], True),
        ({"value": "a", "aliases": ["b"]}, False),
    ],
)
def test_the_first_of_several_answers_is_read_and_said(answers, several):
    row = {"question": "q", "answers": answers, "context": "c"}
    reading = read_rows(raw(row))
    assert (reading.layout, [turns(r) for r in reading.rows]) == ("answer-lists", [ask("c\n\nq", "a")])
    assert any("several answers" in n for n in reading.notes) == several


def test_questions_without_an_answer_are_left_out():
    rows = [{"question": f"q{i}", "answers": {"text": a}} for i, a in enumerate((["a"], [], ["b"]))]
    answers = read(*rows, layout="answer-lists", left_out=1, notes=["the question has no answer"])
    assert [a[-1] for a in answers] == ["assistant: a", "assistant: b"]


# ------------------------------------------------------------ labelled pairs that are not named so


@pytest.mark.parametrize(
    ("row", "layout", "question", "answer"),
    [
        ({"text": "q", "label": 0}, "text-label", "q", "0"),
        ({"text": "q", "label": "good", "id": 1}, "text-label", "q", "good"),
        ({"text": "q", "label": 1, "label_text": "good"}, "text-label", "q", "good"),
        ({"sentence": "q", "label": True}, "text-label", "q", "true"),
        ({"premise": "p", "hypothesis": "h", "label": 2}, "sentence-pairs", "p\n\nh", "2"),
        ({"document": "q", "summary": "a", "id": "0"}, "summaries", "q", "a"),
        ({"article": "q", "highlights": "a"}, "summaries", "q", "a"),
        ({"dialogue": "q", "summary": "a"}, "summaries", "q", "a"),
        ({"translation": {"de": "q", "en": "a"}}, "translations", "q", "a"),
        ({"input": "q", "output": "a"}, "input-output", "q", "a"),
        ({"source": "q", "target": "a"}, "input-output", "q", "a"),
        ({"text": "q", "answer": "a", "source": "faq"}, "input-output", "q", "a"),
        ({"prompt": "q", "answer": "a", "context": "c"}, "input-output", "c\n\nq", "a"),
        ({"instruction": "q", "input": "i", "answer": "a"}, "input-output", "q\n\ni", "a"),
    ],
)
def test_labelled_pairs_never_become_text(row, layout, question, answer):
    reading = read_rows(raw(row))
    assert (reading.kind, reading.layout) == ("task", layout)
    assert [turns(r) for r in reading.rows] == [ask(question, answer)]


@pytest.mark.parametrize("row", [{"text": "q", "label": 0}, {"document": "q", "summary": "a"}])
def test_a_labelled_pair_can_be_read_as_text_and_says_what_is_unread(row):
    reading = read_rows(raw(row), "domain")
    assert (reading.kind, reading.layout, reading.rows) == ("domain", "", [{"text": "q"}])
    assert reading.unread == [list(row)[1]]


def test_texts_with_lists_of_labels_learn_the_first_one():
    rows = [
        {"id": i, "text": f"q{i}", "label": x, "Comments": []} for i, x in enumerate((["a"], ["b", "c"], []))
    ]
    notes = ["1 row has several labels", "1 row left out: the column 'label' is empty"]
    assert read(*rows, layout="label-lists", unread=("id", "Comments"), left_out=1, notes=notes) == [
        ask("q0", "a"),
        ask("q1", "b"),
    ]


def test_marked_spans_are_refused_in_words():
    problem = read_rows(raw({"text": "Lomen is far", "label": [[0, 5, "LOC"]]})).problem
    assert "marks spans of the text" in str(problem) and "domain data" in problem.fix


# ------------------------------------------------------------ annotation tools


def annotate(*results, **fields):
    return {"id": 1, "result": list(results), "was_cancelled": False, "ground_truth": False, **fields}


def region(text, name="answer", kind="textarea"):
    return {"from_name": name, "type": kind, "value": {"text" if kind == "textarea" else "choices": [text]}}


def task(question, *annotations):
    return {
        "id": 1,
        "data": {"question": question, "passage": "c"},
        "annotations": list(annotations),
        "meta": {},
    }


def test_label_studio_learns_finished_annotations_only():
    rows = [
        task("q0", annotate(region("a0"), region("times", "topic", "choices"))),
        task("q1", annotate(region("a1")), annotate(region("b1"))),
        task("q2", annotate(region("bad"), was_cancelled=True)),
        task("q3"),
        task("q4", annotate()),
        task("q5", annotate(region("bad")), annotate(region("a5"), ground_truth=True)),
        task("q6", annotate(region("a6"), region("b6"))),
    ]
    reading = read_rows(raw(*rows))
    assert (reading.problem, reading.layout, reading.left_out) == (None, "label-studio", 3)
    assert [turns(r)[0][-2:] + turns(r)[1][-3:] for r in reading.rows] == [
        "q0 a0",
        "q1 a1",
        "q1 b1",
        "q5 a5",
        "q6 a6",
    ]
    assert reading.rows[0]["type"] == "times" and reading.unread == ["id", "meta"]
    text = " ".join(reading.notes)
    assert "3 rows left out: the task has no finished annotation (first: f.jsonl, line 3)" in text
    assert "1 row has several answers" in text and "1 row has a ground truth" in text


def test_classified_texts_of_label_studio_are_labelled_pairs():
    rows = [
        {"id": i, "data": {"text": f"q{i}"}, "annotations": [annotate(region("good", "mood", "choices"))]}
        for i in range(2)
    ]
    assert read(*rows, layout="label-studio", unread=("id",)) == [ask("q0", "good"), ask("q1", "good")]
    row = {"text": "q", "label": {"choices": ["good"]}, "annotation_id": 1, "lead_time": 2}
    assert read(row, layout="label-studio-rows") == [ask("q", "good")]


@pytest.mark.parametrize("is_csv", [False, True])
def test_short_exports_of_label_studio_leave_out_tasks_without_an_answer(is_csv):
    blank = "" if is_csv else None
    meta = {"annotator": "a@example.org", "lead_time": 1.5, "created_at": "2026"}
    answers = ["a", '{"text": ["a", "b"]}' if is_csv else {"text": ["a", "b"]}, ["a", "b"], blank]
    rows = [
        {"question": f"q{i}", "answer": a, "annotation_id": 100 + i, "id": i, **meta}
        for i, a in enumerate(answers if not is_csv else [*answers[:2], '["a", "b"]', blank])
    ]
    rows.append({"question": "q9", "answer": "x", "annotation_id": blank, "id": 9, **meta})
    reading = read_rows(raw(*rows))
    assert (reading.layout, reading.left_out) == ("label-studio-rows", 2)
    assert [turns(r) for r in reading.rows] == [ask(f"q{i}", "a") for i in range(3)]
    assert "annotator" in reading.unread and "created_at" in reading.unread
    assert any("2 rows have several answers" in n for n in reading.notes)


def test_argilla_learns_submitted_responses_only():
    rows = [
        {"question": f"q{i}", "answer.responses": r, "answer.responses.status": s, "answer.suggestion": "bad"}
        for i, (r, s) in enumerate(
            [
                (["bad", "a"], ["draft", "submitted"]),
                (["bad"], ["discarded"]),
                (None, None),
            ]
        )
    ]
    notes = [
        "suggestions, drafts and discarded responses are not read",
        "2 rows left out: no response was submitted",
    ]
    assert read(*rows, layout="argilla", unread=("answer.suggestion",), left_out=2, notes=notes) == [
        ask("q0", "a")
    ]


def test_fields_of_argilla_may_have_other_names():
    row = {"text": "q", "mood.responses": ["good"], "mood.responses.status": ["submitted"]}
    assert read(row, layout="argilla") == [ask("q", "good")]
    row = {"fields": {"prompt": "q"}, "responses": {"reply": [{"value": "a"}]}}
    assert read(row, layout="argilla-records") == [ask("q", "a")]


def test_argilla_records_without_statuses_are_read_with_a_warning():
    row = {"id": "1", "fields": {"question": "q"}, "responses": {"answer": [{"value": "a", "user_id": "u"}]}}
    notes = ["does not say which responses were submitted", "to_list(flatten=True)"]
    assert read(row, layout="argilla-records", unread=("id",), notes=notes) == [ask("q", "a")]


def test_prodigy_learns_accepted_labels_only():
    rows = [
        {"text": f"q{i}", "label": "a", "answer": d, "_task_hash": i}
        for i, d in enumerate(("accept", "reject", "ignore"))
    ]
    notes = ["the answer of the annotator is 'reject', not 'accept'"]
    assert read(*rows, layout="prodigy", left_out=2, notes=notes, unread=()) == [ask("q0", "a")]


def test_trees_of_messages_become_conversations():
    rows = [
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "q", "rank": None},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "bad", "rank": 1},
        {"message_id": "3", "parent_id": "1", "role": "assistant", "text": "a", "rank": 0},
        {"message_id": "4", "parent_id": "3", "role": "prompter", "text": "q2", "rank": 0},
        {"message_id": "5", "parent_id": "4", "role": "assistant", "text": "a2", "rank": 0},
        {"message_id": "6", "parent_id": None, "role": "prompter", "text": "alone", "rank": None},
    ]
    assert read(*rows, layout="message-trees", notes=["4 of 6 messages are read"]) == [
        [*ask("q", "a"), *ask("q2", "a2")]
    ]


# ------------------------------------------------------------ choices of the user


def test_a_chosen_column_that_the_layout_does_not_have_switches_it_off():
    rows = raw({"question": "q", "choices": ["x", "y"], "answer": 1, "note": "n"})
    assert find_layout(rows, "task", {"question": "question", "answer": "choices"}) is None
    reading = read_rows(rows, None, {"question": "question", "answer": "note"})
    assert reading.layout == "multiple-choice"
    assert [turns(r) for r in reading.rows] == [ask("q\n\nA. x\nB. y", "n")]


def test_a_kind_that_the_layout_does_not_have_switches_it_off():
    assert find_layout(raw({"text": "q", "label": 0}), "domain") is None
    assert find_layout(raw({"text": "q", "label": 0}), "task").layout.name == "text-label"
