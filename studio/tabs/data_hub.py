"""The import of a dataset from the Hugging Face Hub, by its id, on the Data tab.

Its first rows are fetched into a drop and read as dropped files are, so that the roles of its columns can be
chosen before it is downloaded. The configuration and the split are chosen in the preview.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from core.data.formats.hub_datasets import HubListing
from core.engine import Engine
from core.errors import SpecError, StudioError
from studio import events, uploads
from studio.components import field_errors
from studio.components.field_errors import FieldErrors
from studio.reading_choices import Choices
from studio.tabs import data_import
from studio.tree import Node, skeleton, view
from studio.views import data_hub as views

ABOUT = "Its first rows are fetched for a preview. No code of the repository runs."


@dataclass(frozen=True)
class HubForm:
    """The fields of the form, and the preview beside it; `picked` holds a `HubChoice`."""

    hub_id: gr.Textbox
    revision: gr.Textbox
    held_out: gr.Checkbox
    look: gr.Button
    add: gr.Button
    errors: FieldErrors
    picked: gr.State


@dataclass(frozen=True)
class HubChoice:
    """What the user looked at and chose.

    Attributes:
        hub_id, revision: as typed.
        listing: the configurations and splits; None before a look.
        config, split: "" while the user has to choose one of several.
        choices: how the rows are read.
        drop: the drop with the first rows, once they are fetched.
        problem: why they could not be fetched, for the user.
        asks: the preview asks which column is which, and the user has not answered.
    """

    hub_id: str = ""
    revision: str = ""
    listing: HubListing | None = None
    config: str = ""
    split: str = ""
    choices: Choices = field(default_factory=Choices)
    drop: str = ""
    problem: str = ""
    asks: bool = False


def build() -> HubForm:
    """Makes the components of the form."""
    with gr.Accordion("From the Hugging Face Hub", open=False, elem_classes="quiet-fold"):
        hub_id = gr.Textbox(label="Id on the Hub", placeholder="owner/name", info=ABOUT, max_length=200)
        revision = gr.Textbox(label="Hub revision", placeholder="main", max_length=120)
        held_out = gr.Checkbox(label="Held out: nothing is trained on it")
        with gr.Row():
            look = gr.Button("Show its first rows", min_width=130)
            add = gr.Button("Import from the Hub", variant="primary", min_width=130)
        errors = field_errors.field_errors({"hub_id": hub_id, "revision": revision})
    return HubForm(hub_id, revision, held_out, look, add, errors, gr.State(HubChoice()))


def build_preview() -> gr.HTML:
    """Makes the place of the preview, beside the form."""
    return view(None, elem_id="hub-preview")


def wire(form: HubForm, engine: Engine, preview: gr.HTML, imports: gr.HTML) -> None:
    """Connects the events.

    Args:
        imports: shows the progress of the import.
    """
    fields = [form.hub_id, form.revision, form.held_out]
    shown = [form.picked, preview]
    for trigger in (form.look.click, form.hub_id.submit):
        events.bind(trigger, engine, look_up, [form.picked, *fields], shown, errors=form.errors)
    events.bind_sequential(preview.act, engine, change_preview, [form.picked, form.held_out], shown)
    events.bind_sequential(form.held_out.input, engine, show_again, [form.picked, form.held_out], shown)
    after = [imports, *shown, form.hub_id]
    events.bind(form.add.click, engine, start_hub_import, [form.picked, *fields], after, errors=form.errors)
    field_errors.wire(form.errors, engine)


def look_up(engine: Engine, picked: HubChoice, hub_id: str, revision: str, held_out: bool) -> Any:
    """Shows the first rows of a dataset, or asks which configuration is meant.

    Raises:
        SpecError: the id is empty. DataError: what the Hub says.
    """
    hub_id, revision = _check_id(hub_id), (revision or "").strip()
    yield picked, skeleton(6, f"The first rows of {hub_id} are being fetched")
    try:
        listing = engine.datasets.list_hub(hub_id, revision)
    except StudioError as e:
        yield HubChoice(), None
        raise e.at("revision" if "revision" in e.what else "hub_id") from e
    discard(picked)
    config = listing.find_config()
    found = HubChoice(hub_id, revision, listing, config, listing.find_split(config))
    yield _show(engine, _fetch(engine, found), held_out)


def change_preview(engine: Engine, picked: HubChoice, held_out: bool, event: gr.EventData) -> Any:
    """Applies what the user pressed or picked in the preview."""
    act = event._data if isinstance(event._data, dict) else {}
    what, value = act.get("do"), str(act.get("value", ""))
    listing = picked.listing
    if what == "close" or listing is None:
        discard(picked)
        return HubChoice(), None
    if what == "config" and value in listing.groups:
        split = listing.find_split(value)
        picked = _fetch(engine, replace(picked, config=value, split=split, choices=Choices()))
    elif what == "split" and value in listing.groups.get(picked.config, ()):
        picked = _fetch(engine, replace(picked, split=value))
    else:
        picked = replace(picked, choices=data_import.apply_action(picked.choices, act))
    return _show(engine, picked, held_out)


def show_again(engine: Engine, picked: HubChoice, held_out: bool) -> Any:
    """Shows the preview after the purpose has changed; nothing before a look."""
    return _show(engine, picked, held_out) if picked.listing else (picked, None)


def _fetch(engine: Engine, picked: HubChoice) -> HubChoice:
    """Fetches the first rows of the chosen configuration and split into a drop of their own."""
    discard(picked)
    picked = replace(picked, drop="", problem="")
    if picked.listing is None or not picked.config or not picked.split:
        return picked
    drop, folder = uploads.make_drop()
    try:
        engine.datasets.read_hub_head(picked.listing.choose(picked.config, picked.split), folder)
    except StudioError as e:
        uploads.discard(drop)
        return replace(picked, problem=events.user_message(e))
    return replace(picked, drop=drop)


def discard(picked: HubChoice) -> None:
    """Deletes the first rows that were fetched."""
    if picked.drop:
        uploads.discard(picked.drop)


def _show(engine: Engine, picked: HubChoice, held_out: bool) -> tuple[HubChoice, Node]:
    listing = picked.listing
    assert listing is not None
    groups = {config: list(splits) for config, splits in listing.groups.items()}
    head = views.render_choice(groups, picked.config, picked.split)
    if picked.problem or not picked.drop:
        return picked, views.render_hub_problem(listing.id, head, picked.problem)
    try:
        folder = uploads.find_folder(picked.drop)
        choices, preview = data_import.preview_files(engine, [str(folder)], picked.choices, held_out)
    except StudioError as e:
        return picked, views.render_hub_problem(listing.id, head, events.user_message(e))
    picked = replace(picked, choices=choices, asks=bool(preview.question) and not choices.answered)
    return picked, views.render_hub_preview(listing.id, head, preview, choices)


def start_hub_import(
    engine: Engine, picked: HubChoice, hub_id: str, revision: str, held_out: bool
) -> tuple[Any, ...]:
    """Starts the import of a dataset of the Hub, read as the preview shows it if there is one.

    Returns:
        the value of the component that shows imports, no choice, no preview, and an empty id.

    Raises:
        SpecError: the id is empty, or the preview asks something. What the Hub says about the id is shown
            with the import.
    """
    hub_id, revision = _check_id(hub_id), (revision or "").strip()
    if picked.listing is None or (picked.hub_id, picked.revision) != (hub_id, revision):
        discard(picked)
        picked = HubChoice(hub_id, revision)
    if picked.asks or (picked.listing and not (picked.config and picked.split)):
        raise SpecError("The preview asks a question about this dataset.", "Answer it first.").at("hub_id")
    choices = picked.choices
    job_id = engine.imports.start_hub(
        hub_id,
        config=picked.config,
        split=picked.split,
        revision=picked.listing.revision if picked.listing else revision,
        kind=choices.kind,
        roles=choices.roles,
        purpose="evaluation" if held_out else "training",
    )
    discard(picked)
    return {"job": job_id}, HubChoice(), None, ""


def _check_id(hub_id: str) -> str:
    clean = (hub_id or "").strip()
    if not clean:
        raise SpecError("The dataset has no id.", "Enter owner/name, as on its page.").at("hub_id")
    return clean
