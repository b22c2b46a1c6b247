"""The page's document, made once for all visitors: it is 650 kB, and Gradio (6.31) makes it again for each.

The components in it hold their first values, which are the same for everyone; what a visitor may see arrives
with the lists, by events. Its only other content is the address under which the visitor reaches the studio.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What Gradio makes the address from; `root_path` and the scheme, too.
ADDRESS_HEADERS = ("host", "x-forwarded-host", "x-forwarded-proto", "x-gradio-server")
OTHER_DOCUMENTS = {"page", "deep_link"}  # queries that change the document
ADDRESS_LIMIT = 16  # addresses whose document is kept


class SharedDocument:
    """ASGI middleware: answers `GET /` with the document that was made for this address before."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._documents: dict[tuple[str, ...], list[Message]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _wants_document(scope):
            await self.app(scope, receive, send)
            return
        address = _read_address(scope)
        messages = self._documents.get(address)
        if messages is None:
            messages = await self._make(scope, receive)
            if _is_shareable(messages):
                if len(self._documents) >= ADDRESS_LIMIT:
                    self._documents.clear()
                self._documents[address] = messages
        for message in messages:
            await send(_copy(message))

    async def _make(self, scope: Scope, receive: Receive) -> list[Message]:
        messages: list[Message] = []

        async def collect(message: Message) -> None:
            messages.append(message)

        await self.app(scope, receive, collect)
        return messages


def _wants_document(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
        return False
    return not OTHER_DOCUMENTS & set(parse_qs(scope.get("query_string", b"").decode("latin-1")))


def _read_address(scope: Scope) -> tuple[str, ...]:
    headers = Headers(scope=scope)
    named = [headers.get(name, "") for name in ADDRESS_HEADERS]
    return (scope.get("scheme", ""), scope.get("root_path", ""), *named)


def _is_shareable(messages: list[Message]) -> bool:
    """Whether a response is a document for everyone: complete, and without a cookie."""
    start = messages[0] if messages else {}
    has_cookie = any(name.lower() == b"set-cookie" for name, _ in start.get("headers", []))
    is_complete = bool(messages) and not messages[-1].get("more_body")
    return start.get("status") == 200 and is_complete and not has_cookie


def _copy(message: Message) -> MutableMapping[str, object]:
    """A message with headers of its own: the outer middleware adds some."""
    return {**message, "headers": list(message["headers"])} if "headers" in message else {**message}
