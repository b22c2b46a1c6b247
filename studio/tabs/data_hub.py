"""The import of a dataset from the Hugging Face Hub, by its id, on the Data tab."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import SpecError
from studio import events
from studio.components import field_errors
from studio.components.field_errors import FieldErrors

ABOUT = "Its tables are downloaded at one commit, which the notes name. No code of the repository runs."


@dataclass(frozen=True)
class HubForm:
    """The fields of the form: the id, then what is optional."""

    hub_id: gr.Textbox
    config: gr.Textbox
    split: gr.Textbox
    revision: gr.Textbox
    held_out: gr.Checkbox
    add: gr.Button
    errors: FieldErrors


def build() -> HubForm:
    """Makes the components."""
    with gr.Accordion("From the Hugging Face Hub", open=False, elem_classes="quiet-fold"):
        hub_id = gr.Textbox(label="Id on the Hub", placeholder="owner/name", info=ABOUT, max_length=200)
        with gr.Row():
            config = gr.Textbox(label="Configuration", placeholder="default", min_width=90, max_length=120)
            split = gr.Textbox(label="Hub split", placeholder="train", min_width=90, max_length=120)
            revision = gr.Textbox(label="Hub revision", placeholder="main", min_width=90, max_length=120)
        held_out = gr.Checkbox(label="Held out: nothing is trained on it")
        add = gr.Button("Import from the Hub")
        errors = field_errors.field_errors({"hub_id": hub_id})
    return HubForm(hub_id, config, split, revision, held_out, add, errors)


def wire(form: HubForm, engine: Engine, imports: gr.HTML) -> None:
    """Connects the events. `imports` shows the progress of the import."""
    fields = [form.hub_id, form.config, form.split, form.revision, form.held_out]
    events.bind(form.add.click, engine, start_hub_import, fields, [imports], errors=form.errors)
    field_errors.wire(form.errors, engine)


def start_hub_import(
    engine: Engine, hub_id: str, config: str, split: str, revision: str, held_out: bool
) -> dict[str, Any]:
    """Starts the import of a dataset of the Hub.

    Returns:
        the value of the component that shows imports.

    Raises:
        SpecError: the id is empty. What the Hub says about it is shown with the import.
    """
    hub_id = (hub_id or "").strip()
    if not hub_id:
        raise SpecError("The dataset has no id.", "Enter owner/name, as on its page.").at("hub_id")
    job_id = engine.imports.start_hub(
        hub_id,
        config=(config or "").strip(),
        split=(split or "").strip(),
        revision=(revision or "").strip(),
        purpose="evaluation" if held_out else "training",
    )
    return {"job": job_id}
