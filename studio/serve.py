"""Puts the page on a port, with the gates around it. Knows servers; knows nothing of the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from core.engine import Engine
from core.errors import SpecError
from studio import gate, theme, tree
from studio.routes import routes
from studio.web import ICON

if TYPE_CHECKING:
    import gradio as gr

UPLOAD_LIMIT = "1gb"  # of one file; the readers have the same limit


def serve(
    engine: Engine,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: tuple[str, str] | None = None,
    *,
    share: bool = False,
    space: bool = False,
    hosts: Sequence[str] = (),
    open_browser: bool = False,
    block: bool = True,
) -> gr.Blocks:
    """Serves the studio.

    Args:
        host: address to listen on.
        auth: user name and password that visitors must give.
        share: also offer a public link; needs `auth`.
        space: a Hugging Face Space, where the platform stands in front and asks who visits.
        hosts: further names the studio is reached by, for example a Space's host.
        open_browser: opens the page in the default browser.
        block: stay here until the server ends; otherwise return at once, and `close()` the page later.

    Returns:
        the page; `page.local_url` is its address.

    Raises:
        SpecError: others could reach it and no password is set, or the port is taken.
    """
    from studio.app import build

    gate.check_exposure(host, share, auth, space)
    named = [] if gate.is_loopback(host) or host in ("0.0.0.0", "::") else [host]
    page = build(engine)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            auth=auth,
            share=share,
            inbrowser=open_browser,
            prevent_thread_lock=not block,
            app_kwargs={"routes": routes(engine), "middleware": gate.gates([*named, *hosts, *(["*.gradio.live"] if share else [])], space)},
            ssr_mode=False,
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=True,
            quiet=True,
            footer_links=[],
            max_file_size=UPLOAD_LIMIT,
            favicon_path=str(ICON),
            theme=theme.theme(),
            css=theme.css(),
            head=tree.script(),
        )
    except OSError as e:
        raise SpecError(f"Port {port} cannot be used: {e}.", "Choose another port, or stop what uses it.") from e
    return page
