"""Results that fill a form, applied in the browser to the form as it is when they arrive.

    page ── values ──> handler ── updates, and the values that they were made from ──> carrier (hidden)
                                                                                         │ in the browser
    a field that the user has changed since <── stays        every other field <── filled ┘

A result may take seconds on a busy machine. Written over the form by Gradio, it would undo what was typed or
chosen meanwhile. Where a field that everything depends on has changed, the whole result is dropped: the event
of that change has its own, and the page asks for its lists again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from studio import events

_results = itertools.count(1)  # of all forms and pages

# (carried, ...present values) -> the values of the fields; an undefined one leaves its field as it is
APPLY = """(carried, ...present) => {
  const ids = IDS, keys = KEYS, plain = (value) => JSON.stringify(value ?? "");
  const filled = (window.studio.filledForms ??= new Set());
  if (!carried || filled.has(carried.result)) return []; // an event without a result comes after one with it
  filled.add(carried.result);
  const isChanged = (id) => plain(carried.made_from[id]) !== plain(present[ids.indexOf(id)]);
  if (keys.some(isChanged)) { window.dispatchEvent(new Event("studio:stale")); return []; }
  return ids.map((id) => (id in carried.fill && !isChanged(id) ? carried.fill[id] : undefined));
}"""


class FormFill:
    """The fields of a form, and what carries results to them.

    Args:
        fields: the fields that results fill, hidden ones included.
    """

    def __init__(self, fields: Iterable[Component]) -> None:
        self.fields = list(fields)

    def bind(
        self,
        trigger: Callable[..., Any],
        engine: Any,
        fn: Callable[..., Any],
        inputs: Iterable[Component],
        outputs: Sequence[Component],
        keys: Sequence[Component],
    ) -> Any:
        """Binds a handler that fills the form to an event.

        Args:
            fn: a handler `(engine, values)` that returns a dict of updates.
            inputs: what the handler reads.
            outputs: what it updates; those that are no fields are shown as they are.
            keys: fields that everything in its result depends on.

        Returns:
            The event after which the form is filled.
        """
        carrier, fills, others, call = self._carry(fn, inputs, outputs)
        how: dict[str, Any] = {"trigger_mode": "multiple"}  # of two changes, each has its result
        event = events.bind(trigger, engine, call, {*inputs, *fills, *keys}, [carrier, *others], **how)
        return event.then(
            fn=None,
            inputs=[carrier, *_watched(fills, keys)],
            outputs=fills,
            js=_source(fills, keys),
            api_visibility="private",
        )

    def add(
        self,
        group: events.EventGroup,
        fn: Callable[..., Any],
        inputs: Iterable[Component],
        outputs: Sequence[Component],
        keys: Sequence[Component],
    ) -> None:
        """Adds a handler that fills the form to a group of handlers; arguments as in `bind`."""
        carrier, fills, others, call = self._carry(fn, inputs, outputs)
        group.add(call, {*inputs, *fills, *keys}, [carrier, *others])
        group.then(_source(fills, keys), [carrier, *_watched(fills, keys)], fills)

    def _carry(
        self, fn: Callable[..., Any], inputs: Iterable[Component], outputs: Sequence[Component]
    ) -> tuple[Component, list[Component], list[Component], Callable[..., Any]]:
        """Puts what a handler fills into a carrier, beside the values that it was made from.

        Returns:
            the carrier, the outputs that are fields, the other ones, and the handler that returns these.
        """
        carrier, read = gr.JSON(visible=False), set(inputs)
        fills = [c for c in outputs if c in self.fields]
        others = [c for c in outputs if c not in self.fields]

        @functools.wraps(fn)
        def call(engine: Any, values: dict[Any, Any]) -> dict[Any, Any]:
            updates = fn(engine, {c: v for c, v in values.items() if c in read})
            made = {
                "result": next(_results),
                "fill": {str(c._id): _to_plain(u) for c, u in updates.items() if c in fills},
                "made_from": {str(c._id): _to_plain(v) for c, v in values.items()},
            }
            return {**{c: u for c, u in updates.items() if c not in fills}, carrier: made}

        return carrier, fills, others, call


def _watched(fills: Sequence[Component], keys: Sequence[Component]) -> list[Component]:
    """What the browser compares: the fields in the order of the outputs, then the other keys."""
    return [*fills, *(c for c in keys if c not in fills)]


def _source(fills: Sequence[Component], keys: Sequence[Component]) -> str:
    ids = json.dumps([str(c._id) for c in _watched(fills, keys)])
    return APPLY.replace("IDS", ids).replace("KEYS", json.dumps([str(c._id) for c in keys]))


def _to_plain(value: Any) -> Any:
    """A value or an update as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value
