"""The web server around the application: uvicorn, and an orderly end of the answers that are open."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import uvicorn
from fastapi import FastAPI

from core.engine import Engine
from core.engine.worker import make_closing_error
from core.errors import StudioError

CLOSE_SECONDS = 3.0  # that open answers have to end by themselves when the server stops
CANCEL_SECONDS = 10  # after which connections are closed, whatever they wait for


class Server(uvicorn.Server):
    """Serves until SIGTERM or Ctrl+C. Answers that are still open then end with an error for the client."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self._engine = engine

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        timer = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._end_answers)
        await super().shutdown(sockets)
        timer.cancel()

    def _end_answers(self) -> None:
        worker = self._engine.worker
        with contextlib.suppress(StudioError):  # the engine is closing already, which ends them, too
            worker.post(lambda: worker.end_streams(make_closing_error()))


def make_server(app: FastAPI, engine: Engine) -> Server:
    """A server for an application; `run` takes the sockets that it listens on."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # any program of this machine could send them, and choose its address
        timeout_graceful_shutdown=CANCEL_SECONDS,
    )
    return Server(config, engine)
