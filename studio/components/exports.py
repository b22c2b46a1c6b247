"""The list of exports: progress, files, certificate, upload, buttons. `exports.js` polls `poll_exports`.

The engine holds the jobs and the workspace the exports, so a reload or a second tab shows them too.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import SpecError
from studio import events
from studio.assets import read_asset
from studio.views.exports import render_export


def exports(engine: Engine) -> gr.HTML:
    """The component.

    Its value is {"export": id} after the start of an export, and {"show": time} to scroll to the form.
    """
    return gr.HTML(
        value=None,
        html_template='<div class="exports"></div>',
        js_on_load=read_asset("components/exports.js"),
        apply_default_css=False,
        server_functions=[events.server_function(f, engine) for f in (poll_exports, act_on_export)],
        elem_id="exports",
    )


def poll_exports(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Every export as a tree, the newest first.

    Args:
        request: "asking" is the id of the export whose row asks a question, and "question" what about:
            "upload", or else its deletion.
    """
    statuses = {status.export_id: status for status in engine.exports.statuses()}
    uploads = {upload.export_id: upload for upload in engine.exports.uploads.statuses()}
    is_about_upload = request.get("question") == "upload"
    listed = []
    for export in engine.exports.list():
        status, upload = statuses.get(export.id), uploads.get(export.id)
        asks = request.get("asking") == export.id
        listed.append(
            {
                "id": export.id,
                "running": any(work is not None and not work.has_ended for work in (status, upload)),
                "tree": render_export(
                    export, status, asks and not is_about_upload, upload, asks and is_about_upload
                ),
            }
        )
    return {"exports": listed}


def act_on_export(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Stops, continues, checks again, uploads or deletes an export.

    Args:
        request: of an upload, "repo" and "private" of its form, and "sure" after the question.

    Returns:
        {"asks": True} where an upload needs the answer to a question first.

    Raises:
        NotFound, DamagedRecord, Busy, BaseModelError, SpecError
    """
    action, export_id = request.get("do"), str(request.get("export") or "")
    if action == "stop":
        engine.exports.cancel(export_id)
    elif action == "resume":
        engine.bases.load()
        engine.exports.resume(export_id)
    elif action == "delete":
        engine.exports.delete(export_id)
    elif action == "push":
        return _push(engine, export_id, request)
    elif action == "stop-upload":
        engine.exports.uploads.cancel(export_id)
    return {}


def _push(engine: Engine, export_id: str, request: dict[str, Any]) -> dict[str, Any]:
    repo, private = str(request.get("repo") or ""), request.get("private") is not False
    try:
        engine.exports.push(export_id, repo, private, request.get("sure") is True)
    except SpecError as e:
        if e.field == "although_failed":
            return {"asks": True}
        raise
    return {}
