"""The application: every router over one engine. `core.cli.serve` serves it alone, the page mounts it."""

from __future__ import annotations

from fastapi import FastAPI

from core.engine import Engine
from core.server import fine_tuning, health, mcp_endpoint, metrics, openai_api, problems, studio_api
from core.server.access import Access
from core.server.studio_api_jobs import Jobs
from core.server.studio_api_uploads import Uploads

PREFIXES = ("/v1/", "/api/", "/fine-tuning/", "/mcp", "/metrics", "/health", "/ready", "/openapi.json")


def make_app(engine: Engine, access: Access) -> FastAPI:
    """The application of an engine.

    Args:
        access: finds the principal of each request.
    """
    app = FastAPI(title="Adapter Studio", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.engine, app.state.access = engine, access
    app.state.jobs, app.state.uploads = Jobs(), Uploads()
    app.state.metrics = metrics.Metrics()
    app.add_middleware(metrics.CountRequests, metrics=app.state.metrics)
    problems.add_handlers(app)
    for module in (health, metrics, openai_api, fine_tuning, studio_api, mcp_endpoint):
        app.include_router(module.router)
    return app
