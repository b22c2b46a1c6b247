"""Results that fill fields, put there by the browser on the page as it is when they arrive.

    page ── values ──> handler ── updates, and the values that they were made from ──> carrier (hidden)
                                                                                         │ in the browser
    a field that the visitor has changed since: only its choices, help and visibility  <──┤
    every other field: its value, too                                                  <──┘

A result may take seconds on a busy machine. Shown by Gradio, it would undo what was typed or chosen
meanwhile. A key is a field that the whole result was computed from. If a key has changed, the result is
dropped: the event of that change has its own, and the page asks for its lists again.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component, FormComponent

FILLS_KEPT = 8  # of one field, so that a result that is older than several of them is shown

# (carried, ...values of the fields) -> their next values; an undefined one leaves its field as it is.
# `.then` also runs after an event that returned no result; the carrier then still holds an earlier one.
# A field may differ from what a result was made from because another result has filled it: `filled` knows.
SHOW = """(carried, ...present) => {
  const ids = IDS, next = new Array(ids.length);
  const shown = (window.studio.shownResults ??= {}), filled = (window.studio.filledFields ??= {});
  if (!carried || shown["CARRIER"] === carried.result) return next;
  shown["CARRIER"] = carried.result;
  const plain = (value) => JSON.stringify(value ?? "");
  const at = (id) => plain(present[ids.indexOf(id)]);
  for (const { fill, made_from, keys } of carried.parts) {
    if (keys.some((id) => at(id) !== plain(made_from[id]))) {
      window.dispatchEvent(new Event("studio:stale"));
      continue;
    }
    for (const [id, update] of Object.entries(fill)) {
      const last = filled[id], made = plain(made_from[id]);
      const isOwn = last && last.value === at(id); // the value that a result has put there
      const isUpdate = update?.__type__ === "update";
      if (at(id) !== made && !(isOwn && last.from.includes(made))) {
        const { value, ...rest } = isUpdate ? update : {};
        if (Object.keys(rest).length > 1) next[ids.indexOf(id)] = rest;
        continue;
      }
      next[ids.indexOf(id)] = update;
      if (!isUpdate || "value" in update) {
        const from = [...(isOwn ? last.from : []), at(id)].slice(-FILLS_KEPT);
        filled[id] = { value: plain(isUpdate ? update.value : update), from };
      }
    }
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
        source = SHOW.replace("IDS", ids).replace("FILLS_KEPT", str(FILLS_KEPT))
        return trigger(
            fn=None,
            inputs=[self.component, *self._watched],
            outputs=self._fields,
            js=source.replace("CARRIER", str(self.component._id)),
            api_visibility="private",
        )

    @staticmethod
    def pack(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The value of the carrier for what `split` has made of the results of one event."""
        return {"result": secrets.token_hex(8), "parts": list(parts)}


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
        keys: see the module.

    Returns:
        what `Carrier.pack` takes, and the updates of the other components.
    """
    chosen = set(fields)
    carried = {c: u for c, u in updates.items() if c in chosen and not keeps_choices(c, u)}
    fill = {c: u for c, u in carried.items() if u != gr.skip()}
    part = {
        "fill": {str(c._id): _to_plain(u) for c, u in fill.items()},
        "made_from": {str(c._id): _to_plain(values.get(c)) for c in (*fill, *keys)},
        "keys": [str(c._id) for c in keys],
    }
    return part, {c: u for c, u in updates.items() if c not in carried}


def keeps_choices(field: Component, update: Any = None) -> bool:
    """Whether Gradio's server compares the values of a field with its choices.

    Args:
        update: an update of the field; where it has no choices, the browser may show it. None for any.
    """
    has_choices = update is None or (isinstance(update, dict) and "choices" in update)
    return has_choices and hasattr(field, "choices") and not getattr(field, "allow_custom_value", False)


def _to_plain(value: Any) -> Any:
    """A value or an update as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value
