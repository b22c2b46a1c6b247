"""A real server on a loopback port in a thread of the tests, over any engine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from core.server.access import Access, OpenAccess
from core.server.app import make_app


@contextlib.contextmanager
def serve(engine: Any, access: Access | None = None) -> Iterator[str]:
    """The address of a server of an engine; it ends with the block."""
    app = make_app(engine, access or OpenAccess())
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
