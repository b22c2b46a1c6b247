"""How much each visitor, and all together, may upload through the page.

An owner is limited by the disk alone. Uploads through the API have limits of their own
(`core.server.studio_api_uploads`).
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path

from gradio.utils import get_upload_folder
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.server.protection import discard_body
from core.spec.access import Role
from core.store.files import size_of
from studio.server.access import SCOPE_KEY
from studio.server.visitors import VISITOR_KEY

UPLOAD = "/gradio_api/upload"
VISITOR_BYTES = 4 * 1024**3  # that each visitor may upload within DAY_SECONDS
TOTAL_BYTES = 16 * 1024**3  # of all uploads that are not imported yet
DAY_SECONDS = 86_400.0
VISITOR_LIMIT = 10_000  # visitors in memory; the one that uploaded longest ago is forgotten first


class ShareExceeded(HTTPException):
    """An upload exceeds a share. FastAPI turns errors of another kind into a 400 where it reads a body."""


class UploadShares:
    """ASGI middleware: refuses what exceeds the share of a visitor, or of all.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._clock = app, clock
        self._uploads: OrderedDict[str, deque[tuple[float, int]]] = OrderedDict()  # visitor -> (time, bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_upload = scope["type"] == "http" and scope["path"].rstrip("/") == UPLOAD
        principal = scope.get(SCOPE_KEY)
        if not is_upload or (principal is not None and principal.role >= Role.OWNER):
            await self._app(scope, receive, send)
            return
        visitor, claimed = str(scope.get(VISITOR_KEY, "")), Headers(scope=scope).get("content-length", "")
        size, has_more, has_started = 0, True, False
        stored = await run_in_threadpool(_measure_folder)

        async def receive_within_share() -> Message:
            nonlocal size, has_more
            message = await receive()
            size += len(message.get("body", b""))
            has_more = message["type"] == "http.request" and bool(message.get("more_body"))
            self._check(visitor, stored, size)
            return message

        async def send_response(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            self._check(visitor, stored, int(claimed[:20]) if claimed.isdecimal() else 0)
            await self._app(scope, receive_within_share, send_response)
        except ShareExceeded as e:
            if has_started:
                raise
            if has_more:
                await discard_body(receive, size)
            await PlainTextResponse(e.detail, status_code=e.status_code)(scope, receive, send)
        finally:
            if size:
                self._add(visitor, size)

    def _check(self, visitor: str, stored: int, size: int) -> None:
        """Checks an upload of which `size` bytes have arrived, or are announced."""
        used = sum(count for _, count in self._list_uploads(visitor))
        if used + size > VISITOR_BYTES:
            raise ShareExceeded(
                413,
                f"Each visitor may upload {_format(VISITOR_BYTES)} a day, and you have uploaded "
                f"{_format(used)}; this upload has {_format(size)}. Send less, or wait a day.",
            )
        if stored + size > TOTAL_BYTES:
            raise ShareExceeded(
                507,
                f"All uploads that are not imported yet may have {_format(TOTAL_BYTES)}, and they have "
                f"{_format(stored)}. Import or remove what you have dropped, or ask the owner of the studio.",
            )

    def _list_uploads(self, visitor: str) -> deque[tuple[float, int]]:
        """The uploads of a visitor within the last day."""
        uploads = self._uploads.get(visitor, deque())
        while uploads and uploads[0][0] <= self._clock() - DAY_SECONDS:
            uploads.popleft()
        return uploads

    def _add(self, visitor: str, size: int) -> None:
        self._uploads.setdefault(visitor, deque()).append((self._clock(), size))
        self._uploads.move_to_end(visitor)
        while len(self._uploads) > VISITOR_LIMIT:
            self._uploads.popitem(last=False)


def _measure_folder() -> int:
    folder = Path(get_upload_folder())
    return size_of(folder) if folder.is_dir() else 0


def _format(count: int) -> str:
    return f"{count:,} bytes"
