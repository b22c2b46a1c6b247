"""Views of the Library tab: the list of one kind of item, and an item's details."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from studio import formatting
from studio.tree import Node, button, chip, download, empty, facts, node

NOTHING_SELECTED = empty(
    "Nothing selected", "Select an item in the list to see what it is and where it came from."
)
# What an empty list shows: a title, how to get the first item, and the tab where that happens.
EMPTY_LISTS = {
    "adapters": ("No adapters yet", "A run adds its adapter here when it ends or is stopped.", "train"),
    "runs": ("No runs yet", "Every training run is listed with its curve and its settings.", "train"),
    "datasets": ("No datasets yet", "Import files or the sample data.", "data"),
    "mixes": ("No saved mixes yet", "Mixes that you save in the mixer appear here and in Compare.", "mix"),
    "reports": ("No reports yet", "Measure some mixes to create one.", "evaluate"),
}
Facts = list[tuple[str, Any]]


def render_shelf(kind: str, items: Sequence[Any], picked: str, disk: Mapping[str, int]) -> Node:
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
        "div", node("div", *[_shelf_item(kind, i, i.id == picked) for i in items], cls="shelf"), usage
    )


def _shelf_item(kind: str, item: Any, is_picked: bool) -> Node:
    return node(
        "button",
        node("span", node("strong", _title(kind, item)), *_chips(kind, item), cls="row"),
        node("span", f"{_summary(kind, item)} · {formatting.format_time(item.created)}", cls="quiet"),
        cls="shelf-item picked" if is_picked else "shelf-item",
        act={"pick": item.id},
        aria_pressed="true" if is_picked else "false",
    )


def _title(kind: str, item: Any) -> str:
    return f"{item.dataset_name} ({item.split})" if kind == "reports" else str(item.name)


def _chips(kind: str, item: Any) -> list[Node]:
    chips = [chip(item.kind, item.kind)] if kind in ("adapters", "runs", "datasets") else []
    chips += [chip("cannot be mixed live", "warn")] if getattr(item, "unmixable", "") else []
    return [*chips, chip(item.status.value, item.status.value)] if kind == "runs" else chips


def _summary(kind: str, item: Any) -> str:
    if kind == "adapters":
        return f"rank {item.rank} · {formatting.format_bytes(item.bytes)} · {item.dataset_name}"
    if kind == "runs":
        return f"step {item.step} of {item.total_steps} · {formatting.format_base(item.base)}"
    if kind == "datasets":
        return f"{item.rows:,} rows · " + " / ".join(f"{n:,}" for n in item.splits.values())
    if kind == "mixes":
        return formatting.format_mix(item.weights)
    return f"{len(item.rows)} mixes · {formatting.format_base(item.base)}"


def render_details(kind: str, item: Any, names: Mapping[str, str]) -> Node:
    """What an item is and where it came from.

    Args:
        names: the names of adapters, by id.
    """
    rows = {
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
        ],
        "reports": [download("Download as CSV", f"report/{item.id}.csv", f"{item.id}.csv")],
    }.get(kind, [])
    record = item.spec.to_json() if kind == "runs" else getattr(item, "metadata", None)
    return node(
        "div",
        node("div", node("h2", _title(kind, item)), *_chips(kind, item), cls="row"),
        *[node("p", w, cls="problem") for w in getattr(item, "warnings", ())],
        facts([*rows, ("Created", formatting.format_time(item.created)), ("Id", item.id)]),
        node("div", *buttons, cls="row") if buttons else None,
        _record(record) if record else None,
    )


def _record(record: Any) -> Node:
    text = json.dumps(record, indent=2, ensure_ascii=False)
    return node("details", node("summary", "Full record"), node("pre", text))


def render_checks(checks: Sequence[str]) -> Node:
    """What the verification of an adapter has checked."""
    items = node("ul", *[node("li", text) for text in checks], cls="checks")
    return node("div", chip("verified", "good"), items)


def _adapter_facts(adapter: Any, names: Mapping[str, str]) -> Facts:
    results = [(k.replace("_", " "), v) for k, v in adapter.results.items() if isinstance(v, (int, float))]
    return [
        ("Base", formatting.format_base(adapter.base)),
        ("Rank and alpha", f"{adapter.rank}, {adapter.alpha:g}"),
        ("Target modules", ", ".join(adapter.target_modules)),
        ("Trained on", adapter.dataset_name),
        ("Parent adapter", adapter.stacked_on),
        ("Cannot be mixed live", adapter.unmixable),
        ("Repaired after an interrupted change", adapter.repairs),
        ("Results", ", ".join(f"{name} {value:.4g}" for name, value in results)),
        ("Size", formatting.format_bytes(adapter.bytes)),
        ("sha256", adapter.sha256[:16]),
    ]


def _run_facts(run: Any, names: Mapping[str, str]) -> Facts:
    return [
        ("Base", formatting.format_base(run.base)),
        ("Steps", f"{run.step} of {run.total_steps}"),
        ("Adapter", run.adapter),
        ("Error", run.error),
    ]


def _dataset_facts(dataset: Any, names: Mapping[str, str]) -> Facts:
    return [
        ("Rows", f"{dataset.rows:,}"),
        ("Splits", ", ".join(f"{k} {n:,}" for k, n in dataset.splits.items())),
        ("Split seed", dataset.seed),
        ("Files", ", ".join(f["name"] for f in dataset.files)[:300]),
        ("sha256", dataset.sha256[:16]),
    ]


def _mix_facts(mix: Any, names: Mapping[str, str]) -> Facts:
    return [("Formula", formatting.format_mix({names.get(i, i): w for i, w in mix.weights.items()}))]


def _report_facts(report: Any, names: Mapping[str, str]) -> Facts:
    return [
        ("Dataset", report.dataset_name),
        ("Split", report.split),
        ("Base", formatting.format_base(report.base)),
        ("Mixes", ", ".join(row["name"] for row in report.rows)),
        ("Duration", formatting.format_duration(report.seconds)),
    ]
