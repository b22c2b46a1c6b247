"""Results that fill fields, put there by the browser on the page as it is when they arrive.

    page ── values ──> handler ── updates, and the values that they were made from ──> carrier (hidden)
                                                                                         │ in the browser
    a field that the visitor has changed since <── stays        every other field <── filled ┘

A result may take seconds on a busy machine. Shown by Gradio, it would undo what was typed or chosen
meanwhile. Where a field that everything in it depends on has changed (a key), the whole result is dropped:
the event of that change has its own, and the page asks for its lists again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component, FormComponent

_results = itertools.count(1)  # of all pages

# (carried, ...values of the fields) -> their next values; an undefined one leaves its field as it is
SHOW = """(carried, ...present) => {
  const ids = IDS, next = new Array(ids.length), shown = (window.studio.shownResults ??= new Set());
  if (!carried || shown.has(carried.result)) return next; // an event without a result comes after one with it
  shown.add(carried.result);
  const plain = (value) => JSON.stringify(value ?? "");
  for (const { fill, made_from, keys } of carried.parts) {
    const isChanged = (id) => plain(made_from[id]) !== plain(present[ids.indexOf(id)]);
    if (keys.some(isChanged)) { window.dispatchEvent(new Event("studio:stale")); continue; }
    for (const id of Object.keys(fill)) if (!isChanged(id)) next[ids.indexOf(id)] = fill[id];
  }
  return next;
}"""


class Carrier:
    """What carries results to fields.

    Args:
        fields: the fields that results fill.
        keys: further components that a result may depend on.

    Attributes:
        component: holds the newest result. Hidden.
    """

    def __init__(self, fields: Iterable[Component], keys: Iterable[Component] = ()) -> None:
        self.component = gr.JSON(visible=False)
        self._fields = list(dict.fromkeys(fields))
        self._watched = list(dict.fromkeys([*self._fields, *keys]))

    def show(self, trigger: Callable[..., Any]) -> Any:
        """Fills the fields after an event whose outputs contain the carrier.

        Returns:
            The event after which the fields are filled.
        """
        ids = json.dumps([str(c._id) for c in self._watched])
        return trigger(
            fn=None,
            inputs=[self.component, *self._watched],
            outputs=self._fields,
            js=SHOW.replace("IDS", ids),
            api_visibility="private",
        )

    @staticmethod
    def pack(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The value of the carrier for parts of `split`."""
        return {"result": next(_results), "parts": list(parts)}


def list_fields(inputs: Iterable[Component], outputs: Iterable[Component]) -> list[Component]:
    """The outputs of a handler that are carried: fields that it also reads."""
    read = set(inputs)
    return [c for c in outputs if c in read and isinstance(c, (FormComponent, gr.JSON))]


def split(
    updates: Mapping[Any, Any],
    values: Mapping[Any, Any],
    fields: Iterable[Component],
    keys: Iterable[Component],
) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Splits what a handler returns into what is carried, and what Gradio shows by itself.

    Args:
        updates: component -> its value or update.
        values: what the handler was called with.
        fields: what is carried.
        keys: fields that everything in the result depends on.

    Returns:
        a part for `Carrier.pack`, and the updates of the other components.
    """
    carried = {c: u for c, u in updates.items() if c in set(fields) and not _needs_server(c, u)}
    part = {
        "fill": {str(c._id): _to_plain(u) for c, u in carried.items()},
        "made_from": {str(c._id): _to_plain(values.get(c)) for c in (*carried, *keys)},
        "keys": [str(c._id) for c in keys],
    }
    return part, {c: u for c, u in updates.items() if c not in carried}


def _needs_server(field: Component, update: Any) -> bool:
    """Whether an update has choices that Gradio's server compares later values with."""
    has_choices = isinstance(update, dict) and "choices" in update
    return has_choices and not getattr(field, "allow_custom_value", False)


def _to_plain(value: Any) -> Any:
    """A value or an update as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value
