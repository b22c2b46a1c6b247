"""Datasets over HTTP: upload, follow the import, list, show, delete."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from core.data.datasets import Dataset
from core.engine import Engine
from core.engine.imports import ImportStatus
from core.errors import InvalidName, SpecError, UnconfirmedRoles, UnknownEncoding
from core.server.access import Principal, Role, require
from core.server.studio_api_models import DatasetView, DeletedView, EngineOf, ImportView, Split, example
from core.server.studio_api_uploads import UPLOAD_LIMIT, Uploads, check_fields, limit_body
from core.spec.settings import SEED
from core.store.files import storage_error
from core.store.workspace import check_name

router = APIRouter(prefix="/api", tags=["datasets"])
FILE_LIMIT = 100  # files of one upload
ROWS_LIMIT = 200  # rows of one response
POLL_SECONDS = 0.2  # between two looks at an import whose upload is deleted at its end


class Upload(BaseModel):
    """The fields of a form with files."""

    model_config = ConfigDict(
        extra="forbid",
        arbitrary_types_allowed=True,
        json_schema_extra={"examples": [{"files": ["The lamp is kept in the north room."], "name": "Notes"}]},
    )
    files: list[
        Annotated[
            UploadFile,
            WithJsonSchema(
                {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
            ),
        ]
    ] = Field(min_length=1, max_length=FILE_LIMIT, description="Texts, documents or tables.")
    name: str = Field("", max_length=120, description="Empty is the name of the first file.")
    kind: Literal["", "domain", "task"] = Field("", description="Empty guesses it.")
    roles: str = Field("", max_length=4000, description='JSON: role to column, such as {"question": "q"}.')
    encoding: str = Field("utf-8", max_length=40, description="Of text files.")
    purpose: Literal["training", "evaluation"] = "training"
    seed: int = Field(SEED, ge=0, le=2**31 - 1, description="Decides the splits.")


class RowsView(BaseModel):
    """Rows of a split: texts, or conversations."""

    model_config = example(rows=[{"text": "The lamp is kept in the north room."}], total=5)
    rows: list[dict[str, Any]]
    total: int


@router.get("/datasets", response_model=list[DatasetView], summary="List the datasets",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def list_datasets(engine: EngineOf) -> Sequence[Dataset]:
    """All datasets, the newest first."""
    return engine.datasets.list()


@router.get("/datasets/{dataset_id}", response_model=DatasetView, summary="Show a dataset",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def get_dataset(dataset_id: str, engine: EngineOf) -> Dataset:
    """One dataset, with the notes of its import."""
    return engine.datasets.get(dataset_id)


@router.get("/datasets/{dataset_id}/rows", response_model=RowsView, summary="Read rows of a dataset",
            dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def read_rows(
    dataset_id: str,
    engine: EngineOf,
    split: Split = "train",
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    limit: Annotated[int, Query(ge=1, le=ROWS_LIMIT)] = 20,
) -> RowsView:
    """Rows of a split, in their order."""
    sizes = engine.datasets.get(dataset_id).splits
    total = sum(sizes.values()) if split == "all" else sizes[split]
    return RowsView(rows=list(engine.datasets.rows(dataset_id, split, limit, offset)), total=total)


@router.post(
    "/datasets",
    status_code=202,
    response_model=ImportView,
    summary="Upload files as a dataset",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {"$ref": "#/components/schemas/Upload"}},
            },
        }
    },
)
async def upload_dataset(
    request: Request, engine: EngineOf, principal: Annotated[Principal, Depends(require(Role.TRAINER))]
) -> ImportView:
    """Starts an import and answers with its id; `GET /api/imports/{id}` follows it."""
    uploads: Uploads = request.app.state.uploads
    folder = uploads.make_folder(principal.name)
    try:
        limited = limit_body(request, UPLOAD_LIMIT)
        async with limited.form(max_files=FILE_LIMIT, max_fields=20, max_part_size=10_000) as fields:
            body = read_upload(fields)
            names = [_check_file_name(upload.filename or "") for upload in body.files]
            name = check_name(body.name or Path(names[0]).stem)
            paths = await run_in_threadpool(_copy, body.files, names, folder)
        roles = _read_roles(body.roles)
        job = engine.imports.start(
            paths, name, body.kind or None, roles, body.encoding, body.purpose, body.seed
        )
    except BaseException as e:
        uploads.delete_folder(folder)
        if isinstance(e, OSError):
            raise storage_error(e, folder) from e
        raise
    task = asyncio.create_task(_delete_at_end(engine, job, uploads, folder))
    uploads.tasks.add(task)
    task.add_done_callback(uploads.tasks.discard)
    return view_import(engine.imports.status(job))


def read_upload(fields: FormData) -> Upload:
    """The fields of an upload.

    Raises:
        Problem: 422, a field is missing or wrong.
    """
    values: dict[str, Any] = {name: value for name, value in fields.items() if name != "files"}
    if isinstance(seed := values.get("seed"), str) and seed.isascii() and seed.isdigit():
        values["seed"] = int(seed)
    return check_fields(Upload, {**values, "files": fields.getlist("files")})


@router.get("/imports/{import_id}", response_model=ImportView, summary="Follow an import",
            dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def get_import(import_id: str, engine: EngineOf) -> ImportView:
    """The state of an import; `dataset` is set at its end."""
    return view_import(engine.imports.status(import_id))


@router.delete("/imports/{import_id}", response_model=ImportView, summary="Cancel an import",
               dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def cancel_import(import_id: str, engine: EngineOf) -> ImportView:
    """Cancels an import; nothing of it is left."""
    engine.imports.cancel(import_id)
    return view_import(engine.imports.status(import_id))


@router.delete("/datasets/{dataset_id}", response_model=DeletedView, summary="Delete a dataset",
               dependencies=[Depends(require(Role.OWNER))])  # fmt: skip
def delete_dataset(dataset_id: str, engine: EngineOf) -> DeletedView:
    """Moves a dataset to the trash."""
    item = engine.library.delete("datasets", dataset_id)
    return DeletedView(deleted=dataset_id, entry=item.entry)


def view_import(status: ImportStatus) -> ImportView:
    """The view of an import, with the roles or encodings that it proposes."""
    error = status.error
    question = error if isinstance(error, UnconfirmedRoles) else None
    return ImportView(
        id=status.job_id, name=status.name, state=status.state,  # type: ignore[arg-type]
        text=status.text, share=status.share,
        rows=status.rows, dataset=status.dataset_id, problem=status.problem,
        kind=question.kind if question else "",
        roles=question.roles if question else {},
        encodings=[c.name for c in error.candidates] if isinstance(error, UnknownEncoding) else [],
    )  # fmt: skip


def _read_roles(text: str) -> dict[str, str] | None:
    """Role to column. Raises SpecError."""
    if not text:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(column, str) for column in value.values()):
        raise SpecError(
            f"The roles must be a JSON object from role to column, got {text[:80]!r}.",
            'Send for example {"question": "q", "answer": "a"}, or nothing to guess them.',
        ).at("roles")
    return value


def _check_file_name(name: str) -> str:
    """The last part of a name that a client sent, as a name of ours.

    Raises:
        InvalidName: it is empty, too long, or has control characters.
    """
    last = re.split(r"[\\/]", name)[-1]
    try:
        return check_name(last)
    except InvalidName as e:
        raise e.at("files") from None


def _copy(files: list[UploadFile], names: list[str], folder: Path) -> list[Path]:
    """Writes uploads to a folder, each in a folder of its own; returns their paths."""
    paths = []
    for number, (upload, name) in enumerate(zip(files, names, strict=True)):
        (folder / str(number)).mkdir()
        paths.append(folder / str(number) / name)
        with open(paths[-1], "xb") as f:
            shutil.copyfileobj(upload.file, f)
    return paths


async def _delete_at_end(engine: Engine, job: str, uploads: Uploads, folder: Path) -> None:
    """Deletes an upload when its import has ended, or the server ends."""
    try:
        while not engine.imports.status(job).has_ended:
            await asyncio.sleep(POLL_SECONDS)
    finally:
        uploads.delete_folder(folder)
