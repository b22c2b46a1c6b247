"""Errors that stand at the fields that caused them, and stay there until the values are right.

    errors = field_errors({"rank": rank, "name": name})       # in build(), once for each form
    events.bind(start.click, engine, start_run, inputs, outputs, errors=errors)
    wire(errors, engine, check, inputs)                       # optional: checks again while the user edits

A handler raises `SpecError(...).at("rank")`, and the message appears at that field; `Settings` name the field
by themselves. An error without a field of the form appears at its `default` field; without one it becomes a
toast. A message is removed when the handler succeeds, or when `check` does not raise it any more after the
user has edited the field; at a field of `texts` it stays while the text is as long as the refused one, or
still blank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.errors import StudioError
from studio import events
from studio.assets import read_asset


@dataclass(frozen=True)
class FieldErrors:
    """The errors of a form.

    Attributes:
        component: holds the messages, by the element id of their field.
        fields: the components of the form, by the names that errors use.
        default: the field of errors that name none of the form; "" leaves them to a toast.
    """

    component: gr.HTML
    fields: Mapping[str, gr.components.Component]
    default: str = ""

    def messages(self, error: StudioError) -> dict[str, str] | None:
        """The value of `component` for an error; None if it belongs to none of the fields."""
        field = self.fields.get(error.field) or self.fields.get(self.default)
        return None if field is None else {str(field.elem_id): events.user_message(error)}


def field_errors(
    fields: Mapping[str, gr.components.Component], default: str = "", texts: Sequence[str] = ()
) -> FieldErrors:
    """Makes the component, inside the form.

    Args:
        fields: the form's components, by the names that errors use; each gets an element id. Above a
            `gr.HTML`, which has no input of its own, its message stands first.
        default: the field of errors that name none of the form.
        texts: fields with a text, which a shorter one may correct.
    """
    for name, component in fields.items():
        if not component.elem_id:
            component.elem_id = f"field-{name.replace('_', '-')}-{component._id}"
    ids = {str(c.elem_id): name for name, c in fields.items()}
    component = gr.HTML(
        value={},
        html_template="<div></div>",
        visible="hidden",
        js_on_load=read_asset("components/field_errors.js") + "\n/* fires 'edit' */",
        apply_default_css=False,
        fields=ids,
        above=[str(c.elem_id) for c in fields.values() if isinstance(c, gr.HTML)],
        texts=[str(fields[name].elem_id) for name in texts],
        is_checked=False,
    )
    return FieldErrors(component, dict(fields), default)


def wire(
    errors: FieldErrors, engine: Any, check: Callable[..., Any] | None = None, inputs: Any = None
) -> None:
    """Checks the form again whenever the user edits a field that has an error.

    Args:
        check: a handler `(engine, *values)` that raises what is wrong with the form; without one, an edit
            removes the message of its field on the page.
        inputs: the components whose values `check` gets, as for Gradio's events.
    """

    if check is None:
        return
    errors.component.props["is_checked"] = True

    def recheck(engine: Any, *values: Any) -> dict[str, str]:
        try:
            check(engine, *values)
        except StudioError as e:
            return errors.messages(e) or {}
        return {}

    events.bind(errors.component.edit, engine, recheck, inputs, [errors.component])
