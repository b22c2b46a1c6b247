"""Which controls of the page a visitor may use: from the table of roles to the components, at its start.

`list_needs` reads the page's events and server functions, so a new button needs nothing but its handler's
role in `studio.roles`. `permissions.js` disables what the visitor may not use, with the reason. This is for
the eye: the server checks every call by itself (`studio.events`, `studio.server.guard`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from core.server.access import Principal
from core.spec.access import Role
from studio import actions, roles
from studio.assets import read_asset
from studio.server.access import Visit, describe_visit, split_refusal
from studio.server.guard import ROUTE_ROLES
from studio.tree import DOWNLOAD, Node, node

MAY = {
    Role.VIEWER: "You are a viewer: you can prompt, mix, compare and vote. Data and training need the role "
    "trainer; deleting, exporting, keys and the base need the role owner.",
    Role.TRAINER: "You are a trainer: you can use everything but deleting, exporting, keys and the base, "
    "which need the role owner.",
}


def list_needs(page: gr.Blocks) -> dict[str, Any]:
    """What each control needs; what a viewer may use is left out.

    Returns:
        blocks: id of a component's element -> role. A button needs the highest role of its handlers. Every
            other component needs the lowest, because its handlers share its controls; handlers that run by
            themselves do not count.
        acts: id -> action of a button in its tree -> role.
        links: beginning of a link's address -> role.
    """
    needed: dict[int, list[Role]] = defaultdict(list)
    acts: dict[str, dict[str, int]] = defaultdict(dict)
    tables = {f"studio.{name}": table for name, table in (*roles.ACTS.items(), *_list_actions())}
    for event in page.fns.values():
        if event.fn is None or roles.is_silent(event.fn):
            continue
        for block_id, name in event.targets:
            if block_id is None or name in ("load", "tick"):
                continue
            needed[block_id].append(roles.find_role(event.fn))
            block = page.blocks.get(block_id)
            if block is not None:
                acts[_id_of(block)].update(tables.get(roles.name_of(event.fn), {}))
    blocks = {}
    for block_id, found in needed.items():
        block = page.blocks.get(block_id)
        if block is not None:
            blocks[_id_of(block)] = max(found) if isinstance(block, gr.Button) else min(found)
    for block in page.blocks.values():
        functions = [fn for fn in vars(block).values() if getattr(fn, "_is_server_fn", False)]
        if functions:  # what the controls of such a component do is a server function
            blocks[_id_of(block)] = max(roles.find_role(fn) for fn in functions)
    links = {route.lstrip("/"): role for route, role in ROUTE_ROLES.items() if DOWNLOAD in route}
    return {
        "blocks": {name: int(role) for name, role in blocks.items() if role > Role.VIEWER},
        "acts": {name: table for name, table in acts.items() if table},
        "links": links,
    }


def _list_actions() -> list[tuple[str, dict[str, Role]]]:
    return [("actions.run_action", actions.ROLES)]


def name_elements(page: gr.Blocks) -> None:
    """Gives the elements of all components ids, by which the browser finds them.

    Gradio 6.31 gives none to an HTML component without `elem_id`.
    """
    for block in page.blocks.values():
        if isinstance(block, gr.components.Component) and not block.elem_id:
            block.elem_id = _id_of(block)


def _id_of(block: Any) -> str:
    """The id of a component's element in the browser."""
    return str(block.elem_id or f"component-{block._id}")


def script(page: gr.Blocks) -> str:
    """The script for the page's head."""
    needs = json.dumps(list_needs(page))
    return f"<script>{read_asset('permissions.js').replace('NEEDS', needs)}</script>"


def find_visit() -> Visit:
    """The visit whose event or server function runs now; code that Gradio does not run is the owner's."""
    if LocalContext.blocks.get(None) is None:
        return Visit(Role.OWNER)
    return describe_visit(LocalContext.request.get(None))


def describe(visit: Visit) -> dict[str, Any]:
    """What `permissions.js` has to know: the role, and why controls of higher ones are disabled."""
    caller = Principal(visit.name, visit.role)
    higher = [role for role in Role if role > max(visit.role, Role.VIEWER)]
    how = "Sign in for more." if visit.can_sign_in else "Ask the owner of the studio."
    return {
        "role": int(visit.role),
        "reasons": {str(int(role)): f"{split_refusal(caller, role)[0]} {how}" for role in higher},
    }


def render_role(visit: Visit) -> Node | None:
    """A sentence about what a visitor may do; None for the owner."""
    text = MAY.get(visit.role)
    return node("p", text, cls="note", role="status") if text else None


def render_session(visit: Visit) -> Node | None:
    """The button for signing in or out; None where neither is possible."""
    if visit.can_sign_out:
        title = f"You are signed in as {visit.name}."
        return node("button", "Sign out", cls="btn quiet small session", act={"do": "sign_out"}, title=title)
    if visit.can_sign_in:
        return node("button", "Sign in", cls="btn quiet small session", act={"do": "sign_in"})
    return None
