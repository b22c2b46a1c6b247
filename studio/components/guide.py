"""The top of the page: what the studio runs on, where the visitor is on the path, and what to do next.

Knows the five steps and how to read them off the engine. Knows nothing of the tabs' insides: an action
is a word that `studio/acts.py` carries out.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.spec.training import RunStatus
from studio import events, formatting
from studio.assets import read_asset
from studio.tree import Node, button, node


@dataclass(frozen=True)
class Step:
    """One stop on the path: what it is called, the tab it happens on, and whether it is behind us."""

    title: str
    tab: str
    done: bool


@dataclass(frozen=True)
class Next:
    """What to do next: a sentence, and the buttons that do it."""

    text: str
    buttons: tuple[Node, ...] = ()
    share: float | None = None  # of a run under way
    bad: bool = False


def guide(engine: Engine) -> gr.HTML:
    """The component; its event `act` carries what was pressed, `moved` fires when lists on the page are out of date."""
    top = gr.HTML(
        value=None,
        html_template='<div class="guide"></div>',
        js_on_load=read_asset("components/guide.js"),
        apply_default_css=False,
        server_functions=[events.asked(look, engine)],
        elem_id="guide",
    )
    events.on(top.pulse, engine, pulse, None, [top], trigger_mode="multiple")  # see guide.js
    return top


def pulse(engine: Engine, event: gr.EventData) -> dict[str, Any]:
    """The answer to a question that means nothing: how many the page had asked before it."""
    return {"asked": (event._data or {}).get("asked")}


def look(engine: Engine, question: dict[str, Any]) -> dict[str, Any]:
    """The top of the page as a tree, and a revision that changes when a list on the page does."""
    engine.load()  # begun by the first page, so that no import of torch delays its painting
    base, datasets, adapters, runs = engine.base(), engine.datasets(), engine.adapters(), engine.runs()
    coming = engine.bases.fetching()
    state = [
        base.loading, base.error, base.name, base.quantization, base.failed, [(d.id, d.name) for d in datasets], [(a.id, a.name) for a in adapters],
        [(r.id, r.name, r.status.value) for r in runs], [(m.id, m.name) for m in engine.mixes()], [r.id for r in engine.reports()],
        engine.conduct.line_stamp(), [g.id for g in engine.plan.grids()],
        coming and (coming.name, coming.over, coming.error),
    ]  # fmt: skip
    revision = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:12]
    steps = path(datasets, adapters, bool(engine.mixes()), bool(engine.reports()) or bool(engine.tally()))
    following = next_step(base, datasets, adapters, runs)
    return {"revision": revision, "tree": node("div", _bar(base), _path(steps), _next(following))}


def path(datasets: list[Any], adapters: list[Any], mixed: bool = False, compared: bool = False) -> list[Step]:
    """The five steps, each with whether it is done.

    Args:
        mixed: a mix was saved. compared: a vote or a report was made.
    """
    kinds = {a.kind for a in adapters}
    return [
        Step("Data", "data", bool(datasets)),
        Step("Domain adapter", "train", "domain" in kinds),
        Step("Task adapter", "train", "task" in kinds),
        Step("Mix", "mix", mixed),
        Step("Compare", "compare", compared),
    ]


def next_step(base: Any, datasets: list[Any], adapters: list[Any], runs: list[Any]) -> Next:
    """The one thing to do now."""
    if base.error:
        return Next(f"The base model could not be loaded: {base.error}", bad=True)
    kinds = {d.kind for d in datasets}
    if not datasets:
        said = (
            "Start with data: drop your own files below, or take the sample data that comes with the studio."
        )
        return Next(said, (button("Use the sample data", {"do": "sample"}, "primary"),))
    learned = {a.kind for a in adapters}
    alive = [r for r in runs if r.status.alive]
    coming = learned | {r.kind for r in alive}
    buttons: list[Node] = []
    if "domain" in kinds and "domain" not in coming:
        buttons = [button("Train the domain adapter", {"do": "train", "kind": "domain"}, "primary")]
        said = "Next, the base model learns the language and the facts of your texts."
    elif "task" in kinds and "task" not in coming:
        buttons = [button("Train the task adapter", {"do": "train", "kind": "task"}, "primary")]
        after = "It starts when the run before it is done." if alive else ""
        said = f"Next, it learns to answer like your examples, on top of the domain. {after}".strip()
    elif learned:
        buttons = [
            button("Compare the mixes", {"do": "compare"}, "" if alive else "primary"),
            button("Open the mixer", {"do": "tab", "tab": "mix"}),
        ]
        said = "Ask base, domain, task and both together the same question, side by side."
    else:
        buttons = [
            button("Compare already", {"do": "compare"}),
            button("Open the mixer", {"do": "tab", "tab": "mix"}),
        ]
        said = "It can be heard while it learns."
    interrupted = next((r for r in runs if r.status is RunStatus.INTERRUPTED and r.resumable), None)
    if interrupted and not alive and interrupted.adapter not in {a.id for a in adapters}:
        said = f"{interrupted.name} was interrupted at step {interrupted.step} of {interrupted.total_steps or 'its plan'}; it goes on where it was."
        return Next(
            said,
            (
                button("Resume it", {"do": "resume", "run": interrupted.id}, "primary"),
                *[{**b, "cls": "btn quiet"} for b in buttons],
            ),
        )
    if not alive:
        last = runs[0] if runs else None
        failed = (
            last is not None
            and last.status in (RunStatus.FAILED, RunStatus.DIVERGED)
            and last.adapter not in {a.id for a in adapters}
        )
        return Next(
            f"{last.name} {last.status.value}: {last.error}" if last and failed else said,
            tuple(buttons),
            bad=failed,
        )
    run = min(alive, key=lambda r: (r.status.value == "queued", r.created))
    share = run.step / run.total_steps if run.total_steps else 0.0
    waiting = f", {len(alive) - 1} more in the queue" if len(alive) > 1 else ""
    where = f"step {run.step} of {run.total_steps}" if run.total_steps else run.status.value
    return Next(
        f"{run.name}: {where}{waiting}. {said}",
        (*buttons, button("Watch", {"do": "watch", "run": run.id})),
        share,
    )


def _bar(base: Any) -> Node:
    brand = node(
        "div", node("span", cls="mark", aria_hidden="true"), node("strong", "Adapter Studio"), cls="brand"
    )
    switch = node(
        "button",
        node("span", "Theme", cls="hidden-text"),
        cls="icon theme",
        act={"do": "theme"},
        title="Light or dark",
    )
    return node(
        "div", brand, node("div", *[_spec(k, v) for k, v in _specs(base)], cls="specs"), switch, cls="topbar"
    )


def _spec(name: str, value: str) -> Node:
    """One of them; the base leads to where it is changed."""
    kids = node("small", name), node("span", value)
    return (
        node("button", *kids, cls="spec", act={"do": "tab", "tab": "base"}, title="Change the base model")
        if name == "Base"
        else node("span", *kids, cls="spec")
    )


def _specs(base: Any) -> list[tuple[str, str]]:
    """What the model that is resident is, in four words."""
    name = f"{formatting.base(base.name)} (loading)" if base.loading else formatting.base(base.name)
    size = f"{formatting.short(base.parameters)} parameters" if base.parameters else ""
    bits = {"nf4": "4 bits (nf4)", "int8": "8 bits (int8)"}.get(base.quantization, "not quantised")
    memory = getattr(base, "memory_bytes", 0)
    facts = [
        ("Base", " · ".join(filter(None, [name, size]))),
        ("Device", {"cuda": "GPU", "cpu": "CPU"}.get(base.device, base.device or formatting.NONE)),
    ]
    facts += [("Weights", bits)] if base.parameters else []
    return facts + ([("Memory", formatting.size(memory))] if memory else [])


def _path(steps: list[Step]) -> Node:
    first = next((i for i, s in enumerate(steps) if not s.done), len(steps) - 1)
    now = (
        {first} if first < 3 else {3, 4} - {i for i, s in enumerate(steps) if s.done}
    )  # with both adapters, mixing and comparing stand open
    items = []
    for i, step in enumerate(steps):
        state = "done" if step.done else "now" if i in now else "later"
        mark = node("span", "✓" if step.done else str(i + 1), cls="mark-no")
        here = "step" if i == first else None
        text = node(
            "button",
            mark,
            node("span", step.title, cls="step-title"),
            cls="step",
            act={"do": "tab", "tab": step.tab},
            aria_current=here,
        )
        items.append(node("li", text, cls=state))
    return node("ol", *items, cls="path", aria_label="The way from data to an answer")


def _next(following: Next) -> Node:
    bar = (
        node(
            "div",
            node("div", cls="bar-fill"),
            cls="bar thin busy",
            vars={"share": f"{100 * following.share:.1f}%"},
        )
        if following.share is not None
        else None
    )
    row = node(
        "div",
        node("p", following.text, role="alert" if following.bad else "status"),
        node("div", *following.buttons, cls="row"),
        cls="next-row",
    )
    return node(
        "section", row, bar, cls="next bad" if following.bad else "next", aria_label="What to do next"
    )
