"""The Library tab: everything that is kept, with what it is, where it came from and what can be done with it.

Knows lists and details. Knows nothing of how things are stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.engine import Engine
from core.errors import NotFound
from studio import events, formatting
from studio.tree import Node, button, chip, download, empty, facts, node, view

KINDS = [
    ("Adapters", "adapters"),
    ("Runs", "runs"),
    ("Datasets", "datasets"),
    ("Mixes", "mixes"),
    ("Reports", "reports"),
]
RENAMABLE = ("adapters", "datasets", "mixes")
NOTHING = empty("Nothing chosen", "Choose something in the list to see what it is and where it came from.")
HINTS = {
    "adapters": ("No adapters yet", "They land here when a run ends or is stopped.", "train"),
    "runs": ("No runs yet", "Each training run is kept with its curve and its settings.", "train"),
    "datasets": ("No datasets yet", "Import files or the sample data.", "data"),
    "mixes": ("No saved mixes yet", "Save one in the mixer to find it again here and in Compare.", "mix"),
    "reports": ("No reports yet", "Measure some mixes to get one.", "evaluate"),
}


@dataclass(frozen=True)
class LibraryTab:
    """The components of the Library tab."""

    kind: gr.Radio
    shelf: gr.HTML
    picked: gr.State
    details: gr.HTML
    tools: gr.Column
    name: gr.Textbox
    rename: gr.Button
    delete: gr.Button
    sure: gr.Column
    yes: gr.Button
    no: gr.Button


def build() -> LibraryTab:
    """Makes the components."""
    with gr.Row(elem_classes="panes"):
        with gr.Column(scale=5, min_width=300, elem_classes="card"):
            kind = gr.Radio(KINDS, value="adapters", label="Show", elem_classes="segments")
            shelf = view(elem_id="shelf")
        with gr.Column(scale=7, min_width=320, elem_classes="card"):
            details = view(NOTHING, elem_id="details")
            with gr.Column(visible=False) as tools, gr.Row(elem_classes="save-row"):
                name = gr.Textbox(label="Name", max_length=120, scale=3, min_width=140)
                rename = gr.Button("Rename", size="md", scale=1, min_width=90)
                delete = gr.Button("Delete", size="md", variant="stop", scale=1, min_width=80)
            with gr.Column(visible=False) as sure:
                view(node("p", "Delete it for good? This cannot be undone.", cls="problem"))
                with gr.Row():
                    yes = gr.Button("Yes, delete it", variant="stop")
                    no = gr.Button("Keep it")
    return LibraryTab(kind, shelf, gr.State(""), details, tools, name, rename, delete, sure, yes, no)


def wire(tab: LibraryTab, engine: Engine, library_changed: events.EventGroup) -> None:
    """Connects the events."""
    shown = [tab.shelf, tab.picked, tab.details, tab.tools, tab.name, tab.rename, tab.sure]
    library_changed.add(refresh, [tab.kind, tab.picked], shown)
    events.bind(tab.kind.input, engine, refresh, [tab.kind, tab.picked], shown)
    events.bind(tab.shelf.act, engine, chosen, [tab.kind, tab.picked], shown)
    events.bind(
        tab.details.act, engine, verified, [tab.kind, tab.picked], [tab.details], show_progress="minimal"
    )
    events.refresh_after(events.bind(tab.rename.click, engine, renamed, [tab.kind, tab.picked, tab.name], shown))
    events.bind(tab.delete.click, engine, asked, None, [tab.sure])
    events.bind(tab.no.click, engine, kept, None, [tab.sure])
    events.refresh_after(events.bind(tab.yes.click, engine, removed, [tab.kind, tab.picked], shown))


def refresh(engine: Engine, kind: str, picked: str) -> tuple[Any, ...]:
    """The list of one kind; the details stay open where the item still exists."""
    found = items(engine, kind)
    item = next((i for i in found if i.id == picked), None)
    if item is None:
        return (
            shelf(engine, kind, found, ""),
            "",
            NOTHING,
            gr.update(visible=False),
            "",
            gr.skip(),
            gr.update(visible=False),
        )
    nameable = kind in RENAMABLE
    name = gr.update(value=getattr(item, "name", ""), visible=nameable)
    return (
        shelf(engine, kind, found, picked),
        picked,
        detail(engine, kind, item),
        gr.update(visible=True),
        name,
        gr.update(visible=nameable),
        gr.update(visible=False),
    )


def chosen(engine: Engine, kind: str, picked: str, event: gr.EventData) -> tuple[Any, ...]:
    """An item of the list was pressed."""
    pressed = event._data or {}
    return refresh(engine, kind, str(pressed.get("pick", picked)))


def verified(engine: Engine, kind: str, picked: str) -> Node:
    """Checks an adapter's files and says what was checked."""
    said = engine.library.verify(picked)
    good = node("ul", *[node("li", s) for s in said], cls="checks")
    return node(
        "div", detail(engine, kind, engine.library.adapter(picked)), node("div", chip("verified", "good"), good)
    )


def renamed(engine: Engine, kind: str, picked: str, name: str) -> tuple[Any, ...]:
    """Gives an item another display name; its id stays."""
    engine.library.rename(kind, picked, name)
    return refresh(engine, kind, picked)


def asked(engine: Engine) -> Any:
    """Asks before deleting."""
    return gr.update(visible=True)


def kept(engine: Engine) -> Any:
    """Not deleted after all."""
    return gr.update(visible=False)


def removed(engine: Engine, kind: str, picked: str) -> tuple[Any, ...]:
    """Deletes an item."""
    if not picked:
        raise NotFound("Nothing is chosen.", "Choose what to delete first.")
    engine.library.delete(kind, picked)
    return refresh(engine, kind, "")


def items(engine: Engine, kind: str) -> list[Any]:
    """All items of a kind, newest first."""
    lists: dict[str, Callable[[], list[Any]]] = {
        "adapters": engine.library.adapters, "runs": engine.runs.list, "datasets": engine.datasets.list, "mixes": engine.library.mixes, "reports": engine.evaluation.reports,
    }  # fmt: skip
    return sorted(lists[kind](), key=lambda i: float(i.created), reverse=True)


def shelf(engine: Engine, kind: str, found: list[Any], picked: str) -> Node:
    """The list."""
    disk = engine.library.disk_usage()
    used = node(
        "p",
        f"{formatting.format_bytes(disk['used_bytes'])} used, {formatting.format_bytes(disk['free_bytes'])} free on this disk",
        cls="quiet",
    )
    if not found:
        text, hint, tab = HINTS[kind]
        return node(
            "div", empty(text, hint, button(f"Go to {tab.capitalize()}", {"do": "tab", "tab": tab})), used
        )
    rows = [
        node("button", node("span", node("strong", _title(kind, i)), *_chips(kind, i), cls="row"), node("span", _line(kind, i), cls="quiet"),
             cls="shelf-item picked" if i.id == picked else "shelf-item", act={"pick": i.id}, aria_pressed="true" if i.id == picked else "false")
        for i in found
    ]  # fmt: skip
    return node("div", node("div", *rows, cls="shelf"), used)


def _title(kind: str, item: Any) -> str:
    return f"{item.dataset_name} ({item.split})" if kind == "reports" else item.name


def _chips(kind: str, item: Any) -> list[Node]:
    chips = [chip(item.kind, item.kind)] if kind in ("adapters", "runs", "datasets") else []
    chips += [chip("cannot be mixed live", "warn")] if getattr(item, "unmixable", "") else []
    return [*chips, chip(item.status.value, item.status.value)] if kind == "runs" else chips


def _line(kind: str, item: Any) -> str:
    said = {
        "adapters": lambda: f"rank {item.rank} · {formatting.format_bytes(item.bytes)} · {item.dataset_name}",
        "runs": lambda: f"step {item.step} of {item.total_steps} · {formatting.format_base(item.base)}",
        "datasets": lambda: f"{item.rows:,} rows · " + " / ".join(f"{n:,}" for n in item.splits.values()),
        "mixes": lambda: formatting.format_mix(item.weights),
        "reports": lambda: f"{len(item.rows)} mixes · {formatting.format_base(item.base)}",
    }[kind]()
    return f"{said} · {formatting.format_time(item.created)}"


def detail(engine: Engine, kind: str, item: Any) -> Node:
    """What an item is and where it came from."""
    pairs = {"adapters": _adapter, "runs": _run, "datasets": _dataset, "mixes": _mix, "reports": _report}[
        kind
    ](engine, item)
    buttons = {
        "adapters": [
            download("Download as zip", f"adapter/{item.id}.zip", f"{item.id}.zip"),
            button("Verify", {"do": "verify"}),
        ],
        "reports": [download("Download as CSV", f"report/{item.id}.csv", f"{item.id}.csv")],
    }.get(kind, [])
    warnings = [node("p", w, cls="problem") for w in getattr(item, "warnings", ())]
    settings = item.spec.to_json() if kind == "runs" else getattr(item, "metadata", None)
    raw = (
        node(
            "details",
            node("summary", "Everything that was recorded"),
            node("pre", json.dumps(settings, indent=2, ensure_ascii=False)),
        )
        if settings
        else None
    )
    head = node("div", node("h2", _title(kind, item)), *_chips(kind, item), cls="row")
    return node(
        "div",
        head,
        *warnings,
        facts([*pairs, ("Made", formatting.format_time(item.created)), ("Id", item.id)]),
        node("div", *buttons, cls="row") if buttons else None,
        raw,
    )


def _adapter(engine: Engine, a: Any) -> list[tuple[str, Any]]:
    results = ", ".join(
        f"{k.replace('_', ' ')} {v:.4g}" for k, v in a.results.items() if isinstance(v, (int, float))
    )
    modules = ", ".join(a.target_modules)
    return [("Base", formatting.format_base(a.base)), ("Rank and alpha", f"{a.rank}, {a.alpha:g}"), ("Layers", modules), ("Learned from", a.dataset_name),
            ("On top of", a.stacked_on), ("Not mixed live", a.unmixable), ("Results", results), ("Size", formatting.format_bytes(a.bytes)), ("sha256", a.sha256[:16])]  # fmt: skip


def _run(engine: Engine, r: Any) -> list[tuple[str, Any]]:
    return [
        ("Base", formatting.format_base(r.base)),
        ("Steps", f"{r.step} of {r.total_steps}"),
        ("Adapter", r.adapter),
        ("Error", r.error),
    ]


def _dataset(engine: Engine, d: Any) -> list[tuple[str, Any]]:
    files = ", ".join(f["name"] for f in d.files)[:300]
    splits = ", ".join(f"{k} {n:,}" for k, n in d.splits.items())
    return [
        ("Rows", f"{d.rows:,}"),
        ("Splits", splits),
        ("Split seed", d.seed),
        ("Files", files),
        ("sha256", d.sha256[:16]),
    ]


def _mix(engine: Engine, m: Any) -> list[tuple[str, Any]]:
    names = {a.id: a.name for a in engine.library.mixable_adapters()}
    return [("Formula", formatting.format_mix({names.get(i, i): w for i, w in m.weights.items()}))]


def _report(engine: Engine, r: Any) -> list[tuple[str, Any]]:
    mixes = ", ".join(row["name"] for row in r.rows)
    return [
        ("Dataset", r.dataset_name),
        ("Split", r.split),
        ("Base", formatting.format_base(r.base)),
        ("Mixes", mixes),
        ("Took", formatting.format_duration(r.seconds)),
    ]
