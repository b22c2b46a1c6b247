"""Errors that stand at their fields: which error reaches which field, and when a message is removed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
import pytest

from core.errors import SpecError
from core.spec.mix import Sampling
from core.spec.training import TrainSpec
from studio import events, fields
from studio.components import field_errors


class Trigger:
    """Stands for a Gradio event: keeps the function that was bound."""

    def __call__(self, fn: Callable[..., Any], inputs: Any, outputs: Any, **kwargs: Any) -> None:
        self.fn, self.outputs = fn, outputs


def make_form(**options: Any) -> tuple[field_errors.FieldErrors, gr.Number, gr.HTML]:
    with gr.Blocks():
        rank, result = gr.Number(label="Rank"), gr.HTML()
        return field_errors.field_errors({"rank": rank}, **options), rank, result


def test_an_error_of_a_field_stays_at_the_field_until_the_handler_succeeds() -> None:
    errors, rank, result = make_form()
    start = Trigger()

    def run(engine: Any, value: int) -> str:
        if value < 1:
            raise SpecError("Rank must be at least 1, got 0.", "Enter a larger number.").at("rank")
        return "started"

    events.bind(start, None, run, [rank], [result], errors=errors)
    assert start.outputs == [result, errors.component]
    message = "Rank must be at least 1, got 0. Enter a larger number."
    assert start.fn(0) == {errors.component: {rank.elem_id: message}}
    assert start.fn(1) == {result: "started", errors.component: {}}


def test_an_error_without_a_field_of_the_form_becomes_a_toast() -> None:
    errors, rank, result = make_form()
    start = Trigger()

    def run(engine: Any, value: int) -> str:
        raise SpecError("The disk is full.").at("dataset" if value else "")

    events.bind(start, None, run, [rank], [result], errors=errors)
    for value in (0, 1):
        with pytest.raises(gr.Error, match="The disk is full"):
            start.fn(value)


def test_a_generator_keeps_its_frames_and_reports_its_error_at_the_field() -> None:
    errors, rank, result = make_form()
    start = Trigger()

    def run(engine: Any, value: int) -> Any:
        yield "half"
        raise SpecError("Rank must be at least 1.").at("rank")

    events.bind(start, None, run, [rank], [result], errors=errors)
    first, last = list(start.fn(0))
    assert first == {result: "half", errors.component: {}}
    assert last == {errors.component: {rank.elem_id: "Rank must be at least 1."}}


def test_an_edit_checks_again_and_removes_only_what_is_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, rank, _ = make_form()
    bound = Trigger()
    monkeypatch.setattr(events, "bind", lambda _, engine, fn, inputs, outputs: bound(fn, inputs, outputs))

    def check(engine: Any, value: int) -> None:
        if value < 1:
            raise SpecError("Rank must be at least 1.").at("rank")

    field_errors.wire(errors, None, check, [rank])
    assert bound.fn(None, 0) == {rank.elem_id: "Rank must be at least 1."} and bound.fn(None, 3) == {}


@pytest.mark.parametrize(
    ("spec", "values", "field"),
    [
        (Sampling, {"temperature": 9.0}, "temperature"),
        (Sampling, {"stop": 3}, "stop"),
        (TrainSpec, {"learning_rate": 5.0}, "learning_rate"),
        (TrainSpec, {"rank": 0}, "rank"),
        (TrainSpec, {"kind": "poem"}, "kind"),
    ],
)
def test_settings_name_the_field_that_is_wrong(spec: type, values: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec(**values)
    assert caught.value.field == field
    with pytest.raises(SpecError) as empty:
        fields.read(Sampling, {"seed": None})
    assert empty.value.field == "seed"


def test_a_number_outside_its_limits_reaches_the_handler() -> None:
    with gr.Blocks():
        components = fields.build(Sampling, ("temperature", "max_new_tokens"))
    assert components["temperature"].preprocess(9.0) == 9.0
    assert components["max_new_tokens"].preprocess(-1) == -1


def test_an_error_that_names_no_field_stands_at_the_default_field() -> None:
    errors, rank, result = make_form(default="rank", texts=["rank"])
    start = Trigger()

    def run(engine: Any, value: str) -> str:
        raise SpecError("Too long.", "Shorten it.").at("columns" if value else "")

    events.bind(start, None, run, [rank], [result], errors=errors)
    for value in ("", "x"):
        assert start.fn(value) == {errors.component: {rank.elem_id: "Too long. Shorten it."}}
    assert errors.component.props["texts"] == [rank.elem_id]
    assert errors.component.props["above"] == []


def test_a_refusal_makes_the_outputs_after_the_frames_of_a_stream() -> None:
    errors, rank, result = make_form(default="rank")
    start = Trigger()

    def stream(engine: Any, prompt: str, count: int) -> Any:
        for i in range(count):
            yield f"{prompt} {i}"
        if count > 1:
            raise SpecError("Too long.")

    def refuse(engine: Any, prompt: str, count: int) -> str:
        return f"no {prompt}"

    events.bind(start, None, stream, [rank, rank], [result], errors=errors, refuse=refuse)
    assert list(start.fn("x", 1)) == [{result: "x 0", errors.component: {}}]
    *shown, last = start.fn("x", 2)
    assert [s[result] for s in shown] == ["x 0", "x 1"]
    assert last == {result: "no x", errors.component: {rank.elem_id: "Too long."}}


def test_an_unexpected_error_is_still_a_toast() -> None:
    errors, rank, result = make_form(default="rank")
    start = Trigger()

    def fail(engine: Any, value: int) -> str:
        raise ValueError("inside")

    events.bind(start, None, fail, [rank], [result], errors=errors)
    with pytest.raises(gr.Error, match="Something went wrong"):
        start.fn(1)


def test_a_message_of_a_component_without_an_input_stands_above_it() -> None:
    with gr.Blocks():
        errors = field_errors.field_errors({"columns": gr.HTML(elem_id="board")})
    assert errors.component.props["above"] == ["board"]
