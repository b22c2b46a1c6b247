"""Small bar charts side by side, one for each metric."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.assets import read_asset
from studio.components import plot


def bars() -> gr.HTML:
    """The component; its value is a list of `panel` values."""
    return gr.HTML(
        value=None,
        html_template='<div class="bars" hidden></div>',
        js_on_load=read_asset("components/bars.js"),
        apply_default_css=False,
        elem_id="bars",
    )


def panel(
    title: str, names: list[str], kinds: list[str], values: list[Any], percent: bool = False, note: str = ""
) -> dict[str, Any]:
    """The value of one chart.

    Args:
        names: a label for each bar.
        kinds: what colours each bar: base, domain, task or mix.
        values: the length of each bar; None for a bar without a value.
        percent: the values are shares, 0 to 1.
        note: follows the title: which direction is better.
    """
    return {
        "title": title,
        "names": [plot.literal(n) for n in names],
        "kinds": kinds,
        "values": values,
        "percent": percent,
        "note": note,
    }
