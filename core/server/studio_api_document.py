"""The OpenAPI document of the application: with problems as the errors of every route."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict

from core.server.access import Role, require
from core.server.fine_tuning import Query, Setup
from core.server.problems import MEDIA_TYPE, Problem
from core.server.studio_api_datasets import Upload

router = APIRouter(tags=["document"])
TEMPLATE = "#/components/schemas/{model}"


class ProblemView(BaseModel):
    """An error (RFC 9457): what was given, what is allowed, what to do. `error` is OpenAI's form of it."""

    model_config = ConfigDict(
        title="Problem", json_schema_extra={"examples": [Problem(404, "The run is not known.").to_json()]}
    )
    type: str
    title: str
    status: int
    detail: str
    fix: str = ""
    field: str = ""
    error: dict[str, Any]


# FastAPI does not know them: problems, and bodies that their routes read after the caller is authorised.
PLAIN_BODIES: dict[str, type[BaseModel]] = {
    "Problem": ProblemView,
    "Query": Query,
    "Setup": Setup,
    "Upload": Upload,
}


def build_document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of an application."""
    document = get_openapi(
        title="Adapter Studio",
        version="1",
        summary="Train LoRA adapters and answer with weighted mixes of them.",
        routes=app.routes,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name, model in PLAIN_BODIES.items():
        schema = model.model_json_schema(ref_template=TEMPLATE)
        schemas.update(schema.pop("$defs", {}))
        schemas[name] = schema
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}]
    reference = {"$ref": TEMPLATE.format(model="Problem")}
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {
                "description": "A problem.",
                "content": {MEDIA_TYPE: {"schema": reference}},
            }
    return document


@router.get("/openapi.json", response_model=dict[str, Any], summary="Show this document",
            responses={200: {"content": {"application/json": {"example": {"openapi": "3.1.0"}}}}},
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def read_document(request: Request) -> dict[str, Any]:
    """The routes, their bodies, and examples."""
    app: FastAPI = request.app
    if app.openapi_schema is None:
        app.openapi_schema = build_document(app)
    return app.openapi_schema
