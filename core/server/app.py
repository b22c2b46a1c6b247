"""The application: every router over one engine. `core.cli.serve` serves it alone, the page mounts it."""

from __future__ import annotations

from fastapi import FastAPI

from core.engine import Engine
from core.server import openai_api, problems
from core.server.access import Access

PREFIXES = ("/v1/", "/api/", "/fine-tuning/", "/mcp", "/metrics", "/health", "/ready", "/openapi.json")


def make_app(engine: Engine, access: Access) -> FastAPI:
    """The application of an engine.

    Args:
        access: finds the principal of each request.
    """
    app = FastAPI(title="Adapter Studio", docs_url=None, redoc_url=None)
    app.state.engine, app.state.access = engine, access
    problems.add_handlers(app)
    app.include_router(openai_api.router)
    return app
