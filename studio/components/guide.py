"""The top of the page: the resident base, the five steps from data to a comparison, and what to do next.

It also polls: `guide.js` asks `poll` for the state every 1.5 seconds and fires `library_change` when a list
on the page is out of date. Every tab then shows its lists again, so a result that arrives late is soon
corrected. Buttons carry an action that `studio/actions.py` runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.spec.training import RunStatus
from studio import events, formatting
from studio.assets import read_asset
from studio.tree import Node, button, node, progress_bar


@dataclass(frozen=True)
class Step:
    """One of the five steps: its title, the tab that it happens on, and whether it is done."""

    title: str
    tab: str
    done: bool


@dataclass(frozen=True)
class NextStep:
    """What to do next: a sentence, and the buttons that do it.

    Attributes:
        share: progress of the current run, 0 to 1.
        failed: the sentence reports a failure.
    """

    text: str
    buttons: tuple[Node, ...] = ()
    share: float | None = None
    failed: bool = False


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
    """The top of the page as a tree, and a revision that changes whenever a list on the page does."""
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
        [(a.id, a.name) for a in adapters],
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
    advice = next_step(base, datasets, adapters, runs)
    notices = [node("p", text, cls="note", role="status") for text in engine.notices]
    return {"revision": revision, "tree": node("div", _bar(base), *notices, _path(steps), _next(advice))}


def _list_absent_ids(engine: Engine, listed: Mapping[str, Sequence[Any]]) -> list[str]:
    """Ids that the lists leave out, because their items are damaged."""
    return [
        item_id
        for kind, items in listed.items()
        for item_id in sorted(set(engine.workspace.ids(kind)) - {i.id for i in items})
    ]


def path_steps(
    datasets: Sequence[Any], adapters: Sequence[Any], mixed: bool = False, compared: bool = False
) -> list[Step]:
    """The five steps, each with whether it is done.

    Args:
        mixed: there is a saved mix.
        compared: there is a vote or a report.
    """
    kinds = {a.kind for a in adapters}
    return [
        Step("Data", "data", bool(datasets)),
        Step("Domain adapter", "train", "domain" in kinds),
        Step("Task adapter", "train", "task" in kinds),
        Step("Mix", "mix", mixed),
        Step("Compare", "compare", compared),
    ]


def next_step(base: Any, datasets: Sequence[Any], adapters: Sequence[Any], runs: Sequence[Any]) -> NextStep:
    """Advises what to do now: fix the base, add data, train, compare, or resume a run."""
    if base.error:
        return NextStep(f"The base model could not be loaded: {base.error}", failed=True)
    if not datasets:
        text = "Start with data: add your own files in the Data tab, or use the sample data."
        return NextStep(text, (button("Use the sample data", {"do": "sample"}, "primary"),))
    active = [r for r in runs if r.status.is_alive]
    text, buttons = _suggest(datasets, adapters, active)
    if active:
        return _report_progress(active, text, buttons)
    trained = {a.id for a in adapters}
    interrupted = next((r for r in runs if r.status is RunStatus.INTERRUPTED and r.resumable), None)
    if interrupted and interrupted.adapter not in trained:
        text = f"{interrupted.name} was interrupted before its first step."
        if interrupted.step:
            total = f" of {interrupted.total_steps}" if interrupted.total_steps else ""
            text = f"{interrupted.name} was interrupted at step {interrupted.step}{total}. "
            text += "It resumes from its last checkpoint."
        resume = button("Resume", {"do": "resume", "run": interrupted.id}, "primary")
        return NextStep(text, (resume, *[{**b, "cls": "btn quiet"} for b in buttons]))
    last = runs[0] if runs else None
    if last and last.status in (RunStatus.FAILED, RunStatus.DIVERGED) and last.adapter not in trained:
        return NextStep(f"{last.name} {last.status.value}: {last.error}", buttons, failed=True)
    return NextStep(text, buttons)


def _suggest(
    datasets: Sequence[Any], adapters: Sequence[Any], active: Sequence[Any]
) -> tuple[str, tuple[Node, ...]]:
    """Suggests the next step on the path, whatever became of earlier runs.

    Args:
        active: the runs that are queued or running.
    """
    data = {d.kind for d in datasets}
    trained = {a.kind for a in adapters}
    expected = trained | {r.kind for r in active}
    mixer = button("Open the mixer", {"do": "tab", "tab": "mix"})
    if "domain" in data and "domain" not in expected:
        text = "Next, train the domain adapter: it learns the language and the facts of your documents."
        return text, (button("Train the domain adapter", {"do": "train", "kind": "domain"}, "primary"),)
    if "task" in data and "task" not in expected:
        text = "Next, train the task adapter on top: it learns to answer like your examples."
        if active:
            text += " It starts when the current run ends."
        return text, (button("Train the task adapter", {"do": "train", "kind": "task"}, "primary"),)
    if trained:
        compare = button("Compare the mixes", {"do": "compare"}, "" if active else "primary")
        return "Compare the base, each adapter and both together on the same prompt.", (compare, mixer)
    return "You can already try it while it trains.", (button("Compare now", {"do": "compare"}), mixer)


def _report_progress(active: list[Any], text: str, buttons: tuple[Node, ...]) -> NextStep:
    """Puts the progress of the current run before the suggestion."""
    run = min(active, key=lambda r: (r.status.value == "queued", r.created))
    share = run.step / run.total_steps if run.total_steps else 0.0
    waiting = f", {len(active) - 1} more in the queue" if len(active) > 1 else ""
    progress = f"step {run.step} of {run.total_steps}" if run.total_steps else run.status.value
    watch = button("Watch", {"do": "watch", "run": run.id})
    return NextStep(f"{run.name}: {progress}{waiting}. {text}", (*buttons, watch), share)


def _bar(base: Any) -> Node:
    brand = node(
        "div", node("span", cls="mark", aria_hidden="true"), node("strong", "Adapter Studio"), cls="brand"
    )
    switch = node(
        "button",
        node("span", "Theme", cls="hidden-text"),
        cls="icon theme",
        act={"do": "theme"},
        title="Switch between light and dark",
    )
    return node(
        "div", brand, node("div", *[_spec(k, v) for k, v in _specs(base)], cls="specs"), switch, cls="topbar"
    )


def _spec(name: str, value: str) -> Node:
    """One fact about the resident model; the base is a button that opens the Base tab."""
    kids = node("small", name), node("span", value)
    if name == "Base":
        act = {"do": "tab", "tab": "base"}
        return node("button", *kids, cls="spec", act=act, title="Change the base model")
    return node("span", *kids, cls="spec")


def _specs(base: Any) -> list[tuple[str, str]]:
    """The facts about the resident model: name and size, device, quantization, memory."""
    name = formatting.format_base(base.name) + (" (loading)" if base.loading else "")
    size = f"{formatting.format_count(base.parameters)} parameters" if base.parameters else ""
    bits = {"nf4": "4-bit (nf4)", "int8": "8-bit (int8)"}.get(base.quantization, "none")
    memory = getattr(base, "memory_bytes", 0)
    facts = [
        ("Base", " · ".join(filter(None, [name, size]))),
        ("Device", {"cuda": "GPU", "cpu": "CPU"}.get(base.device, base.device or formatting.NONE)),
    ]
    facts += [("Quantization", bits)] if base.parameters else []
    return facts + ([("Memory", formatting.format_bytes(memory))] if memory else [])


def _path(steps: list[Step]) -> Node:
    first = next((i for i, s in enumerate(steps) if not s.done), len(steps) - 1)
    # With both adapters trained, mixing and comparing are open at the same time.
    current = {first} if first < 3 else {3, 4} - {i for i, s in enumerate(steps) if s.done}
    items = []
    for i, step in enumerate(steps):
        state = "now" if i in current else "later"
        if step.done:
            state = "done"
        mark = node("span", "✓" if step.done else str(i + 1), cls="mark-no")
        text = node(
            "button",
            mark,
            node("span", step.title, cls="step-title"),
            cls="step",
            act={"do": "tab", "tab": step.tab},
            aria_current="step" if i == first else None,
        )
        items.append(node("li", text, cls=state))
    return node("ol", *items, cls="path", aria_label="Steps from data to a comparison")


def _next(advice: NextStep) -> Node:
    bar = None
    if advice.share is not None:
        bar = progress_bar(advice.share, "Progress of the run", cls="bar thin busy")
    row = node(
        "div",
        node("p", advice.text, role="alert" if advice.failed else "status"),
        node("div", *advice.buttons, cls="row"),
        cls="next-row",
    )
    return node("section", row, bar, cls="next bad" if advice.failed else "next", aria_label="Next step")
