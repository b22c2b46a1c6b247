"""One chart drawn by plotly.js from plain traces, in the page's colours.

Knows how a chart gets to the browser. A colour is written as the name of a CSS variable ("--st-accent"),
so that a chart follows the theme. Knows nothing of what is drawn.
"""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from studio.assets import read_asset


def plot(elem_id: str) -> gr.HTML:
    """The component; its value is from `figure`, and its event `picked` carries the x and y of a clicked point."""
    return gr.HTML(
        value=None,
        html_template='<div class="plot" hidden></div>',
        js_on_load=read_asset("components/plot.js") + "\n/* fires 'point_click' */",
        apply_default_css=False,
        elem_id=elem_id,
    )


def literal(text: str) -> str:
    """A name for a chart, to be drawn as it is written: plotly.js reads tags, entities and `%{...}` in its texts, and `plot.js` the names of colours."""
    escaped = html.escape(text, quote=False).replace("%", "&#37;")
    return escaped.replace("--", "&#45;-", 1) if escaped.startswith("--st-") else escaped


def figure(
    traces: list[dict[str, Any]], layout: dict[str, Any] | None = None, height: int = 420, pick: bool = False
) -> dict[str, Any]:
    """A chart.

    Args:
        traces, layout: as plotly.js takes them; strings that begin with "--st-" are colours of the page. What people wrote goes in through `literal`.
        height: pixels.
        pick: points can be clicked.
    """
    return {"traces": traces, "layout": layout or {}, "height": height, "pick": pick}
