"""Bars side by side, one small chart for each figure. Knows how to lay them out; knows nothing of what was measured."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.assets import read_asset
from studio.components import plot


def bars() -> gr.HTML:
    """The component; its value is a list from `panel`."""
    return gr.HTML(
        value=None,
        html_template='<div class="bars" hidden></div>',
        js_on_load=read_asset("components/bars.js"),
        apply_default_css=False,
        elem_id="bars",
    )


def panel(
    title: str, names: list[str], kinds: list[str], values: list[Any], percent: bool = False
) -> dict[str, Any]:
    """One small chart.

    Args:
        names, kinds, values: one each for a bar; kinds give the colour.
        percent: the values are shares.
    """
    return {
        "title": title,
        "names": [plot.literal(n) for n in names],
        "kinds": kinds,
        "values": values,
        "percent": percent,
    }
