"""Errors as problem JSON (RFC 9457): what was given, what is allowed, what to do."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from core.errors import (
    AccessError,
    AdapterError,
    BaseModelError,
    Busy,
    Closing,
    DiskFull,
    NotFound,
    RunError,
    StudioError,
)

logger = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
QUOTE_LIMIT = 300  # characters of a message; what a caller sent is quoted up to this
# The first class that fits decides; every other StudioError is 422: the request can be corrected.
STATUS: tuple[tuple[type[StudioError], int], ...] = (
    (NotFound, 404),
    (AccessError, 403),
    (Busy, 429),
    (Closing, 503),
    (DiskFull, 507),
    (BaseModelError, 503),
    (AdapterError, 409),
    (RunError, 409),
)


class Problem(Exception):
    """An error of the API.

    Args:
        status: the HTTP status.
        what: what happened, or what is allowed and what was given; one sentence.
        fix: what to do.
        field: the field of the request that caused it, or "".
        headers: of the response.
    """

    def __init__(
        self, status: int, what: str, fix: str = "", field: str = "", headers: dict[str, str] | None = None
    ) -> None:
        self.status, self.what, self.fix, self.field = status, what, fix, field
        self.headers = headers or {}
        super().__init__(f"{what} {fix}".strip())

    @classmethod
    def of(cls, error: StudioError) -> Problem:
        """The problem of an error for the user."""
        status = next((status for kind, status in STATUS if isinstance(error, kind)), 422)
        headers = {"Retry-After": "5"} if status in (429, 503) else {}
        return cls(status, error.what, error.fix, error.field, headers)

    def to_json(self) -> dict[str, Any]:
        """The members of RFC 9457, with `fix` and `field`; `error` is OpenAI's form of the same."""
        what, fix = _shorten(self.what), _shorten(self.fix)
        return {
            "type": "about:blank",
            "title": what,
            "status": self.status,
            "detail": f"{what} {fix}".strip(),
            **({"fix": fix} if fix else {}),
            **({"field": self.field} if self.field else {}),
            "error": {
                "message": f"{what} {fix}".strip(),
                "type": "invalid_request_error" if self.status < 500 else "server_error",
                "param": self.field or None,
                "code": self.status,
            },
        }

    def respond(self) -> JSONResponse:
        """The response."""
        return JSONResponse(self.to_json(), self.status, self.headers, MEDIA_TYPE)


def add_handlers(app: FastAPI) -> None:
    """Makes every error of an application a problem."""

    @app.exception_handler(Problem)
    async def problem(_: Request, error: Problem) -> JSONResponse:
        return error.respond()

    @app.exception_handler(StudioError)
    async def studio_error(_: Request, error: StudioError) -> JSONResponse:
        return Problem.of(error).respond()

    @app.exception_handler(RequestValidationError)
    async def validation(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        given = repr(first.get("input"))
        return Problem(
            422, f"{place or 'The request'}: {first['msg']}, got {_shorten(given, 80)}.", "", place
        ).respond()

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return Problem(error.status_code, str(error.detail), headers=dict(error.headers or {})).respond()

    @app.exception_handler(Exception)
    async def other_error(_: Request, error: Exception) -> JSONResponse:
        logger.error("A request failed with %s", type(error).__name__)  # no traceback: it may hold texts
        return Problem(500, "The studio could not answer.", "Its log names the error.").respond()


def _shorten(text: str, limit: int = QUOTE_LIMIT) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
