"""One chart, drawn by plotly.js from plain traces. A colour is given as a CSS variable ("--st-accent"), so it
follows the theme."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from studio.assets import read_asset


def plot(elem_id: str) -> gr.HTML:
    """The component. Its value comes from `figure`; its event `point_click` has the x and y of the point."""
    return gr.HTML(
        value=None,
        html_template='<div class="plot" hidden></div>',
        js_on_load=read_asset("components/plot.js") + "\n/* fires 'point_click' */",
        apply_default_css=False,
        elem_id=elem_id,
    )


def literal(text: str) -> str:
    """Escapes a text that must appear in a chart as it is.

    Plotly interprets tags, entities and `%{...}` in its texts, and `plot.js` the names of colours.
    """
    escaped = html.escape(text, quote=False).replace("%", "&#37;")
    return escaped.replace("--", "&#45;-", 1) if escaped.startswith("--st-") else escaped


def figure(
    traces: list[dict[str, Any]], layout: dict[str, Any] | None = None, height: int = 420, pick: bool = False
) -> dict[str, Any]:
    """The value of a chart.

    Args:
        traces: as plotly.js takes them. Strings that begin with "--st-" are colours of the page; texts from
            users, such as names, must go through `literal`.
        layout: as plotly.js takes it, with the same rules.
        height: in pixels.
        pick: points can be clicked.
    """
    return {"traces": traces, "layout": layout or {}, "height": height, "pick": pick}
