"""A mock of the Hub on this machine that takes uploads, also those of another process; some wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

import pytest

from tests.core.store.test_hub_upload import Hub

WAIT_SECONDS = 60


class SlowHub(Hub):
    """Commits to me/slow wait until `go` is set."""

    go = threading.Event()

    def do_POST(self) -> None:  # noqa: N802 (http.server calls it so)
        if "me/slow/commit/" in self.path:
            self.go.wait(WAIT_SECONDS)
        super().do_POST()

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the process of the upload was killed
            self.close_connection = True


@contextmanager
def serve_uploads() -> Iterator[type[SlowHub]]:
    """Starts the mock; processes that start meanwhile use it, with a token."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), SlowHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    SlowHub.created, SlowHub.files = [], {}
    SlowHub.go.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        patch.setenv("HF_TOKEN", "hf_test")
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        yield SlowHub
    SlowHub.go.set()
    server.shutdown()
    server.server_close()
