"""Views of the analysis card: progress, attribution, interference and the result of baking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.merge.methods import METHODS
from core.progress import Progress
from studio.components import plot
from studio.tree import Node, details, facts, node, progress_bar, table, title

if TYPE_CHECKING:
    from core.analyze.attribution import Attribution
    from core.analyze.interference import Overlap, WeightComparison
    from core.analyze.output_comparison import OutputComparison
    from core.engine.analysis import InterferenceProgress
    from core.merge.bake_result import BakeResult


def render_progress(progress: Progress) -> Node:
    """How far the work is."""
    share = progress.done / progress.total if progress.total else 0.0
    text = f"{progress.text}: {progress.done} of {progress.total}"
    return node("div", node("p", text, cls="quiet"), progress_bar(share))


def render_attribution(attribution: Attribution, adapters: Mapping[str, tuple[str, str]]) -> Node:
    """The tokens of an answer, once for each adapter, tinted by what it adds to their log-probability.

    Args:
        adapters: id -> (name, kind).
    """
    lines = [
        ("All adapters", "mix", attribution.joint),
        *((*adapters.get(a, (a, "mix")), nats) for a, nats in attribution.by_adapter.items()),
    ]
    most = max((abs(n) for _, _, nats in lines for n in nats), default=1.0) or 1.0
    rows = []
    for name, kind, nats in lines:
        tokens = [_render_token(t, n, most) for t, n in zip(attribution.tokens, nats, strict=True)]
        rows.append(
            node("div", node("strong", name), node("p", *tokens, cls="tinted"), cls=f"word-row {kind}")
        )
    headings = ["Token", *[name for name, _, _ in lines], "Log-probability"]
    numbers = [
        [token.strip() or "␣", *[f"{nats[i]:+.2f}" for _, _, nats in lines], f"{attribution.full[i]:.2f}"]
        for i, token in enumerate(attribution.tokens)
    ]
    caption = "Nats that each adapter adds to a token's log-probability, which is in the last column"
    legend = "Filled: the adapter made the token more likely. Underlined: less likely."
    summary = attribution.summary({a: name for a, (name, _) in adapters.items()})
    return node(
        "div",
        node("p", summary, cls="reading"),
        *rows,
        node("p", legend, cls="quiet"),
        _numbers("Show the numbers", headings, numbers, caption),
    )


def _render_token(text: str, nats: float, most: float) -> Node:
    strength = f"{100 * min(1.0, math.sqrt(abs(nats) / most)):.0f}%"
    return node(
        "span",
        text,
        cls="word more" if nats >= 0 else "word less",
        vars={"strength": strength},
        title=f"{nats:+.2f} nats",
    )


def _numbers(summary: str, headings: list[str], rows: list[list[Any]], caption: str) -> Node:
    numeric = frozenset(range(1, len(headings)))
    return node("details", node("summary", summary), table(headings, rows, caption, numeric))


def render_overlap(interference: InterferenceProgress) -> Node:
    """Every pair of adapters by their weights, and all of them by their outputs on the prompt."""
    kids: list[Node] = []
    for pair in interference.pairs:
        kids += _render_pair(pair)
    if interference.outputs is not None:
        kids += _render_outputs(interference.outputs)
    if interference.note:
        kids.append(node("p", interference.note, cls="note"))
    return node("div", *kids)


def _render_pair(pair: WeightComparison) -> list[Node]:
    a, b = pair.names
    headings = [
        "Layer",
        "Cosine",
        "Output overlap",
        "Chance level",
        "Input overlap",
        "Chance level",
        f"Norm of {a}",
        f"Norm of {b}",
    ]
    rows = [_overlap_row(overlap) for overlap in (pair.overall, *pair.layers)]
    numbers = _numbers(f"Show the numbers for {a} and {b}", headings, rows, f"Weight updates of {a} and {b}")
    return [node("p", pair.summary(), cls="reading"), numbers]


def _overlap_row(overlap: Overlap) -> list[Any]:
    return [
        "All" if overlap.layer < 0 else str(overlap.layer),
        f"{overlap.cosine:+.3f}",
        f"{overlap.output_overlap:.2f}",
        f"{overlap.chance_output_overlap:.2f}",
        f"{overlap.input_overlap:.2f}",
        f"{overlap.chance_input_overlap:.2f}",
        *[f"{norm:.3g}" for norm in overlap.norms],
    ]


def _render_outputs(outputs: OutputComparison) -> list[Node]:
    rows = [("Divergence of the mix from the base", f"{outputs.divergence_from_base:.3g} nats per token")]
    for name, divergence in zip(outputs.names, outputs.divergence_from_parts, strict=True):
        rows.append((f"Divergence of the mix from {name} alone", f"{divergence:.3g} nats per token"))
    return [
        node("h3", "On the prompt"),
        node("p", outputs.summary(), cls="reading"),
        details("Details", facts([*rows])),
    ]


def plot_cosines(interference: InterferenceProgress) -> dict[str, Any] | None:
    """A heat map of the first pair's cosines, by layer and module."""
    overlaps = interference.pairs[0].modules
    if not overlaps:
        return None
    modules = list(dict.fromkeys(o.module for o in overlaps))
    layers = sorted({o.layer for o in overlaps})
    cosines = {(o.layer, o.module): o.cosine for o in overlaps}
    grid = [[cosines.get((layer, module)) for module in modules] for layer in layers]
    most = max(0.1, *(abs(cosine) for cosine in cosines.values()))
    trace = {
        "type": "heatmap",
        "x": modules,
        "y": [f"Layer {layer}" for layer in layers],
        "z": grid,
        "text": [[_format_cosine(cosine) for cosine in row] for row in grid],
        "texttemplate": "%{text}",
        "zmin": -most,
        "zmax": most,
        "colorscale": [[0, "--st-task"], [0.5, "--st-card"], [1, "--st-domain"]],
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": "%{y}, %{x}: cosine %{text}<extra></extra>",
        "colorbar": {"thickness": 12, "outlinewidth": 0, "title": {"text": "cosine"}},
    }
    layout = {"yaxis": {"autorange": "reversed"}}
    return plot.figure([trace], layout, height=120 + 34 * len(layers))


def _format_cosine(cosine: float | None) -> str:
    if cosine is None:
        return ""
    return f"{cosine:+.2f}" if abs(cosine) >= 0.005 else "0"


def render_bake_result(result: BakeResult) -> Node:
    """The baked adapter, and how close it is to the live mix."""
    shown = [("Adapter", result.adapter.name), ("Method", METHODS[result.method].label)]
    rows: Sequence[tuple[str, Any]] = [
        ("Rank", result.rank),
        ("Energy of the difference", f"{result.changed:.3%}"),
    ]
    if result.logit_difference is not None:
        rows = [*rows, ("Largest logit difference", f"{result.logit_difference:.2g}")]
    if result.divergence is not None:
        rows = [*rows, ("Divergence from the live mix", f"{result.divergence:.2g} nats per token")]
    where = "You can verify and download it in the Library, and use it in the mixer."
    return node(
        "div",
        title(f"{result.adapter.name} is baked"),
        node("p", result.summary(), cls="reading"),
        facts([*shown]),
        node("p", where, cls="quiet"),
        details("Details", facts([*rows])),
    )
