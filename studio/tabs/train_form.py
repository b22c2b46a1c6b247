"""What the Train form was filled with, and its sentence about what it would train."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.engine import Engine
from core.spec.settings import format_number, label_of
from core.spec.training import TrainSpec
from studio import formatting, labels
from studio.tabs import suggestions
from studio.tree import Node, button, node


@dataclass(frozen=True)
class Filled:
    """The values that the form filled in last, kept on the page to tell them from what the user typed.

    Attributes:
        values: advanced setting -> value of its component; empty before the form was filled.
        name: the name of the adapter that was suggested.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    @classmethod
    def read(cls, value: Any) -> Filled:
        """Reads what the page sends; empty for anything else."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict) or not isinstance(value.get("values"), dict):
            return cls()
        return cls(value["values"], str(value.get("name", "")))

    def is_changed(self, setting: str, value: Any) -> bool:
        """Whether the value of a component is not the one that the form filled in."""
        return setting in self.values and value != self.values[setting]


def render_advice(engine: Engine, preset: str, settings: Mapping[str, Any]) -> Node | None:
    """What the form would train, what suits the data and why, and a button that restores it.

    Args:
        settings: of the form.
    """
    dataset = next((d for d in engine.datasets.list() if d.id == settings.get("dataset")), None)
    if dataset is None:
        return None
    advice = suggestions.recommend(engine, dataset.id, preset)
    names = {f.name: label_of(f) for f in dataclasses.fields(TrainSpec)}
    differing = [n for n, v in advice.settings.items() if n in settings and settings[n] != v]
    note = None
    if settings.get("max_steps"):
        note = f"Max steps is {settings['max_steps']:,}, so that the number of epochs does not count."
    restore = None
    if differing:
        listed = ", ".join(f"{names[n]} {_format(advice.settings[n])}" for n in differing)
        restore = node(
            "div",
            node("p", f"You changed what suits the data. Recommended: {listed}."),
            button("Use the recommended values", {"do": "recommend"}),
            cls="row",
        )
    return node(
        "div",
        node("p", _describe_run(engine, dataset, settings)),
        node("p", advice.text, cls="quiet"),
        node("p", note, cls="quiet") if note else None,
        restore,
        cls="below",
    )


def _describe_run(engine: Engine, dataset: Any, settings: Mapping[str, Any]) -> str:
    """Adapter, dataset, base and parent of the run, by their names."""
    name = str(settings.get("name") or "").strip() or "The adapter"
    label = labels.label_datasets(engine.datasets.list())[dataset.id]
    parent = str(settings.get("stack_on") or "")
    on_top = ""
    if parent:
        known = {i: label for label, i in suggestions.list_parents(engine)}
        on_top = f" on top of {known.get(parent, parent)}"
    base = formatting.format_base(engine.bases.current().name)
    return f"{name} is trained on {label}{on_top}, over the base {base}."


def _format(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return format_number(value) if isinstance(value, (int, float)) else str(value)
