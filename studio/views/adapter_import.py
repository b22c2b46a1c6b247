"""Views of an adapter that another tool made: the card of its examination, and the proof after the import."""

from __future__ import annotations

from typing import Any

from studio import formatting
from studio.tree import Node, button, chip, facts, node, table, title

NUMBERS_SHOWN = 6  # different ranks or scalings
TARGETS_SHOWN = 12
LEVELS = {
    "blocks": ("needs a choice", "bad"),
    "warns": ("look at this", "warn"),
    "notes": ("for information", ""),
}
RESOLVED = ("answered", "good")
FORMS_CAPTION = "The adapter's answer to each form of the prompt"


def render_preflight(preflight: Any) -> Node:
    """The card: what the adapter is, what was found, and the repairs as buttons."""
    ranks = ", ".join(str(r) for r in preflight.ranks[:NUMBERS_SHOWN])
    scalings = ", ".join(f"{s:g}" for s in preflight.scalings[:NUMBERS_SHOWN])
    targets = ", ".join(preflight.targets[:TARGETS_SHOWN])
    claimed = preflight.claimed_base or "not named"
    base = f"{formatting.format_base(preflight.base)}, the resident base"
    if preflight.base_is_proven:
        base += ", by its fingerprint"
    pairs = [
        ("Made with", preflight.tool),
        ("Form of the file", preflight.form),
        ("Base", base),
        ("Base that the adapter names", claimed),
        ("Layers", f"{preflight.modules:,} in {formatting.count(preflight.layers, 'block')}: {targets}"),
        ("Rank and scaling", f"{ranks}; {scalings}"),
        ("Parameters", f"{preflight.parameters:,}"),
        ("Properties", ", ".join(preflight.properties)),
    ]
    return node(
        "div",
        title(preflight.source, _summarize(preflight)),
        facts(pairs),
        node("div", *[_render_item(f) for f in preflight.findings], cls="import-list", aria_label="Findings"),
        cls="adapter-preflight",
    )


def _summarize(preflight: Any) -> str:
    blocking = len(preflight.open_findings)
    if not blocking:
        return "Nothing is imported yet. It can be imported as it is shown here."
    if all(f.repairs for f in preflight.open_findings):
        return f"Nothing is imported yet. {formatting.count(blocking, 'finding')} first: choose a repair."
    return "It cannot be imported. The reason and what to do stand below."


def _render_item(finding: Any) -> Node:
    label, kind = RESOLVED if finding.chosen else LEVELS[finding.level]
    buttons = []
    for repair in finding.repairs:
        is_chosen = repair.id == finding.chosen
        act = {"do": "undo" if is_chosen else "repair", "repair": repair.id}
        text = f"Undo: {repair.label}" if is_chosen else repair.label
        buttons.append(node("div", button(text, act), node("span", repair.effect, cls="quiet"), cls="row"))
    return node(
        "div",
        node("div", node("strong", finding.what), chip(label, kind), cls="row spread-row"),
        node("p", finding.follows, cls="quiet") if finding.follows else None,
        *buttons,
        cls="import-job",
    )


def render_progress(progress: Any) -> Node:
    """The place of the card while files are downloaded or extracted."""
    copied = f" {formatting.format_bytes(progress.done)} are copied so far." if progress.done else ""
    return node("p", f"{progress.text}{copied}", cls="quiet", role="status")


def render_problem(problem: str) -> Node:
    """Why a source cannot be examined."""
    return node("p", problem, cls="problem", role="alert")


def render_success(name: str) -> Node:
    """The place of the card after the import."""
    text = f"{name} is in the library. Compare it with the base on a question that it was trained for."
    return node("p", text, role="status")


def render_proof(proof: Any) -> Node:
    """The base against the adapter on one line."""
    rows = [["Base", proof.base_text], ["Adapter", proof.adapter_text]]
    said = node("p", proof.verdict, cls="problem" if proof.is_suspicious else "quiet", role="status")
    forms = None
    if proof.forms:
        forms = table(
            ["Form of the prompt", "Answer", "Change (nats a token)"],
            [
                [f"{f.form} (preferred)" if f.is_preferred else f.form, f.text, f"{f.divergence:.3g}"]
                for f in proof.forms
            ],
            FORMS_CAPTION,
            frozenset({2}),
        )
    return node("div", table(["", "Answer"], rows, proof.line), said, forms)
