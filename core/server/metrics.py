"""Numbers for Prometheus: `GET /metrics`, in its text format 0.0.4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.engine.serving import Serving
from core.server.access import Principal, Role, require

router = APIRouter(tags=["Operation"])
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds to a first token
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
OTHER = "other"  # paths without a route, and unusual methods: callers cannot add labels
STATUS_FILE = Path("/proc/self/status")


class Metrics:
    """Counts requests and first tokens. Used on the thread of the server's event loop only."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()  # route, method, status
        self._first_tokens: Counter[float] = Counter()  # upper end of the bucket
        self._first_token_seconds = 0.0

    def add_request(self, route: str, method: str, status: int) -> None:
        """Counts a request whose response has begun.

        Args:
            route: the path of the route, with its parameters by name.
        """
        self._requests[route, method, status] += 1

    def add_first_token(self, seconds: float) -> None:
        """Counts a request whose first token came after `seconds`."""
        self._first_tokens[next((b for b in BUCKETS if seconds <= b), float("inf"))] += 1
        self._first_token_seconds += seconds

    def write(self, serving: Serving) -> str:
        """All numbers, a line each."""
        lines = [
            *_describe("requests_total", "counter", "Requests by route, method and status."),
            *(
                _write_line(
                    "requests_total", count, {"route": route, "method": method, "status": str(status)}
                )
                for (route, method, status), count in sorted(self._requests.items())
            ),
            *_write_number("tokens_total", "counter", "Tokens decoded for other programs.", serving.tokens),
            *_write_number("steps_total", "counter", "Steps of the shared batch.", serving.steps),
            *_write_number(
                "requests_running", "gauge", "Requests that are being answered.", serving.active_count
            ),
            *_write_number(
                "requests_waiting", "gauge", "Requests that have not begun.", serving.queue_length
            ),
            *self._write_histogram(),
        ]
        if (resident := read_resident_bytes()) is not None:
            lines += _write_number("resident_memory_bytes", "gauge", "Resident set of the process.", resident)
        return "\n".join(lines) + "\n"

    def _write_histogram(self) -> Iterator[str]:
        name, total = "first_token_seconds", 0
        yield from _describe(name, "histogram", "Time from a request to its first token.")
        for end in (*BUCKETS, float("inf")):
            total += self._first_tokens[end]
            label = "+Inf" if end == float("inf") else f"{end:g}"
            yield _write_line(f"{name}_bucket", total, {"le": label})
        yield _write_line(f"{name}_sum", self._first_token_seconds)
        yield _write_line(f"{name}_count", total)


class CountRequests:
    """Middleware that counts every request with its route and status.

    Args:
        metrics: what counts them.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in METHODS else OTHER
                self._metrics.add_request(find_route(scope), method, message["status"])
            await send(message)

        await self._app(scope, receive, count)


def find_route(scope: Mapping[str, Any]) -> str:
    """The path of the route that answers a request, with its parameters by name."""
    return str(getattr(scope.get("route"), "path", OTHER))


def read_resident_bytes() -> int | None:
    """The resident set of this process, in bytes; None on systems without /proc."""
    try:
        lines = STATUS_FILE.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("VmRSS:")), None)
    return int(found.split()[1]) * 1024 if found else None


@router.get(
    "/metrics",
    summary="Counters for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
async def read_metrics(
    request: Request, principal: Annotated[Principal, Depends(require(Role.VIEWER))]
) -> Response:
    """Numbers for Prometheus."""
    state = request.app.state
    return Response(state.metrics.write(state.engine.serving), media_type=MEDIA_TYPE)


# --- lines


def _describe(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP adapter_studio_{name} {text}", f"# TYPE adapter_studio_{name} {kind}"]


def _write_number(name: str, kind: str, text: str, value: float) -> list[str]:
    return [*_describe(name, kind, text), _write_line(name, value)]


def _write_line(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    parts = ",".join(f'{key}="{_escape(text)}"' for key, text in (labels or {}).items())
    return f"adapter_studio_{name}{'{' + parts + '}' if parts else ''} {value!r}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
