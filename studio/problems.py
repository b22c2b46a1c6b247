"""Errors that stand at the field that caused them, instead of in a toast, until they are corrected.

A handler stays a plain function that raises; `guard` turns its errors into the content of a view below the
field. `events.bind` still shows an unexpected error as a toast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import StudioError
from studio.events import user_message
from studio.tree import Node, node, view

# In the browser, while the user types: the message goes away as soon as the text can be right again.
CLEAR_WHEN_CORRECTED = """(text, problem) => {
  if (!problem || !problem.tag) return null;
  const length = problem.length ?? 0;
  const corrected = length ? String(text ?? "").length < length : String(text ?? "").trim() !== "";
  return corrected ? null : problem;
}"""


def place(**kwargs: Any) -> gr.HTML:
    """An empty view for the error of the field above it."""
    return view(None, elem_classes="field-problem", **kwargs)


def render_problem(error: StudioError, text: Any = "") -> Node:
    """The message of an error: what happened and what to do.

    Args:
        text: the content of the field; a shorter one is taken as corrected.
    """
    length = len(text.strip()) if isinstance(text, str) else 0
    return {**node("p", user_message(error), cls="problem", role="alert"), "length": length}


def guard(
    fn: Callable[..., Any],
    outputs: int = 1,
    refuse: Callable[..., tuple[Any, ...]] | None = None,
    text: int | None = None,
) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """Makes a handler that yields one more output: the content of the field's `place`.

    Args:
        fn: a plain handler, a function or a generator function `(engine, *values)`.
        outputs: how many outputs `fn` has.
        refuse: makes the outputs after an error from `(engine, *values)`; by default nothing changes.
        text: index of the value that the field holds, to know when the error is corrected.

    Returns:
        a handler that yields the outputs of `fn` and an empty place; or after an error, what `refuse`
        returns, and the error.
    """

    @functools.wraps(fn)
    def call(engine: Engine, *values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            result = fn(engine, *values)
            for shown in result if isinstance(result, Iterator) else [result]:
                yield (*(shown if isinstance(shown, tuple) else (shown,)), None)
        except StudioError as e:
            unchanged = (gr.skip(),) * outputs
            yield (
                *(refuse(engine, *values) if refuse else unchanged),
                render_problem(e, values[text] if text is not None else ""),
            )

    return call


def clear_on_change(field: Any, shown: gr.HTML) -> None:
    """Takes a field's error away when its content can be right again; in the browser.

    Gradio (6.31) does not fire `input` for the first change by the user after one by a handler.
    """
    field.change(
        fn=None, inputs=[field, shown], outputs=[shown], js=CLEAR_WHEN_CORRECTED, api_visibility="private"
    )
