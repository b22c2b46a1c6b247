"""Formatting of numbers, differences and Markdown; trees; handlers and their errors."""

from __future__ import annotations

import gradio as gr
import pytest

from core.errors import DataError
from core.spec.mix import Mix
from studio import events, formatting, tree


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_durations_have_at_most_two_units(seconds, text):
    assert formatting.format_duration(seconds) == text


def test_the_pieces_of_a_difference_join_to_the_text():
    pieces = formatting.diff_words("the lamp is red", "the bell  is\nred indeed")
    assert "".join(text for text, _ in pieces) == "the bell  is\nred indeed"
    assert [text.strip() for text, differs in pieces if differs] == ["bell", "indeed"]


def test_the_same_text_has_no_difference():
    assert not any(differs for _, differs in formatting.diff_words("one two  three", "one two  three"))


def test_a_mix_reads_as_a_formula_with_its_sign():
    names = {"k": "Kitchen", "a": "Answers", "s": "Silent", "h": "Harbour"}
    mix = Mix(weights={"k": 1.0, "a": -0.35, "s": 0.0}, tilt={"a": 1.0})
    assert formatting.format_mix(mix, names) == "base + 1.00 · Kitchen − 0.35 · Answers (deep)"
    gated = Mix(weights={"k": 1.0, "a": 0.5, "h": -1.0}, auto={"k": "hard", "a": "soft", "h": "soft"})
    assert formatting.format_mix(gated, names) == (
        "base + auto · Kitchen + auto, soft, up to 0.50 · Answers − auto, soft · Harbour"
    )


def test_escaped_markdown_cannot_become_markup():
    text = formatting.escape_markdown("<img src=x onerror=alert(1)> [a](javascript:b) `c` # d")
    assert "\\<img" in text and "\\[a\\]\\(javascript" in text and "\\`c\\`" in text and "\\# d" in text


def test_a_folder_is_shortened_to_its_last_part_and_a_hub_id_is_not():
    assert (formatting.format_base("/srv/models/tiny/"), formatting.format_base("owner/model")) == (
        "tiny",
        "owner/model",
    )


def test_a_node_keeps_its_text_and_drops_none():
    element = tree.node("p", "a", None, tree.node("strong", 3), cls="x", aria_label="hi", title=None)
    assert element == {
        "tag": "p",
        "kids": ["a", {"tag": "strong", "kids": ["3"]}],
        "cls": "x",
        "attrs": {"aria-label": "hi"},
    }


def test_an_error_becomes_one_escaped_toast():
    def fails(engine):
        raise DataError("it holds <b>nothing</b>.", "Give another.", file="<i>.txt")

    with pytest.raises(gr.Error) as e:
        events.handler(fails, None)()
    assert e.value.message == "&lt;i&gt;.txt: it holds &lt;b&gt;nothing&lt;/b&gt;. Give another."


def test_an_unexpected_error_is_logged_and_shows_no_details(caplog):
    def fails(engine):
        yield 1
        raise RuntimeError("secret /path")

    run = events.handler(fails, None)()
    assert next(run) == 1
    with pytest.raises(gr.Error) as e:
        next(run)
    assert "secret" not in e.value.message and "secret /path" in caplog.text


def test_a_server_function_that_fails_responds_with_an_error():
    def fails(engine, request):
        raise DataError("No.", "Do.")

    assert events.server_function(fails, None)("not a dict") == {"error": "No. Do."}
