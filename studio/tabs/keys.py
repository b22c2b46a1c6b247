"""The keys on the Base tab: with a key, another program signs in to the API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import InvalidName
from core.spec.access import ROLES, Role
from core.store.api_keys import ApiKeys
from studio import events
from studio.components import field_errors
from studio.tree import Node, title, view
from studio.views import keys as views

ABOUT = "Other programs sign in with a key. It is shown once and stored as a hash."
ROLE_HELP = (
    "Viewer: prompts, mixes, compare, vote. Trainer: also datasets and runs. Owner: also deletes, exports, "
    "changes the base and the keys."
)


@dataclass(frozen=True)
class KeysTab:
    """The components."""

    name: gr.Textbox
    role: gr.Radio
    create: gr.Button
    errors: field_errors.FieldErrors
    secret: gr.HTML
    shelf: gr.HTML


def build() -> KeysTab:
    """Makes the components."""
    with gr.Column(elem_classes="card", elem_id="keys"):
        view(title("Keys for other programs", ABOUT))
        with gr.Row():
            name = gr.Textbox(label="Name", placeholder="Who or what uses it", max_length=120, scale=1)
            role = gr.Radio(
                [(r.capitalize(), r) for r in ROLES], value=ROLES[0], label="Role", info=ROLE_HELP
            )
        errors = field_errors.field_errors({"name": name, "role": role})
        with gr.Row():
            create = gr.Button("Create a key", scale=0, min_width=160)
        secret = view(elem_id="keys-secret")
        shelf = view(elem_id="keys-shelf")
    return KeysTab(name, role, create, errors, secret, shelf)


def wire(tab: KeysTab, engine: Engine, library_changed: events.EventGroup) -> None:
    """Connects the events."""
    library_changed.add(refresh, None, [tab.shelf])
    shown = [tab.name, tab.secret, tab.shelf]
    events.bind(tab.create.click, engine, create, [tab.name, tab.role], shown, errors=tab.errors)
    field_errors.wire(tab.errors, engine)
    events.bind(tab.shelf.act, engine, revoke, None, [tab.secret, tab.shelf])


def refresh(engine: Engine) -> Node:
    """Updates the list, which only an owner sees."""
    caller = events.find_caller()
    if caller.role < Role.OWNER:
        return views.render_caller(caller)
    return views.render_keys(ApiKeys(engine.workspace).list())


def create(engine: Engine, name: str, role: str) -> tuple[Any, ...]:
    """Creates a key and shows its secret this once."""
    try:
        key, secret = ApiKeys(engine.workspace).create(name or "", role)
    except InvalidName as e:
        raise e.at("name") from None
    return "", views.render_secret(key, secret), refresh(engine)


def revoke(engine: Engine, event: gr.EventData) -> tuple[Any, ...]:
    """Revokes the key whose button was pressed."""
    key_id = str((event._data or {}).get("revoke", ""))
    if not key_id:
        return gr.skip(), gr.skip()
    key = ApiKeys(engine.workspace).revoke(key_id)
    gr.Info(events.escape_markup(f"Revoked {key.name}."), title="Done")
    return None, refresh(engine)
