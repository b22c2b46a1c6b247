"""The Base tab: the model that everything hangs on, the others that are here, and how more come from the Hub.

Knows a form and a list. Knows nothing of how models are loaded or fetched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.spec.training import QUANTIZATIONS
from studio import events, fields, formatting
from studio.tree import Node, button, chip, facts, node, title, view

BITS = {"auto": "Automatic", "nf4": "4 bits (nf4)", "int8": "8 bits (int8)", "none": "As stored"}
TICK_SECONDS = 0.7  # between two looks at a download
PLACES = {"embedded": "comes with the studio", "cache": "in the Hub's cache", "folder": "a folder"}


@dataclass(frozen=True)
class BaseTab:
    """The components of the Base tab."""

    choice: gr.Dropdown
    bits: gr.Radio
    use: gr.Button
    fetch: gr.Button
    sure: gr.Column
    leaving: gr.HTML
    yes: gr.Button
    no: gr.Button
    progress: gr.HTML
    resident: gr.HTML
    shelf: gr.HTML
    tick: gr.Timer


def build() -> BaseTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=5, min_width=300, elem_classes="card"):
            view(
                title(
                    "Choose a base model",
                    "Adapters are trained on it and fit no other. It is loaded once, and stays as it is.",
                )
            )
            choice = fields.picker(
                "Base",
                info="One that is here, the path of a folder, or a Hub id such as Qwen/Qwen2.5-0.5B-Instruct.",
                elem_id="base-choice",
            )
            bits = gr.Radio(
                [(BITS[q], q) for q in QUANTIZATIONS],
                value="auto",
                label="Weights",
                info="Automatic is 4 bits on a GPU, and as stored on a CPU.",
            )
            with gr.Row():
                use = gr.Button("Use this base", variant="primary", min_width=140)
                fetch = gr.Button("Download from the Hub", min_width=140)
            with gr.Column(visible=False, elem_id="base-sure") as sure:
                leaving = view()
                with gr.Row():
                    yes = gr.Button("Yes, change the base", variant="stop", min_width=140)
                    no = gr.Button("Keep this one", min_width=120)
            progress = view(elem_id="base-progress")
        with gr.Column(scale=7, min_width=320, elem_classes="card"):
            resident = view(elem_id="base-resident")
            shelf = view(elem_id="base-shelf")
    return BaseTab(
        choice,
        bits,
        use,
        fetch,
        sure,
        leaving,
        yes,
        no,
        progress,
        resident,
        shelf,
        gr.Timer(TICK_SECONDS, active=False),
    )


def wire(tab: BaseTab, engine: Engine, moved: events.Together) -> None:
    """Connects the events."""
    lists = [tab.choice, tab.resident, tab.shelf, tab.progress, tab.tick]
    asked = [tab.sure, tab.leaving]
    moved.add(refresh, None, lists)
    events.on(tab.shelf.act, engine, picked, None, [tab.choice])
    events.look_again(events.on(tab.use.click, engine, used, [tab.choice, tab.bits], asked))
    events.look_again(events.on(tab.yes.click, engine, changed, [tab.choice, tab.bits], asked))
    events.on(tab.no.click, engine, kept, None, asked)
    events.look_again(events.on(tab.fetch.click, engine, fetched, [tab.choice], [tab.progress, tab.tick]))
    events.on(tab.tick.tick, engine, ticked, None, lists)
    events.on(tab.progress.act, engine, pressed)


def refresh(engine: Engine) -> tuple[Any, ...]:
    """The list of bases, what the resident one is, and how a download is doing."""
    base, offers, at = engine.base(), engine.bases.offered(), engine.bases.fetching()
    choices = [(formatting.base(o.name), o.name) for o in offers if not o.why]
    return (
        gr.update(choices=choices),
        facts_of(base),
        shelf(offers, base.name),
        progress(at),
        gr.Timer(active=at is not None and not at.over),
    )


def picked(engine: Engine, event: gr.EventData) -> str:
    """A base of the list was pressed."""
    return str((event._data or {}).get("pick", ""))


def used(engine: Engine, choice: str | None, bits: str) -> tuple[Any, Any]:
    """Changes the base, or asks first where something would be unloaded."""
    said = engine.bases.switch(choice or "", bits)
    if not said:
        return gr.update(visible=False), None
    return gr.update(visible=True), node(
        "div", node("strong", "Changing the base:"), *[node("p", s) for s in said], cls="problem"
    )


def changed(engine: Engine, choice: str | None, bits: str) -> tuple[Any, Any]:
    """Changes the base; the person has read what is unloaded."""
    engine.bases.switch(choice or "", bits, sure=True)
    return gr.update(visible=False), None


def kept(engine: Engine) -> tuple[Any, Any]:
    """Not changed after all."""
    return gr.update(visible=False), None


def fetched(engine: Engine, choice: str | None) -> tuple[Any, Any]:
    """Begins a download and watches it."""
    engine.bases.fetch(choice or "")
    return progress(engine.bases.fetching()), gr.Timer(active=True)


def ticked(engine: Engine) -> tuple[Any, ...]:
    """How a download is doing; the lists only once it is over."""
    at = engine.bases.fetching()
    if at is not None and not at.over:
        return gr.skip(), gr.skip(), gr.skip(), progress(at), gr.skip()
    return refresh(engine)


def pressed(engine: Engine, event: gr.EventData) -> None:
    """The button beside a download. The ticks show what comes of it: an answer from here could come after their last one."""
    if (event._data or {}).get("stop"):
        engine.bases.stop_fetching()


def progress(at: Any) -> Node:
    """A download: how far it is, or how it ended."""
    if at is None:
        return node("div")
    if at.error:
        return node("p", at.error, cls="problem", role="alert")
    if at.over:
        return node(
            "div",
            node(
                "p",
                f"{at.name} is here ({formatting.size(at.total)}). Choose “Use this base”.",
                role="status",
            ),
            chip("downloaded", "good"),
        )
    share = at.done / at.total if at.total else 0.0
    said = (
        f"{at.name}: {formatting.size(at.done)} of {formatting.size(at.total)} ({share:.0%})"
        if at.total
        else f"{at.name}: asking the Hub"
    )
    bar = node("div", node("div", cls="bar-fill"), cls="bar busy", vars={"share": f"{100 * share:.1f}%"}, role="progressbar", aria_label=f"Download of {at.name}",
               aria_valuenow=round(100 * share), aria_valuemin=0, aria_valuemax=100)  # fmt: skip
    return node("div", node("p", said, role="status"), bar, button("Stop the download", {"stop": True}))


def facts_of(base: Any) -> Node:
    """What the resident base is."""
    head = node(
        "div",
        node("h2", formatting.base(base.name)),
        chip("loading" if base.loading else "resident", "warn" if base.loading else "good"),
        cls="row",
    )
    failed = (
        node(
            "p",
            f"The other base was not loaded, and this one is here: {base.failed}",
            cls="problem",
            role="alert",
        )
        if base.failed
        else None
    )
    error = node("p", base.error, cls="problem", role="alert") if base.error else None
    known = [
        ("Family", base.family), ("Parameters", formatting.short(base.parameters) if base.parameters else ""), ("Weights", BITS.get(base.quantization, "")),
        ("Memory", formatting.size(base.memory_bytes) if base.memory_bytes else ""), ("Reads at most", f"{base.context:,} tokens" if base.context else ""),
        ("Layers that learn", ", ".join(base.targets)), ("Chat template", ("its own" if base.chat_template else "the studio's") if base.parameters else ""),
        ("Fingerprint", base.fingerprint[:16]),
    ]  # fmt: skip
    return node(
        "div", head, failed, error, node("p", base.note, cls="quiet") if base.note else None, facts(known)
    )


def shelf(offers: list[Any], resident: str) -> Node:
    """Bases on this machine; those that cannot be used say why."""
    rows = []
    for o in offers:
        line = " · ".join(
            filter(None, [o.kind, formatting.size(o.bytes) if o.bytes else "", PLACES[o.place]])
        )
        body = [
            node(
                "span",
                node("strong", formatting.base(o.name)),
                *([chip("resident", "good")] if o.name == resident else []),
                cls="row",
            ),
            node("span", line, cls="quiet"),
        ]
        if o.why:
            rows.append(node("div", *body, node("span", o.why, cls="quiet"), cls="shelf-item"))
        else:
            rows.append(node("button", *body, cls="shelf-item", act={"pick": o.name}))
    return node("div", node("h2", "On this machine"), node("div", *rows, cls="shelf"))
