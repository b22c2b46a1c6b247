"""The REST API of the studio: one router of all its parts."""

from __future__ import annotations

from fastapi import APIRouter

from core.server import (
    studio_api_answers,
    studio_api_datasets,
    studio_api_document,
    studio_api_experiments,
    studio_api_grids,
    studio_api_judges,
    studio_api_library,
    studio_api_quality,
    studio_api_retrieval,
    studio_api_runs,
)

router = APIRouter()
for _part in (
    studio_api_datasets,
    studio_api_runs,
    studio_api_grids,
    studio_api_library,
    studio_api_answers,
    studio_api_quality,
    studio_api_retrieval,
    studio_api_experiments,
    studio_api_judges,
    studio_api_document,
):
    router.include_router(_part.router)
