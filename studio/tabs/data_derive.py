"""What the Data tab makes of a dataset: one without repeats, redacted or merged; a note; the card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from core.data.datasets import Dataset
from core.engine import Engine
from core.errors import SpecError
from studio import events, formatting
from studio.tree import Node, button, download, node

if TYPE_CHECKING:
    from studio.tabs.data import DataTab

NAME_CHARACTERS = 90  # of a parent's name in the name of what is made from it
SUFFIXES = {"dedup": "without repeats", "redact": "redacted", "leave_out": "without empty rows"}


def wire(tab: DataTab, engine: Engine) -> None:
    """Connects the events."""
    made = events.bind(tab.inspection.act, engine, derive, None, [tab.picker])
    events.refresh_after(made)
    merged = events.bind(
        tab.merge.click, engine, merge, [tab.picker, tab.partners], [tab.picker, tab.partners]
    )
    events.refresh_after(merged)
    for trigger in (tab.note.blur, tab.note.submit):
        events.bind(trigger, engine, save_note, [tab.picker, tab.note], None)
    events.bind(tab.extras.act, engine, show_card, [tab.picker], [tab.extras])


def derive(engine: Engine, event: gr.EventData) -> Any:
    """Makes a dataset without repeats, personal data or empty rows, and picks it."""
    act = event._data if isinstance(event._data, dict) else {}
    operation = str(act.get("do"))
    if operation not in SUFFIXES:
        return gr.skip()
    parent = engine.datasets.get(str(act.get("dataset")))
    name = f"{parent.name[:NAME_CHARACTERS]}, {SUFFIXES[operation]}"
    made = engine.datasets.derive(
        parent.id, operation, name, near=bool(act.get("near")), empty=operation == "leave_out"
    )
    return _pick(engine, made)


def merge(engine: Engine, picked: str | None, partners: list[str] | None) -> tuple[Any, Any]:
    """Merges the picked dataset with others of its kind, and picks the result."""
    if not picked or not partners:
        raise SpecError("No dataset to merge with.", "Choose one or more of the list first.")
    first = engine.datasets.get(picked)
    others = [engine.datasets.get(p) for p in partners]
    names = " and ".join(d.name for d in [first, *others])
    made = engine.datasets.derive([first.id, *(d.id for d in others)], "merge", names[:NAME_CHARACTERS])
    return _pick(engine, made), []


def _pick(engine: Engine, dataset: Dataset) -> Any:
    from studio.tabs.data import list_choices

    text = f"Made {dataset.name}: {formatting.count(dataset.rows, 'row')}."
    gr.Info(events.escape_markup(text), title="Done")
    return gr.update(choices=list_choices(engine), value=dataset.id)


def save_note(engine: Engine, picked: str | None, note: str) -> None:
    """Stores the user's note of the picked dataset, if it has changed."""
    if picked and engine.datasets.get(picked).note != (note or "").strip():
        engine.datasets.annotate(picked, (note or "").strip())


def list_partners(engine: Engine, dataset: Dataset) -> list[tuple[str, str]]:
    """Datasets that a dataset can be merged with: those of its kind and purpose."""
    from studio.tabs.data import list_choices

    fitting = {
        d.id
        for d in engine.datasets.list()
        if d.id != dataset.id and d.kind == dataset.kind and d.purpose == dataset.purpose
    }
    return [(label, value) for label, value in list_choices(engine) if value in fitting]


def render_extras(dataset_id: str, card: str = "") -> Node:
    """The download and the data card of a dataset."""
    link = download("Download as zip", f"dataset/{dataset_id}.zip", f"{dataset_id}.zip")
    show = None if card else button("Show the data card", {"do": "card"})
    shown = node("pre", card, cls="card-text", tabindex="0") if card else None
    return node("div", node("div", link, show, cls="row"), shown)


def show_card(engine: Engine, picked: str | None) -> Any:
    """Shows the data card of the picked dataset."""
    if not picked:
        return gr.skip()
    return render_extras(picked, engine.datasets.card(picked))
