"""The whole page: builds the components of every tab, then binds the events, then serves it.

Two events concern many tabs, and each is one `EventGroup`: `library_changed`, which `guide` fires when a list
on the page is out of date, and `mix_changed`, which the mixer fires when a slider has moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import gradio as gr
from starlette.middleware import Middleware

from core.engine import Engine
from core.errors import SpecError
from core.server.app import make_app
from core.server.protection import is_loopback
from core.spec.access import Role
from core.store.api_keys import ApiKeys
from studio import events, named_endpoints, permissions, theme, tree
from studio.actions import run_action
from studio.assets import ICON
from studio.components import guide
from studio.page import Page
from studio.server import security
from studio.server.access import Login, PageAccess, ScopeAccess
from studio.server.api_mount import ApiMount, make_lifespan
from studio.server.document import SharedDocument
from studio.server.guard import Guard
from studio.server.oauth import OAuth
from studio.server.openid import OpenIdSettings
from studio.server.routes import routes
from studio.server.tracebacks import log_tracebacks
from studio.server.upload_shares import UploadShares
from studio.server.visitors import OwnSession
from studio.tabs import (
    analysis,
    base,
    compare,
    data,
    evaluate,
    experiments,
    exports,
    keys,
    library,
    mix,
    runs,
    train,
)

TITLE = "Adapter Studio"
# How often a waiting event reads its place in the queue. By default Gradio (6.31) tells every waiting event
# whenever one begins: with thirty pages that open at once, 70 % of all messages. The page shows no places.
STATUS_SECONDS = 60.0
QUEUE_LIMIT = 2000  # waiting events of all pages; a page that opens sends about 30
UPLOAD_LIMIT = "1gb"  # per file from other machines; the owner of this one is limited by the disk


def build(engine: Engine) -> gr.Blocks:
    """Builds the page for an engine; `serve` also serves it."""
    with Page(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        top = guide.guide(engine)
        with gr.Tabs(selected="data", elem_id="tabs") as tabs:
            with gr.Tab("Data", id="data"):
                data_tab = data.build(engine)
            with gr.Tab("Train", id="train") as train_page:
                train_tab = train.build(engine)
            with gr.Tab("Runs", id="runs"):
                runs_tab = runs.build()
            with gr.Tab("Mix", id="mix", render_children=True):
                mix_tab = mix.build()
                analysis_tab = analysis.build()
            with gr.Tab("Compare", id="compare"):
                compare_tab = compare.build()
            with gr.Tab("Evaluate", id="evaluate"):
                evaluate_tab = evaluate.build()
                experiments_tab = experiments.build()
            with gr.Tab("Library", id="library") as library_page:
                library_tab = library.build(engine)
            with gr.Tab("Base", id="base"):
                base_tab = base.build()
                keys_tab = keys.build()

        library_changed, mix_changed = events.EventGroup(), events.EventGroup()
        mix.wire_link(mix_tab, engine, page, tabs)
        data.wire(data_tab, engine, library_changed)
        train.wire(train_tab, engine, library_changed, train_page)
        runs.wire(runs_tab, engine, library_changed, train_tab, tabs, experiments_tab.picker)
        mix.wire(mix_tab, engine, library_changed, mix_changed)
        analysis.wire(analysis_tab, engine, library_changed, mix_changed, mix_tab)
        compare.wire(compare_tab, engine, library_changed, mix_changed, mix_tab.mixer)
        experiments.wire(experiments_tab, engine, library_changed)
        evaluate.wire(evaluate_tab, engine, library_changed, mix_changed, mix_tab.mixer)
        library.wire(library_tab, engine, library_changed)
        exports.wire(library_tab.exports, engine, library_changed, mix_tab.mixer, library_page)
        exports.wire_buttons(
            library_tab.exports, engine, library_tab.details, mix_tab.export, mix_tab.mixer, tabs
        )
        base.wire(base_tab, engine, library_changed)
        keys.wire(keys_tab, engine, library_changed)
        library_changed.wire(top.library_change, engine)
        mix_changed.wire(mix_tab.mixer.mix_change, engine)
        outputs = [tabs, data_tab.picker, train_tab.picker]
        for view in (
            top,
            data_tab.dataset,
            train_tab.live,
            runs_tab.queue,
            runs_tab.grid.common_settings,
            mix_tab.mixer,
            library_tab.shelf,
        ):
            events.refresh_after(events.bind(view.act, engine, run_action, None, outputs))
        named_endpoints.wire(engine)
        permissions.name_elements(page)
    return page.queue(
        status_update_rate=STATUS_SECONDS,
        max_size=QUEUE_LIMIT,
        default_concurrency_limit=16,
        api_open=False,
    )


def serve(
    engine: Engine,
    host: str = "127.0.0.1",
    port: int = 7860,
    logins: Sequence[Login] = (),
    *,
    link: bool = False,
    space_host: str = "",
    visitors: Role = Role.VIEWER,
    openid: OpenIdSettings | None = None,
    hosts: Sequence[str] = (),
    share: bool = False,
    announce: Callable[[str], None] | None = None,
    announce_link: Callable[[str], None] | None = None,
    block: bool = True,
) -> gr.Blocks:
    """Serves the studio: the page, and the API for other programs.

    Without `logins` and `link`, every visitor is the owner. Visitors of a Space are viewers, and may sign in.

    Args:
        host: address to listen on.
        port: port to listen on.
        logins: users with passwords.
        link: sign the owner in with a login link that works once; `logins` take its place.
        space_host: the host name when this is a Hugging Face Space.
        visitors: the role of its anonymous visitors: VIEWER or NONE.
        openid: how its users sign in with their Hugging Face account.
        hosts: further host names or addresses under which users reach this machine.
        share: also create a public Gradio link; needs `logins`.
        announce: is called with the page's URL (with `link`, the login link) as soon as the server answers.
        announce_link: is called with the next login link when one was used.
        block: return only when the server ends; otherwise return at once, and the caller closes the page.

    Returns:
        the page; `page.local_url` is its URL.

    Raises:
        SpecError: other machines could reach the page and no password is set, or the port is taken.
    """
    space = bool(space_host)
    security.check_exposure(host, share, logins, space)
    names = [
        h
        for h in (host, space_host, *hosts, "*.gradio.live" if share else "")
        if h and h not in ("0.0.0.0", "::")
    ]
    log_tracebacks()
    access = _make_access(engine, port, logins, link, min(visitors, Role.VIEWER) if space else None, openid)
    oauth = OAuth(openid, access) if openid else None
    api = make_app(engine, ScopeAccess())
    inner = [
        Middleware(Guard, access=access, oauth=oauth),
        Middleware(OwnSession, access=access),
        Middleware(UploadShares),
        Middleware(ApiMount, api=api),
        Middleware(SharedDocument),
    ]
    page = build(engine)
    engine.grids.experiments.watch()
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            app_kwargs={
                "routes": routes(engine),
                "middleware": security.middleware(names, space, inner),
                "lifespan": make_lifespan(api),
            },
            ssr_mode=False,
            _frontend=False,  # without a request to its own page, which ends the start where it takes 3 s
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=True,
            quiet=True,
            footer_links=[],
            max_file_size=None if is_loopback(host) and not share else UPLOAD_LIMIT,
            favicon_path=str(ICON),
            theme=theme.theme(),
            css=theme.css(),
            head=theme.fonts() + tree.script() + permissions.script(page),
        )
    except OSError as e:
        raise SpecError(
            f"Could not listen on port {port}: {e}.",
            "Choose another port, or stop the process that uses this one.",
        ) from e
    url = page.share_url or page.local_url
    if announce_link is not None:
        access.announce_link = lambda: announce_link(url + access.query)
    if announce is not None:
        announce(url + access.query)
    if block:
        page.block_thread()
    return page


def _make_access(
    engine: Engine,
    port: int,
    logins: Sequence[Login],
    link: bool,
    space_visitor: Role | None,
    openid: OpenIdSettings | None,
) -> PageAccess:
    """Who may use the page; see `studio.server.access`.

    Args:
        space_visitor: the role of anonymous visitors of a Space; None elsewhere.
    """
    is_space = space_visitor is not None
    link = link and not logins and not is_space
    visitor = Role.OWNER
    if space_visitor is not None:
        visitor = space_visitor
    elif logins or link:
        visitor = Role.NONE
    return PageAccess(
        ApiKeys(engine.workspace),
        port,
        visitor,
        link=link,
        logins=logins,
        has_provider=openid is not None,
        is_framed=is_space,
    )
