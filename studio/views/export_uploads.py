"""Views of the upload of an export: the form in its fold, what is done, the address, and the question."""

from __future__ import annotations

import re
from typing import Any

from studio import formatting
from studio.tree import Node, button, details, node

# The address that the Hub answers with becomes a link only where it is one of the Hub.
ADDRESS = re.compile(r"https://huggingface\.co/[\w./-]+", re.ASCII)
HINT = (
    "A repository that does not exist is created. One that exists keeps its visibility and its other files. "
    "Only the files that are listed here leave this machine."
)


def make_act(do: str, export: Any) -> dict[str, Any]:
    """The action of a button of an export."""
    return {"do": do, "export": export.id}


def render_upload_form(export: Any, upload: Any, is_uploading: bool, asks: bool) -> Node:
    """The form of an upload, in a fold. During an upload it shows what was entered and cannot be changed.

    Args:
        export: a `core.store.exports.Export`.
        upload: a `core.engine.export_uploads.UploadStatus`, or None.
        asks: whether a question is shown, which has the buttons then.
    """
    disabled = "" if is_uploading else None
    is_private = upload is None or upload.is_private
    repo = node(
        "input",
        type="text",
        value=upload.repo if upload is not None else "",
        placeholder="owner/name",
        aria_label=f"Repository for the export {export.name}",
        disabled=disabled,
    )
    private = node("input", type="checkbox", checked="" if is_private else None, disabled=disabled)
    send = button(
        "Upload",
        make_act("push", export),
        aria_label=f"Upload the export {export.name}",
        disabled=disabled,
    )
    return details(
        "Upload to the Hub",
        node(
            "div",
            node("label", node("span", "Repository"), repo, cls="export-repo"),
            node("label", private, node("span", "Private"), cls="export-private"),
            None if asks else send,
            cls="export-upload",
        ),
        node("p", HINT, cls="quiet"),
    )


def render_upload(export: Any, upload: Any) -> Node:
    """What an upload does now, why it failed, and the address of the last one."""
    if upload is not None and not upload.has_ended:
        stop = make_act("stop-upload", export)
        text = f"{upload.text} · {formatting.format_bytes(export.bytes)}"
        return node(
            "div",
            node("p", text, cls="quiet", role="status"),
            button("Stop", stop, aria_label=f"Stop the upload of {export.name}"),
            cls="export-hub row spread-row",
        )
    state = upload.state if upload is not None else ""
    return node(
        "div",
        node("p", upload.problem, cls="problem", role="alert") if state == "failed" else None,
        node("p", "The upload was stopped.", cls="quiet", role="status") if state == "cancelled" else None,
        _render_address(export) if export.address else None,
        cls="export-hub",
    )


def _render_address(export: Any) -> Node:
    is_link = ADDRESS.fullmatch(export.address)
    address = node("a", export.address, cls="btn link", href=export.address) if is_link else export.address
    return node("p", "Uploaded: ", address, cls="quiet")


def render_upload_question(export: Any) -> Node:
    """The question before the upload of an export whose certificate failed."""
    sure = {**make_act("push", export), "sure": True}
    return node(
        "div",
        node("p", "Upload it although its check failed?", cls="problem"),
        node(
            "div",
            button("Yes, upload it", sure, "quiet danger"),
            button("Do not upload it", make_act("keep", export)),
            cls="row",
        ),
    )
