"""Trees of plain nodes, which `tree.js` renders with text nodes and a short list of tags and attributes.

Whatever a user, a file or a model wrote goes to the page this way, so it can never become markup.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.assets import read_asset

Node = dict[str, Any]
DOWNLOAD = "gradio_api/studio/download"  # relative, so it also works below a path of a proxy


def node(
    tag: str,
    *kids: Any,
    cls: str = "",
    act: dict[str, Any] | None = None,
    vars: dict[str, str] | None = None,
    **attrs: Any,
) -> Node:
    """Makes an element.

    Args:
        tag: one of the tags that `tree.js` allows.
        kids: nodes and texts; None is skipped.
        cls: CSS classes.
        act: the action of a click, sent to Python as the event's data.
        vars: CSS variables, without the leading dashes.
        attrs: attributes; `aria_label` becomes `aria-label`.
    """
    element: Node = {
        "tag": tag,
        "kids": [k if isinstance(k, dict) else str(k) for k in kids if k is not None],
    }
    if cls:
        element["cls"] = cls
    if act is not None:
        element["act"] = act
    if vars:
        element["vars"] = vars
    if attrs:
        element["attrs"] = {
            k.rstrip("_").replace("_", "-"): str(v) for k, v in attrs.items() if v is not None
        }
    return element


def view(value: Node | None = None, **kwargs: Any) -> gr.HTML:
    """A component that shows a tree. A click on a node with an `act` fires the event `act`."""
    return gr.HTML(
        value=value,
        html_template='<div class="tree"></div>',
        js_on_load="window.studio.view(element, props, watch, trigger); /* fires 'act' */",
        apply_default_css=False,
        **kwargs,
    )


def script() -> str:
    """The scripts for the page's head: `tree.js` and `a11y.js`."""
    return "".join(f"<script>{read_asset(name)}</script>" for name in ("tree.js", "a11y.js"))


def title(text: str, sub: str = "") -> Node:
    """A section heading with an optional explanation below it."""
    return node("header", node("h2", text), node("p", sub) if sub else None, cls="section-title")


def empty(text: str, hint: str = "", *buttons: Node) -> Node:
    """A placeholder for an empty list: what belongs here and how to get it."""
    return node(
        "div",
        node("strong", text),
        node("p", hint) if hint else None,
        node("div", *buttons, cls="row") if buttons else None,
        cls="empty",
    )


def skeleton(lines: int = 3, label: str = "Loading") -> Node:
    """Grey lines in the place of a text that is being loaded.

    Args:
        label: what is loaded, for screen readers.
    """
    bars = [node("span", cls="skeleton-line", aria_hidden="true") for _ in range(lines)]
    return node("div", *bars, node("span", label, cls="hidden-text"), cls="skeleton", role="status")


def details(summary: str, *kids: Any) -> Node:
    """What few users need, folded away: ids, hashes, figures of the method."""
    return node("details", node("summary", summary), *kids, cls="fold")


def button(text: str, act: dict[str, Any], kind: str = "quiet", **attrs: Any) -> Node:
    """A button; `kind` is "primary", "quiet" or "danger"."""
    return node("button", text, cls=f"btn {kind}", act=act, **attrs)


def chip(text: str, kind: str = "") -> Node:
    """A small label, coloured by `kind`: domain, task, mix, base, good, warn, bad or live."""
    return node("span", text, cls=f"chip {kind}".strip())


def facts(pairs: list[tuple[str, Any]]) -> Node:
    """A list of names and values; empty values are left out."""
    return node(
        "dl",
        *[node("div", node("dt", k), node("dd", v)) for k, v in pairs if v not in ("", None)],
        cls="facts",
    )


def progress_bar(share: float, label: str = "Progress", cls: str = "bar busy") -> Node:
    """A progress bar.

    Args:
        share: 0 to 1.
        label: what makes progress, for screen readers.
        cls: "bar", with "busy" while the work runs and "thin" for a line.
    """
    return node(
        "div",
        node("div", cls="bar-fill"),
        cls=cls,
        vars={"share": f"{100 * share:.1f}%"},
        role="progressbar",
        aria_label=label,
        aria_valuenow=round(100 * share),
        aria_valuemin=0,
        aria_valuemax=100,
    )


def _heading(text: str, is_numeric: bool) -> Node:
    """The heading of a column; a column of buttons has none, and an empty `th` would be read aloud."""
    if not text:
        return node("td")
    return node("th", text, scope="col", cls="num" if is_numeric else "")


def table(
    columns: list[str], rows: list[list[Any]], caption: str = "", numeric: frozenset[int] = frozenset()
) -> Node:
    """A table that scrolls in its own box.

    Args:
        numeric: indices of the columns to align to the right.
    """
    head = node("tr", *[_heading(c, i in numeric) for i, c in enumerate(columns)])
    body = [
        node("tr", *[node("td", c, cls="num" if i in numeric else "") for i, c in enumerate(r)]) for r in rows
    ]
    whole = node(
        "table", node("caption", caption) if caption else None, node("thead", head), node("tbody", *body)
    )
    return node("div", whole, cls="table", tabindex="0", role="region", aria_label=caption or "Table")


def download(text: str, path: str, filename: str) -> Node:
    """A link to one of the download routes in `studio/server/routes.py`."""
    return node("a", text, cls="btn quiet", href=f"{DOWNLOAD}/{path}", download=filename)
