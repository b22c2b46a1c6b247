"""Views of the API keys on the Base tab: the list, a new key, and who is signed in."""

from __future__ import annotations

from collections.abc import Sequence

from core.server.access import Principal
from core.spec.access import Role
from core.store.api_keys import ApiKey
from studio import formatting
from studio.tree import Node, button, chip, node


def render_keys(keys: Sequence[ApiKey]) -> Node:
    """The keys, each with its role, the day of its last use, and a button that revokes it."""
    if not keys:
        return node("p", "No keys yet.", cls="quiet")
    return node("ul", *[_render_key(key) for key in keys], cls="queue", aria_label="Keys")


def _render_key(key: ApiKey) -> Node:
    used = f"last used {key.used}" if key.used else "never used"
    about = node(
        "div",
        node(
            "div", node("strong", key.name), chip(key.role, "warn" if key.role == "owner" else ""), cls="row"
        ),
        node("p", f"created {formatting.format_time(key.created)} · {used}", cls="quiet"),
        cls="queue-run",
    )
    revoke = button("Revoke", {"revoke": key.id}, "quiet danger", aria_label=f"Revoke {key.name}")
    return node("li", about, node("div", revoke, cls="row push"), cls="queue-item")


def render_secret(key: ApiKey, secret: str) -> Node:
    """A new key, which is shown this once."""
    return node(
        "div",
        node(
            "p",
            node("strong", f"The key of {key.name}. "),
            "Copy it now: it cannot be shown again.",
            role="status",
        ),
        node(
            "div",
            node("code", secret, cls="secret"),
            button("Copy", {"do": "copy", "text": secret}),
            cls="row",
        ),
        node("p", "A program sends it as “Authorization: Bearer …”.", cls="quiet"),
    )


def render_caller(caller: Principal) -> Node:
    """What is shown to a caller who is not the owner."""
    role = "You are not signed in." if caller.role is Role.NONE else f"You are {caller.role.label}."
    return node("p", f"{role} The owner of the studio creates keys.", cls="quiet")
