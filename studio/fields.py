"""Builds form components from the specs, one per dataclass field with its help and limits, and reads them.

Errors of a form stand at the field that caused them: `components/field_errors.py` says how.

    errors = field_errors.field_errors({"dataset": dataset, **advanced})        # in build()
    events.bind(start.click, engine, start_run, inputs, outputs, errors=errors)   # in wire()
    field_errors.wire(errors, engine, check, inputs)                # check raises what is still wrong
    raise SpecError("No dataset is chosen.", "Choose one.").at("dataset")          # in a handler
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import gradio as gr

from core.errors import SpecError
from core.spec.settings import format_number, label_of

Fields = dict[str, gr.components.Component]


def build(
    spec: type,
    names: tuple[str, ...],
    start: dict[str, Any] | None = None,
    choices: dict[str, list[tuple[str, str]]] | None = None,
) -> Fields:
    """Builds components for some fields of a spec, in the given order.

    Args:
        spec: a dataclass whose fields carry the metadata of `core.spec.settings`.
        names: the fields.
        start: initial values that replace the defaults.
        choices: dropdown choices of text fields, as (label, value).
    """
    known = {f.name: f for f in dataclasses.fields(spec)}
    components: Fields = {}
    for name in names:
        value = (start or {}).get(name, default_of(known[name]))
        components[name] = _component(known[name], value, (choices or {}).get(name))
    return components


def default_of(f: dataclasses.Field[Any]) -> Any:
    """The default of a field, from its factory if it has one."""
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _component(
    f: dataclasses.Field[Any], value: Any, choices: list[tuple[str, str]] | None
) -> gr.components.Component:
    meta, label, kind = f.metadata, label_of(f), str(f.type)
    options = choices or ([(c.capitalize(), c) for c in meta["choices"]] if meta.get("choices") else None)
    if options is not None:
        return gr.Dropdown(options, value=value, label=label, info=meta["help"])
    if kind == "bool":
        return gr.Checkbox(value, label=label, info=meta["help"])
    if kind in ("int", "float"):
        low, high = meta["low"], meta["high"]
        help = f"{meta['help']} ({format_number(low)} to {format_number(high)})"
        return number(
            value,
            label=label,
            info=help,
            minimum=low,
            maximum=high,
            precision=0 if kind == "int" else None,
            step=1 if kind == "int" else _step(value),
        )
    if kind.startswith("tuple"):
        return gr.Textbox(to_component(value), label=label, info=f"{meta['help']} One per line.", lines=2)
    return gr.Textbox(value, label=label, info=meta["help"])


def number(value: Any, **more: Any) -> gr.Number:
    """A number field. Its limits hold for the arrows of the field; a handler checks the value.

    Gradio (6.31) would refuse a value outside the limits before a handler sees it, with an error that names
    no field.
    """
    field = gr.Number(value, **more)
    setattr(field, "raise_if_out_of_bounds", lambda *values: None)  # noqa: B010 (mypy: a method)
    return field


def _step(value: float) -> float:
    return 10.0 ** math.floor(math.log10(value)) if value > 0 else 0.05


def to_component(value: Any) -> Any:
    """Converts a field's value to its component's value: tuples become lines."""
    return "\n".join(value) if isinstance(value, (tuple, list)) else value


def read(spec: type, values: dict[str, Any]) -> dict[str, Any]:
    """Reads fields from the values of their components: tuples from lines, everything else as it is.

    Raises:
        SpecError: a number field is empty.
    """
    known = {f.name: f for f in dataclasses.fields(spec)}
    fields: dict[str, Any] = {}
    for name, value in values.items():
        f = known[name]
        if str(f.type).startswith("tuple"):
            fields[name] = tuple(line.strip() for line in str(value or "").splitlines() if line.strip())
        elif str(f.type) in ("int", "float") and value is None:
            low, high = format_number(f.metadata["low"]), format_number(f.metadata["high"])
            raise SpecError(f"{label_of(f)} is empty.", f"Enter a number from {low} to {high}.").at(name)
        else:
            fields[name] = "" if value is None else value
    return fields


def picker(
    label: str, choices: list[tuple[str, str]] | None = None, value: Any = None, **more: Any
) -> gr.Dropdown:
    """A dropdown whose choices change while the page is open.

    Gradio checks a value against the choices that it sent last, which may be older than those on the page.
    So any value is accepted here, and the handler that uses the value looks it up.
    """
    return gr.Dropdown(choices or [], value=value, label=label, allow_custom_value=True, **more)


def update_choices(choices: list[tuple[str, str]], value: Any, present: Any, **more: Any) -> Any:
    """An update of a dropdown's choices.

    A value equal to the present one is not sent, because the user may be editing it at this moment.
    """
    return gr.update(choices=choices, **({} if value == present else {"value": value}), **more)
