"""Views of the Library tab: the list of one kind of item, and an item's details."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.store.gate_records import describe_gate
from studio import formatting
from studio.tree import Node, button, chip, details, download, empty, facts, node

NOTHING_SELECTED = empty(
    "Nothing selected", "Select an item in the list to see what it is and where it came from."
)
# What an empty list shows: a title, how to get the first item, and the tab where that happens.
EMPTY_LISTS = {
    "adapters": (
        "No adapters yet",
        "A run adds its adapter here when it ends or is stopped; adapters of other tools are imported above.",
        "train",
    ),
    "runs": ("No runs yet", "Every training run is listed with its curve and its settings.", "train"),
    "datasets": ("No datasets yet", "Import files or the sample data.", "data"),
    "mixes": ("No saved mixes yet", "Mixes that you save in the mixer appear here and in Compare.", "mix"),
    "reports": ("No reports yet", "Measure some mixes to create one.", "evaluate"),
}
Facts = list[tuple[str, Any]]
USES_SHOWN = 8  # users that the question before a deletion names
FILES_SHOWN = 12  # files of a dataset that are named


@dataclass(frozen=True)
class Names:
    """How the workspace's items are called now, by their ids; a deleted item is missing.

    Attributes:
        mixes: by the mix as text, as `str(Mix)` gives it.
    """

    adapters: Mapping[str, str] = field(default_factory=dict)
    datasets: Mapping[str, str] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)
    mixes: Mapping[str, str] = field(default_factory=dict)


def render_shelf(kind: str, items: Sequence[Any], picked: str, disk: Mapping[str, int], names: Names) -> Node:
    """The list of one kind, with the disk usage below it.

    Args:
        picked: the id of the selected item; "" for none.
        disk: `used_bytes` and `free_bytes`.
    """
    used, free = formatting.format_bytes(disk["used_bytes"]), formatting.format_bytes(disk["free_bytes"])
    usage = node(
        "div",
        node("p", f"{used} used, {free} free on this disk", cls="quiet"),
        node("div", download("Back up", "workspace.zip", "adapter-studio.zip"), cls="row"),
    )
    if not items:
        text, hint, tab = EMPTY_LISTS[kind]
        link = button(f"Go to {tab.capitalize()}", {"do": "tab", "tab": tab})
        return node("div", empty(text, hint, link), usage)
    return node(
        "div", node("div", *[_shelf_item(kind, i, i.id == picked, names) for i in items], cls="shelf"), usage
    )


def _shelf_item(kind: str, item: Any, is_picked: bool, names: Names) -> Node:
    return node(
        "button",
        node("span", node("strong", title_of(kind, item, names)), *_chips(kind, item), cls="row"),
        node("span", f"{_summary(kind, item, names)} · {formatting.format_time(item.created)}", cls="quiet"),
        cls="shelf-item picked" if is_picked else "shelf-item",
        act={"pick": item.id},
        aria_pressed="true" if is_picked else "false",
    )


def title_of(kind: str, item: Any, names: Names) -> str:
    """What an item is called in the list."""
    if kind != "reports":
        return str(getattr(names, kind, {}).get(item.id, item.name))
    return f"{names.datasets.get(item.dataset, item.dataset_name)} ({formatting.format_split(item.split)})"


def _chips(kind: str, item: Any) -> list[Node]:
    chips = [chip(item.kind, item.kind)] if kind in ("adapters", "runs", "datasets") else []
    chips += [chip("alone only", "warn")] if getattr(item, "alone", "") else []
    return [*chips, chip(item.status.value, item.status.value)] if kind == "runs" else chips


def _summary(kind: str, item: Any, names: Names) -> str:
    if kind == "adapters":
        trained_on = names.datasets.get(item.dataset, item.dataset_name)
        imported = item.metadata.get("imported") or {}
        made = f"made with {imported.get('tool')}" if imported else "merged from other adapters"
        origin = f"trained on {trained_on}" if trained_on else made
        return f"{origin} · {formatting.format_base(item.base)}"
    if kind == "runs":
        return f"step {item.step:,} of {item.total_steps:,} · {formatting.format_base(item.base)}"
    if kind == "datasets":
        return f"{formatting.count(item.rows, 'row')} · {_splits(item)}"
    if kind == "mixes":
        return _formula(item, names)
    return f"{formatting.count(len(item.rows), 'mix')} · {formatting.format_base(item.base)}"


def _splits(dataset: Any) -> str:
    if getattr(dataset, "purpose", "training") == "evaluation":
        return "for evaluation only"
    words = {"train": "for training", "val": "for validation", "test": "for testing"}
    return ", ".join(f"{n:,} {words.get(k, k)}" for k, n in dataset.splits.items() if n)


def _formula(mix: Any, names: Names) -> str:
    return formatting.format_mix(mix.mix, {i: _adapter_of(mix, i, names) for i in mix.weights})


def _adapter_of(mix: Any, adapter_id: str, names: Names) -> str:
    """The name of an adapter of a saved mix; a deleted one has the name of when the mix was saved."""
    if adapter_id in names.adapters:
        return names.adapters[adapter_id]
    known = mix.names.get(adapter_id)
    return f"{known} (deleted)" if known else "a deleted adapter"


def render_details(kind: str, item: Any, names: Names) -> Node:
    """What an item is and where it came from; ids, hashes and the method's figures are folded away."""
    shown, folded = {
        "adapters": _adapter_facts,
        "runs": _run_facts,
        "datasets": _dataset_facts,
        "mixes": _mix_facts,
        "reports": _report_facts,
    }[kind](item, names)
    buttons = {
        "adapters": [
            download("Download as zip", f"adapter/{item.id}.zip", f"{item.id}.zip"),
            button("Verify", {"do": "verify"}),
            button("Export…", {"do": "export", "adapter": item.id}),
        ],
        "reports": [download("Download as CSV", f"report/{item.id}.csv", f"{item.id}.csv")],
    }.get(kind, [])
    record = item.spec.to_json() if kind == "runs" else getattr(item, "metadata", None)
    return node(
        "div",
        node("div", node("h2", title_of(kind, item, names)), *_chips(kind, item), cls="row"),
        *[node("p", w, cls="problem") for w in getattr(item, "warnings", ())],
        facts([*shown, ("Created", formatting.format_time(item.created))]),
        node("div", *buttons, cls="row") if buttons else None,
        details("Details", facts([*folded, ("Id", item.id)]), _record(record) if record else None),
    )


def render_question(name: str, uses: Sequence[str]) -> Node:
    """The question before an item is moved to the trash, with what uses it."""
    question = f"Delete {name}? It can be restored from the trash."
    if not uses:
        return node("div", node("p", question), cls="problem")
    shown = [node("li", use) for use in uses[:USES_SHOWN]]
    if len(uses) > USES_SHOWN:
        shown.append(node("li", f"and {len(uses) - USES_SHOWN} more"))
    lead = f"{name} is used by:"
    return node("div", node("p", lead), node("ul", *shown), node("p", question), cls="problem")


def _record(record: Any) -> Node:
    text = json.dumps(record, indent=2, ensure_ascii=False)
    return node("details", node("summary", "Full record"), node("pre", text))


def render_checks(checks: Sequence[str]) -> Node:
    """What the verification of an adapter has checked."""
    items = node("ul", *[node("li", text) for text in checks], cls="checks")
    return node("div", chip("verified", "good"), items)


def _adapter_facts(adapter: Any, names: Names) -> tuple[Facts, Facts]:
    results = adapter.results
    perplexity = results.get("validation_perplexity")
    start = results.get("validation_perplexity_at_start")
    worth = formatting.format_number(perplexity, 2) if isinstance(perplexity, float) else ""
    if worth and isinstance(start, float):
        worth += f" (the base: {formatting.format_number(start, 2)}; lower is better)"
    shown = [
        ("Base", formatting.format_base(adapter.base)),
        ("Trained on", names.datasets.get(adapter.dataset, adapter.dataset_name)),
        ("On top of", _name_of(adapter.stacked_on, names.adapters)),
        ("Steps", formatting.format_number(results.get("steps")) if results.get("steps") else ""),
        ("Validation perplexity", worth),
        ("Made with", (adapter.metadata.get("imported") or {}).get("tool", "")),
        ("Changed by the import", ", ".join((adapter.metadata.get("imported") or {}).get("repairs", []))),
        ("Used alone only", adapter.alone),
        ("Weight on Auto", formatting.end_sentence(describe_gate(adapter.metadata.get("gate")))),
        ("Repaired after an interrupted change", adapter.repairs),
        ("Size", formatting.format_bytes(adapter.bytes)),
    ]
    figures = [(k.replace("_", " "), v) for k, v in results.items() if isinstance(v, (int, float))]
    folded = [
        ("Rank and alpha", f"{adapter.rank}, {adapter.alpha:g}"),
        ("Target modules", ", ".join(adapter.target_modules)),
        ("Results", ", ".join(f"{name} {value:.4g}" for name, value in figures)),
        ("sha256", adapter.sha256[:16]),
    ]
    return shown, folded


def _name_of(item_id: str, names: Mapping[str, str]) -> str:
    """The name of an item; "deleted" for one that is gone; "" without an id."""
    return names.get(item_id, "deleted") if item_id else ""


def _run_facts(run: Any, names: Names) -> tuple[Facts, Facts]:
    shown = [
        ("Base", formatting.format_base(run.base)),
        ("Trained on", _name_of(run.spec.dataset, names.datasets)),
        ("Steps", f"{run.step:,} of {run.total_steps:,}"),
        ("Adapter", names.adapters.get(run.adapter, "none in the library")),
        ("Error", run.error),
    ]
    return shown, []


def _dataset_facts(dataset: Any, names: Names) -> tuple[Facts, Facts]:
    files = [f["name"] for f in dataset.files]
    listed = ", ".join(files[:FILES_SHOWN])
    more = f" and {len(files) - FILES_SHOWN} more" if len(files) > FILES_SHOWN else ""
    shown = [
        ("Rows", f"{dataset.rows:,}"),
        ("Use", _splits(dataset)),
        ("Made from", ", ".join(_name_of(i, names.datasets) for i in getattr(dataset, "parents", ()))),
        ("Files", listed + more),
        ("Note", getattr(dataset, "note", "")),
    ]
    return shown, [("Split seed", dataset.seed), ("sha256", dataset.sha256[:16])]


def _mix_facts(mix: Any, names: Names) -> tuple[Facts, Facts]:
    return [("Formula", _formula(mix, names))], []


def _report_facts(report: Any, names: Names) -> tuple[Facts, Facts]:
    shown = [
        ("Dataset", names.datasets.get(report.dataset, f"{report.dataset_name} (deleted)")),
        ("Rows", formatting.format_split(report.split)),
        ("Base", formatting.format_base(report.base)),
        ("Mixes", ", ".join(names.mixes.get(row.get("mix", ""), row["name"]) for row in report.rows)),
        ("Duration", formatting.format_duration(report.seconds)),
    ]
    return shown, []
