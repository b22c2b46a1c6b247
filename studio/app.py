"""The page as a whole: every component first, every event second.

Knows the tabs and what ties them together. Knows nothing of their insides, nor of servers.
"""

from __future__ import annotations

import gradio as gr

from core.engine import Engine
from studio import guard, guide
from studio.acts import act
from studio.serve import serve
from studio.tabs import compare, data, evaluate, library, mix, train

TITLE = "Adapter Studio"
QUEUE_LIMIT = 64  # waiting events; more are refused with a sentence

__all__ = ["build", "serve"]


def build(engine: Engine) -> gr.Blocks:
    """The studio's page over an engine; `serve` puts it on a port."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(3600, 86400)) as page:
        top = guide.guide(engine)
        with gr.Tabs(selected="data", elem_id="tabs") as tabs:
            with gr.Tab("Data", id="data"):
                data_tab = data.build()
            with gr.Tab("Train", id="train"):
                train_tab = train.build(engine)
            with gr.Tab("Mix", id="mix", render_children=True):
                mix_tab = mix.build()
            with gr.Tab("Compare", id="compare"):
                compare_tab = compare.build()
            with gr.Tab("Evaluate", id="evaluate"):
                evaluate_tab = evaluate.build()
            with gr.Tab("Library", id="library"):
                library_tab = library.build()

        moved = top.moved
        data.wire(data_tab, engine, moved)
        train.wire(train_tab, engine, moved)
        mix.wire(mix_tab, engine, moved)
        compare.wire(compare_tab, engine, moved, mix_tab.mixer)
        evaluate.wire(evaluate_tab, engine, moved, mix_tab.mixer)
        library.wire(library_tab, engine, moved)
        shown = [tabs, data_tab.picker, train_tab.picker]
        for view in (top, data_tab.shown, train_tab.live, mix_tab.mixer, library_tab.shelf):
            guard.on(view.act, engine, act, None, shown).then(fn=None, js="() => window.studio.poke()", api_visibility="private")
    return page.queue(max_size=QUEUE_LIMIT, default_concurrency_limit=16, api_open=False)
