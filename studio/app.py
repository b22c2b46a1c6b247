"""The page as a whole: every component first, every event second, then a server around it.

Knows the tabs and what ties them together. Knows nothing of their insides.
"""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from core.engine import Engine
from core.errors import SpecError
from studio import events, samples, theme, tree
from studio.actions import act
from studio.assets import ICON
from studio.components import guide
from studio.server import security
from studio.server.routes import routes
from studio.tabs import analysis, base, compare, data, evaluate, library, mix, runs, train

TITLE = "Adapter Studio"
QUEUE_LIMIT = 64  # waiting events; more are refused with a sentence
SUGGEST = '(...told) => told.slice(0, -1).map((prompt) => (prompt ? { __type__: "update" } : told.at(-1)))'  # on the page, where someone may be typing
UPLOAD_LIMIT = "1gb"  # of one file; the readers have the same limit


def build(engine: Engine) -> gr.Blocks:
    """The studio's page over an engine; `serve` puts it on a port."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        top = guide.guide(engine)
        with gr.Tabs(selected="data", elem_id="tabs") as tabs:
            with gr.Tab("Data", id="data"):
                data_tab = data.build()
            with gr.Tab("Train", id="train"):
                train_tab = train.build(engine)
            with gr.Tab("Runs", id="runs"):
                runs_tab = runs.build()
            with gr.Tab("Mix", id="mix", render_children=True):
                mix_tab = mix.build()
                insight_tab = analysis.build()
            with gr.Tab("Compare", id="compare"):
                compare_tab = compare.build()
            with gr.Tab("Evaluate", id="evaluate"):
                evaluate_tab = evaluate.build()
            with gr.Tab("Library", id="library"):
                library_tab = library.build()
            with gr.Tab("Base", id="base"):
                base_tab = base.build()

        library_changed, mix_changed = events.EventGroup(), events.EventGroup()
        mix.arrive(mix_tab, engine, page, tabs)
        data.wire(data_tab, engine, library_changed)
        train.wire(train_tab, engine, library_changed)
        runs.wire(runs_tab, engine, library_changed, train_tab, tabs)
        mix.wire(mix_tab, engine, library_changed, mix_changed)
        analysis.wire(insight_tab, engine, library_changed, mix_changed, mix_tab)
        compare.wire(compare_tab, engine, library_changed, mix_changed, mix_tab.mixer)
        evaluate.wire(evaluate_tab, engine, library_changed, mix_changed, mix_tab.mixer)
        library.wire(library_tab, engine, library_changed)
        base.wire(base_tab, engine, library_changed)
        sample, prompts = gr.Textbox(visible=False), [mix_tab.prompt, compare_tab.prompt]
        library_changed.add(samples.suggest_question, None, [sample])
        library_changed.then(SUGGEST, [*prompts, sample], prompts)
        library_changed.wire(top.library_change, engine)
        mix_changed.wire(mix_tab.mixer.mix_change, engine)
        shown = [tabs, data_tab.picker, train_tab.picker]
        for view in (
            top,
            data_tab.shown,
            train_tab.live,
            runs_tab.queue,
            runs_tab.grid.shared,
            mix_tab.mixer,
            library_tab.shelf,
        ):
            events.refresh_after(events.bind(view.act, engine, act, None, shown))
    return page.queue(max_size=QUEUE_LIMIT, default_concurrency_limit=16, api_open=False)


def serve(
    engine: Engine,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: tuple[str, str] | None = None,
    *,
    space_host: str = "",
    hosts: Sequence[str] = (),
    share: bool = False,
    open_browser: bool = False,
    block: bool = True,
) -> gr.Blocks:
    """Serves the studio.

    Args:
        host: address to listen on.
        auth: user name and password that visitors must give.
        space_host: the name of the Hugging Face Space that this is, where the platform stands in front.
        hosts: further names or addresses by which visitors reach this machine.
        share: also offer a public link; needs `auth`.
        open_browser: opens the page in the default browser.
        block: stay here until the server ends; otherwise return at once, and `close()` the page later.

    Returns:
        the page; `page.local_url` is its address.

    Raises:
        SpecError: others could reach it and no password is set, or the port is taken.
    """
    space = bool(space_host)
    security.check_exposure(host, share, auth, space)
    names = [
        h
        for h in (host, space_host, *hosts, "*.gradio.live" if share else "")
        if h and h not in ("0.0.0.0", "::")
    ]
    page = build(engine)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            auth=auth,
            share=share,
            inbrowser=open_browser,
            prevent_thread_lock=not block,
            app_kwargs={"routes": routes(engine), "middleware": security.middleware(names, space)},
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
        raise SpecError(
            f"Port {port} cannot be used: {e}.", "Choose another port, or stop what uses it."
        ) from e
    except ValueError as e:  # Gradio could not reach its own address
        page.close(verbose=False)
        raise SpecError(
            f"The studio does not answer on {host}:{port}.",
            "Exclude this address from your proxy (NO_PROXY), or try again.",
        ) from e
    return page
