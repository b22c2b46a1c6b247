"""What the page says: numbers, differences, trees, Markdown."""

from __future__ import annotations

import gradio as gr
import pytest

from core.errors import DataError
from studio import events, formatting, tree


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_durations_read_as_people_say_them(seconds, said):
    assert formatting.format_duration(seconds) == said


def test_the_pieces_of_a_difference_give_the_text_back():
    pieces = formatting.diff_words("the lamp is red", "the bell  is\nred indeed")
    assert "".join(text for text, _ in pieces) == "the bell  is\nred indeed"
    assert [text.strip() for text, differs in pieces if differs] == ["bell", "indeed"]


def test_the_same_text_has_no_difference():
    assert not any(differs for _, differs in formatting.diff_words("one two  three", "one two  three"))


def test_a_mix_reads_as_a_formula_with_its_sign():
    assert (
        formatting.format_mix({"Kitchen": 1.0, "Answers": -0.35, "Silent": 0.0})
        == "base + 1.00 · Kitchen − 0.35 · Answers"
    )


def test_markdown_of_an_answer_cannot_become_markup():
    said = formatting.escape_markdown("<img src=x onerror=alert(1)> [a](javascript:b) `c` # d")
    assert "\\<img" in said and "\\[a\\]\\(javascript" in said and "\\`c\\`" in said and "\\# d" in said


def test_a_folder_is_named_by_its_last_part_and_a_hub_id_whole():
    assert (formatting.format_base("/srv/models/tiny/"), formatting.format_base("owner/model")) == ("tiny", "owner/model")


def test_a_node_keeps_its_text_and_drops_what_is_absent():
    made = tree.node("p", "a", None, tree.node("strong", 3), cls="x", aria_label="hi", title=None)
    assert made == {
        "tag": "p",
        "kids": ["a", {"tag": "strong", "kids": ["3"]}],
        "cls": "x",
        "attrs": {"aria-label": "hi"},
    }


def test_an_error_becomes_one_escaped_toast():
    def handler(engine):
        raise DataError("it holds <b>nothing</b>.", "Give another.", file="<i>.txt")

    with pytest.raises(gr.Error) as e:
        events.handler(handler, None)()
    assert e.value.message == "&lt;i&gt;.txt: it holds &lt;b&gt;nothing&lt;/b&gt;. Give another."


def test_an_unexpected_error_is_logged_and_tells_nothing_of_the_inside(caplog):
    def handler(engine):
        yield 1
        raise RuntimeError("secret /path")

    opened = events.handler(handler, None)()
    assert next(opened) == 1
    with pytest.raises(gr.Error) as e:
        next(opened)
    assert "secret" not in e.value.message and "secret /path" in caplog.text


def test_a_question_of_the_page_is_answered_even_when_it_fails():
    def failing(engine, question):
        raise DataError("No.", "Do.")

    assert events.server_function(failing, None)("not a dict") == {"error": "No. Do."}
