"""Bodies that are larger than those of other requests: read after the caller is authorised, within limits.

FastAPI reads the body of a declared form before it looks at the caller. The routes of uploads therefore take
the plain request, and read it with these functions.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.types import Message

from core.server.problems import Problem

UPLOAD_LIMIT = 4 * 1024**3  # bytes of the files of one upload
JSON_LIMIT = 64 * 1024**2  # bytes of the documents of one request
PENDING_LIMIT, PENDING_PER_CALLER = 16, 4  # uploads whose import has not ended
PREFIX = "adapter-studio-upload-"  # of the temporary folders
SWEEP_SECONDS = 86400.0  # age of a folder that a killed process has left
M = TypeVar("M", bound=BaseModel)


@dataclass
class Uploads:
    """The uploads of an application whose imports have not ended. Its methods are called on the event loop.

    Attributes:
        pending: folder -> name of the caller.
        tasks: what deletes the folders.
    """

    pending: dict[Path, str] = field(default_factory=dict)
    tasks: set[Any] = field(default_factory=set)

    def make_folder(self, caller: str) -> Path:
        """A temporary folder for an upload.

        Raises:
            Problem: 429 where the caller, or all callers, have too many imports that have not ended.
        """
        own = list(self.pending.values()).count(caller)
        if own >= PENDING_PER_CALLER or len(self.pending) >= PENDING_LIMIT:
            count = own if own >= PENDING_PER_CALLER else len(self.pending)
            raise Problem(
                429,
                f"{count} uploads are being imported already.",
                "Wait until one has ended.",
                headers={"Retry-After": "5"},
            )
        _sweep()
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.pending[folder] = caller
        return folder

    def delete_folder(self, folder: Path) -> None:
        """Deletes the folder of an upload."""
        self.pending.pop(folder, None)
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Deletes folders that killed processes have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > SWEEP_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def limit_body(request: Request, limit_bytes: int) -> Request:
    """The request, whose body raises a Problem (413) where it is larger."""
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > limit_bytes:
            raise Problem(413, f"The body may have at most {limit_bytes:,} bytes.", "Send smaller parts.")
        return message

    return Request(request.scope, receive)


async def read_json(request: Request, model: type[M], limit_bytes: int = JSON_LIMIT) -> M:
    """The JSON body of a request; an empty body is an empty object.

    Raises:
        Problem: 413 too large, 415 another type, 400 not JSON, 422 not what the model describes.
    """
    limited = limit_body(request, limit_bytes)
    content = await limited.body()
    if not content.strip():
        return check_fields(model, {})
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, f"The body must be JSON, got {kind[:80] or 'no type'}.", "Send application/json.")
    try:
        values = await limited.json()
    except (ValueError, RecursionError):
        raise Problem(400, "The body must be JSON.", "Check its quotes and commas.") from None
    return check_fields(model, values)


def check_fields(model: type[M], values: Mapping[str, Any] | Any) -> M:
    """The fields of a request in the types of a model.

    Raises:
        Problem: 422, with the place of the first error.
    """
    try:
        return model.model_validate(values)
    except ValidationError as e:
        first = e.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Problem(422, f"{place or 'The body'}: {first['msg']}.", "", place) from None
