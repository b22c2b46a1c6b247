"""MCP over streamable HTTP at /mcp, with the official package, which is an optional extra.

Requests are stateless: each brings its credential, and every call of a tool is authorised by itself. Hosts
and origins are checked by the guard of this server for all routes, so the check of the package is off.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from core.engine import Engine
from core.errors import StudioError
from core.server.access import Principal, Role, require
from core.server.mcp_mix_tools import Report
from core.server.mcp_tools import TOOLS, Tool
from core.server.problems import Problem
from core.server.studio_api_uploads import check_fields

if TYPE_CHECKING:
    from mcp.server.lowlevel.server import Server

logger = logging.getLogger(__name__)
router = APIRouter(tags=["mcp"])
BODY_LIMIT = 1_000_000  # bytes of a request
INSTRUCTIONS = (
    "Adapter Studio trains LoRA adapters of one base model and answers with weighted mixes of them."
)


class Exchange(Response):
    """A response that a session manager of the package writes."""

    def __init__(self, server: Server[Any]) -> None:
        super().__init__()
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
        from mcp.server.transport_security import TransportSecuritySettings

        # One manager per request: the application may be mounted into another one, which starts nothing.
        manager = StreamableHTTPSessionManager(
            self._server,
            stateless=True,
            max_request_body_size=BODY_LIMIT,
            security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        async with manager.run():
            await manager.handle_request(scope, receive, send)


@router.post(
    "/mcp",
    response_class=Response,
    summary="Use the studio from a language model (MCP, streamable HTTP)",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "object"},
                    "example": {"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
                }
            },
        }
    },
    responses={
        code: {
            "description": "A message of JSON-RPC.",
            "content": {kind: {} for kind in ("application/json", "text/event-stream", "text/plain")},
        }
        for code in (200, 202, 400, 406, 413, 415)
    },
)
async def exchange(request: Request, principal: Principal = Depends(require(Role.VIEWER))) -> Response:  # noqa: B008
    """Messages of JSON-RPC: `tools/list`, `tools/call`, and what MCP has around them."""
    state = request.app.state
    if getattr(state, "mcp_server", None) is None:
        try:
            state.mcp_server = await run_in_threadpool(make_server, state.engine)
        except ImportError:
            raise Problem(
                501, "MCP is not installed on this server.", "Install it: pip install adapter-studio[mcp]"
            ) from None
    request.state.principal = principal
    return Exchange(state.mcp_server)


def make_server(engine: Engine) -> Server[Any]:
    """The MCP server over an engine.

    Raises:
        ImportError: the package is not installed.
    """
    import mcp_types
    from mcp.server.lowlevel.server import Server

    async def list_tools(context: Any, params: Any) -> mcp_types.ListToolsResult:
        return mcp_types.ListToolsResult(
            tools=[
                mcp_types.Tool(
                    name=tool.name,
                    description=f"{tool.description} Needs the role {tool.role.label}.",
                    input_schema=tool.arguments.model_json_schema(),
                    annotations=mcp_types.ToolAnnotations(
                        read_only_hint=tool.is_reading, destructive_hint=False, open_world_hint=False
                    ),
                )
                for tool in TOOLS.values()
            ]
        )

    async def call_tool(context: Any, params: Any) -> mcp_types.CallToolResult:
        async def report(done: float, total: float, text: str) -> None:
            await context.session.report_progress(done, total, text)

        principal: Principal = context.request.state.principal
        try:
            value = await use_tool(engine, principal, params.name, params.arguments or {}, report)
        except Problem as problem:
            text = mcp_types.TextContent(type="text", text=problem.to_json()["detail"])
            return mcp_types.CallToolResult(content=[text], is_error=True)
        text = mcp_types.TextContent(type="text", text=json.dumps(value, ensure_ascii=False))
        return mcp_types.CallToolResult(content=[text], structured_content=value)

    return Server(
        "adapter-studio", instructions=INSTRUCTIONS, on_list_tools=list_tools, on_call_tool=call_tool
    )


async def use_tool(
    engine: Engine, principal: Principal, name: str, arguments: dict[str, Any], report: Report
) -> dict[str, Any]:
    """Authorises and runs one call of a tool.

    Raises:
        Problem: an unknown tool, a role that is too low, wrong arguments, or what the engine refuses.
    """
    tool: Tool[Any] | None = TOOLS.get(name)
    if tool is None:
        raise Problem(404, f"The tool must be one of {', '.join(TOOLS)}, got {name[:80]!r}.")
    if principal.role < tool.role:
        what = f"{name} needs the role {tool.role.label}, and you are {principal.role.label}."
        raise Problem(403, what, "Ask the owner for a key with that role.")
    given = check_fields(tool.arguments, arguments)
    try:
        return (await tool.run(engine, given, report)).model_dump(mode="json")
    except StudioError as e:
        raise Problem.of(e) from None
    except Problem:
        raise
    except Exception as e:  # noqa: BLE001 (the package would log the traceback)
        logger.error("The tool %s failed with %s", name, type(e).__name__)  # no traceback: it may hold texts
        raise Problem(500, f"The tool {name} could not be used.", "The log of the studio names it.") from None
