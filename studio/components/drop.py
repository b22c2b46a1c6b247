"""The drop area: many files or whole folders, uploaded with progress. Its value is shared with `drop.js`:

{
    "drop": the id of the drop (see `studio.uploads`),
    "files": [{"name": path below the dropped folder, "bytes": size}, ...],
    "left_out": {suffix: how many files of a folder have a suffix that is not read},
}

Gradio's own file component takes files or a folder, never both. `drop.js` walks dropped folders itself,
leaves out files of other kinds before they are uploaded, and asks `store_upload` for the drop's id.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from core.data.documents.document_formats import READERS
from core.data.formats.readers import FILE_COUNT_LIMIT, FILE_LIMIT_BYTES, STREAMED_SUFFIXES, SUFFIXES
from core.engine import Engine
from studio import events, uploads
from studio.assets import read_asset

TEXTS = (".txt", ".md", *READERS)
PACKED = (".gz", ".zip")
UNSAID = (".htm", ".xhtml")  # read, and not worth a word


def drop_area(engine: Engine) -> gr.HTML:
    """The component. It fires `drop` when files were added or removed."""
    return gr.HTML(
        value=None,
        html_template='<div class="drop"></div>',
        js_on_load=read_asset("components/drop.js"),
        apply_default_css=False,
        server_functions=[
            events.server_function(f, engine) for f in (store_upload, remove_upload, discard_upload)
        ],
        elem_id="files",
        suffixes=list(SUFFIXES),
        formats=describe_formats(),
        file_limit=FILE_LIMIT_BYTES,
        streamed=list(STREAMED_SUFFIXES),  # read in blocks, so that only the disk limits them
        count_limit=FILE_COUNT_LIMIT,
    )


def describe_formats() -> list[list[str]]:
    """What is read, as (what it becomes, its suffixes)."""
    rows = [
        ("Documents", [s for s in SUFFIXES if s in TEXTS]),
        ("Examples", [s for s in SUFFIXES if s not in (*TEXTS, *PACKED)]),
        ("Packed", [s for s in SUFFIXES if s in PACKED]),
    ]
    return [
        [name, " ".join(s.lstrip(".") for s in suffixes if s not in UNSAID)]
        for name, suffixes in rows
        if suffixes
    ]


def folder_of(value: Any) -> list[str]:
    """The folder that holds the files of a drop area's value, as the readers' list of paths; [] without any.

    Raises:
        DataError: the files are no longer there.
    """
    drop = value.get("drop") if isinstance(value, dict) else None
    return [str(uploads.find_folder(str(drop)))] if drop else []


def name_of(value: Any) -> str:
    """A name for the dataset: the dropped folder's, or the first file's without its suffix."""
    files = value.get("files") if isinstance(value, dict) else None
    if not files:
        return ""
    names = [str(f.get("name", "")) for f in files]
    folders = {n.split("/")[0] for n in names if "/" in n}
    if len(folders) == 1 and all("/" in n for n in names):
        return folders.pop()[:120]
    stem = names[0].rsplit("/", 1)[-1].split(".")[0]
    return stem[:120] or "Data"


def store_upload(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Moves uploads into a drop: `{"drop": id or "", "files": [{"path", "name"}, ...]}`."""
    files = [f for f in request.get("files") or [] if isinstance(f, dict)]
    claimed = [(str(f.get("path", "")), str(f.get("name", ""))) for f in files]
    return _describe(uploads.add_files(claimed, str(request.get("drop") or "")))


def remove_upload(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Removes one file from a drop: `{"drop": id, "name": name}`."""
    drop = str(request.get("drop") or "")
    uploads.remove_file(drop, str(request.get("name") or ""))
    return _describe(drop)


def discard_upload(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """Deletes a drop: `{"drop": id}`."""
    uploads.discard(str(request.get("drop") or ""))
    return {}


def _describe(drop: str) -> dict[str, Any]:
    return {
        "drop": drop,
        "files": [{"name": f.name, "bytes": f.bytes} for f in uploads.list_files(drop)],
    }
