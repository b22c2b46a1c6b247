"""The studio's own HTTP routes: downloads, fonts, the chart library. No other file on disk is served."""

from __future__ import annotations

import logging
import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from core.engine import Engine
from core.engine.experiment_html import format_html
from core.engine.experiment_report import make_report
from core.errors import NotFound, SpecError, StudioError
from core.spec.access import Role
from core.store.files import ensure_space, storage_error
from studio import events
from studio.assets import FONTS
from studio.server.access import describe_refusal, principal_of
from studio.views.exports import ZIP_BYTES

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

    def export_file(item_id: str, name: str) -> FileResponse:
        return FileResponse(_find_exported_file(engine, item_id, name), filename=name.rpartition("/")[2])

    def export_zip(item_id: str) -> FileResponse:
        path = _zip_export(engine, item_id)
        task = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(path, media_type="application/zip", filename=f"{item_id}.zip", background=task)

    def workspace() -> FileResponse:
        path = engine.library.back_up()
        name = f"adapter-studio-{time.strftime('%Y-%m-%d')}.zip"
        task = BackgroundTask(path.unlink, missing_ok=True)
        return FileResponse(path, media_type="application/zip", filename=name, background=task)

    def grid(item_id: str) -> Response:
        headers = {"Content-Disposition": f'attachment; filename="{item_id}.csv"'}
        return Response(engine.grids.csv(item_id), media_type="text/csv", headers=headers)

    def experiment(item_id: str) -> Response:
        page = format_html(make_report(engine.judges.results(item_id)))
        headers = {"Content-Disposition": f'attachment; filename="{item_id}.html"'}
        return Response(page, media_type="text/html", headers=headers)

    return [
        Route(f"{PREFIX}/plotly.min.js", _plotly, methods=["GET"]),
        Route(f"{PREFIX}/fonts/{{name}}.woff2", _font, methods=["GET"]),
        Route(f"{PREFIX}/download/adapter/{{item_id}}.zip", _download(adapter), methods=["GET"]),
        Route(f"{PREFIX}/download/dataset/{{item_id}}.zip", _download(dataset), methods=["GET"]),
        Route(f"{PREFIX}/download/workspace.zip", _download(workspace), methods=["GET"]),
        Route(f"{PREFIX}/download/export/{{item_id}}.zip", _download(export_zip), methods=["GET"]),
        Route(f"{PREFIX}/download/export/{{item_id}}/{{name:path}}", _download(export_file), methods=["GET"]),
        Route(f"{PREFIX}/download/experiment/{{item_id}}.html", _download(experiment), methods=["GET"]),
        Route(f"{PREFIX}/download/report/{{item_id}}.csv", _download(report, Role.VIEWER), methods=["GET"]),
        Route(f"{PREFIX}/download/grid/{{item_id}}.csv", _download(grid, Role.VIEWER), methods=["GET"]),
    ]


def _find_exported_file(engine: Engine, item_id: str, name: str) -> Path:
    """The path of a file of an export.

    Raises:
        NotFound: its record does not name the file, it is gone, or it is a link to elsewhere.
    """
    export = engine.exports.get(item_id)
    folder = engine.exports.folder(item_id).resolve()
    is_named = "\0" not in name and any(file.name == name for file in export.files)
    path = (folder / name).resolve() if is_named else folder
    if not path.is_relative_to(folder) or not path.is_file():
        raise NotFound(
            f"The export {export.name!r} has no file {name!r}.", "Its files are listed in the Library."
        )
    return path


def _zip_export(engine: Engine, item_id: str) -> Path:
    """Writes the files of a small export to a temporary zip file; weights are stored as they are.

    Raises:
        NotFound: it has no files. SpecError: it is too large. DiskFull
    """
    export = engine.exports.get(item_id)
    if not export.files:
        raise NotFound(f"The export {export.name!r} has no files yet.", "Wait until it is done.")
    if export.bytes > ZIP_BYTES:
        raise SpecError(
            f"The export must have at most {ZIP_BYTES:,} bytes to be one zip file, got {export.bytes:,}.",
            "Download its files one by one.",
        )
    paths = {file.name: _find_exported_file(engine, item_id, file.name) for file in export.files}
    ensure_space(Path(tempfile.gettempdir()), export.bytes)
    handle, temporary = tempfile.mkstemp(suffix=".zip")
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, path in paths.items():
                archive.write(path, f"{item_id}/{name}")
    except OSError as e:
        Path(temporary).unlink(missing_ok=True)
        raise storage_error(e, Path(temporary)) from e
    return Path(temporary)


def _download(make: Callable[..., Response], role: Role = Role.OWNER) -> Callable[[Request], Response]:
    """A route that checks the role of its caller itself, although the guard has checked it already."""

    def respond(request: Request) -> Response:
        principal = principal_of(request)
        if principal.role < role:
            status = 401 if principal.role is Role.NONE else 403
            return PlainTextResponse(describe_refusal(principal, role), status_code=status)
        try:
            return make(**request.path_params)
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
