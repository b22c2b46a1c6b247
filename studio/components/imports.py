"""The imports that are running: progress, time left, and a cancel button. `imports.js` polls `poll_imports`.

The engine holds the jobs, so a reload or a second tab shows them too. The files of an import are deleted once
it is done or cancelled; when it failed, they can be shown again with the choices that were made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from core.engine import Engine
from core.engine.imports import ImportStatus
from core.errors import NotFound
from studio import events, formatting, uploads
from studio.assets import read_asset
from studio.reading_choices import Choices
from studio.tree import Node, button, node, progress_bar


@dataclass(frozen=True)
class Form:
    """What an import was started with: the drop area's value, and the form below it."""

    files: dict[str, Any]
    choices: Choices
    name: str
    held_out: bool


@dataclass
class Forms:
    """The forms of imports that have not succeeded, by the ids of their jobs; one object for each studio."""

    by_job: dict[str, Form] = field(default_factory=dict)

    def finish(self, job_id: str) -> None:
        """Forgets a form and deletes its files."""
        form = self.by_job.pop(job_id, None)
        if form is not None:
            uploads.discard(str(form.files.get("drop") or ""))


def imports(engine: Engine, forms: Forms) -> gr.HTML:
    """The component. It fires `imported` with a new dataset's id, and `reopen` with a failed job's id."""

    def poll_imports(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
        return {"jobs": [_describe(status, forms) for status in engine.imports.list()]}

    def cancel_import(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
        engine.imports.cancel(str(request.get("job") or ""))
        return {}

    def dismiss_import(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
        job_id = str(request.get("job") or "")
        if engine.imports.status(job_id).has_ended:
            forms.finish(job_id)
        return {}

    return gr.HTML(
        value=None,
        html_template='<div class="imports"></div>',
        js_on_load=read_asset("components/imports.js"),
        apply_default_css=False,
        server_functions=[
            events.server_function(f, engine) for f in (poll_imports, cancel_import, dismiss_import)
        ],
        elem_id="imports",
    )


def find_form(engine: Engine, forms: Forms, job_id: str) -> Form:
    """The form of a failed import, which is forgotten here.

    Raises:
        NotFound: it is not known any more.
    """
    form = forms.by_job.get(job_id)
    if form is None or not engine.imports.status(job_id).has_ended:
        raise NotFound("The files of this import are no longer there.", "Drop them again.")
    uploads.find_folder(str(form.files.get("drop")))
    del forms.by_job[job_id]
    return form


def _describe(status: ImportStatus, forms: Forms) -> dict[str, Any]:
    if status.state in ("done", "cancelled"):
        forms.finish(status.job_id)
    return {
        "id": status.job_id,
        "ended": status.has_ended,
        "state": status.state,
        "dataset": status.dataset_id,
        "tree": render_import(status, status.job_id in forms.by_job),
    }


def render_import(status: ImportStatus, can_reopen: bool = False) -> Node:
    """One import: what it is doing, how far it is, and what can be done."""
    job = status.job_id
    if status.state == "failed":
        again = button("Show the files again", {"do": "reopen", "job": job}) if can_reopen else None
        dismiss = button("Dismiss", {"do": "dismiss", "job": job}, aria_label=f"Dismiss {status.name}")
        return node(
            "div",
            node("strong", f"{status.name} was not imported"),
            node("p", status.problem, cls="problem", role="alert"),
            node("div", again, dismiss, cls="row"),
            cls="import-job",
        )
    if status.state == "cancelled":
        dismiss = button("Dismiss", {"do": "dismiss", "job": job}, aria_label=f"Dismiss {status.name}")
        said = f"{status.name} was cancelled. Nothing of it was stored."
        text = node("p", said, cls="quiet", role="status")
        return node("div", node("div", text, dismiss, cls="row spread-row"), cls="import-job")
    cancel = button("Cancel", {"do": "cancel", "job": job}, aria_label=f"Cancel the import of {status.name}")
    return node(
        "div",
        node("div", node("strong", f"Importing {status.name}"), cancel, cls="row spread-row"),
        progress_bar(status.share, f"Import of {status.name}"),
        node("p", describe_progress(status), cls="quiet"),
        cls="import-job",
    )


def describe_progress(status: ImportStatus) -> str:
    """What an import is doing, in one line: step, share, rows, time left."""
    parts = [status.text]
    if status.total_bytes:
        parts.append(f"{100 * status.share:.0f} %")
    if status.rows:
        parts.append(formatting.count(status.rows, "row"))
    if status.eta_seconds is not None and status.state == "running":
        parts.append(f"about {formatting.format_duration(status.eta_seconds)} left")
    return " · ".join(parts)
