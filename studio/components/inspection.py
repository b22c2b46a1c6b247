"""What an inspection found in the picked dataset. `inspection.js` polls `poll_inspection` until it is there.

The value is `{"dataset": id}` or None. Inspections run in the background and are cached by the engine, so a
dataset that was inspected before is shown at once.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from core.engine import Engine
from studio import events
from studio.assets import read_asset
from studio.views import data_inspection as views


def inspection(engine: Engine) -> gr.HTML:
    """The component. It fires `act` with the action of a pressed button."""
    return gr.HTML(
        value=None,
        html_template='<div class="tree"></div>',
        js_on_load=read_asset("components/inspection.js"),
        apply_default_css=False,
        server_functions=[events.server_function(poll_inspection, engine)],
        elem_id="inspection",
    )


def poll_inspection(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """What is known now about `{"dataset": id, "key": of an earlier response or ""}`.

    Returns:
        a tree, whether it is final, and the key of the inspection; without a key it is started.
    """
    dataset_id, key = str(request.get("dataset") or ""), str(request.get("key") or "")
    key = key or engine.inspection.start(dataset_id)
    status = engine.inspection.status(key)
    found = engine.inspection.get(key)
    if found is not None:
        waits = found.tokens is None and engine.bases.current().loading
        return {"tree": views.render_inspection(found, dataset_id), "done": not waits, "key": ""}
    if status.has_ended:
        return {"tree": views.render_failure(status.problem or status.text), "done": True, "key": ""}
    share = min(1.0, status.done / status.total) if status.total else 0.0
    return {"tree": views.render_progress(status.text, share), "done": False, "key": key}
