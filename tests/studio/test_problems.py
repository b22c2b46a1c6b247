"""Errors at their field: the outputs stay or are refused, and the message goes when it is corrected."""

from __future__ import annotations

import gradio as gr
import pytest

from core.errors import SpecError
from studio import problems
from studio.events import handler


def stream(engine, prompt, count):
    for i in range(count):
        yield f"{prompt} {i}"
    if count > 1:
        raise SpecError("Too long.", "Shorten it.")


def test_a_handler_gets_an_empty_place_and_an_error_fills_it():
    guarded = problems.guard(stream, refuse=lambda engine, prompt, count: (f"no {prompt}",), text=0)
    assert list(guarded(None, "x", 1)) == [("x 0", None)]
    *shown, (cleared, problem) = guarded(None, "  x ", 2)
    assert shown == [("  x  0", None), ("  x  1", None)] and cleared == "no   x "
    assert problem["kids"] == ["Too long. Shorten it."] and problem["attrs"] == {"role": "alert"}
    assert problem["length"] == 1, "a shorter text may be right"


def test_without_a_refusal_every_output_stays_as_it_is():
    def fail(engine):
        raise SpecError("No.")

    (outputs,) = problems.guard(fail, outputs=2)(None)
    assert outputs[:2] == (gr.skip(), gr.skip()) and outputs[2]["kids"] == ["No."]
    assert list(problems.guard(lambda engine, a: (a, 2), 2)(None, 1)) == [(1, 2, None)]


def test_an_unexpected_error_is_still_a_toast():
    def fail(engine):
        raise ValueError("inside")

    with pytest.raises(gr.Error):
        list(handler(problems.guard(fail), None)())
