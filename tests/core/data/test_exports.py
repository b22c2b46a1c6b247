"""Files of real exporters and of well-known datasets: each is read right, or refused in words."""

import pytest

from core.data.formats.readers import RawRow
from core.data.reading import read_rows
from core.errors import DataError


def raw(*values):
    return [RawRow(v, "f.jsonl", number) for number, v in enumerate(values, start=1)]


def turns(row):
    texts = [f"{m['role']}: {m['content']}" for m in row["messages"]]
    return [f"({t})" if m.get("weight") == 0 else t for t, m in zip(texts, row["messages"])]


def ask(question, answer):
    return [f"user: {question}", f"assistant: {answer}"]


def message(role, text, **more):
    return {"role": role, "text": text, "message_id": text, **more}


TREE = message("prompter", "q", replies=[
    message("assistant", "worse", rank=1, replies=[]),
    message("assistant", "gone", rank=0, deleted=True, replies=[]),
    message("assistant", "better", rank=0, replies=[
        message("prompter", "q2", replies=[message("assistant", "a2", rank=None, replies=[])])]),
])  # fmt: skip


def node(parent, role="", parts=(), kind="text", **more):
    content = {"content_type": kind, "parts": list(parts)}
    return {
        "parent": parent,
        "children": [],
        "message": {"author": {"role": role}, "content": content, **more},
    }


CHATGPT = {
    "title": "t",
    "mapping": {
        "root": {"parent": None, "message": None, "children": []},
        "s": node("root", "system", [""]),
        "q": node("s", "user", ["q"]),
        "old": node("q", "assistant", ["an answer that was made again"]),
        "call": node("q", "assistant", ["search()"], recipient="browser"),
        "result": node("call", "tool", ["found"]),
        "a": node("result", "assistant", ["a", {"image": 1}], "multimodal_text"),
        "end": node("a", "assistant", ["b"]),
    },
    "current_node": "end",
}
OPTIONS = {"question": "q", "A": "w", "B": "x", "C": "y", "D": "z"}
LISTED = "q\n\nA. w\nB. x\nC. y\nD. z"
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]

CASES = [
    # multiple choice: the text of the choice, never its index
    ({**OPTIONS, "answer": "B"}, "option-columns", ask(LISTED, "x")),
    ({**OPTIONS, "answer": "b"}, "option-columns", ask(LISTED, "x")),
    ({"question": "q", "option_a": "w", "option_b": "x", "answer": "option_b"}, "option-columns",
     ask("q\n\nA. w\nB. x", "x")),
    ({"question": "q", "opa": "w", "opb": "x", "opc": "y", "opd": "z", "cop": 0}, "option-columns",
     ask(LISTED, "w")),
    ({"goal": "q", "sol1": "w", "sol2": "x", "label": 1}, "option-columns", ask("q\n\nA. w\nB. x", "x")),
    ({"premise": "p", "question": "cause", "choice1": "w", "choice2": "x", "label": 0}, "option-columns",
     ask("p\n\ncause\n\nA. w\nB. x", "w")),
    ({"context": "c", "question": "q", "answerA": "w", "answerB": "x", "answerC": "y", "label": "3"},
     "option-columns", ask("c\n\nq\n\nA. w\nB. x\nC. y", "y")),
    ({"sentence": "q", "option1": "w", "option2": "x", "answer": "2"}, "option-columns",
     ask("q\n\n1. w\n2. x", "x")),
    ({"sent1": "p", "startphrase": "q", "ending0": "w", "ending1": "x", "label": 1}, "option-columns",
     ask("p\n\nq\n\nA. w\nB. x", "x")),
    ({"ctx": "q", "ctx_a": "q", "endings": ["w", "x"], "label": "1"}, "multiple-choice",
     ask("q\n\nA. w\nB. x", "x")),
    ({"question_stem": "q", "choices": {"text": ["w", "x"], "label": ["A", "B"]}, "answerKey": "A"},
     "multiple-choice", ask("q\n\nA. w\nB. x", "w")),
    ({"question": "q", "mc1_targets": {"choices": ["w", "x"], "labels": [0, 1]}}, "choice-targets",
     ask("q\n\nA. w\nB. x", "x")),
    ({"article": "c", "question": "q", "options": ["w", "x"], "answer": "B"}, "multiple-choice",
     ask("c\n\nq\n\nA. w\nB. x", "x")),
    ({"question": "q", "distractor1": "d", "correct_answer": "a", "support": "s"}, "input-output",
     ask("q", "a")),
    ({"question": "q", "passage": "c", "answer": True}, "boolean-answers", ask("c\n\nq", "yes")),
    ({"question": "q", "choices": "['w' 'x']", "answer": "1"}, "multiple-choice",
     ask("q\n\nA. w\nB. x", "x")),
    ({"question": "q", "answers": "{'text': array(['a'], dtype=object), 'answer_start': array([3])}"},
     "answer-lists", ask("q", "a")),
    # the best of several answers
    ({"question": "q", "answers": [{"text": "b", "pm_score": 9}, {"text": "a", "selected": True}]},
     "answer-lists", ask("q", "a")),
    ({"question": "q", "answers": {"text": ["b", "a"], "score": [1, 9]}}, "answer-lists", ask("q", "a")),
    ({"prompt": "q", "answers": [{"answer": "b", "rank": 2}, {"answer": "a", "rank": 1}]}, "answer-lists",
     ask("q", "a")),
    # preferences
    ({"instruction": "q", "input": "i", "chosen": "a", "rejected": "bad"}, "preference", ask("q\n\ni", "a")),
    ({"prompt": "q", "chosen_response": "a", "rejected_response": "bad"}, "preference", ask("q", "a")),
    ({"prompt": "q", "completion": "a", "label": 1}, "kto", ask("q", "a")),
    ({"prompt": "q", "completion": "a", "label": "good"}, "kto", ask("q", "a")),
    ({"question": "q", "answer": "a", "feedback": "thumbs_up"}, "kto", ask("q", "a")),
    # conversations
    ({"conversations": ["q", "a"], "source": "x"}, "turn-lists", ask("q", "a")),
    ({"data": ["q", "a", "q2", "a2"], "id": "1"}, "turn-lists", [*ask("q", "a"), *ask("q2", "a2")]),
    ({"conversation": [{"human": "q", "assistant": "a"}], "conversation_id": 1}, "turn-lists", ask("q", "a")),
    ({"text": "### Human: q\n### Assistant: a"}, "marked-turns", ask("q", "a")),
    ({"text": "<s>[INST] <<SYS>>s<</SYS>> q [/INST] a </s>"}, "marked-turns", ["system: s", *ask("q", "a")]),
    ({"text": "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
              "<|im_start|>assistant\na<|im_end|>"},
     "marked-turns", ["system: s", *ask("q", "a")]),
    ({"text": "<start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>"}, "marked-turns",
     ask("q", "a")),
    ({"text": "Below is an instruction.\n\n### Instruction:\nq\n\n### Input:\ni\n\n### Response:\na"},
     "marked-turns", ask("q\n\ni", "a")),
    ({"text": "USER: q\nASSISTANT: a</s>"}, "marked-turns", ask("q", "a")),
    ({"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]},
     "", ask("q", "a")),
    ({"chat_messages": [{"sender": "human", "text": "q"}, {"sender": "assistant", "text": "a"}], "uuid": "u"},
     "", ask("q", "a")),
    ({"messages": [{"speaker": "customer", "text": "q"}, {"speaker": "agent", "text": "a"}]}, "",
     ask("q", "a")),
    (CHATGPT, "chatgpt", ask("q", "a\n\nb")),
    ({"message_tree_id": "1", "tree_state": "ready_for_export", "prompt": TREE}, "nested-trees",
     [*ask("q", "better"), *ask("q2", "a2")]),
    ({"tag": "hours", "patterns": ["q"], "responses": ["a", "b"]}, "intents", ask("q", "a")),
    ({"name": "n", "instruction": "q", "instances": [{"input": "i", "output": "a"}]}, "instances",
     ask("q\n\ni", "a")),
    # annotation tools
    ({"text": "q", "options": [{"id": 0, "text": "b"}, {"id": 1, "text": "a"}], "accept": [1],
      "answer": "accept", "_task_hash": 1}, "prodigy", ask("q", "a")),
    ({"text": "q", "user_input": "a", "answer": "accept", "_task_hash": 1}, "prodigy", ask("q", "a")),
    ({"text": "q", "annotation": "a", "prediction": [{"label": "b"}], "status": "Validated"},
     "argilla-validated", ask("q", "a")),
    ({"prompt": "q", "fix": [{"value": "b", "status": "discarded"}, {"value": "a", "status": "submitted"}],
      "fix-suggestion": "c", "external_id": "1"}, "argilla-feedback", ask("q", "a")),
    # names in other languages
    ({"Frage": "q", "Antwort": "a"}, "", ask("q", "a")),
    ({"pregunta": "q", "respuesta": "a"}, "", ask("q", "a")),
    ({"Question": "q", "Réponse": "a"}, "", ask("q", "a")),
    ({"Soru": "q", "Cevap": "a"}, "", ask("q", "a")),
    ({"问题": "q", "答案": "a"}, "", ask("q", "a")),
    ({"質問": "q", "回答": "a"}, "", ask("q", "a")),
    ({"질문": "q", "답변": "a"}, "", ask("q", "a")),
    ({"вопрос": "q", "ответ": "a"}, "", ask("q", "a")),
    ({"Question Text": "q", "Answer Text": "a"}, "input-output", ask("q", "a")),
    ({"system": "s", "user": "q", "assistant": "a"}, "input-output", ["system: s", *ask("q", "a")]),
    ({"question": "q", "best_answer": "a", "incorrect_answers": ["b"]}, "input-output", ask("q", "a")),
    # datasets of tasks
    ({"input_text": "q", "output_text": "a"}, "input-output", ask("q", "a")),
    ({"document": "q", "summary": "a", "id": "1"}, "summaries", ask("q", "a")),
    ({"id": "1", "dialogue": "q", "summary": "a"}, "summaries", ask("q", "a")),
    ({"question": "q", "answer": "so #### 7"}, "", ask("q", "so #### 7")),
]  # fmt: skip


@pytest.mark.parametrize(("row", "layout", "expected"), CASES, ids=str)
def test_an_export_gives_its_right_reading(row, layout, expected):
    reading = read_rows(raw(row))
    assert reading.problem is None, reading.problem
    assert (reading.kind, reading.layout) == ("task", layout)
    assert [turns(r) for r in reading.rows] == [expected]


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "q", "completion": "a", "label": n} for n in (1, 0)],
        [{"prompt": "q", "completion": "a", "label": word} for word in ("good", "bad")],
        [{"question": "q", "answer": "a", "rating": word} for word in ("thumbs_up", "thumbs_down")],
        [{"text": "q", "annotation": "a", "status": s} for s in ("Validated", "Default")],
        [{"text": "q", "label": "a", "answer": s, "_task_hash": 1} for s in ("accept", "reject")],
    ],
)
def test_only_what_is_marked_good_is_learned_and_the_rest_counted(rows):
    reading = read_rows(raw(*rows))
    assert (len(reading.rows), reading.left_out) == (1, 1)
    assert any("1 row left out" in note for note in reading.notes)


def test_lists_of_questions_are_not_conversations():
    rows = raw(*({"question_id": n, "turns": [f"Where is dog {n}?", "And the cat?"]} for n in range(3)))
    assert read_rows(rows).problem is not None
    rows = raw(*({"conversation": [f"Where is dog {n}?", "And the cat?"]} for n in range(3)))
    assert read_rows(rows).problem is not None


def test_a_rating_in_numbers_does_not_mark_answers():
    reading = read_rows(raw(*({"question": "q", "answer": "a", "rating": n} for n in (1, 1, 1))))
    assert reading.layout == "" and reading.unread == ["rating"]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"id": "1", "timestamp": "t", "content": "x", "author": {"id": "1"}, "attachments": []},
         "a chat of several people"),
        ({"id": 1, "type": "message", "date": "d", "from": "Ann", "from_id": "u", "text": "x"},
         "a chat of several people"),
        ({"type": "message", "user": "U1", "text": "x", "ts": "1.2"}, "a chat of several people"),
        ({"story": "s", "questions": ["q"], "answers": {"input_text": ["a"]}}, "is a list, not text"),
        ({"messages": [{"role": "user", "content": "q"}], "reference_answer": "a"}, "must be assistant"),
        ({"question": "q", "option1": "w", "option2": "x", "answer": 1},
         "may count the choices from 0 or from 1"),
        ({"question": "q", "choices": "w, x or y", "answer": 1}, "'choices' is not a list of choices"),
        ({"question": "q", "choices": "['w', 'x' 'y']", "answer": "B"}, "'choices' is not a list of choices"),
        ({"prompt": "q", "response_0": "a b", "response_1": "c d", "better": 0}, "do not say what to learn"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_words(row, what):
    problem = read_rows(raw(row)).problem
    assert isinstance(problem, DataError) and what in str(problem) and problem.fix


def test_columns_of_choices_that_count_from_one_are_found_over_all_rows():
    base = {"question": "q", "option1": "w", "option2": "x"}
    rows = read_rows(raw({**base, "answer": 1}, {**base, "answer": 2})).rows
    assert [turns(r)[-1] for r in rows] == ["assistant: w", "assistant: x"]


def test_a_chat_of_several_people_can_be_read_as_text_on_request():
    row = {"type": "message", "user": "U1", "text": "x", "ts": "1.2"}
    assert read_rows(raw(row), "domain", {"text": "text"}).rows == [{"text": "x"}]


def test_sections_give_their_improved_text_at_any_depth():
    rows = raw({"INTRODUCTION": {"original": "x", "improved": "one"}, "id": "p1"},
               {"INTRODUCTION": {"parts": [{"improved": "two"}, {"improved": "three"}]}, "x": 2})  # fmt: skip
    reading = read_rows(rows)
    assert (reading.kind, reading.layout) == ("domain", "sections")
    assert [r["text"] for r in reading.rows] == ["one", "two", "three"]
    flat = read_rows(raw({"name": "METHODS", "original": "x", "improved": "one"}))
    assert flat.rows == [{"text": "one"}] and flat.unread == ["name", "original"]


def test_rows_of_intents_take_the_responses_in_turn():
    rows = read_rows(raw({"tag": "t", "patterns": ["q1", "q2", "q3"], "responses": ["a", "b"]})).rows
    assert [turns(r)[1] for r in rows] == ["assistant: a", "assistant: b", "assistant: a"]
