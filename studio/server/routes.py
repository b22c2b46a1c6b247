"""The studio's own HTTP routes: downloads, fonts, the chart library. No other file on disk is served."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from core.engine import Engine
from core.errors import NotFound, StudioError
from studio import events
from studio.assets import FONTS

logger = logging.getLogger(__name__)
PREFIX = "/gradio_api/studio"


def routes(engine: Engine) -> list[Route]:
    """The routes to add to Gradio's application."""

    def adapter(item_id: str) -> FileResponse:
        archive = engine.library.archive(item_id)
        return FileResponse(archive, media_type="application/zip", filename=f"{item_id}.zip")

    def dataset(item_id: str) -> FileResponse:
        handle, name = tempfile.mkstemp(suffix=".zip")
        os.close(handle)
        path = Path(name)
        try:
            engine.datasets.download(item_id, path)
        except StudioError:
            path.unlink(missing_ok=True)
            raise
        task = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(path, media_type="application/zip", filename=f"{item_id}.zip", background=task)

    def report(item_id: str) -> FileResponse:
        file = engine.evaluation.report_csv(item_id)
        return FileResponse(file, media_type="text/csv", filename=f"{item_id}.csv")

    def workspace(_: str) -> FileResponse:
        path = engine.library.back_up()
        name = f"adapter-studio-{time.strftime('%Y-%m-%d')}.zip"
        task = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(path, media_type="application/zip", filename=name, background=task)

    def grid(item_id: str) -> Response:
        headers = {"Content-Disposition": f'attachment; filename="{item_id}.csv"'}
        return Response(engine.grids.csv(item_id), media_type="text/csv", headers=headers)

    return [
        Route(f"{PREFIX}/plotly.min.js", _plotly, methods=["GET"]),
        Route(f"{PREFIX}/fonts/{{name}}.woff2", _font, methods=["GET"]),
        Route(f"{PREFIX}/download/adapter/{{item_id}}.zip", _download(adapter), methods=["GET"]),
        Route(f"{PREFIX}/download/dataset/{{item_id}}.zip", _download(dataset), methods=["GET"]),
        Route(f"{PREFIX}/download/workspace.zip", _download(workspace), methods=["GET"]),
        Route(f"{PREFIX}/download/report/{{item_id}}.csv", _download(report), methods=["GET"]),
        Route(f"{PREFIX}/download/grid/{{item_id}}.csv", _download(grid), methods=["GET"]),
    ]


def is_signed_in(request: Request) -> bool:
    """Whether the user has signed in, or no password is set. Gradio checks this for its own routes only."""
    app = request.app
    if getattr(app, "auth", None) is None:
        return True
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(app.tokens.get(request.cookies.get(n)) for n in names)


def _download(make: Callable[[str], Response]) -> Callable[[Request], Response]:
    def respond(request: Request) -> Response:
        if not is_signed_in(request):
            return PlainTextResponse("Sign in first.", status_code=401)
        try:
            return make(request.path_params.get("item_id", ""))
        except StudioError as e:
            status = 404 if isinstance(e, NotFound) else 400
            return PlainTextResponse(events.user_message(e), status_code=status)
        except Exception:
            logger.exception("A download failed")
            return PlainTextResponse(events.UNEXPECTED, status_code=500)

    return respond


def _font(request: Request) -> Response:
    path = FONTS.get(request.path_params.get("name", ""))
    if path is None:
        return PlainTextResponse("This font does not exist.", status_code=404)
    return FileResponse(path, media_type="font/woff2", headers={"Cache-Control": "public, max-age=86400"})


def _plotly(request: Request) -> Response:
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        return PlainTextResponse("The plotly package is not installed.", status_code=404)
    path = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    return FileResponse(
        path, media_type="text/javascript", headers={"Cache-Control": "public, max-age=86400"}
    )
