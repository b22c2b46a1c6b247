"""The top of the page: the resident base, and one line with the five steps and what to do next.

`studio/advice.py` decides what the line says.

It also polls: `guide.js` asks `poll` for the state every 1.5 seconds and fires `library_change` when a list
on the page is out of date. Every tab then shows its lists again, so a result that arrives late is soon
corrected. Buttons carry an action that `studio/actions.py` runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from core.engine import Engine
from studio import events, formatting, permissions
from studio.advice import NextStep, Step, next_step, path_steps
from studio.assets import read_asset
from studio.server.access import Visit
from studio.tabs import suggestions
from studio.tree import Node, button, node, progress_bar
from studio.views.practice import practice_base_note


def guide(engine: Engine) -> gr.HTML:
    """The component. Its event `act` carries the action of a pressed button."""
    top = gr.HTML(
        value=None,
        html_template='<div class="guide"></div>',
        js_on_load=read_asset("components/guide.js"),
        apply_default_css=False,
        server_functions=[events.server_function(poll, engine)],
        elem_id="guide",
    )
    events.bind(top.ping, engine, ping, None, [top], trigger_mode="multiple")
    return top


def ping(engine: Engine, event: gr.EventData) -> dict[str, Any]:
    """Returns the number of events that the page had sent before this one; `guide.js` says what it is for."""
    return {"sent": (event._data or {}).get("sent")}


def poll(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    """The top of the page as a tree, a revision that changes whenever a list on the page does, and what the
    visitor may do."""
    engine.bases.load()  # in the background, so that importing torch does not delay the first paint
    base, download = engine.bases.current(), engine.bases.download_state()
    datasets, adapters, runs = engine.datasets.list(), engine.library.adapters(), engine.runs.list()
    mixes, reports, grids = engine.library.mixes(), engine.evaluation.reports(), engine.grids.list()
    listed = {
        "datasets": datasets,
        "adapters": adapters,
        "runs": runs,
        "mixes": mixes,
        "reports": reports,
        "grids": grids,
    }
    state = [
        (base.loading, base.error, base.name, base.quantization, base.failed),
        [(d.id, d.name) for d in datasets],
        [(a.id, a.name, str(a.metadata.get("gate")), _calibration_state(engine, a.id)) for a in adapters],
        [(r.id, r.name, r.status.value) for r in runs],
        [(m.id, m.name) for m in mixes],
        [r.id for r in reports],
        engine.queue.version(),
        [g.id for g in grids],
        _list_absent_ids(engine, listed),
        download and (download.name, download.over, download.error),
    ]
    revision = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]
    compared = bool(reports) or bool(engine.votes.tally())
    steps = path_steps(datasets, adapters, bool(mixes), compared)
    advice = next_step(base, datasets, adapters, runs, _suggest_datasets(engine, datasets))
    notices = [node("p", text, cls="note", role="status") for text in engine.notices]
    lines = node("div", render_line(steps, advice), practice_base_note(base), cls="guide-lines")
    if base.template.differs and not base.chat_template:
        open_base = button("See what differs", {"do": "tab", "tab": "base"}, "link")
        notices.append(node("p", f"{base.template.text} ", open_base, cls="note", role="status"))
    visit = permissions.find_visit()
    tree = node("div", _bar(base, visit), permissions.render_role(visit), *notices, lines)
    return {"revision": revision, "tree": tree, "visitor": permissions.describe(visit)}


def _suggest_datasets(engine: Engine, datasets: Sequence[Any]) -> dict[str, str]:
    """The name of the dataset that a suggested run of each kind trains on."""
    names = {d.id: d.name for d in datasets}
    chosen = {kind: suggestions.suggest_run(engine, kind).dataset for kind in ("domain", "task")}
    return {kind: names[dataset] for kind, dataset in chosen.items() if dataset in names}


def _calibration_state(engine: Engine, adapter_id: str) -> str:
    status = engine.calibration.status(adapter_id)
    return status.state if status else ""


def _list_absent_ids(engine: Engine, listed: Mapping[str, Sequence[Any]]) -> list[str]:
    """Ids that the lists leave out, because their items are damaged."""
    return [
        item_id
        for kind, items in listed.items()
        for item_id in sorted(set(engine.workspace.ids(kind)) - {i.id for i in items})
    ]


def _bar(base: Any, visit: Visit) -> Node:
    brand = node(
        "div", node("span", cls="mark", aria_hidden="true"), node("h1", "Adapter Studio"), cls="brand"
    )
    switch = node(
        "button",
        node("span", "Theme", cls="hidden-text"),
        cls="icon theme",
        act={"do": "theme"},
        title="Switch between light and dark",
    )
    specs = node("div", _base_button(base), cls="specs")
    return node("div", brand, specs, permissions.render_session(visit), switch, cls="topbar")


def _base_button(base: Any) -> Node:
    """The resident base; it opens the Base tab."""
    name = formatting.format_base(base.name)
    facts = [
        f"{formatting.format_count(base.parameters)} parameters" if base.parameters else "",
        {"cuda": "GPU", "cpu": "CPU"}.get(base.device, base.device),
        {"nf4": "4-bit (nf4)", "int8": "8-bit (int8)"}.get(base.quantization, ""),
    ]
    about = "loading" if base.loading else " · ".join(filter(None, facts))
    return node(
        "button",
        node("small", "Base"),
        node("span", name, cls="base-name"),
        node("small", about, cls="base-about") if about else None,
        cls="spec",
        act={"do": "tab", "tab": "base"},
        title="Change the base model",
    )


def render_line(steps: list[Step], advice: NextStep) -> Node:
    """The steps and the advice in one line; it shrinks when every step is done and nothing is running."""
    is_done = all(s.done for s in steps) and advice.share is None and not advice.failed
    buttons = advice.buttons
    if is_done:  # the sentence names the adapters already
        buttons = (button("Compare the mixes", {"do": "compare"}, "link"),)
    text = node("p", advice.summary if is_done else advice.text, role="alert" if advice.failed else "status")
    bar = None
    if advice.share is not None:
        bar = progress_bar(advice.share, "Progress of the run", cls="bar thin busy")
    state = "done" if is_done else ""
    if advice.failed:
        state = "bad"
    return node(
        "section",
        _path(steps),
        text,
        node("div", *buttons, cls="row"),
        bar,
        cls=f"next {state}".strip(),
        aria_label="Next step",
    )


def _path(steps: list[Step]) -> Node:
    first = next((i for i, s in enumerate(steps) if not s.done), len(steps) - 1)
    # With both adapters trained, mixing and comparing are open at the same time.
    current = {first} if first < 3 else {3, 4} - {i for i, s in enumerate(steps) if s.done}
    items = []
    for i, step in enumerate(steps):
        state = "now" if i in current else "later"
        if step.done:
            state = "done"
        mark = node("span", "✓" if step.done else str(i + 1), cls="mark-no", aria_hidden="true")
        title = f"{step.title}, done" if step.done else step.title
        text = node(
            "button",
            mark,
            node("span", title, cls="hidden-text"),
            cls="step",
            act={"do": "tab", "tab": step.tab},
            title=title,
            aria_current="step" if i == first else None,
        )
        items.append(node("li", text, cls=state))
    return node("ol", *items, cls="path", aria_label="Steps from data to a comparison")
