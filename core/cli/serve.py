"""The terminal's verb `serve`: the API for other programs without the page, and without Gradio."""

from __future__ import annotations

import argparse
import errno
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli.common import AddVerb
from core.engine import Engine
from core.errors import SpecError, StudioError

if TYPE_CHECKING:
    from core.server.access import Access

PORT = 7861  # beside the page's 7860
BACKLOG = 2048  # connections that wait to be accepted


def add_command(commands: Any, add: AddVerb) -> None:
    """Adds the command `serve`."""
    p = add(
        commands,
        "serve",
        serve,
        "Serve OpenAI's API and the studio's own API to other programs, without the page.",
        needs_model=True,
    )
    p.add_argument(
        "--host", default="127.0.0.1", help="Address to listen on; any other than loopback needs keys."
    )
    p.add_argument("--port", type=int, default=PORT, help=f"0 takes a free one. Default: {PORT}.")
    p.add_argument(
        "--no-token", action="store_true", help="Accept every request of this machine without a key."
    )
    p.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="A file whose first line is a key with the role owner, beside the workspace's own keys.",
    )
    p.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="A host name or address of this machine; requests for other hosts are refused. May be repeated.",
    )
    p.add_argument(
        "--answers",
        choices=("auto", "exact", "fast"),
        default="auto",
        help="Which weights answer on a CPU: exact (the base's own), fast (8 bits), or auto, which measures.",
    )


def serve(engine: Engine, args: argparse.Namespace) -> Any:
    """Serves until SIGTERM or Ctrl+C.

    Raises:
        SpecError: the address is open to others, and requests would need no key. StudioError: the port
            cannot be used.
    """
    from core.server.app import make_app
    from core.server.protection import protect
    from core.server.web_server import make_server

    access, note = choose_access(engine, args)
    engine.grids.experiments.watch()
    app = make_app(engine, access)
    protect(app, args.host, args.allowed_host)
    with open_socket(args.host, args.port) as opened:
        address = write_address(args.host, opened.getsockname()[1])
        print(f"{note}\n{describe(address, args.no_token)}", flush=True)
        make_server(app, engine).run(sockets=[opened])
    return {"address": address}


def choose_access(engine: Engine, args: argparse.Namespace) -> tuple[Access, str]:
    """How requests are authenticated, and the line that says so.

    Raises:
        SpecError: the address is open to others, and requests would need no key; or the key file is not one.
        StorageError: a file of keys cannot be read.
    """
    from core.server.access import KeyAccess, OpenAccess
    from core.server.protection import is_loopback
    from core.server.start_key import StartKeyAccess, make_start_key, read_start_key
    from core.store.api_keys import ApiKeys

    keys = ApiKeys(engine.workspace)
    if args.no_token:
        if not is_loopback(args.host):
            raise SpecError(
                f"Other machines can reach {args.host}, and --no-token accepts requests without a key.",
                "Leave out --no-token, or listen on 127.0.0.1.",
            ).at("no_token")
        return OpenAccess(), "Requests need no key: every user of this machine may do everything."
    if args.key_file:
        secret = read_start_key(args.key_file)
        return StartKeyAccess(keys, secret), f"Requests need the key in {args.key_file}, or a stored one."
    if keys.list():
        return KeyAccess(keys), "Requests need a stored key; `python -m core keys list` shows their names."
    if not is_loopback(args.host):
        raise SpecError(
            f"Other machines can reach {args.host}, and this workspace has no key.",
            "Create one with `python -m core keys create NAME`, give --key-file, or listen on 127.0.0.1.",
        ).at("host")
    secret = make_start_key()
    return StartKeyAccess(keys, secret), f"Requests need this key, which is valid until the end: {secret}"


def open_socket(host: str, port: int) -> socket.socket:
    """Listens on an address.

    Raises:
        StudioError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as e:
        in_use = isinstance(e, OSError) and e.errno == errno.EADDRINUSE
        reason = "another program uses it" if in_use else str(e)
        raise StudioError(
            f"The studio cannot listen on {host}, port {port}: {reason}.",
            "Choose another --port (0 takes a free one) or --host.",
        ) from e


def write_address(host: str, port: int) -> str:
    """The address of the server for a client on this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def describe(address: str, is_open: bool) -> str:
    """How a request is sent."""
    key = "" if is_open else ' -H "Authorization: Bearer KEY"'
    body = '{"model": "base", "messages": [{"role": "user", "content": "Where is the lamp?"}]}'
    return (
        f"Serving on {address}; OpenAI clients: base URL {address}/v1. Ctrl+C stops it.\n"
        f"curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
    )
